"""The main job in LangChain: store, ask, fine-tune, nudge, ask again, undo.

Run it with `python examples/langchain_quickstart.py`; it needs the extras `langchain` and
`bundled`, and writes nothing outside a temporary folder.
"""

import tempfile
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from nexus_integrations import FinetuneConfig, finetune
from nexus_integrations.demo import SHARES, corpus
from nexus_integrations.langchain import NexusEmbeddings, NudgePostprocessor

QUESTION = "goldie is beeping 11 degrees who do i call"


def show(title: str, store: InMemoryVectorStore) -> None:
    """Print the three passages that the framework's own search finds."""
    print(f"\n{title}")
    for found, score in store.similarity_search_with_score(QUESTION, k=3):
        print(f"  {found.id:10} {score:.3f}  {found.page_content[:60]}…")


train, dev, _ = corpus().split(*SHARES, seed=0)
documents = [Document(id=id_, page_content=text) for id_, text in train.corpus.items()]

embeddings = NexusEmbeddings()
store = InMemoryVectorStore(embeddings)
store.add_documents(documents)
print(f"Question: {QUESTION}")
show("all-MiniLM-L6-v2:", store)

with tempfile.TemporaryDirectory() as folder:
    config = FinetuneConfig(dendrites=0)  # 3 with the extra `dendrites`
    result = finetune(embeddings.encoder, train, dev, config)
    result.save(Path(folder) / "tuned")
    print(f"\ndev nDCG@10 {result.baseline_score:.3f} → {result.score:.3f}")

    # A head on the query side leaves the stored vectors valid: the tuned model asks the same store.
    tuned = NexusEmbeddings(model=Path(folder) / "tuned")
    store.embedding = tuned
    show("fine-tuned:", store)

    nudger = NudgePostprocessor(train, dev, embeddings=tuned, state_dir=Path(folder) / "state")
    report = nudger.apply(store)
    print(f"\nγ = {report.gamma:g} moved {report.moved} passages")
    show("fine-tuned and nudged:", store)
    print(f"\nundone: {nudger.undo(store)} passages put back")
