"""The short way in LangChain: one call tunes vectors, words and the weight between them.

Run it with `python examples/langchain_tune.py`; it needs the extras `train`, `langchain` and
`bundled`, and writes nothing outside a temporary folder.
"""

import tempfile

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from nexus_integrations.demo import SHARES, corpus
from nexus_integrations.langchain import NexusEmbeddings, NexusRetriever

QUESTION = "goldie is beeping 11 degrees who do i call"

train, dev, test = corpus().split(*SHARES, seed=0)
# Ids that last: a loader gives none, str(uuid5(NAMESPACE_OID, text)) is one.
documents = [Document(id=id_, page_content=text) for id_, text in train.corpus.items()]
store = InMemoryVectorStore(NexusEmbeddings())
store.add_documents(documents)

with tempfile.TemporaryDirectory() as folder:
    # Each step is kept only if it helps questions that did not choose it. `test` decides nothing.
    retriever = NexusRetriever.tune(store, train, dev, folder=folder, test=test, k=3)
    print(retriever.result)

    # In another program: open the store as always, then what was tuned.
    retriever = NexusRetriever.load(folder, store, k=3)
    print(f"\nQuestion: {QUESTION}")
    for found in retriever.invoke(QUESTION):
        print(
            f"  {found.id:10} {found.metadata['relevance_score']:.3f}  {found.page_content[:60]}…"
        )

    undone = retriever.result.undo()
    print(f"\nundone: {undone['vectors']} vectors, {undone['questions']} questions")
