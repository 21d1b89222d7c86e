"""Every setting of a training changes something, or is refused by name."""

from dataclasses import fields, replace

import numpy as np
import pytest

from nexus_integrations.data import RetrievalDataset, SimilarityDataset
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.training.config import FinetuneConfig
from nexus_integrations.training.finetune import finetune

TRAININGS = [(b, d) for b in ("frozen", "trainable") for d in ("questions", "pairs")]

# Another value than the default, and what must be set beside it so that it can have a part.
OTHER = {
    "backbone": ({}, None),
    "heads": ({}, "separate"),
    "dendrites": ({}, 1),
    "tries": ({"dendrites": 1, "learning_rate": 1e-9}, 1),
    "epochs": ({}, 3),
    "warmup_epochs": ({"dendrites": 1}, 1),
    "loss": ({}, "angle"),
    "learning_rate": ({}, 0.01),
    "backbone_learning_rate": ({}, 1e-3),
    "dropout": ({}, True),
    "decay": ({}, False),
    "batch_size": ({}, 5),
    "weight_decay": ({}, 0.5),
    "scale": ({}, 3.0),
    "anchor": ({}, 5.0),
    "gamma": ({}, 0.5),
    "refit": ({}, True),
    "average": ({}, 2),
    "split_by": ({}, "document"),
    "seed": ({}, 5),
}
REFUSED = {
    ("frozen", "questions"): {"loss", "backbone_learning_rate", "dropout"},
    ("frozen", "pairs"): {"heads", "gamma", "split_by", "backbone_learning_rate", "dropout"},
    ("trainable", "questions"): {"tries", "loss", "anchor", "gamma"},
    ("trainable", "pairs"): {"heads", "tries", "anchor", "gamma", "split_by"},
}


def questions() -> RetrievalDataset:
    """Passages of letters; a question's answer is the passage of the next letter."""
    queries = {f"{a}{n}": a * n for a in "aceg" for n in range(1, 13)}
    answers = {id_: f"{chr(ord(id_[0]) + 1)}{len(text) % 3}" for id_, text in queries.items()}
    corpus = {id_: f"{id_[0]} {id_[0] * (2 + int(id_[1]))}" for id_ in answers.values()}
    return RetrievalDataset(
        queries=queries, corpus=corpus, relevant_docs={q: [d] for q, d in answers.items()}
    )


