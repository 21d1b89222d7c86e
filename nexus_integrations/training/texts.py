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

# Of the passages that do not answer a question, the nearest are its rivals; one that is nearly as
# near as its answer may answer it as well.
_RIVALS = 16
_AS_LIKE = 0.95
_MINED = 512  # questions at a time
_TOGETHER = 16  # passages of a batch, of like length, that are embedded at a time


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
    """Softmax over a batch's passages, scored by nDCG@10, of texts that the tower embeds.

    For each question of a batch one of its relevant passages and one rival are drawn anew in every
    epoch. All of them are embedded with gradients, and each question is held against all that do
    not answer it. Rivals are the passages that were most like the question before training
    (`vectors`, (n_documents, dimension), are the passages as they were embedded then), but for
    those as like it as its answers, which may answer it as well. No passage enters the softmax as
    it was embedded before: the loss could fall by telling old from new.

    `pieces` and `starts` (see `Pieces`) are the questions, `document_pieces` and `document_starts`
    the passages, `answers` the relevant pairs, (n_pairs, 2), sorted by question.

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
        self._rivals = self._nearest_rivals()
        self._rival = self._rivals[:, 0]
        self._pool = self._nearest_to_dev()
        self._trained = False

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self.tower.dimension

    @property
    def size(self) -> int:
        """The number of training questions."""
        return len(self.starts) - 1

    def epoch(self, heads: Heads) -> None:
        """Note that the tower is no longer the one that `vectors` came from."""
        self._trained = True

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Draw passages for each question and yield the questions whose answers are alike long.

        Items are numbers of questions, int64 (≤ batch_size,).
        """
        chance = torch.rand(self.size, generator=generator)
        self._drawn = self._first + (chance * self._counts).long()  # (n_questions,)
        place = torch.randint(self._rivals.shape[1], (self.size, 1), generator=generator)
        self._rival = self._rivals.gather(1, place).squeeze(1)  # (n_questions,)
        lengths = self.document_starts.diff()[self.answers[self._drawn, 1]]
        return like_length(lengths, batch_size, generator)

    def loss(self, heads: Heads, items: Tensor) -> Tensor:
        """Return −log of each drawn passage's softmax against the irrelevant ones of the batch."""
        rows = torch.arange(len(items))
        target = self.answers[self._drawn[items], 1]  # (n_batch,)
        passages = torch.cat([target, self._rival[items]]).unique()  # (n_passages,)
        queries = heads.queries(self.tower(Pieces(self.pieces, self.starts), items))
        documents = heads.documents(self._embedded(passages))
        scores = self.scale * queries @ documents.T  # (n_batch, n_passages)
        relevant = self._relevant(items, passages)
        rivals = scores.masked_fill(relevant, -torch.inf).logsumexp(1)  # (n_batch,)
        found = scores[rows, torch.searchsorted(passages, target)]
        return functional.softplus(rivals - found).mean()

    def score(self, heads: Heads) -> float:
        """Return nDCG@10 of the dev questions over the passages that are scored."""
        pool = self._pool
        queries = self.tower.embed(Pieces(self.dev_pieces, self.dev_starts))
        passages = self.vectors[pool]  # (n_pool, dimension)
        if self._trained:
            texts = Pieces(self.document_pieces, self.document_starts)
            passages = self.tower.embed(_chosen(texts, pool))
        with torch.no_grad():
            documents = heads.documents(passages)
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

    def _embedded(self, passages: Tensor) -> Tensor:
        """Embed the passages with these numbers, (n_passages,), those alike long together."""
        texts = Pieces(self.document_pieces, self.document_starts)
        order = texts.lengths[passages].argsort()
        parts = [self.tower(texts, passages[rows]) for rows in order.split(_TOGETHER)]
        return torch.cat(parts)[order.argsort()]

    def _relevant(self, items: Tensor, passages: Tensor) -> Tensor:
        """Tell which of the sorted passages answer which questions: (n_items, n_passages)."""
        question, document = self.answers[torch.isin(self.answers[:, 0], items)].T.contiguous()
        here = torch.isin(document, passages)
        row = torch.full((self.size,), -1).index_copy(0, items, torch.arange(len(items)))
        relevant = torch.zeros(len(items), len(passages), dtype=torch.bool)
        relevant[row[question[here]], torch.searchsorted(passages, document[here])] = True
        return relevant

    def _nearest_to_dev(self) -> Tensor:
        """Return the passages that are scored, by the tower before it is trained: (n_pool,)."""
        queries = self.tower.embed(Pieces(self.dev_pieces, self.dev_starts))
        nearest = (queries @ self.vectors.T).topk(min(_NEAREST, len(self.vectors))).indices
        both: Tensor = torch.cat([nearest.flatten(), self.dev_answers[:, 1]]).unique()
        return both

    def _nearest_rivals(self) -> Tensor:
        """Return each question's rivals, (n_questions, n_rivals), its answer where there are few.

        A passage above `_AS_LIKE` of the answer's similarity is none (NV-Retriever, de Souza P.
        Moreira et al., 2024, "TopK-PercPos").
        """
        questions = self.tower.embed(Pieces(self.pieces, self.starts))
        every = torch.arange(len(self.vectors))
        count = min(_RIVALS, len(every))
        found = []
        for items in torch.arange(self.size).split(_MINED):
            scores = questions[items] @ self.vectors.T  # (n_items, n_documents)
            relevant = self._relevant(items, every)
            answer = scores.masked_fill(~relevant, -1).amax(1, keepdim=True)
            scores = scores.masked_fill(relevant | (scores > _AS_LIKE * answer), -torch.inf)
            top = scores.topk(count)
            own = self.answers[self._first[items], 1]
            found.append(torch.where(top.values.isfinite(), top.indices, own[:, None]))
        return torch.cat(found)


def _chosen(texts: Pieces, rows: Tensor) -> Pieces:
    """Return the texts with these numbers alone."""
    lengths = texts.lengths[rows]  # (n_rows,)
    starts = torch.cat([lengths.new_zeros(1), lengths]).cumsum(0)
    shift = torch.repeat_interleave(texts.starts[rows] - starts[:-1], lengths)  # (n_pieces,)
    return Pieces(texts.pieces[shift + torch.arange(len(shift))], starts)
