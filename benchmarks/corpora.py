"""What the benchmarks train on: a folder's three parts, and an encoder that embeds a text once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nexus_integrations import DendriticEncoder, RetrievalDataset
from nexus_integrations.backends import Role
from nexus_integrations.backends.torch import TorchBackbone
from nexus_integrations.index import MemoryIndex
from nexus_integrations.protocols import Floats


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Questions to fit on, to choose by and to judge by; test may ask about other documents."""

    name: str
    train: RetrievalDataset
    dev: RetrievalDataset
    test: RetrievalDataset

    @classmethod
    def read(cls, folder: Path) -> "Corpus":
        """Read a BEIR folder with three splits, or LlamaIndex's `train` and `val` datasets.

        Of the latter `val` is the test; dev is a share of `train`, split off by document.
        """
        if (folder / "qrels").is_dir():
            parts = {
                split: RetrievalDataset.from_beir(folder, split=split)
                for split in ("train", "dev", "test")
            }
            return cls(name=folder.name, **parts)
        files = [next(folder.glob(f"{name}_dataset.json*")) for name in ("train", "val")]
        trained, unseen = (RetrievalDataset.from_json(file) for file in files)
        train, dev = trained.split(0.85, 0.15, by="document", seed=0)
        return cls(name=folder.name, train=train, dev=dev, test=unseen)

    @property
    def unseen(self) -> bool:
        """Whether test asks about documents that no training question is about."""
        return self.test.corpus != self.train.corpus


class RememberingBackbone(TorchBackbone):
    """A backbone that embeds each text once, so that seeds, stages and runs share the work.

    With `path` the vectors are kept there, keyed by model, role and a hash of the text.
    """

    def __init__(self, backbone: TorchBackbone, path: Path | None = None) -> None:
        super().__init__(backbone.model)
        self._path = path
        self._known: dict[str, Floats] = {}
        if path is not None and path.is_file():
            with np.load(path) as file:
                self._known = dict(zip(file["keys"].tolist(), file["vectors"], strict=True))

    def encode(self, texts: Sequence[str], role: Role) -> tuple[Floats, int]:
        """Return unit vectors, float32 (n, dimension), and how many new texts were cut off."""
        truncated = 0
        salt = f"{self.digest}\n{role}\n"
        keys = [hashlib.sha256((salt + text).encode()).hexdigest() for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        if new:
            vectors, truncated = super().encode(list(new.values()), role)
            self._known.update(zip(new, vectors, strict=True))
            if self._path is not None:
                kept = list(self._known)
                np.savez(self._path, keys=kept, vectors=np.stack(list(self._known.values())))
        return np.stack([self._known[key] for key in keys]), truncated


def remembering_encoder(model: str | None, path: Path | None) -> DendriticEncoder:
    """Load a model, by default all-MiniLM-L6-v2, that remembers what it embedded."""
    loaded = DendriticEncoder.load(model, backend="torch")
    assert isinstance(loaded.backbone, TorchBackbone)
    return DendriticEncoder(RememberingBackbone(loaded.backbone, path))


def index_of(encoder: DendriticEncoder, dataset: RetrievalDataset) -> MemoryIndex:
    """Return an index of the dataset's documents as the encoder embeds them."""
    vectors = encoder.encode_documents(list(dataset.corpus.values()))
    return MemoryIndex(list(dataset.corpus), vectors)


def mapped(index: MemoryIndex, tuned: DendriticEncoder) -> MemoryIndex:
    """Copy an index of backbone vectors, mapped by the document head where there is one."""
    ids = [id_ for batch in index.ids() for id_ in batch]
    vectors = index.vectors(ids)
    head = tuned.document_head
    return MemoryIndex(ids, vectors if head is None else head.transform(vectors))