def pairs() -> SimilarityDataset:
    """Words of one letter each; equal kinds of letters, a…d and e…h, are similar."""
    rng = np.random.default_rng(0)
    letters, sizes = rng.integers(0, 8, (2, 60)), rng.integers(1, 9, (2, 60))
    words = [
        [chr(97 + k) * s for k, s in zip(*row, strict=True)]
        for row in zip(letters.tolist(), sizes.tolist(), strict=True)
    ]
    scores = (letters[0] // 4 == letters[1] // 4).astype(np.float32)
    return SimilarityDataset(sentences1=words[0], sentences2=words[1], scores=scores)


DATA = {"questions": questions(), "pairs": pairs()}


@pytest.fixture(scope="module")
def trained(tiny_model):
    """Return, once per config, what a training without a dev set of its own leaves."""
    encoder = DendriticEncoder.load(tiny_model, backend="torch")
    known = {}

    def train(config: FinetuneConfig, data: str) -> tuple:
        if (config, data) not in known:
            result = finetune(encoder, DATA[data], config=config)
            scores = [epoch.loss for epoch in result.history]
            known[config, data] = (result.encoder.fingerprint, scores, result.dev_source)
        return known[config, data]

    return train


def base(backbone: str) -> FinetuneConfig:
    """A quick training that gains on dev."""
    config = FinetuneConfig(dendrites=0, epochs=4, batch_size=8, learning_rate=0.05)
    if backbone == "trainable":
        return replace(config, backbone="trainable", backbone_learning_rate=1e-2)
    return config


def test_the_table_names_every_setting():
    """A setting that is added must be added here."""
    assert list(OTHER) == [field.name for field in fields(FinetuneConfig)]


GROWN = ("dendrites", "tries", "warmup_epochs")


@pytest.mark.parametrize("name", [name for name in OTHER if name not in ("backbone", *GROWN)])
@pytest.mark.parametrize(("backbone", "data"), TRAININGS)
def test_a_setting_changes_something_or_is_refused(trained, backbone, data, name):
    """Weights, losses or the dev set differ with another value; else the error names both."""
    check_setting(trained, backbone, data, name)


@pytest.mark.dendrites
@pytest.mark.usefixtures("perforatedai")
@pytest.mark.parametrize("name", GROWN)
@pytest.mark.parametrize(("backbone", "data"), TRAININGS)
def test_a_setting_of_growth_does_so_too(trained, backbone, data, name):
    """The same, of what decides how dendrites grow."""
    check_setting(trained, backbone, data, name)


def check_setting(trained, backbone, data, name):
    beside, value = OTHER[name]
    if name in REFUSED[backbone, data]:
        with pytest.raises(ValueError, match=rf"{name}=.*(changes nothing with|, but sentence)"):
            finetune(
                None,
                DATA[data],
                config=replace(base(backbone), **beside, **{name: value}),
            )
        return
    config = replace(base(backbone), **beside)
    assert trained(replace(config, **{name: value}), data) != trained(config, data)


@pytest.mark.parametrize("data", ["questions", "pairs"])
def test_the_backbone_changes_something(trained, data):
    """With equal settings a trained backbone gives other vectors than a frozen one."""
    frozen = FinetuneConfig(dendrites=0, epochs=2, batch_size=8)
    assert trained(frozen, data) != trained(replace(frozen, backbone="trainable"), data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dendrites": 0, "tries": 2}, "tries=2 changes nothing with dendrites=0"),
        ({"dendrites": 0, "warmup_epochs": 2}, "warmup_epochs=2 changes nothing with dendrites=0"),
        ({"dropout": False}, "dropout=False changes nothing with backbone='frozen'"),
        ({"backbone": "trainable", "gamma": 0.0}, "gamma=0.0 changes nothing with backbone='tr"),
        ({"backbone": "trainable", "heads": "query"}, "changes documents as well"),
    ],
)
def test_what_no_data_could_use_is_refused_on_construction(settings, message):
    """Nothing is embedded for a config that contradicts itself."""
    with pytest.raises(ValueError, match=message):
        FinetuneConfig(**settings)


def test_arguments_that_have_no_part_are_refused(tiny_model, tmp_path):
    """A scale without a softmax, an index without documents, a way to split what is given."""
    encoder = DendriticEncoder.load(tiny_model)
    linear = FinetuneConfig(dendrites=0, epochs=1)
    with pytest.raises(ValueError, match=r"scale=3\.0 changes nothing with loss='cosine'"):
        finetune(encoder, DATA["pairs"], config=replace(linear, loss="cosine", scale=3.0))
    with pytest.raises(ValueError, match="index: sentence pairs have no documents"):
        finetune(encoder, DATA["pairs"], config=linear, index=object())
    data = DATA["questions"]
    with pytest.raises(ValueError, match="split_by='document' changes nothing where dev is given"):
        finetune(encoder, data, data, replace(linear, split_by="document"))
    with pytest.raises(ValueError, match="checkpoint_dir: growing dendrites on a frozen backbone"):
        finetune(encoder, DATA["questions"], checkpoint_dir=tmp_path)


def test_settings_are_the_resolved_ones():
    """Defaults are filled in, and what a training does not have is left out."""
    linear = FinetuneConfig(dendrites=0)
    assert linear.settings("questions")["gamma"] == 0.02
    assert not {"loss", "tries", "dropout"} & set(linear.settings("questions"))
    assert linear.settings("pairs")["loss"] == "cosent"
    grown = FinetuneConfig(epochs=7).settings()
    assert (grown["tries"], grown["warmup_epochs"], grown["heads"]) == (2, 7, "query")
    assert FinetuneConfig(**linear.settings("pairs")) == linear.resolved("pairs")


def test_a_backbone_in_onnx_runtime_is_trained_by_torch(tiny_model, tmp_path):
    """An encoder from a plain load is read once more, and the tuned one runs and is saved."""
    encoder = DendriticEncoder.load(tiny_model)
    assert encoder.backbone.backend == "onnx"
    tuned = finetune(encoder, DATA["questions"], config=base("trainable"))
    assert tuned.score > tuned.baseline_score
    tuned.save(tmp_path / "tuned")
    loaded = DendriticEncoder.load(tmp_path / "tuned")
    np.testing.assert_allclose(
        loaded.encode_queries(["aaa"]), tuned.encoder.encode_queries(["aaa"]), atol=1e-5
    )
