"""A backbone while its own weights are trained: tokens in, unit vectors out."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn import functional

from nexus_integrations.backends import Backbone, Role, load_backbone
from nexus_integrations.backends.model import without_progress_bars
from nexus_integrations.backends.torch import TorchBackbone

# Batches of like length are cut from this many batches' items at a time: enough for little
# padding, few enough that a batch stays a random draw.
_GROUP = 16
_SCORE_BATCH = 128


class Tokens(NamedTuple):
    """Texts as tokens, one after another: text i is ids[starts[i] : starts[i + 1]].

    `ids` is int32 (n_tokens,) and `starts` int64 (n_texts + 1,).
    """

    ids: Tensor
    starts: Tensor

    @property
    def lengths(self) -> Tensor:
        """The number of tokens of each text, int64 (n_texts,)."""
        return self.starts.diff()

    @classmethod
    def joined(cls, *parts: "Tokens") -> "Tokens":
        """Return the texts of all parts, in turn."""
        lengths = torch.cat([part.lengths for part in parts])
        starts = torch.cat([lengths.new_zeros(1), lengths]).cumsum(0)
        return cls(torch.cat([part.ids for part in parts]), starts)

    def chosen(self, rows: Tensor) -> "Tokens":
        """Return the texts with these numbers, (n_rows,), alone."""
        lengths = self.lengths[rows]  # (n_rows,)
        starts = torch.cat([lengths.new_zeros(1), lengths]).cumsum(0)
        shift = torch.repeat_interleave(self.starts[rows] - starts[:-1], lengths)  # (n_tokens,)
        return Tokens(self.ids[shift + torch.arange(len(shift))], starts)

    def halves(self) -> "tuple[Tokens, Tokens]":
        """Return the first and the second half of the texts, whose number is even."""
        rows = torch.arange(len(self.lengths))
        first, second = rows.chunk(2)
        return self.chosen(first), self.chosen(second)


class Tower(nn.Module):
    """A sentence-transformers model whose weights are trained.

    Products run in bfloat16 where the CPU has it, everything that adds up in float32. Without
    `dropout` nothing is left out at random: in attention that rules out PyTorch's fused kernel.
    """

    def __init__(self, model: SentenceTransformer, *, dropout: bool = False) -> None:
        super().__init__()
        self.model = model
        self.dropout = dropout
        self._bfloat16 = _has_bfloat16()

    @classmethod
    def copy_of(cls, backbone: Backbone, *, dropout: bool = False) -> "Tower":
        """Return a tower with weights of its own: the backbone given stays as it is.

        A backbone that another engine runs, or in another precision, is read once more from its
        folder. Raises `ValueError` for one without a folder or whose folder holds no PyTorch model,
        and for a model whose roles have towers of their own.
        """
        model = getattr(backbone, "model", None)
        if not isinstance(model, SentenceTransformer) or model.dtype != torch.float32:
            folder = getattr(backbone, "folder", None)
            if folder is None:
                raise ValueError(
                    f"a {type(backbone).__name__} cannot be trained: load the encoder with "
                    "backend='torch', precision='float32'"
                )
            model = getattr(load_backbone(folder, backend="torch", precision="float32"), "model")  # noqa: B009
        if any(type(module).__name__ == "Router" for module in model):
            raise ValueError(
                "the model routes queries and documents through towers of their own: such a "
                "backbone is not trained here, use backbone='frozen'"
            )
        return cls(copy.deepcopy(model).requires_grad_(True), dropout=dropout)

    @classmethod
    def load(cls, folder: Path, *, dropout: bool = False) -> "Tower":
        """Read a model that `save` wrote."""
        with without_progress_bars():
            model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        return cls(model, dropout=dropout)

    def save(self, folder: Path) -> None:
        """Write a plain sentence-transformers folder, without a model card."""
        with without_progress_bars():
            self.model.save(str(folder), create_model_card=False, safe_serialization=True)

    def backbone(self) -> TorchBackbone:
        """Return the model as a frozen backbone, to be used after training."""
        return TorchBackbone(self.model.requires_grad_(False))

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return int(self.model.get_embedding_dimension() or 0)

    def train(self, mode: bool = True) -> "Tower":
        """Begin or end training; a model without dropout stays as it is in use."""
        super().train(mode)
        self.model.train(mode and self.dropout)
        return self

    def tokens(self, texts: Sequence[str], role: Role) -> Tokens:
        """Tokenise texts, under the role's prompt, as the model reads them."""
        prompt = self.model.prompts.get(role) or ""
        lists = self.model.tokenizer(
            [prompt + text for text in texts],
            truncation=True,
            max_length=self.model.max_seq_length,
        )["input_ids"]
        starts = torch.tensor([0, *map(len, lists)]).cumsum(0)
        ids = torch.tensor([token for one in lists for token in one], dtype=torch.int32)
        return Tokens(ids, starts)

    def forward(self, texts: Tokens, rows: Tensor) -> Tensor:
        """Return the unit vectors of the texts with these numbers: float32 (n_rows, dimension)."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16 and self.training):
            features = _padded(texts, rows, int(self.model.tokenizer.pad_token_id or 0))
            vectors = self.model(features)["sentence_embedding"]  # (n_rows, dimension)
        return functional.normalize(vectors.float(), dim=1)

    def embed(self, texts: Tokens) -> Tensor:
        """Return the unit vectors of all texts, float32 (n_texts, dimension), as in use."""
        trained = self.training
        self.eval()
        vectors = torch.empty(len(texts.lengths), self.dimension)
        with torch.inference_mode():
            for rows in texts.lengths.argsort(descending=True).split(_SCORE_BATCH):
                vectors[rows] = self(texts, rows)
        self.train(trained)
        return vectors


def like_length(lengths: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield shuffled batches, int64 (≤ batch_size,), of items of like length, each item once."""
    order = torch.randperm(len(lengths), generator=generator)
    batches: list[Tensor] = []
    for group in order.split(batch_size * _GROUP):
        batches += group[lengths[group].argsort(stable=True)].split(batch_size)
    for number in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[number]


def _padded(texts: Tokens, rows: Tensor, padding: int) -> dict[str, Tensor]:
    lengths = texts.lengths[rows]  # (n_rows,)
    places = torch.arange(int(lengths.max()))
    mask = places < lengths[:, None]  # (n_rows, longest)
    ids = torch.full(mask.shape, padding, dtype=torch.int64)
    ids[mask] = texts.ids[(texts.starts[rows][:, None] + places)[mask]].long()
    return {"input_ids": ids, "attention_mask": mask.long()}


def _has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
