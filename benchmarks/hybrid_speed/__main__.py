"""Measure a hybrid query and its preparation: `python -m benchmarks.hybrid_speed`.

Ours runs side by side with LlamaIndex's `BM25Retriever` and `QueryFusionRetriever` and LangChain's
`BM25Retriever` and `EnsembleRetriever`, over one Chroma folder of synthetic passages and vectors.
The questions' vectors are given, so no figure holds an embedding. Each system builds its words in
one process, and a new process opens them, answers the first question, answers the others one by
one, adds a passage and observes an answer. Memory is what the second process has resident.

It runs in the environment that `make bench-peers` makes: `.venv/bm25/bin/python -m
benchmarks.hybrid_speed`. `--output PATH` writes PATH.json and PATH.md and keeps other sizes there.
It runs on Linux.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.hybrid_speed.corpus import LENGTH, Corpus
from benchmarks.hybrid_speed.ours import InLangChain, InLlamaIndex, Ours
from benchmarks.hybrid_speed.peers import LangChainPeer, LlamaIndexPeer
from benchmarks.hybrid_speed.systems import Store, System

SYSTEMS: dict[str, type[System]] = {
    "store alone": Store,
    "HybridRetriever": Ours,
    "LlamaIndex: ours": InLlamaIndex,
    "LlamaIndex: peer": LlamaIndexPeer,
    "LangChain: ours": InLangChain,
    "LangChain: peer": LangChainPeer,
}
_PACKAGES = (
    *("tantivy", "chromadb", "llama-index-core", "llama-index-retrievers-bm25", "bm25s"),
    *("langchain-community", "langchain-classic", "rank-bm25"),
)
_SECONDS = 60.0  # of asking questions, at most
_CHANGES = 5


def main() -> None:
    """Measure all systems at the sizes that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", nargs="+", type=int, default=[10_000, 100_000])
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--turns", type=int, default=3, help="how often each answers all questions")
    parser.add_argument("--output", type=Path, help="write OUTPUT.json and OUTPUT.md")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(_case(*options.case)))
        return
    content: dict[str, Any] = {}
    if options.output and record.file_of(options.output, ".json").is_file():
        content = json.loads(record.file_of(options.output, ".json").read_text(encoding="utf-8"))
    content.setdefault("passages", {})
    for size in options.passages:
        content["passages"][str(size)] = _measured(size, options.systems, options.turns)
        content["machine"] = record.machine(*_PACKAGES)
        if options.output:
            record.write(options.output, content, page(content))
    print(json.dumps(content, indent=1))


def _measured(size: int, systems: list[str], turns: int) -> dict[str, Any]:
    """Return the figures of each system; the systems take turns at answering."""
    figures: dict[str, dict[str, Any]] = {system: {} for system in systems}
    milliseconds: dict[str, list[float]] = {system: [] for system in systems}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        Corpus.make(Path(name), size)
        for system in systems:
            figures[system] |= _in_child("build", system, name)
        opened: dict[str, list[float]] = {system: [] for system in systems}
        for _ in range(turns):
            for system in systems:
                found = _in_child("query", system, name)
                milliseconds[system] += found.pop("milliseconds")
                opened[system].append(found["open"])
                figures[system] |= found
        for system in systems:
            figures[system] |= _in_child("change", system, name)
            figures[system]["open"] = statistics.median(opened[system])
            for share in (50, 95):
                value = float(np.percentile(milliseconds[system], share))
                figures[system][f"p{share}"] = round(value, 3)
            print(size, system, json.dumps(figures[system]), file=sys.stderr, flush=True)
    return figures


