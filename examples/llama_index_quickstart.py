"""The main job in LlamaIndex: index, ask, fine-tune, nudge, ask again, undo.

Run it with `python examples/llama_index_quickstart.py`; it needs the extras `llama-index` and
`bundled`, and writes nothing outside a temporary folder.
"""

import tempfile
from pathlib import Path

from llama_index.core import Settings, VectorStoreIndex, load_index_from_storage
from llama_index.core.schema import TextNode

from nexus_integrations import FinetuneConfig
from nexus_integrations.demo import SHARES, corpus
from nexus_integrations.llama_index import NexusEmbedding, NexusFinetuneEngine, NudgePostprocessor

QUESTION = "goldie is beeping 11 degrees who do i call"


def show(title: str, index: VectorStoreIndex) -> None:
    """Print the three passages that the framework's own retriever finds."""
    print(f"\n{title}")
    for found in index.as_retriever(similarity_top_k=3).retrieve(QUESTION):
        print(f"  {found.node.node_id:10} {found.score:.3f}  {found.node.text[:60]}…")


train, dev, _ = corpus().split(*SHARES, seed=0)
nodes = [TextNode(id_=id_, text=text) for id_, text in train.corpus.items()]

Settings.embed_model = NexusEmbedding()
index = VectorStoreIndex(nodes)
print(f"Question: {QUESTION}")
show("all-MiniLM-L6-v2:", index)

with tempfile.TemporaryDirectory() as folder:
    engine = NexusFinetuneEngine(
        train,
        dev,
        embed_model=Settings.embed_model,
        config=FinetuneConfig(dendrites=0),  # 3 with the extra `dendrites`
        model_output_path=Path(folder) / "tuned",
        index=index,  # its vectors are read: no passage is embedded again
    )
    result = engine.finetune()
    print(f"\ndev nDCG@10 {result.baseline_score:.3f} → {result.score:.3f}")

    # A head on the query side leaves the stored vectors valid: the tuned model asks the same index.
    tuned = engine.get_finetuned_model()
    index = load_index_from_storage(index.storage_context, embed_model=tuned)
    show("fine-tuned:", index)

    nudger = NudgePostprocessor(train, dev, embed_model=tuned, state_dir=Path(folder) / "state")
    report = nudger.apply(index)
    print(f"\nγ = {report.gamma:g} moved {report.moved} passages")
    show("fine-tuned and nudged:", index)
    print(f"\nundone: {nudger.undo(index)} passages put back")
