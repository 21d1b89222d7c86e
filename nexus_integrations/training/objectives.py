"""What training minimises and what chooses the best epoch, on vectors embedded once."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional

from nexus_integrations.evaluation import score_rankings
from nexus_integrations.training.config import Loss
from nexus_integrations.training.heads import Heads
from nexus_integrations.training.losses import similarity_loss

if TYPE_CHECKING:
    from nexus_integrations.training.tower import Tower


class Objective(ABC):
    """A loss over batches of training items and a score that chooses the best epoch.

    `size` is the number of training items, `dimension` the length of a vector, and `tower` the
    backbone that is trained as well, None where it is frozen.
    """

    size: int
    dimension: int
    tower: "Tower | None"

    def begin_epoch(self, heads: Heads) -> None:  # noqa: B027  (few have something to prepare)
        """Prepare for an epoch with the heads as they now are."""

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the numbers of the items, each once, in shuffled batches, int64 (≤ batch_size,)."""
        yield from torch.randperm(self.size, generator=generator).split(batch_size)

    @abstractmethod
    def loss(self, heads: Heads, items: Tensor) -> Tensor:
        """Return the loss of the items with these numbers, int64 (n_batch,)."""

    @abstractmethod
    def score(self, heads: Heads) -> float:
        """Return the score on the dev set; higher is better."""

    @abstractmethod
    def with_dev_in_train(self) -> "Objective":
        """Return the objective that trains on the dev set as well."""


