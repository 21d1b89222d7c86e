"""Toy encoders whose vectors follow by hand, a tiny transformer, and the real model."""

import os
import socket
import string
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

# No test needs the network. The hub's client reads this when it is first imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Likewise ONNX Runtime, which some tests import themselves.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import pytest

import nexus_integrations
from nexus_integrations.data import RetrievalDataset
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.encoder.source import find_model
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.protocols import Floats

PACKAGE = Path(nexus_integrations.__file__).parent
ROOT = PACKAGE.parent


def unit(*vector: float) -> Floats:
    """Return the vector at length one, float32."""
    return np.asarray(np.array(vector) / np.linalg.norm(vector), dtype=np.float32)


class ToyEncoder:
    """An `Encoder` that looks vectors up: text to unit row, the same for both roles."""

    def __init__(self, vectors: Mapping[str, Sequence[float]], name: str = "toy") -> None:
        self.table = {text: unit(*vector) for text, vector in vectors.items()}
        self.name = name

    @property
    def dimension(self) -> int:
        return len(next(iter(self.table.values())))

    @property
    def fingerprint(self) -> str:
        return sha256(self.name.encode()).hexdigest()

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        return np.stack([self.table[text] for text in texts])

    encode_documents = encode_queries


class TableBackbone:
    """Stands in for a `Backbone`: looks vectors up and records what it was asked."""

    folder = None
    backend = "torch"
    precision = "float32"
    device = "cpu"
    max_length = 256

    def __init__(self, table: Mapping[str, Floats], digest: str = "table") -> None:
        self.table = dict(table)
        self.digest = self.float32_digest = digest
        self.asked: list[tuple[str, str]] = []

    @property
    def dimension(self) -> int:
        return len(next(iter(self.table.values())))

    def encode(self, texts: Sequence[str], role: str) -> tuple[Floats, int]:
        self.asked += [(role, text) for text in texts]
        return np.stack([self.table[text] for text in texts]), 0


@pytest.fixture(scope="session")
def toy() -> type[ToyEncoder]:
    """Make an encoder from a dictionary of text to vector: `toy({"a text": (1, 0)})`."""
    return ToyEncoder


@pytest.fixture(scope="session")
def encoder() -> DendriticEncoder:
    """all-MiniLM-L6-v2 without heads; the test is skipped where the model is not installed."""
    try:
        find_model("all-MiniLM-L6-v2")
    except FileNotFoundError as error:
        pytest.skip(f"the model is not on this machine: {error}")
    return DendriticEncoder.load()


@pytest.fixture(scope="session")
def clinic() -> tuple[RetrievalDataset, RetrievalDataset, RetrievalDataset]:
    """The demo corpus as (train, dev, test)."""
    train, dev, test = RetrievalDataset.from_json(PACKAGE / "demo" / "clinic.json").split(
        0.6, 0.15, 0.25, seed=0
    )
    return train, dev, test


@pytest.fixture(scope="session")
def clinic_table(encoder, clinic) -> dict[str, Floats]:
    """The backbone's vector of every text of the demo corpus, embedded once per session."""
    documents = list(clinic[0].corpus.values())
    queries = [text for part in clinic for text in part.queries.values()]
    return {
        **dict(zip(documents, encoder.encode_documents(documents), strict=True)),
        **dict(zip(queries, encoder.encode_queries(queries), strict=True)),
    }


@pytest.fixture
def clinic_encoder(clinic_table, encoder) -> DendriticEncoder:
    """The real model's vectors of the demo corpus, without running the model again."""
    return DendriticEncoder(TableBackbone(clinic_table, encoder.backbone.digest))


@pytest.fixture
def clinic_index(clinic, clinic_table) -> MemoryIndex:
    """A fresh index of the demo corpus, ranked by the cosine."""
    corpus = clinic[0].corpus
    return MemoryIndex(list(corpus), np.stack([clinic_table[text] for text in corpus.values()]))


@pytest.fixture(scope="session")
def table_encoder() -> Callable[..., DendriticEncoder]:
    """Make a `DendriticEncoder` over looked-up vectors: `table_encoder({"a text": (1, 0)})`."""

    def make(vectors: Mapping[str, Sequence[float]]) -> DendriticEncoder:
        return DendriticEncoder(TableBackbone({text: unit(*v) for text, v in vectors.items()}))

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data folder beside the checkout; the test is skipped where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A sentence-transformers folder: one layer, 16 dimensions, 32 pieces, a piece a letter.

    Without PyTorch it is a runtime folder of the same size.
    """
    if find_spec("torch") is None:
        from tiny_runtime import write_tiny_runtime

        folder = tmp_path_factory.mktemp("tiny") / "model"
        write_tiny_runtime(folder)
        return folder
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    signs = [*string.ascii_lowercase, *string.digits, ":", "\ufffd"]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, *("##" + s for s in signs)]
    # Hangul syllables are taken apart into jamo, so that one character makes three pieces.
    pieces += ["\u1112", "##\u1161", "##\u11ab"]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder / "bert")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=32)
    model = SentenceTransformer(modules=[transformer, Pooling(16)])
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


@pytest.fixture
def tiny(tiny_model) -> DendriticEncoder:
    """A fresh encoder without heads over the tiny transformer."""
    return DendriticEncoder.load(tiny_model)


@pytest.fixture
def no_network(monkeypatch) -> None:
    """Let every attempt to reach another machine fail the test."""

    def refuse(*args: object, **_: object) -> None:
        pytest.fail(f"the network was used: {args[1:]}")

    connect = socket.socket.connect

    def local_alone(self: socket.socket, address: object) -> None:
        connect(self, address) if self.family == socket.AF_UNIX else refuse(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_alone)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def perforatedai() -> None:
    """Skip the test where dendrites cannot be grown; the package is not imported here."""
    if find_spec("perforatedai") is None:
        pytest.skip("the extra `dendrites` is not installed")


@pytest.fixture(scope="session")
def package_environment() -> dict[str, str]:
    """The environment of a fresh interpreter that finds this package, installed or not."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
