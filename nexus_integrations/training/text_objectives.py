"""What training a backbone minimises: losses on texts that it embeds anew in every step."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from nexus_integrations.training.config import Loss
from nexus_integrations.training.heads import Heads
from nexus_integrations.training.losses import similarity_loss
from nexus_integrations.training.objectives import Objective, mean_ndcg, spearman
from nexus_integrations.training.tower import Tokens, Tower, like_length

# Passages that a dev query is scored against: its answers and the nearest to any dev query.
_NEAREST = 20

# Of the passages that do not answer a question, the nearest are its rivals; one that is nearly as
# near as its answer may answer it as well.
_RIVALS = 16
_AS_LIKE = 0.95
_MINED = 512  # questions at a time
_TOGETHER = 16  # passages of a batch, of like length, that are embedded at a time


@dataclass(kw_only=True)
class TextSimilarityObjective(Objective):
    """The loss of `SimilarityObjective` on sentences that the tower embeds.

    Sentence i and sentence n_pairs + i of `sentences` are pair i, whose score is `scores[i]`, in
    0..1; the dev set has the same form.
    """

    tower: Tower
    sentences: Tokens
    scores: Tensor
    dev_sentences: Tokens
    dev_scores: Tensor
    loss_name: Loss
    scale: float

    def __post_init__(self) -> None:
        self.size, self.dimension = len(self.scores), self.tower.dimension

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the numbers of pairs whose longer sentences are of like length."""
        lengths = self.sentences.lengths.reshape(2, -1).amax(0)  # (n_pairs,)
        return like_length(lengths, batch_size, generator)

    def loss(self, heads: Heads, items: Tensor) -> Tensor:
        """Return the batch's loss; both sentences of all pairs go through the tower at once."""
        rows = torch.cat([items, items + self.size])
        first, second = heads.queries(self.tower(self.sentences, rows)).chunk(2)
        return similarity_loss(first, second, self.scores[items], self.loss_name, self.scale)

    def score(self, heads: Heads) -> float:
        """Return Spearman's ρ between the dev pairs' cosines and their scores."""
        vectors = self.tower.embed(self.dev_sentences)
        with torch.no_grad():
            first, second = heads.queries(vectors).chunk(2)
        return spearman(first, second, self.dev_scores)

    def with_dev_in_train(self) -> "TextSimilarityObjective":
        """Return the objective that trains on the dev pairs as well, with the same tower."""
        mine, theirs = self.sentences.halves(), self.dev_sentences.halves()
        return replace(
            self,
            sentences=Tokens.joined(mine[0], theirs[0], mine[1], theirs[1]),
            scores=torch.cat([self.scores, self.dev_scores]),
        )


@dataclass(kw_only=True)
class TextRetrievalObjective(Objective):
    """Softmax over a batch's passages, scored by nDCG@10, of texts that the tower embeds.

    For each question of a batch one of its relevant passages and one rival are drawn anew in every
    epoch. All of them are embedded with gradients, and each question is held against all that do
    not answer it. Rivals are the passages that were most like the question before training, except
    those nearly as like it as its answer, which may answer it as well. `vectors`, (n_documents,
    dimension), are the passages as they were embedded then. None of these enters the softmax: the
    loss could fall by telling old vectors from new.

    `answers` lists the relevant pairs, (n_pairs, 2) numbers of query and document, sorted by query.

    The dev score ranks, for each dev question, all dev answers and the passages that were nearest
    to any dev question before training: embedding the corpus in every epoch would take longer than
    the epoch.
    """

    tower: Tower
    queries: Tokens
    documents: Tokens
    vectors: Tensor
    answers: Tensor
    dev_queries: Tokens
    dev_answers: Tensor
    scale: float

    def __post_init__(self) -> None:
        self.size, self.dimension = len(self.queries.lengths), self.tower.dimension
        self._counts = torch.bincount(self.answers[:, 0], minlength=self.size)  # (n_questions,)
        self._first = self._counts.cumsum(0) - self._counts
        self._drawn = self._first
        self._rivals = self._nearest_rivals()
        self._rival = self._rivals[:, 0]
        self._pool = self._nearest_to_dev()
        self._trained = False

    def begin_epoch(self, heads: Heads) -> None:
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
        lengths = self.documents.lengths[self.answers[self._drawn, 1]]
        return like_length(lengths, batch_size, generator)

    def loss(self, heads: Heads, items: Tensor) -> Tensor:
        """Return −log of each drawn passage's softmax against the irrelevant ones of the batch."""
        rows = torch.arange(len(items))
        target = self.answers[self._drawn[items], 1]  # (n_batch,)
        passages = torch.cat([target, self._rival[items]]).unique()  # (n_passages,)
        queries = heads.queries(self.tower(self.queries, items))
        documents = heads.documents(self._embedded(passages))
        scores = self.scale * queries @ documents.T  # (n_batch, n_passages)
        relevant = self._relevant(items, passages)
        rivals = scores.masked_fill(relevant, -torch.inf).logsumexp(1)  # (n_batch,)
        found = scores[rows, torch.searchsorted(passages, target)]
        return functional.softplus(rivals - found).mean()

    def score(self, heads: Heads) -> float:
        """Return nDCG@10 of the dev questions over the passages that are scored."""
        pool = self._pool
        queries = self.tower.embed(self.dev_queries)
        passages = self.vectors[pool]  # (n_pool, dimension)
        if self._trained:
            passages = self.tower.embed(self.documents.chosen(pool))
        with torch.no_grad():
            documents = heads.documents(passages)
            scores = heads.queries(queries) @ documents.T  # (n_dev, n_pool)
        question, document = self.dev_answers.T.contiguous()
        place = torch.searchsorted(pool, document)
        return mean_ndcg(scores, torch.stack([question, place], dim=1))

    def with_dev_in_train(self) -> "TextRetrievalObjective":
        """Return the objective that trains on the dev questions as well, with the same tower."""
        moved = self.dev_answers + torch.tensor([self.size, 0])  # (n_dev_pairs, 2)
        return replace(
            self,
            queries=Tokens.joined(self.queries, self.dev_queries),
            answers=torch.cat([self.answers, moved]),
        )

    def _embedded(self, passages: Tensor) -> Tensor:
        """Embed the passages with these numbers, (n_passages,), those alike long together."""
        order = self.documents.lengths[passages].argsort()
        parts = [self.tower(self.documents, passages[rows]) for rows in order.split(_TOGETHER)]
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
        queries = self.tower.embed(self.dev_queries)
        nearest = (queries @ self.vectors.T).topk(min(_NEAREST, len(self.vectors))).indices
        both: Tensor = torch.cat([nearest.flatten(), self.dev_answers[:, 1]]).unique()
        return both

    def _nearest_rivals(self) -> Tensor:
        """Return each question's rivals, (n_questions, n_rivals), its answer where there are few.

        A passage above `_AS_LIKE` of the answer's similarity is none (NV-Retriever, de Souza P.
        Moreira et al., 2024, "TopK-PercPos").
        """
        questions = self.tower.embed(self.queries)
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