def _in_child(task: str, system: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.hybrid_speed"]
    done = subprocess.run(
        [*command, "--case", task, system, folder], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _case(task: str, name: str, folder: str) -> dict[str, Any]:
    words = Path(folder) / f"words of {name}"
    system = SYSTEMS[name](Corpus(Path(folder)), words)
    for module in system.imports:
        import_module(module)  # before the clock starts
    if task == "build":
        seconds = _timed(system.build)
        size = sum(file.stat().st_size for file in words.rglob("*") if file.is_file())
        return {"build": seconds, "disk": round(size / 2**20, 1)}
    questions = Corpus(Path(folder)).questions()
    begun = perf_counter()
    search = system.open()
    search(0)
    opened = perf_counter() - begun
    if task == "query":
        return {"open": round(opened, 3), **_answered(search, len(questions))}
    text = "one passage more about the words of a question"
    changes = {"add": system.add, "observe": system.observe}
    found = {}
    for change, run in changes.items():
        seconds = [_timed(lambda: run(text))]  # noqa: B023
        while len(seconds) < _CHANGES and sum(seconds) < _SECONDS / 4:
            seconds.append(_timed(lambda: run(text)))  # noqa: B023
        found[change] = round(statistics.median(seconds), 4)
    return found


def _answered(search: Callable[[int], list[str]], count: int) -> dict[str, Any]:
    """Ask all questions but the first, or as many as time allows."""
    begun, used, milliseconds = perf_counter(), process_time(), []
    for number in range(1, count):
        milliseconds.append(1000 * _timed(lambda: search(number)))  # noqa: B023
        if perf_counter() - begun > _SECONDS:
            break
    cpu = 1000 * (process_time() - used) / len(milliseconds)
    return {"milliseconds": milliseconds, "cpu": round(cpu, 3), "memory": _resident()}


def _timed(call: Callable[[], object]) -> float:
    begun = perf_counter()
    call()
    return perf_counter() - begun


def _resident() -> float:
    """Return the anonymous memory of this process in MB; files that are mapped do not count."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon"):
            return round(int(line.split()[1]) / 1024)
    raise RuntimeError("/proc/self/status has no RssAnon: this benchmark runs on Linux")


_COLUMNS = {
    "query p50, ms": "p50",
    "p95, ms": "p95",
    "CPU, ms": "cpu",
    "build, s": "build",
    "on disk, MB": "disk",
    "open to first answer, s": "open",
    "memory, MB": "memory",
    "add a passage, s": "add",
    "observe an answer, s": "observe",
}


def page(content: Mapping[str, Any]) -> str:
    """Return the page in Markdown."""
    parts = [
        "# A hybrid query, side by side\n\nWritten by `python -m benchmarks.hybrid_speed`. All "
        "systems search one Chroma folder of synthetic passages "
        f"({LENGTH} words each) and vectors, for 10 passages; the questions' vectors are given, so "
        "no figure holds an embedding. **Store alone** is Chroma's own query by vector. "
        "**HybridRetriever** is ours without a framework, **ours** is `NexusRetriever` in the "
        "framework. The **peer** in LlamaIndex is `BM25Retriever` (bm25s) in "
        "`QueryFusionRetriever`; in LangChain it is `BM25Retriever` (rank_bm25) in "
        "`EnsembleRetriever`, which cannot be saved, so opening indexes all passages again. "
        "Neither peer takes another passage or another question: adding and observing index all "
        "passages again. Imports are not timed. CPU is the mean CPU time of a query, all threads "
        "together. Memory is the anonymous memory of the process that answers, without mapped "
        "files.\n"
    ]
    for size, figures in content["passages"].items():
        rows = [
            (system, *(_shown(system, name, found) for name in _COLUMNS.values()))
            for system, found in figures.items()
        ]
        parts += [f"## {int(size):,} passages\n", record.table(["system", *_COLUMNS], rows)]
    versions = ", ".join(f"{name} {value}" for name, value in content["machine"].items())
    parts.append(f"{versions}. Other work was running on the machine: compare CPU times first.\n")
    return "\n".join([*parts, *content.get("notes", [])])


def _shown(system: str, name: str, found: Mapping[str, Any]) -> str | None:
    if system == "store alone" and name in ("build", "disk", "add", "observe"):
        return None
    if name == "disk" and not found.get(name):
        return None
    value = found.get(name)
    if value is None:
        return None
    if name in ("memory", "disk"):
        return f"{value:,.0f}"
    return f"{value:.3f}" if value < 1 else f"{value:,.1f}"


if __name__ == "__main__":
    main()
