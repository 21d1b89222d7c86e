"""Heads handed on without their backbone, their card, and what is uploaded."""

import importlib
import json
import re
import shutil
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from nexus_integrations import (
    DendriticEncoder,
    DendriticHead,
    FinetuneConfig,
    RetrievalDataset,
    evaluate,
    finetune,
)
from nexus_integrations.card import model_card, write_card
from nexus_integrations.hub import save_to_hub
from nexus_integrations.index import MemoryIndex
from nexus_integrations.retrievers import DenseRetriever

huggingface_hub = pytest.importorskip("huggingface_hub")

SECRETS = {f"d{n}": f"passage {word}" for n, word in enumerate(("alpha", "beta", "gamma", "delta"))}
QUESTIONS = {f"q{n}": f"what is {word}" for n, word in enumerate(("alpha", "beta", "gamma"))}


@pytest.fixture
def dataset() -> RetrievalDataset:
    return RetrievalDataset(
        queries=QUESTIONS,
        corpus=SECRETS,
        relevant_docs={"q0": ["d0"], "q1": ["d1"], "q2": ["d2"]},
    )


@pytest.fixture
def hub_cache(tiny_model, tmp_path, monkeypatch) -> Path:
    """A hub cache, as the hub's client lays it out, that holds the tiny model as acme/tiny."""
    repository = tmp_path / "cache" / "models--acme--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny_model, repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return repository / "snapshots" / ("0" * 40)


@pytest.fixture
def tuned(hub_cache) -> DendriticEncoder:
    """acme/tiny with a random linear query head."""
    encoder = DendriticEncoder.load("acme/tiny")
    head = DendriticHead.untrained(encoder.dimension)
    weight = np.random.default_rng(0).normal(size=head.weight.shape)
    return encoder.with_heads(query_head=replace(head, weight=weight), document_head=None)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("no_network")
def test_heads_alone_find_their_backbone(tuned, tmp_path):
    """A folder of heads, manifest and card gives the vectors of the encoder it was saved from."""
    assert save_to_hub(tuned, tmp_path / "heads", backbone_name="acme/tiny")
    assert files_of(tmp_path / "heads") == {"README.md", "nexus.json", "query_head.safetensors"}
    again = DendriticEncoder.load(tmp_path / "heads")
    assert again.fingerprint == tuned.fingerprint
    np.testing.assert_array_equal(again.encode_queries(["abc"]), tuned.encode_queries(["abc"]))
    save_to_hub(again, tmp_path / "heads", backbone_name="acme/tiny")  # replaces itself
    assert DendriticEncoder.load(tmp_path / "heads").fingerprint == tuned.fingerprint


def test_another_backbone_of_that_name_is_refused(tuned, hub_cache, tmp_path):
    """Heads on vectors that they were not trained on would be noise, so that is an error."""
    save_to_hub(tuned, tmp_path / "heads", backbone_name="acme/tiny")
    settings = hub_cache / "config_sentence_transformers.json"
    content = json.loads(settings.read_text())
    settings.write_text(json.dumps({**content, "prompts": {"query": "q: ", "document": ""}}))
    with pytest.raises(ValueError, match="another acme/tiny than the one found"):
        DendriticEncoder.load(tmp_path / "heads")


def test_a_backbone_that_is_nowhere(tuned, tmp_path):
    """The error names the model that is missing."""
    save_to_hub(tuned, tmp_path / "heads", backbone_name="acme/other")
    with pytest.raises(FileNotFoundError, match="acme/other"):
        DendriticEncoder.load(tmp_path / "heads")


def test_the_name_is_asked_for(tuned, tmp_path):
    """Heads of a model whose name is not known need it; the whole encoder does not."""
    with pytest.raises(ValueError, match="give backbone_name"):
        save_to_hub(tuned, tmp_path / "heads")
    save_to_hub(tuned, tmp_path / "whole", whole=True)
    assert "backbone/model.safetensors" in files_of(tmp_path / "whole")
    assert DendriticEncoder.load(tmp_path / "whole").fingerprint == tuned.fingerprint


