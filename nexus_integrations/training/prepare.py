"""What training minimises, made from datasets: texts are embedded or tokenised once, here."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nexus_integrations.data import RetrievalDataset, SimilarityDataset
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.evaluation import check_relevant_are_stored
from nexus_integrations.index.checks import check_vectors
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.protocols import Floats, Metric, VectorIndex
from nexus_integrations.retrievers.dense import check_fits
from nexus_integrations.training.config import FinetuneConfig
from nexus_integrations.training.objectives import (
    Objective,
    RetrievalObjective,
    SimilarityObjective,
)

if TYPE_CHECKING:
    from nexus_integrations.training.text_objectives import (
        TextRetrievalObjective,
        TextSimilarityObjective,
    )

# Above this many passages the softmax runs over mined negatives instead of the whole corpus.
_POOL = 50_000
_NEGATIVES = 50
_QUERY_BATCH = 256


def prepare(
    encoder: DendriticEncoder,
    train: RetrievalDataset | SimilarityDataset,
    dev: RetrievalDataset | SimilarityDataset,
    config: FinetuneConfig,
    index: VectorIndex | None = None,
) -> Objective:
    """Return the objective of these data under these settings, which it resolves.

    Raises what `finetune` raises.
    """
    frozen = config.backbone == "frozen"
    if isinstance(train, RetrievalDataset) and isinstance(dev, RetrievalDataset):
        config = config.resolved("questions")
        if len(train) < 2:
            raise ValueError("the training set has one query: a head fitted to it knows no other")
        make = _retrieval if frozen else _retrieval_of_texts
        return make(encoder, train, dev, config, index)
    if isinstance(train, SimilarityDataset) and isinstance(dev, SimilarityDataset):
        config = config.resolved("pairs")
        if index is not None:
            raise ValueError("index: sentence pairs have no documents that an index could hold")
        for name, pairs in (("train", train), ("dev", dev)):
            if np.ptp(pairs.scores) == 0:
                raise ValueError(
                    f"all {len(pairs)} scores of the {name} pairs are {pairs.scores[0]:g}: "
                    "similarity is learnt and judged from pairs whose scores differ (Spearman's ρ "
                    "is undefined)"
                )
        return (_similarity if frozen else _similarity_of_texts)(encoder, train, dev, config)
    raise TypeError(f"train is a {type(train).__name__}, dev a {type(dev).__name__}")


def _retrieval(
    encoder: DendriticEncoder,
    train: RetrievalDataset,
    dev: RetrievalDataset,
    config: FinetuneConfig,
    index: VectorIndex | None,
) -> RetrievalObjective:
    if index is None:
        corpus = {**train.corpus, **dev.corpus}
        texts = list(corpus.values())
        # Query heads leave documents the head they have; otherwise theirs is trained anew.
        embedded = (
            encoder.encode_documents(texts)
            if config.heads == "query"
            else encoder.backbone_vectors(texts, "document")
        )
        index = MemoryIndex(list(corpus), embedded)
    elif config.heads != "query" and encoder.document_head is not None:
        raise ValueError(
            "the index holds vectors that the encoder's document head has mapped already: train "
            "anew from the encoder without heads and its index"
        )
    check_fits(index, encoder)
    check_relevant_are_stored(index, train, dev)
    queries = encoder.backbone_vectors(list(train.queries.values()), "query")
    dev_queries = encoder.backbone_vectors(list(dev.queries.values()), "query")
    if len(index) <= _POOL:
        ids = [id_ for batch in index.ids() for id_ in batch]
    else:
        ids = _mined(index, [queries, dev_queries], [train, dev], config.seed)
    rows = {id_: row for row, id_ in enumerate(ids)}
    documents = index.vectors(ids)  # (n_documents, dimension)
    check_vectors(ids, documents, Metric.COSINE)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    if len(documents) > 1 and not np.ptp(documents, axis=0).any():
        raise ValueError(
            f"all {len(documents)} passages have the same vector: no training tells them apart"
        )
    return RetrievalObjective(
        queries=torch.from_numpy(queries),
        documents=torch.from_numpy(documents),
        answers=_pairs(train, rows),
        dev_queries=torch.from_numpy(dev_queries),
        dev_answers=_pairs(dev, rows),
        scale=config.scale or 0.0,
        gamma=config.gamma or 0.0,
        anchor=config.anchor or 0.0,
    )


def _retrieval_of_texts(
    encoder: DendriticEncoder,
    train: RetrievalDataset,
    dev: RetrievalDataset,
    config: FinetuneConfig,
    index: VectorIndex | None,
) -> "TextRetrievalObjective":
    from nexus_integrations.training.text_objectives import TextRetrievalObjective
    from nexus_integrations.training.tower import Tower

    corpus = {**train.corpus, **dev.corpus}
    tower = Tower.copy_of(encoder.backbone, dropout=bool(config.dropout))
    if index is None:
        vectors = encoder.backbone_vectors(list(corpus.values()), "document")
    elif encoder.document_head is not None:
        raise ValueError("the index holds vectors that a document head has mapped: give no index")
    else:
        check_fits(index, encoder)
        vectors = index.vectors(list(corpus))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = {id_: row for row, id_ in enumerate(corpus)}
    return TextRetrievalObjective(
        tower=tower,
        queries=tower.tokens(list(train.queries.values()), "query"),
        documents=tower.tokens(list(corpus.values()), "document"),
        vectors=torch.from_numpy(vectors),
        answers=_pairs(train, rows),
        dev_queries=tower.tokens(list(dev.queries.values()), "query"),
        dev_answers=_pairs(dev, rows),
        scale=config.scale or 0.0,
    )


def _similarity(
    encoder: DendriticEncoder,
    train: SimilarityDataset,
    dev: SimilarityDataset,
    config: FinetuneConfig,
) -> SimilarityObjective:
    def vectors(texts: list[str]) -> Tensor:
        return torch.from_numpy(encoder.backbone_vectors(texts, "document"))

    return SimilarityObjective(
        first=vectors(train.sentences1),
        second=vectors(train.sentences2),
        scores=torch.from_numpy(train.scores),
        dev_first=vectors(dev.sentences1),
        dev_second=vectors(dev.sentences2),
        dev_scores=torch.from_numpy(dev.scores),
        loss_name=config.loss or "cosent",
        scale=config.scale or 0.0,
        anchor=config.anchor or 0.0,
    )


def _similarity_of_texts(
    encoder: DendriticEncoder,
    train: SimilarityDataset,
    dev: SimilarityDataset,
    config: FinetuneConfig,
) -> "TextSimilarityObjective":
    from nexus_integrations.training.text_objectives import TextSimilarityObjective
    from nexus_integrations.training.tower import Tower

    tower = Tower.copy_of(encoder.backbone, dropout=bool(config.dropout))
    return TextSimilarityObjective(
        tower=tower,
        sentences=tower.tokens([*train.sentences1, *train.sentences2], "document"),
        scores=torch.from_numpy(train.scores),
        dev_sentences=tower.tokens([*dev.sentences1, *dev.sentences2], "document"),
        dev_scores=torch.from_numpy(dev.scores),
        loss_name=config.loss or "cosent",
        scale=config.scale or 0.0,
    )


def _mined(
    index: VectorIndex,
    queries: Sequence[Floats],
    datasets: Sequence[RetrievalDataset],
    seed: int,
) -> list[str]:
    """Return the ids to train against: all answers, the nearest others, and random ones."""
    pool: dict[str, None] = {}
    for vectors, dataset in zip(queries, datasets, strict=True):
        pool.update(dict.fromkeys(d for found in dataset.relevant_docs.values() for d in found))
        for start in range(0, len(vectors), _QUERY_BATCH):
            for found in index.search(vectors[start : start + _QUERY_BATCH], _NEGATIVES).ids:
                pool.update(dict.fromkeys(found))
    ids = [id_ for batch in index.ids() for id_ in batch]
    order = np.random.default_rng(seed).permutation(len(ids))
    for place in order.tolist():
        if len(pool) >= _POOL:
            break
        pool[ids[place]] = None
    return list(pool)


def _pairs(dataset: RetrievalDataset, rows: dict[str, int]) -> Tensor:
    """Return the relevant (query number, document row) pairs, int64 (n_pairs, 2), by query."""
    return torch.tensor(
        [
            [number, rows[id_]]
            for number, found in enumerate(dataset.relevant_docs.values())
            for id_ in found
        ]
    )
