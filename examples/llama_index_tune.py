"""The short way in LlamaIndex: one call tunes vectors, words and the weight between them.

Run it with `python examples/llama_index_tune.py`; it needs the extras `train`, `llama-index` and
`bundled`, and writes nothing outside a temporary folder.
"""

import tempfile

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

from nexus_integrations.demo import SHARES, corpus
from nexus_integrations.llama_index import NexusEmbedding, NexusRetriever

QUESTION = "goldie is beeping 11 degrees who do i call"

train, dev, test = corpus().split(*SHARES, seed=0)
# Ids that last: a splitter's are random, str(uuid5(NAMESPACE_OID, text)) is not.
nodes = [TextNode(id_=id_, text=text) for id_, text in train.corpus.items()]
index = VectorStoreIndex(nodes, embed_model=NexusEmbedding())

with tempfile.TemporaryDirectory() as folder:
    # Each step is kept only if it helps questions that did not choose it. `test` decides nothing.
    retriever = NexusRetriever.tune(index, train, dev, folder=folder, test=test, similarity_top_k=3)
    print(retriever.result)

    # In another program: open the index as always, then what was tuned.
    retriever = NexusRetriever.load(folder, index, similarity_top_k=3)
    print(f"\nQuestion: {QUESTION}")
    for found in retriever.retrieve(QUESTION):
        print(f"  {found.node.node_id:10} {found.score:.3f}  {found.node.text[:60]}…")

    undone = retriever.result.undo()
    print(f"\nundone: {undone['vectors']} vectors, {undone['questions']} questions")
