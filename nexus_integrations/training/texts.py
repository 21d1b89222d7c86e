"""What trains the backbone itself: losses on texts that it embeds anew in every step."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from nexus_integrations.training.heads import Heads
from nexus_integrations.training.losses import Loss, similarity_loss
from nexus_integrations.training.objectives import spearman
from nexus_integrations.training.tower import Pieces, Tower, like_length


@dataclass(kw_only=True)
class TextSimilarityObjective:
    """The loss of `SimilarityObjective` on sentences that the tower embeds.

    Sentence i and sentence n_pairs + i of `pieces` and `starts` (see `Pieces`) are pair i, whose
    score is `scores[i]`, in 0..1; the dev set has the same form.
    """

    tower: Tower
    pieces: Tensor
    starts: Tensor
    scores: Tensor
    dev_pieces: Tensor
    dev_starts: Tensor
    dev_scores: Tensor
    loss_name: Loss
    scale: float

    kind: ClassVar[str] = "text-similarity"

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self.tower.dimension

    @property
    def size(self) -> int:
        """The number of training pairs."""
        return len(self.scores)

    def epoch(self, heads: Heads) -> None:
        """Nothing to prepare."""

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the numbers of pairs whose longer sentences are of like length."""
        lengths = self.starts.diff().reshape(2, -1).amax(0)  # (n_pairs,)
        return like_length(lengths, batch_size, generator)

    def loss(self, heads: Heads, items: Tensor) -> Tensor:
        """Return the batch's loss; both sentences of all pairs go through the tower at once."""
        rows = torch.cat([items, items + self.size])
        vectors = heads.queries(self.tower(Pieces(self.pieces, self.starts), rows))
        first, second = vectors.chunk(2)
        return similarity_loss(first, second, self.scores[items], self.loss_name, self.scale)

    def score(self, heads: Heads) -> float:
        """Return Spearman's ρ between the dev pairs' cosines and their scores."""
        vectors = self.tower.embed(Pieces(self.dev_pieces, self.dev_starts))
        with torch.no_grad():
            first, second = heads.queries(vectors).chunk(2)
        return spearman(first, second, self.dev_scores)

    def probe(self) -> Tensor:
        """Return a few vectors, (≤ 64, dimension), to hold a copied head against."""
        few = Pieces(self.dev_pieces, self.dev_starts[:65])
        return self.tower.embed(few)

    def with_dev_in_train(self) -> "TextSimilarityObjective":
        """Return the objective that trains on the dev pairs as well, with the same tower."""
        mine, theirs = (
            Pieces(self.pieces, self.starts).halves(),
            Pieces(self.dev_pieces, self.dev_starts).halves(),
        )
        joined = Pieces.joined(mine[0], theirs[0], mine[1], theirs[1])
        return replace(
            self,
            pieces=joined.pieces,
            starts=joined.starts,
            scores=torch.cat([self.scores, self.dev_scores]),
        )
