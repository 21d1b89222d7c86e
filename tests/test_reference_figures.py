"""Figures that the data's own documentation gives, computed anew on parts that are cheap."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from nexus_integrations.data import RetrievalDataset, SimilarityDataset

pytestmark = pytest.mark.shared


@pytest.mark.parametrize(
    ("name", "documents", "queries"), [("covidqa", 2359, 1380), ("policyqa", 1074, 5063)]
)
def test_beir_folders_are_read_whole(shared_data, name, documents, queries):
    """The number of passages, and of queries over the three splits."""
    parts = [
        RetrievalDataset.from_beir(shared_data / name, split=split)
        for split in ("train", "dev", "test")
    ]
    assert {len(part.corpus) for part in parts} == {documents}
    assert sum(len(part) + part.dropped for part in parts) == queries


def test_llama_index_files_are_read_whole(shared_data):
    """LlamaIndex's own fine-tuning sample: chunks and queries of both parts."""
    sizes = []
    for part in ("train", "val"):
        data = RetrievalDataset.from_json(
            shared_data / "llama_index_10k" / f"{part}_dataset.json.gz"
        )
        sizes.append((len(data.corpus), len(data) + data.dropped))
    assert sizes == [(334, 668), (395, 790)]


@pytest.mark.model
def test_sentence_similarity_without_training(shared_data, encoder):
    """Spearman's ρ of the cosine on the STS Benchmark's test set is .8203."""
    data = SimilarityDataset.from_csv(shared_data / "stsb" / "test.csv.gz")
    assert len(data) == 1379
    first = encoder.encode_queries(data.sentences1)
    second = encoder.encode_queries(data.sentences2)
    cosines = np.einsum("ij,ij->i", first, second)
    assert spearmanr(cosines, data.scores).statistic == pytest.approx(0.8203, abs=2e-4)
