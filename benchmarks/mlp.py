"""A one-hidden-layer MLP head, to hold dendrites against; the package has none."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn

from nexus_integrations import DendriticEncoder, FinetuneConfig
from nexus_integrations.protocols import Floats
from nexus_integrations.training.heads import Heads
from nexus_integrations.training.loop import Schedule, new_optimizer, train_epoch
from nexus_integrations.training.objectives import Objective


class MLP(nn.Module):
    """f(v) = B · gelu(A v), where B is zero at the start, so that the head changes nothing."""

    def __init__(self, dimension: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = dimension**-0.5
        self.first = nn.Parameter(
            torch.empty(hidden, dimension).uniform_(-bound, bound, generator=generator)
        )
        self.second = nn.Parameter(torch.zeros(dimension, hidden))

    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.gelu(vectors @ self.first.T) @ self.second.T


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The heads of the epoch with the best dev score, and how training went."""

    heads: Heads
    score: float
    epochs: int
    best_epoch: int
    parameters: int
    seconds: float


def fit_mlp(objective: Objective, config: FinetuneConfig, hidden: int) -> Fitted:
    """Train as `finetune` trains a linear head: same loss, batches, schedule and choice."""
    begun = perf_counter()
    heads = Heads(objective.dimension, config.heads or "query")
    start = torch.Generator().manual_seed(config.seed + 1000)
    heads.first.layer = MLP(objective.dimension, hidden, start)
    schedule = Schedule(
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
    )
    optimizer = new_optimizer(heads, objective, schedule)
    generator = torch.Generator().manual_seed(config.seed)
    best, best_score, best_epoch = copy.deepcopy(heads), objective.score(heads), 0
    for epoch in range(config.epochs):
        train_epoch(heads, objective, optimizer, schedule, generator, cycle=0, epoch=epoch)
        if (score := objective.score(heads)) > best_score:
            best, best_score, best_epoch = copy.deepcopy(heads), score, epoch + 1
    return Fitted(
        heads=best,
        score=best_score,
        epochs=config.epochs,
        best_epoch=best_epoch,
        parameters=sum(p.numel() for p in best.parameters()),
        seconds=perf_counter() - begun,
    )


class MLPEncoder:
    """The backbone's vectors, mapped by such a head on the query side or on both."""

    def __init__(self, encoder: DendriticEncoder, heads: Heads) -> None:
        self.encoder, self.heads = encoder, heads
        self.dimension = encoder.dimension
        state = [p.detach().numpy().tobytes() for p in heads.parameters()]
        self.fingerprint = hashlib.sha256(b"".join(state)).hexdigest()

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """Return unit rows, float32 (n, dimension)."""
        vectors = torch.from_numpy(self.encoder.backbone_vectors(texts, "query"))
        return self._array(self.heads.queries(vectors))

    def encode_documents(self, texts: Sequence[str]) -> Floats:
        """Return unit rows, float32 (n, dimension)."""
        vectors = torch.from_numpy(self.encoder.backbone_vectors(texts, "document"))
        return self._array(self.heads.documents(vectors))

    def _array(self, vectors: Tensor) -> Floats:
        array: Floats = vectors.detach().numpy()
        return array
