"""A result of training: what it says, and that it comes back as it was saved."""

import json
import subprocess
import sys

import pytest

from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.training.config import FinetuneConfig
from nexus_integrations.training.result import Epoch, FinetuneResult

EPOCH = Epoch(epoch=1, dendrites=0, loss=2.0, score=0.7, parameters=4, seconds=0.1)
NUMBERS = {
    "metric": "ndcg@10",
    "baseline_score": 0.4218,
    "score": 0.5484,
    "dendrites": 1,
    "gamma": 0.02,
    "dev_source": "given",
    "dropped": 3,
    "repeated": 2,
    "seconds": 4.2,
    "embedding_seconds": 1.4,
    "fingerprint": "ab" * 32,
    "document_fingerprint": "cd" * 32,
    "config": FinetuneConfig().resolved("questions"),
    "history": [EPOCH],
}


def test_it_prints_as_a_few_lines(tiny):
    """Dev before and after, heads, seconds, γ, and what makes the score worth less."""
    assert str(FinetuneResult.of(tiny, **NUMBERS)).splitlines() == [
        "dev nDCG@10 0.4218 → 0.5484 (dev: given)",
        "heads: query, with 1 dendrite; 1 epochs in 4 s, and 1 s of embedding",
        "γ = 0.02 suits the dev questions best",
        "2 dev questions nearly repeat a training question: the dev score tells less of new "
        "questions",
        "3 questions without a relevant passage were left out",
    ]


def test_it_is_saved_and_loaded(tiny, tmp_path):
    """Numbers are equal; the encoder is read when it is asked for."""
    result = FinetuneResult.of(tiny, **NUMBERS)
    result.save(tmp_path)
    loaded = FinetuneResult.load(tmp_path)
    assert loaded == result
    assert (loaded.heads, loaded.config.gamma, loaded.history) == ("query", 0.02, [EPOCH])
    assert loaded.encoder.fingerprint == tiny.fingerprint
    assert loaded.encoder is loaded.encoder


def test_numbers_are_read_without_the_encoder(tiny, tmp_path):
    """A folder whose backbone is gone still tells how it was trained."""
    FinetuneResult.of(tiny, **NUMBERS).save(tmp_path)
    (tmp_path / "nexus.json").unlink()
    assert FinetuneResult.load(tmp_path).score == 0.5484
    (tmp_path / "training.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"training\.json"):
        FinetuneResult.load(tmp_path)


@pytest.mark.parametrize("field", ["score", "config", "history"])
def test_a_damaged_file_is_named_without_its_content(tiny, tmp_path, field):
    """The error names file and field."""
    FinetuneResult.of(tiny, **NUMBERS).save(tmp_path)
    path = tmp_path / "training.json"
    content = json.loads(path.read_text()) | {field: "canary"}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"training\.json .*'{field}'") as error:
        FinetuneResult.load(tmp_path)
    assert "canary" not in str(error.value)


def test_it_needs_no_torch():
    """The numbers of a run are read where PyTorch is not installed."""
    program = (
        "import sys; sys.modules['torch'] = None; "
        "from nexus_integrations.training.result import FinetuneResult"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_encoder_is_held_as_given(tiny):
    """What `finetune` returns holds the encoder itself."""
    assert FinetuneResult.of(tiny, **NUMBERS).encoder is tiny
    assert isinstance(tiny, DendriticEncoder)
