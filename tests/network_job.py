"""The whole job, as `tests/test_network.py` watches it: run as a script in an empty folder.

It writes below the working directory and in the cache folder alone, and takes no other machine.
"""

from pathlib import Path

import chromadb
from langchain_chroma import Chroma
from langchain_core.documents import Document
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.vector_stores.chroma import ChromaVectorStore
from typer.testing import CliRunner

from nexus_integrations import (
    DendriticEncoder,
    DenseRetriever,
    FinetuneConfig,
    NudgeConfig,
    Report,
    TuneConfig,
    evaluate,
    finetune,
)
from nexus_integrations.cli import app
from nexus_integrations.demo import corpus
from nexus_integrations.langchain import NexusEmbeddings, NexusRetriever
from nexus_integrations.langchain import NudgePostprocessor as LangChainNudge
from nexus_integrations.llama_index import NexusEmbedding, open_index
from nexus_integrations.llama_index import NudgePostprocessor as LlamaIndexNudge

_STEP = NudgeConfig(gamma=0.1)


def main() -> None:
    """Embed, train with a dendrite, export, nudge, tune and evaluate, in both frameworks."""
    train, dev, test = corpus().split(0.6, 0.15, 0.25, seed=0)
    encoder = DendriticEncoder.load()  # exports its graph: the cache is cold
    config = FinetuneConfig(dendrites=1, tries=1, epochs=1)
    tuned = finetune(encoder, train, dev, config)
    tuned.save("tuned")

    client = chromadb.PersistentClient("chroma", chromadb.Settings(anonymized_telemetry=False))
    model = NexusEmbedding(model="tuned")
    store = ChromaVectorStore(chroma_collection=client.get_or_create_collection("llama"))
    index = VectorStoreIndex(
        [TextNode(id_=id_, text=text) for id_, text in train.corpus.items()],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=model,
    )
    nudge = LlamaIndexNudge(train, dev, embed_model=model, config=_STEP, state_dir="state")
    nudge.apply(index)
    index.as_retriever(similarity_top_k=2).retrieve("who signs?")
    evaluate(DenseRetriever(open_index(index), tuned.encoder), test)
    nudge.undo(index)

    embeddings = NexusEmbeddings(model="tuned")
    other = Chroma("langchain", embeddings, client=client)
    other.add_documents([Document(id=i, page_content=text) for i, text in train.corpus.items()])
    second = LangChainNudge(train, dev, embeddings=embeddings, config=_STEP, state_dir="state-2")
    second.apply(other)
    other.similarity_search("who signs?", k=2)
    second.undo(other)

    brief = TuneConfig(heads=config, folds=2, weights=(0.0, 0.5))
    retriever = NexusRetriever.tune(other, train, dev, config=brief, folder="everything")
    retriever.invoke("who signs?")
    assert CliRunner().invoke(app, ["search", "missing", "who signs?"]).exit_code == 1
    before = evaluate(retriever, test)
    Report.of({"before": before, "after": before}).save("report.html")
    Path("done").touch()


if __name__ == "__main__":
    main()
