"""Reciprocal rank fusion as LlamaIndex and LangChain offer it: equal weights, constant 60.

`QueryFusionRetriever(mode="reciprocal_rerank")` counts ranks from 0 and `EnsembleRetriever` from 1;
tests compare both with the classes themselves. Equal scores keep the order of first appearance.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from nexus_integrations.protocols import Hits, Retriever

CONSTANT = 60  # Cormack, Clarke and Büttcher, 2009; both frameworks' default
_FIRST_RANK = {"LlamaIndex": 0, "LangChain": 1}


class RankFusion:
    """Add up 1 / (60 + rank) over several retrievers."""

    def __init__(
        self,
        retrievers: Sequence[Retriever],
        framework: Literal["LlamaIndex", "LangChain"],
        depth: int,
    ) -> None:
        """Ask each retriever for `depth` passages and count ranks as the framework does."""
        self.retrievers = retrievers
        self.first_rank = _FIRST_RANK[framework]
        self.depth = depth

    def search(self, texts: Sequence[str], k: int) -> Hits:
        """Return the k passages with the highest sums, best first."""
        found = [retriever.search(texts, self.depth).ids for retriever in self.retrievers]
        fused = [self._fused(lists, k) for lists in zip(*found, strict=True)]
        width = max((len(scores) for scores in fused), default=0)
        similarities = np.full((len(fused), width), -np.inf, dtype=np.float32)
        for row, scores in enumerate(fused):
            similarities[row, : len(scores)] = list(scores.values())
        return Hits([list(scores) for scores in fused], similarities)

    def _fused(self, lists: Sequence[Sequence[str]], k: int) -> dict[str, float]:
        scores: dict[str, float] = {}
        for ids in lists:
            for rank, id_ in enumerate(ids, self.first_rank):
                scores[id_] = scores.get(id_, 0.0) + 1 / (CONSTANT + rank)
        best = sorted(scores, key=lambda id_: -scores[id_])[:k]
        return {id_: scores[id_] for id_ in best}