@pytest.mark.model
def test_the_default_models_name_is_known(encoder, tmp_path):
    """Heads on all-MiniLM-L6-v2 are two files and a card, and load."""
    save_to_hub(encoder, tmp_path / "heads")
    manifest = json.loads((tmp_path / "heads" / "nexus.json").read_text())
    assert manifest["backbone"]["name"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert DendriticEncoder.load(tmp_path / "heads").fingerprint == encoder.fingerprint


@pytest.fixture
def hub(monkeypatch):
    """The hub's HTTP interface in place of the network, and what was asked of it."""
    httpx = importlib.import_module(
        huggingface_hub.get_session().__class__.__module__.split(".")[0]
    )
    asked: list[tuple[str, object]] = []

    def answer(request):
        path, body = request.url.path, request.read()
        if path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            asked.append(("commit", {f["path"]: b64decode(f["content"]) for f in files}))
            return httpx.Response(
                200,
                json={"commitUrl": "https://huggingface.co/acme/heads/commit/1", "commitOid": "1"},
            )
        content = json.loads(body) if body else {}
        asked.append((path, content))
        if "/preupload/" in path:
            files = [{"path": f["path"], "uploadMode": "regular"} for f in content["files"]]
            return httpx.Response(
                200, json={"files": [{**file, "shouldIgnore": False} for file in files]}
            )
        return httpx.Response(
            200, json={"url": "https://huggingface.co/acme/heads", "errors": [], "warnings": []}
        )

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    factory = lambda: httpx.Client(transport=httpx.MockTransport(answer))  # noqa: E731
    huggingface_hub.set_client_factory(factory)
    yield asked
    from huggingface_hub.utils._http import default_client_factory

    huggingface_hub.set_client_factory(default_client_factory)


def test_upload(tuned, hub):
    """To a repository go heads, manifest and card, in one commit, private unless told otherwise."""
    address = save_to_hub(tuned, "acme/heads", backbone_name="acme/tiny", token="hf_test")
    assert "acme/heads" in address
    requests = dict(hub)
    created = requests["/api/repos/create"]
    assert (created["organization"], created["name"]) == ("acme", "heads")
    assert created["visibility"] == "private"
    files = requests["commit"]
    assert set(files) == {"README.md", "nexus.json", "query_head.safetensors"}
    assert json.loads(files["nexus.json"])["backbone"]["name"] == "acme/tiny"
    assert files["README.md"].decode() == model_card(tuned, backbone_name="acme/tiny")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["tuned", "./tuned", "/srv/tuned", "here/tuned", "~/tuned", ""])
def test_a_string_that_could_be_a_folder_is_not_uploaded(tuned, tmp_path, monkeypatch, name):
    """Nothing is sent anywhere by mistake."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"give a pathlib\.Path"):
        save_to_hub(tuned, name, backbone_name="acme/tiny")


def test_card(tiny, dataset, tmp_path):
    """It has counts, hashes, recipe, figures with intervals and versions, and no text."""
    config = FinetuneConfig(dendrites=0, epochs=2)
    result = finetune(tiny, dataset, dataset, config)
    index = MemoryIndex(list(SECRETS), tiny.encode_documents(list(SECRETS.values())))
    measured = evaluate(DenseRetriever(index, tiny), dataset)
    card = model_card(
        result.encoder,
        backbone_name="acme/tiny",
        training=result,
        data={"train": dataset},
        evaluations={
            "before": measured,
            "after": evaluate(DenseRetriever(index, result.encoder), dataset),
        },
    )
    front = yaml.safe_load(card.split("---")[1])
    assert (front["base_model"], front["library_name"]) == ("acme/tiny", "nexus-integrations")
    assert f"| train | 3 questions, 4 passages | `{dataset.digest}` |" in card
    assert result.encoder.fingerprint in card
    assert "| epochs | 2 |" in card
    low, high = measured.intervals["ndcg@10"]
    assert f"{measured.metrics['ndcg@10']:.4f} ({low:.4f} to {high:.4f})" in card
    assert re.search(r"\| Python \| 3\.\d+", card)
    for text in (*SECRETS.values(), *QUESTIONS.values()):
        assert text not in card
    # Every table is one: as many cells in each row as in the row above.
    for above, row in zip(card.splitlines(), card.splitlines()[1:], strict=False):
        if above.startswith("|") and row.startswith("|"):
            assert row.count("|") == above.count("|"), row


def test_card_of_a_saved_folder_changes_no_hash(tuned, tmp_path):
    """The card lies beside what the manifest verifies."""
    tuned.save(tmp_path / "tuned")
    write_card(tmp_path / "tuned", model_card(tuned))
    assert DendriticEncoder.load(tmp_path / "tuned").fingerprint == tuned.fingerprint