@dataclass(kw_only=True)
class RetrievalObjective(Objective):
    """Softmax over the whole corpus, scored by nDCG@10.

    Every relevant passage of a query is a target, and none of them a negative of another; a query
    counts once, however many passages answer it. `queries` is (n_queries, dimension) and
    `documents` (n_documents, dimension), unit rows; `answers` lists the relevant pairs as (n_pairs,
    2) numbers of query and document, sorted by query. The dev set has the same form.

    With `gamma` above zero the documents in the loss are those that NUDGE-N will store: each turned
    towards the sum of its training queries. The queries of the batch are left out of that sum, as a
    question that is asked later has no part in it either.
    """

    queries: Tensor
    documents: Tensor
    answers: Tensor
    dev_queries: Tensor
    dev_answers: Tensor
    scale: float
    gamma: float
    anchor: float

    tower = None

    def __post_init__(self) -> None:
        self.size, self.dimension = self.queries.shape
        self._counts = torch.bincount(self.answers[:, 0], minlength=self.size)  # (n_queries,)
        self._starts = self._counts.cumsum(0) - self._counts
        self._mapped = self.queries
        self._sums = torch.zeros(0)

    def begin_epoch(self, heads: Heads) -> None:
        """Sum up, per document, the training queries as the heads now map them."""
        if self.gamma:
            with torch.no_grad():
                self._mapped = heads.queries(self.queries)
                query, document = self.answers.T
                self._sums = torch.zeros_like(self.documents).index_add_(
                    0, document, self._mapped[query]
                )  # (n_documents, dimension)

    def loss(self, heads: Heads, items: Tensor) -> Tensor:
        """Return −log of each target's softmax against the irrelevant, averaged per query."""
        counts = self._counts[items]  # (n_batch,)
        row = torch.repeat_interleave(torch.arange(len(items)), counts)  # (n_targets,)
        within = torch.arange(len(row)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        target = self.answers[self._starts[items][row] + within, 1]  # (n_targets,)

        vectors = self.queries[items]
        mapped = heads.queries(vectors)
        documents = heads.documents(self.documents)
        change = ((mapped - vectors) ** 2).sum(1).mean()
        if heads.maps_documents:
            change = change + ((documents - self.documents) ** 2).sum(1).mean()
        if self.gamma:
            documents = self._nudged(documents, items[row], target)
        scores = self.scale * mapped @ documents.T  # (n_batch, n_documents)
        relevant = torch.zeros_like(scores, dtype=torch.bool)
        relevant[row, target] = True
        rivals = scores.masked_fill(relevant, -torch.inf).logsumexp(1)  # (n_batch,)
        missed = functional.softplus(rivals[row] - scores[row, target])  # (n_targets,)
        return (missed / counts[row]).sum() / len(items) + self.anchor * change

    def score(self, heads: Heads) -> float:
        """Return nDCG@10 of the dev queries over the documents, before any nudge."""
        with torch.no_grad():
            scores = heads.queries(self.dev_queries) @ heads.documents(self.documents).T
        return mean_ndcg(scores, self.dev_answers)

    def with_dev_in_train(self) -> "RetrievalObjective":
        """Return the objective that trains on the dev queries as well."""
        moved = self.dev_answers + torch.tensor([self.size, 0])  # (n_dev_pairs, 2)
        return replace(
            self,
            queries=torch.cat([self.queries, self.dev_queries]),
            answers=torch.cat([self.answers, moved]),
        )

    def sampled(self, count: int, seed: int) -> "RetrievalObjective":
        """Return the objective over all answers and, up to `count` documents, random others."""
        answers = torch.cat([self.answers[:, 1], self.dev_answers[:, 1]]).unique()
        every = len(self.documents)
        order = torch.randperm(every, generator=torch.Generator().manual_seed(seed))
        others = order[~torch.isin(order, answers)][: max(0, count - len(answers))]
        kept = torch.cat([answers, others])
        rows = torch.full((every,), -1).index_copy(0, kept, torch.arange(len(kept)))

        def renumbered(pairs: Tensor) -> Tensor:
            return torch.stack([pairs[:, 0], rows[pairs[:, 1]]], dim=1)

        return replace(
            self,
            documents=self.documents[kept],
            answers=renumbered(self.answers),
            dev_answers=renumbered(self.dev_answers),
        )

    def _nudged(self, documents: Tensor, query: Tensor, target: Tensor) -> Tensor:
        """Turn documents as `nudge.solver.Turn` does, differentiably in the document alone."""
        with torch.no_grad():
            sums = self._sums.index_add(0, target, -self._mapped[query])
            length = sums.norm(dim=1)  # (n_documents,)
            # Below that a sum is what rounding left of a subtraction.
            touched = (length > 1e-3).nonzero().squeeze(1)
            along = (documents[touched] * sums[touched]).sum(1) / length[touched]
            across = sums[touched] / length[touched, None] - along[:, None] * documents[touched]
            towards = functional.normalize(across, dim=1)
            cosine = along.clamp(min=1 - self.gamma / 2, max=1)
            cosine = torch.where(along < 0, torch.ones_like(cosine), cosine)
            sine = (1 - cosine**2).clamp(min=0).sqrt()
        turned = cosine[:, None] * documents[touched] + sine[:, None] * towards
        return documents.index_copy(0, touched, turned)


@dataclass(kw_only=True)
class SimilarityObjective(Objective):
    """A loss on the similarity of sentence pairs, scored by Spearman's ρ of the cosine.

    `first` and `second` are (n_pairs, dimension) unit rows, `scores` (n_pairs,) in 0..1; the dev
    set has the same form. The query head maps both sentences. `loss_name` and `scale` are those of
    `similarity_loss`.
    """

    first: Tensor
    second: Tensor
    scores: Tensor
    dev_first: Tensor
    dev_second: Tensor
    dev_scores: Tensor
    loss_name: Loss
    scale: float
    anchor: float

    tower = None

    def __post_init__(self) -> None:
        self.size, self.dimension = self.first.shape

    def loss(self, heads: Heads, items: Tensor) -> Tensor:
        """Return the batch's loss and, weighed by `anchor`, the squared change of its vectors."""
        first, second = self.first[items], self.second[items]
        mapped = heads.queries(first), heads.queries(second)
        change = ((mapped[0] - first) ** 2).sum(1) + ((mapped[1] - second) ** 2).sum(1)
        loss = similarity_loss(*mapped, self.scores[items], self.loss_name, self.scale)
        return loss + self.anchor * change.mean()

    def score(self, heads: Heads) -> float:
        """Return Spearman's ρ between the dev pairs' cosines and their scores."""
        with torch.no_grad():
            first, second = heads.queries(self.dev_first), heads.queries(self.dev_second)
        return spearman(first, second, self.dev_scores)

    def with_dev_in_train(self) -> "SimilarityObjective":
        """Return the objective that trains on the dev pairs as well."""
        return replace(
            self,
            first=torch.cat([self.first, self.dev_first]),
            second=torch.cat([self.second, self.dev_second]),
            scores=torch.cat([self.scores, self.dev_scores]),
        )


def spearman(first: Tensor, second: Tensor, scores: Tensor) -> float:
    """Return Spearman's ρ between the pairs' cosines, of unit rows, and their scores.

    It is 0 where all cosines are equal: such vectors tell no pair from another.
    """
    cosines = (first * second).sum(1)  # (n_pairs,)
    if bool((cosines == cosines[0]).all()):
        return 0.0
    return float(spearmanr(cosines.numpy(), scores.numpy()).statistic)


def mean_ndcg(scores: Tensor, answers: Tensor) -> float:
    """Return nDCG@10 from (n_queries, n_documents) scores and relevant pairs, (n_pairs, 2)."""
    top = scores.topk(min(10, scores.shape[1]), dim=1).indices.tolist()
    relevant: dict[str, list[str]] = {}
    for query, document in answers.tolist():
        relevant.setdefault(str(query), []).append(str(document))
    runs = {query: [str(document) for document in top[int(query)]] for query in relevant}
    return float(score_rankings(runs, relevant, ["ndcg@10"])["ndcg@10"].mean())
