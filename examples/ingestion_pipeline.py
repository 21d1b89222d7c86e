"""A LlamaIndex IngestionPipeline that embeds and nudges, with a cache that knows the model.

Run it with `python examples/ingestion_pipeline.py`; it needs the extras `llama-index` and
`bundled`, and writes nothing outside a temporary folder.
"""

import tempfile
from pathlib import Path
from time import perf_counter

from llama_index.core import VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode

from nexus_integrations import FinetuneConfig
from nexus_integrations.demo import SHARES, corpus
from nexus_integrations.llama_index import NexusEmbedding, NexusFinetuneEngine, NudgePostprocessor

QUESTION = "goldie is beeping 11 degrees who do i call"

train, dev, _ = corpus().split(*SHARES, seed=0)


def ingest(pipeline: IngestionPipeline) -> list[TextNode]:
    """Run the handbook through the pipeline and tell how long it took."""
    begun = perf_counter()
    nodes = pipeline.run(nodes=[TextNode(id_=i, text=t) for i, t in train.corpus.items()])
    print(f"{len(nodes)} nodes in {perf_counter() - begun:.2f} s")
    return nodes


with tempfile.TemporaryDirectory() as folder:
    engine = NexusFinetuneEngine(
        train,
        dev,
        embed_model=NexusEmbedding(),
        config=FinetuneConfig(dendrites=0),  # 3 with the extra `dendrites`
        model_output_path=Path(folder) / "tuned",
    )
    result = engine.finetune()
    print(f"dev nDCG@10 {result.baseline_score:.3f} → {result.score:.3f}")
    tuned = engine.get_finetuned_model()

    # The nudge is the last step: it moves node.embedding before a store sees it. Splitters stand
    # before the embedding model; the questions then name the ids of the nodes that they make.
    nudger = NudgePostprocessor(train, dev, embed_model=tuned, state_dir=Path(folder) / "state")
    nudge = nudger.as_transformation()
    pipeline = IngestionPipeline(transformations=[tuned, nudge])
    nodes = ingest(pipeline)
    assert nudge.report is not None
    print(f"γ = {nudge.report.gamma:g} moved {nudge.report.moved} passages")

    print("\nAgain: model, settings and questions are the same, so the cache has the vectors")
    ingest(pipeline)
    pipeline.persist(f"{folder}/pipeline")  # and load() takes the cache up in another process

    index = VectorStoreIndex(nodes, embed_model=tuned)
    print(f"\nQuestion: {QUESTION}")
    for found in index.as_retriever(similarity_top_k=3).retrieve(QUESTION):
        print(f"  {found.node.node_id:10} {found.score:.3f}  {found.node.text[:60]}…")
    print(f"\nundone: {nudger.undo(index)} passages put back")
