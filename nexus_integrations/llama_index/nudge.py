"""NUDGE for the vectors of a LlamaIndex index."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import (
    BaseNode,
    MetadataMode,
    NodeWithScore,
    QueryBundle,
    TransformComponent,
)
from pydantic import Field, InstanceOf, PrivateAttr

from nexus_integrations.data import QADataset, RetrievalDataset
from nexus_integrations.frameworks.foreign import ForeignEncoder
from nexus_integrations.frameworks.postprocessor import Postprocessor
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.llama_index.data import as_dataset
from nexus_integrations.llama_index.embedding import NexusEmbedding
from nexus_integrations.llama_index.index import Source, open_index
from nexus_integrations.nudge import NudgeConfig, NudgeResult, nudge_index
from nexus_integrations.nudge.life import StateFolder
from nexus_integrations.protocols import Encoder, Metric, VectorIndex


class NudgePostprocessor(Postprocessor[Source], BaseNodePostprocessor):
    """Move the stored vectors of one index towards the questions that its documents answer.

    The ids of documents in the datasets are their ids in the index. Applying again starts from the
    base vectors, not from moved ones.

    Stores that cannot be written (read-only, quantised, managed) are served at query time:
    `apply()` without a store keeps the moved vectors in the state, and this object, used as a
    reranker, scores by them what the store found. With 100 candidates that kept 97-98 % of the gain
    in the store, with 50 69-93 %, with 10 16-25 %: below 50 it warns. Where the store itself is
    nudged, it returns what was found as it is.
    """

    embed_model: InstanceOf[BaseEmbedding] = Field(exclude=True, repr=False)

    def __init__(
        self,
        train: RetrievalDataset | QADataset,
        dev: RetrievalDataset | QADataset | None = None,
        *,
        embed_model: BaseEmbedding,
        config: NudgeConfig | None = None,
        state_dir: str | Path | None = None,
        top_n: int | None = None,
    ) -> None:
        """Take the datasets and the embedding model that filled the index and queries it.

        Any embedding model fits. What undoes a nudge is kept in `state_dir`, from where another
        process can undo it too, or as long as this object when that is None.

        For a store that cannot be written: `nudge.apply()`, then
        `index.as_query_engine(similarity_top_k=100, node_postprocessors=[nudge])` with `top_n=10`.

        """
        held_out = None if dev is None else as_dataset(dev)
        super().__init__(
            as_dataset(train), held_out, config, state_dir, top_n, embed_model=embed_model
        )

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex writes the class down."""
        return "NudgePostprocessor"

    def open_index(self, source: Source) -> VectorIndex:
        """Return the vectors of an index, a vector store, or a `VectorIndex`, by node id."""
        return open_index(source)

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("NUDGE at query time needs the question: give query_bundle")
        rows = self._rescored(
            query_bundle.query_str,
            [found.node.node_id for found in nodes],
            [found.node.get_content(MetadataMode.EMBED) for found in nodes],
            vector=query_bundle.embedding,  # left there by the vector retriever
            scores=[found.score for found in nodes],
        )
        return [
            nodes[row] if score is None else NodeWithScore(node=nodes[row].node, score=score)
            for row, score in rows
        ]

    @property
    def encoder(self) -> Encoder:
        """The embedding model's encoder."""
        return self._encoder_of(self.embed_model, encoder_of)

    def as_transformation(self) -> "NudgeTransformation":
        """Return the last transformation of an `IngestionPipeline`, which nudges nodes.

        It stands behind the embedding model: `transformations=[splitter, embed_model,
        nudge.as_transformation()]`. Nodes reach the store as nudged; `undo`, `observe` and the rest
        go on from there with the store itself.
        """
        return NudgeTransformation(self)

    def apply_to_nodes(self, nodes: Sequence[BaseNode]) -> NudgeResult | None:
        """Move the embeddings of nodes before a store sees them, and report.

        Only questions whose documents are all among the nodes count; None where none is left. The
        store is taken to rank by the cosine, under variant "m" by the dot product: between vectors
        of length one the order is the same.

        Raises `ValueError` for nodes without an embedding, for nodes that are a part only of what
        the state has moved, since undoing the rest would be lost, and as `nudge_index` does.
        """
        bare = sum(node.embedding is None for node in nodes)
        if bare:
            raise ValueError(
                f"{bare} of {len(nodes)} nodes have no embedding: put the embedding model before "
                "the nudge in the pipeline's transformations"
            )
        by_id = {node.node_id: node for node in nodes}
        train = _within(self.train, by_id)
        if train is None:
            return None
        state = self._in_store if self.state_dir is None else StateFolder(self.state_dir)
        moved = [] if state.state is None else state.state.document_ids
        if elsewhere := sum(id_ not in by_id for id_ in moved):
            raise ValueError(
                f"the nudge's state holds {elsewhere} documents that are not among these "
                f"{len(nodes)} nodes: ingest all of them together, or nudge the store itself after "
                "ingestion"
            )
        metric = Metric.DOT if self.config and self.config.variant == "m" else Metric.COSINE
        index = MemoryIndex(
            [node.node_id for node in nodes],
            np.array([node.get_embedding() for node in nodes], dtype=np.float32),
            metric,
        )
        dev = None if self.dev is None else _within(self.dev, by_id)
        state.refresh(index)  # nodes come as they were embedded, those moved earlier as well
        report = nudge_index(index, self.encoder, train, dev, self.config, state_dir=state)
        moved = [] if state.state is None else state.state.document_ids
        for id_, vector in zip(moved, index.vectors(moved).tolist(), strict=True):
            by_id[id_].embedding = vector
        return report


