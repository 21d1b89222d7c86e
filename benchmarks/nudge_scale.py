"""Measure NUDGE at scale: `python -m benchmarks.nudge_scale [--documents N ...] [--output PATH]`.

Random unit vectors, 384 wide: what is measured is time and memory, not quality. The questions of a
document lean to one side of it, which is what a nudge can learn; dev questions are about documents
of training questions. Each case runs in a process of its own, ours and the reference's one after
another, repeatedly; medians are printed, and the memory beyond the corpus (peak resident minus
resident once the corpus is there). Ours runs by its own rule and by that of `nudge-ft`, which finds
the γ that the reference finds. `nudge-ft` in its default mode takes minutes and runs once.

`--output PATH` writes PATH.json and PATH.md. Runs on Linux.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np

from benchmarks import record
from nexus_integrations.data import RetrievalDataset
from nexus_integrations.index import MemoryIndex
from nexus_integrations.nudge import NudgeConfig, nudge_index
from nexus_integrations.protocols import Floats

DIMENSION = 384
OURS = "ours: nDCG@10, 16 γ"
SAME = "ours, by nudge-ft's rule: recall@1, 25 γ"
SAVING = "nudge-ft, memory-saving"
DEFAULT = "nudge-ft, default"


class GivenVectors:
    """An encoder of queries whose vectors are given: the text is the row number."""

    fingerprint = "given"

    def __init__(self, vectors: Floats) -> None:
        self._vectors = vectors
        self.dimension = int(vectors.shape[1])

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """Return the rows that the texts name."""
        return self._vectors[[int(text) for text in texts]]

    encode_documents = encode_queries


def main() -> None:
    """Run the cases that the command line asks for and print their JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", nargs="+", type=int, default=[200_000, 1_000_000])
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--dev", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--default-up-to", type=int, default=200_000, help="0: without that mode")
    parser.add_argument("--output", type=Path, help="write OUTPUT.json and OUTPUT.md")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(_measure(options.case[0], int(options.case[1]), options)))
        return
    results = {}
    for size in options.documents:
        cases = [OURS, SAME, SAVING, *([DEFAULT] if size <= options.default_up_to else [])]
        runs: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
        for repeat in range(options.repeats):
            for case in cases:
                if case == DEFAULT and repeat:
                    continue  # minutes each: once tells
                runs[case].append(_in_child(case, size, options))
        median = {
            case: {key: round(statistics.median(run[key] for run in found), 3) for key in found[0]}
            for case, found in runs.items()
        }
        for case in cases[2:]:
            for name, ours in (("ours", OURS), ("ours by its rule", SAME)):
                ratio = median[case]["seconds"] / median[ours]["seconds"]
                median[case][f"times as long as {name}"] = round(ratio, 2)
        results[f"{size:,} documents"] = median
    content = {
        "train questions": options.train,
        "dev questions": options.dev,
        "dimension": DIMENSION,
        "machine": record.machine("numpy", "torch", "nudge-ft"),
        **results,
    }
    print(json.dumps(content, indent=1))
    if options.output:
        record.write(options.output, content, _page(content, results))


def _page(content: dict[str, Any], results: dict[str, Any]) -> str:
    rows = [
        (
            size,
            case,
            measured["seconds"],
            measured["gib"],
            measured["gamma"],
            measured.get("times as long as ours"),
            measured.get("times as long as ours by its rule"),
        )
        for size, cases in results.items()
        for case, measured in cases.items()
    ]
    head = ("index", "solver", "s", "GiB beyond the corpus", "γ", "× ours", "× ours by its rule")
    return (
        "# NUDGE at scale\n\n"
        f"{content['train questions']:,} training and {content['dev questions']:,} dev questions, "
        f"{DIMENSION} dimensions. {', '.join(map(' '.join, content['machine'].items()))}. "
        "Written by `python -m benchmarks.nudge_scale`.\n\n" + record.table(head, rows)
    )


def _in_child(case: str, size: int, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.nudge_scale", "--case", case, str(size)]
    command += ["--train", str(options.train), "--dev", str(options.dev)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _measure(case: str, size: int, options: argparse.Namespace) -> dict[str, float]:
    rng = np.random.default_rng(0)
    documents = _unit(rng, size)
    n_queries = options.train + options.dev
    answers = rng.integers(0, size, options.train)
    asked = np.concatenate([np.arange(options.train), rng.integers(0, options.train, options.dev)])
    sides = _unit(rng, options.train)[asked]
    answers = answers[asked]
    queries = documents[answers] + 3 * sides + 3 * _unit(rng, n_queries)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    del sides
    if case in (OURS, SAME):
        config = NudgeConfig(rule="nudge-ft" if case == SAME else "curve")
        return _measure_ours(documents, queries, answers, options.train, config)
    return _measure_reference(documents, queries, answers, options.train, case == SAVING)


def _measure_ours(
    documents: Floats,
    queries: Floats,
    answers: "np.ndarray[tuple[int], np.dtype[np.int64]]",
    n: int,
    config: NudgeConfig,
) -> dict[str, float]:
    # Texts stand for their row numbers; the corpus holds those that datasets must name.
    named = {str(row): str(row) for row in set(answers.tolist())}
    train, dev = (
        RetrievalDataset(
            queries={f"q{row}": str(row) for row in rows},
            corpus=named,
            relevant_docs={f"q{row}": [str(answers[row])] for row in rows},
        )
        for rows in (range(n), range(n, len(queries)))
    )
    index = MemoryIndex([str(row) for row in range(len(documents))], documents)
    del documents
    with _PeakMemory() as memory:
        begun = perf_counter()
        report = nudge_index(index, GivenVectors(queries), train, dev, config)
        seconds = perf_counter() - begun
    return {"seconds": seconds, "gib": memory.gib, "gamma": report.gamma}


def _measure_reference(
    documents: Floats,
    queries: Floats,
    answers: "np.ndarray[tuple[int], np.dtype[np.int64]]",
    n: int,
    saving: bool,
) -> dict[str, float]:
    from nudge import NUDGEN

    inside = np.unique(answers) if saving else np.arange(len(documents))
    places = np.searchsorted(inside, answers).tolist()
    outside = np.setdiff1d(np.arange(len(documents)), inside) if saving else None
    with _PeakMemory() as memory:
        begun = perf_counter()
        vectors = NUDGEN("cpu").finetune_embeddings(
            documents[inside] if saving else documents,
            {"q_embs": queries[:n], "q_ans_indx": [[place] for place in places[:n]]},
            {"q_embs": queries[n:], "q_ans_indx": [[place] for place in places[n:]]},
            nontrain_embeddings=None if outside is None else documents[outside],
        )
        seconds = perf_counter() - begun
    # It does not tell γ, which bounds the squared move.
    moves = vectors[places] - documents[answers]
    gamma = float(np.einsum("ij,ij->i", moves, moves).max())
    return {"seconds": seconds, "gib": memory.gib, "gamma": gamma}


def _unit(rng: np.random.Generator, rows: int) -> Floats:
    vectors = rng.standard_normal((rows, DIMENSION), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


class _PeakMemory:
    """Resident memory at its highest within a block, beyond what was resident before, in GiB."""

    gib = 0.0

    def __enter__(self) -> "_PeakMemory":
        self._before = self._highest = _resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.is_set():
            self._highest = max(self._highest, _resident())
            sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.gib = (self._highest - self._before) / 2**30


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
