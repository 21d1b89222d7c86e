"""What trains the backbone itself: losses on texts that it embeds anew in every step."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from nexus_integrations.training.heads import Heads
from nexus_integrations.training.losses import Loss, similarity_loss
from nexus_integrations.training.objectives import mean_ndcg, spearman
from nexus_integrations.training.tower import Pieces, Tower, like_length

# Passages that a dev query is scored against: its answers and the nearest to any dev query.
_NEAREST = 20


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


@dataclass(kw_only=True)
class TextRetrievalObjective:
    """Softmax over the whole corpus, scored by nDCG@10, of texts that the tower embeds.

    A batch's questions, and for each one of its relevant passages, drawn anew in every epoch, are
    embedded with gradients. All other passages enter as they were embedded last (`vectors`,
    (n_documents, dimension)): before training, in a batch of their own, or for the dev score. So a
    question has the whole corpus for negatives at the price of a batch. None of its relevant
    passages is one. `pieces` and `starts` (see `Pieces`) are the questions, `document_pieces` and
    `document_starts` the passages, `answers` the relevant pairs, (n_pairs, 2), sorted by question.

    The dev score ranks, for each dev question, all dev answers and the passages that were nearest
    to any dev question before training: embedding the corpus in every epoch would take longer than
    the epoch.
    """

    tower: Tower
    pieces: Tensor
    starts: Tensor
    document_pieces: Tensor
    document_starts: Tensor
    vectors: Tensor
    answers: Tensor
    dev_pieces: Tensor
    dev_starts: Tensor
    dev_answers: Tensor
    scale: float

    kind: ClassVar[str] = "text-retrieval"

    def __post_init__(self) -> None:
        counts = torch.bincount(self.answers[:, 0], minlength=self.size)  # (n_questions,)
        self._counts = counts
        self._first = counts.cumsum(0) - counts
        self._drawn = self._first
        self._vectors = self.vectors.clone()
        self._pool: Tensor | None = None

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self.tower.dimension

    @property
    def size(self) -> int:
        """The number of training questions."""
        return len(self.starts) - 1

    def epoch(self, heads: Heads) -> None:
        """Nothing to prepare."""

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Draw a passage for each question and yield the questions whose passages are alike long.

        Items are numbers of questions, int64 (≤ batch_size,).
        """
        chance = torch.rand(self.size, generator=generator)
        self._drawn = self._first + (chance * self._counts).long()  # (n_questions,)
        lengths = self.document_starts.diff()[self.answers[self._drawn, 1]]
        return like_length(lengths, batch_size, generator)

    def loss(self, heads: Heads, items: Tensor) -> Tensor:
        """Return −log of each drawn passage's softmax against the irrelevant ones."""
        rows = torch.arange(len(items))
        target = self.answers[self._drawn[items], 1]  # (n_batch,)
        passages = target.unique()
        queries = heads.queries(self.tower(Pieces(self.pieces, self.starts), items))
        fresh = self.tower(Pieces(self.document_pieces, self.document_starts), passages)
        self._vectors[passages] = fresh.detach()
        documents = heads.documents(self._vectors)  # (n_documents, dimension)
        documents = documents.index_copy(0, passages, heads.documents(fresh))
        scores = self.scale * queries @ documents.T  # (n_batch, n_documents)
        relevant = torch.zeros_like(scores, dtype=torch.bool)
        of_batch = torch.isin(self.answers[:, 0], items)
        question, document = self.answers[of_batch].T
        row = torch.full((self.size,), -1).index_copy(0, items, rows)[question]
        relevant[row, document] = True
        rivals = scores.masked_fill(relevant, -torch.inf).logsumexp(1)  # (n_batch,)
        return functional.softplus(rivals - scores[rows, target]).mean()

    def choose_pool(self) -> Tensor:
        """Choose the passages that are scored, by the tower before it is trained: (n_pool,)."""
        queries = self.tower.embed(Pieces(self.dev_pieces, self.dev_starts))
        nearest = (queries @ self.vectors.T).topk(min(_NEAREST, len(self.vectors))).indices
        self._pool = torch.cat([nearest.flatten(), self.dev_answers[:, 1]]).unique()
        return self._pool

    def score(self, heads: Heads) -> float:
        """Return nDCG@10 of the dev questions over the passages that are scored."""
        texts = Pieces(self.document_pieces, self.document_starts)
        pool = self.choose_pool() if self._pool is None else self._pool
        queries = self.tower.embed(Pieces(self.dev_pieces, self.dev_starts))
        self._vectors[pool] = self.tower.embed(_chosen(texts, pool))
        with torch.no_grad():
            documents = heads.documents(self._vectors[pool])
            scores = heads.queries(queries) @ documents.T  # (n_dev, n_pool)
        question, document = self.dev_answers.T.contiguous()
        place = torch.searchsorted(pool, document)
        return mean_ndcg(scores, torch.stack([question, place], dim=1))

    def probe(self) -> Tensor:
        """Return a few vectors, (≤ 64, dimension), to hold a copied head against."""
        return self.vectors[:64]

    def with_dev_in_train(self) -> "TextRetrievalObjective":
        """Return the objective that trains on the dev questions as well, with the same tower."""
        joined = Pieces.joined(
            Pieces(self.pieces, self.starts), Pieces(self.dev_pieces, self.dev_starts)
        )
        moved = self.dev_answers + torch.tensor([self.size, 0])  # (n_dev_pairs, 2)
        return replace(
            self,
            pieces=joined.pieces,
            starts=joined.starts,
            answers=torch.cat([self.answers, moved]),
        )


def _chosen(texts: Pieces, rows: Tensor) -> Pieces:
    """Return the texts with these numbers alone."""
    lengths = texts.lengths[rows]  # (n_rows,)
    starts = torch.cat([lengths.new_zeros(1), lengths]).cumsum(0)
    shift = torch.repeat_interleave(texts.starts[rows] - starts[:-1], lengths)  # (n_pieces,)
    return Pieces(texts.pieces[shift + torch.arange(len(shift))], starts)
