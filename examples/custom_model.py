"""A sentence-transformers model of your own: put together, fine-tuned, saved for its programs.

Run it with `python examples/custom_model.py [FOLDER_OR_NAME]`; without a model it puts one together
from all-MiniLM-L6-v2 (extra `bundled`), with prompts of its own. It writes to a temporary folder.
"""

import sys
import tempfile
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from nexus_integrations import DendriticEncoder, FinetuneConfig, evaluate, finetune
from nexus_integrations.demo import SHARES, corpus
from nexus_integrations.encoder.source import find_model
from nexus_integrations.index import MemoryIndex
from nexus_integrations.retrievers import DenseRetriever

train, dev, test = corpus().split(*SHARES, seed=0)

with tempfile.TemporaryDirectory() as folder:
    model = sys.argv[1] if len(sys.argv) > 1 else f"{folder}/mine"
    if len(sys.argv) == 1:
        transformer = Transformer(str(find_model("all-MiniLM-L6-v2")), max_seq_length=128)
        mine = SentenceTransformer(
            modules=[transformer, Pooling(transformer.get_embedding_dimension()), Normalize()],
            prompts={"query": "question: ", "document": "handbook: "},
        )
        mine.save(model, create_model_card=False)

    # Prompts, pooling, towers and maximal length are the model's; queries and documents are told
    # apart. `trust_remote_code` is never used: the model consists of the library's own modules.
    encoder = DendriticEncoder.load(model)
    print(f"{encoder.dimension} dimensions, {encoder.max_length} tokens")
    print(f"fingerprint {encoder.fingerprint[:12]}…")

    # One linear head for both sides is the kind that any sentence-transformers program can load.
    config = FinetuneConfig(heads="shared", dendrites=0)
    result = finetune(encoder, train, dev, config)
    print(f"dev nDCG@10 {result.baseline_score:.3f} → {result.score:.3f}")

    result.save(Path(folder) / "tuned")  # for DendriticEncoder.load and `nexus`
    result.encoder.save_sentence_transformers(Path(folder) / "plain")  # for everybody else

    texts = list(test.corpus.values())
    tuned = DendriticEncoder.load(Path(folder) / "tuned")
    plain = SentenceTransformer(f"{folder}/plain", device="cpu")
    ours, theirs = tuned.encode_documents(texts), plain.encode_document(texts)
    print(f"the two agree to {abs(ours - theirs).max():.0e}")

    measured = evaluate(DenseRetriever(MemoryIndex(list(test.corpus), ours), tuned), test)
    print(f"test nDCG@10 {measured.metrics['ndcg@10']:.3f}")
