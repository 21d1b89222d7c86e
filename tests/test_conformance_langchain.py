"""What LangChain asks of an embedding model in its vector stores and chains.

`nox -s versions` runs this file under the oldest and the newest supported version.
"""

from uuid import uuid4

import pytest
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from nexus_integrations import NudgeConfig
from nexus_integrations.langchain import NexusEmbeddings, NudgePostprocessor, as_dataset


@pytest.fixture
def asked(table_encoder):
    """An encoder of two documents and a question, nearest to the first, that keeps its calls."""
    return table_encoder({"first": (1, 0), "second": (0, 1), "question": (0.8, 0.6)})


class TestInMemoryVectorStore(VectorStoreIntegrationTests):
    """LangChain's suite for vector stores, over its in-memory store and our embeddings."""

    @pytest.fixture
    def vectorstore(self, tiny_model) -> VectorStore:
        return InMemoryVectorStore(NexusEmbeddings(model=tiny_model))


class TestChroma(VectorStoreIntegrationTests):
    """The same over a Chroma folder."""

    @pytest.fixture
    def vectorstore(self, tiny_model, tmp_path, no_network):
        pytest.importorskip("langchain_chroma")
        import chromadb
        from chromadb.api.shared_system_client import SharedSystemClient
        from langchain_chroma import Chroma

        settings = chromadb.Settings(anonymized_telemetry=False)
        store = Chroma(
            uuid4().hex,
            NexusEmbeddings(model=tiny_model),
            client=chromadb.PersistentClient(str(tmp_path), settings),
        )
        yield store
        SharedSystemClient.clear_system_cache()


async def test_lcel_retrieval_chain(asked):
    """In a chain the question is embedded as a query, and a nudge changes the context."""
    embeddings = NexusEmbeddings.from_encoder(asked)
    store = InMemoryVectorStore(embeddings)
    documents = [Document(id=text, page_content=text) for text in ("first", "second")]
    store.add_documents(documents)
    model = RunnableLambda(lambda prompt: prompt.to_messages()[0].content)
    chain = (
        {
            "context": store.as_retriever(search_kwargs={"k": 1})
            | RunnableLambda(lambda found: found[0].page_content),
            "question": RunnablePassthrough(),
        }
        | ChatPromptTemplate.from_messages([("human", "{question}: {context}")])
        | model
        | StrOutputParser()
    )
    assert chain.invoke("question") == "question: first"
    assert asked.backbone.asked[-1] == ("query", "question")
    nudge = NudgePostprocessor(
        as_dataset([("question", "second")], documents),
        embeddings=embeddings,
        config=NudgeConfig(gamma=1.0),
    )
    nudge.apply(store)
    assert await chain.ainvoke("question") == "question: second"
    assert chain.batch(["question"] * 2) == ["question: second"] * 2