class NudgeTransformation(TransformComponent):
    """Nudge nodes within an `IngestionPipeline`, as the last of its transformations.

    The pipeline's cache tells two of them apart by datasets, settings and embedding model. All
    nodes must come in one run of one process: no `num_workers`.
    """

    _nudge: NudgePostprocessor = PrivateAttr()
    _report: NudgeResult | None = PrivateAttr(default=None)

    def __init__(self, nudge: NudgePostprocessor) -> None:
        super().__init__()
        self._nudge = nudge

    @classmethod
    def class_name(cls) -> str:
        """Return the name by which LlamaIndex writes the class down."""
        return "NudgeTransformation"

    @property
    def report(self) -> NudgeResult | None:
        """What the last run did; None before it, and where no question's documents were there."""
        return self._report

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Move the nodes' embeddings in place and return the nodes."""
        self._report = self._nudge.apply_to_nodes(nodes)
        return nodes

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return what the pipeline's cache keys on: a hash of all that the vectors depend on."""
        nudge = self._nudge
        described = [
            [nudge.encoder.fingerprint, asdict(nudge.config or NudgeConfig())],
            *([data.queries, data.relevant_docs] for data in (nudge.train, nudge.dev) if data),
        ]
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        return {**super().to_dict(**kwargs), "fingerprint": digest}


def _within(dataset: RetrievalDataset, ids: Iterable[str]) -> RetrievalDataset | None:
    """Return the questions whose relevant documents are all among `ids`, None for no question."""
    known = set(ids)
    kept = [query for query, found in dataset.relevant_docs.items() if known.issuperset(found)]
    return dataset.subset(kept) if kept else None


def encoder_of(embed_model: BaseEmbedding) -> Encoder:
    """Return an embedding model's encoder, or an `Encoder` over a foreign model."""
    if isinstance(embed_model, NexusEmbedding):
        return embed_model.encoder
    return through(embed_model)


def through(embed_model: BaseEmbedding) -> ForeignEncoder:
    """Return an `Encoder` that embeds by the model's own methods, with its cache and its events."""
    own = embed_model.encoder if isinstance(embed_model, NexusEmbedding) else None
    return ForeignEncoder(
        embed_model,
        embed_model.to_dict() if own is None else {},
        embed_model.get_query_embedding,
        embed_model.get_text_embedding_batch,
        None if own is None else own.dimension,
    )
