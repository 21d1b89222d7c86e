"""A user's program, checked by `mypy --strict` in tests/test_packaging.py; it is never run."""

from pathlib import Path

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import TextNode
from typing_extensions import assert_type

from nexus_integrations import (
    Comparison,
    DendriticEncoder,
    Encoder,
    Evaluation,
    FinetuneConfig,
    FinetuneResult,
    NudgeConfig,
    NudgeResult,
    Report,
    RetrievalDataset,
    VectorIndex,
    compare,
    evaluate,
    finetune,
    learning_curve,
    nudge_index,
)
from nexus_integrations.index import MemoryIndex
from nexus_integrations.langchain import NexusEmbeddings
from nexus_integrations.langchain import NudgePostprocessor as LangChainNudge
from nexus_integrations.llama_index import NexusEmbedding, NexusFinetuneEngine
from nexus_integrations.llama_index import NudgePostprocessor as LlamaIndexNudge
from nexus_integrations.retrievers import DenseRetriever


def core(folder: Path) -> Comparison:
    """The main job without a framework."""
    train, dev, test = RetrievalDataset.from_json(folder / "data.json").split(0.6, 0.2, 0.2)
    encoder = DendriticEncoder.load("all-MiniLM-L6-v2")
    index = MemoryIndex(list(train.corpus), encoder.encode_documents(list(train.corpus.values())))
    as_encoder: Encoder = encoder
    as_index: VectorIndex = index
    before = evaluate(DenseRetriever(as_index, as_encoder), test)
    assert_type(before, Evaluation)
    result = finetune(encoder, train, dev, FinetuneConfig(heads="query", dendrites=0), index=index)
    assert_type(result, FinetuneResult)
    result.save(folder / "tuned")
    report = nudge_index(
        index, result.encoder, train, dev, NudgeConfig(variant="n"), state_dir=folder / "state"
    )
    assert_type(report, NudgeResult)
    assert_type(report.undo(index), int)
    stages = {"before": before, "after": evaluate(DenseRetriever(index, result.encoder), test)}
    curve = learning_curve(encoder, train, dev, test=test, sizes=[25, 50])
    assert_type(curve, dict[int, Comparison])
    page = Report.of(stages, finetuned=result, nudged=report, index=index, learning_curve=curve)
    page.save(folder / "report.html", include_text=False)
    return compare(stages["before"], stages["after"])


def llama_index(dataset: RetrievalDataset, nodes: list[TextNode]) -> list[float]:
    """The LlamaIndex side."""
    embed_model = NexusEmbedding(model="all-MiniLM-L6-v2", embed_batch_size=32)
    index = VectorStoreIndex(nodes, embed_model=embed_model)
    engine = NexusFinetuneEngine(
        dataset, embed_model=embed_model, model_output_path="tuned", index=index
    )
    assert_type(engine.finetune(), FinetuneResult)
    tuned: BaseEmbedding = engine.get_finetuned_model()
    nudger = LlamaIndexNudge(dataset, embed_model=tuned, state_dir="state")
    assert_type(nudger.apply(index), NudgeResult)
    return tuned.get_query_embedding("a question")


def langchain(dataset: RetrievalDataset, documents: list[Document]) -> list[list[float]]:
    """The LangChain side."""
    embeddings: Embeddings = NexusEmbeddings(model="tuned")
    store = InMemoryVectorStore(embeddings)
    store.add_documents(documents)
    nudger = LangChainNudge(dataset, embeddings=embeddings)
    assert_type(nudger.apply(store).moved, int)
    assert_type(nudger.undo(store), int)
    return embeddings.embed_documents(["a passage"])
