"""Time all models, one after another, again and again."""

import argparse
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.embedding.lengths import mixed, operations, token_counts
from benchmarks.embedding.process import AT_ONCE, OURS, PEER, PEERS, Process
from nexus_integrations import RetrievalDataset

BATCH_SIZES = (8, 16, 32, 64, 128)  # plain sentence-transformers runs with the best of them

Seconds = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Texts:
    """What the models embed; `question` and `at once` are embedded as queries."""

    passages: list[str]
    mixed: list[str]
    single: list[str]
    together: list[str]

    @classmethod
    def read(cls, data: Path, folder: str) -> "Texts":
        """Take passages and questions of covidqa."""
        dataset = RetrievalDataset.from_beir(data / "covidqa", split="test")
        passages = list(dataset.corpus.values())
        passages = passages[:: len(passages) // 96][:96]
        questions = list(dataset.queries.values())
        return cls(passages, mixed(passages, folder), questions[:100], questions[: 6 * AT_ONCE])

    def kinds(self) -> dict[str, tuple[list[str], int]]:
        """Return the texts by kind, and how many of them one timing covers."""
        return {
            "passages": (self.passages, len(self.passages)),
            "mixed": (self.mixed, len(self.mixed)),
            "question": (self.single, 1),
            "at once": (self.together, len(self.together)),
        }


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Time all models, one after another, again and again."""
    texts = Texts.read(options.data, options.folder)
    seconds, peak = _timed(options, texts)
    best = {kind: max(values) for kind, values in peak.items()}
    models: dict[str, Any] = {}
    tokens: dict[str, float] = {}
    for kind, (embedded, count) in texts.kinds().items():
        work = operations(embedded, options.folder) * count / len(embedded)
        tokens[kind] = round(float(np.mean(token_counts(embedded, options.folder))), 1)
        models[kind] = {
            name: _figures(found, seconds[kind][PEER], count, work / best[_type_of(name)])
            for name, found in seconds[kind].items()
        }
    return {
        "turns": options.repeats,
        "tokens": tokens,
        "peak, operations per second": {
            kind: round(value / 1e9, 1) for kind, value in best.items()
        },
        "models": models,
    }


def _timed(options: argparse.Namespace, texts: Texts) -> tuple[Seconds, dict[str, list[float]]]:
    """Return seconds by kind of text and model, and the machine's operations per second by type."""
    plain = f"sentence-transformers {_best_batch_size(options, texts.passages[:64])}"
    peak: dict[str, list[float]] = {}
    seconds: Seconds = {}
    with ExitStack() as stack:
        models = {
            name: stack.enter_context(Process(python, name, options.folder))
            for python, names in (
                (sys.executable, ("peak", *OURS)),
                (options.peers, (*PEERS, plain)),
            )
            for name in names
        }
        meter = models.pop("peak")
        for turn in range(options.repeats + 1):  # the first one warms up
            for kind, value in meter.ask("peak").items():
                peak.setdefault(kind, []).append(value)
            for name, model in models.items():
                for kind, value in _asked(model, texts).items() if turn else ():
                    if value is not None:
                        seconds.setdefault(kind, {}).setdefault(name, []).append(value)
    return seconds, peak


def _asked(model: Process, texts: Texts) -> dict[str, float | None]:
    return {
        "passages": model.ask("documents", texts=texts.passages)["seconds"],
        "mixed": model.ask("documents", texts=texts.mixed)["seconds"],
        "question": statistics.median(model.ask("queries", texts=texts.single)["seconds"]),
        "at once": model.ask("concurrent", texts=texts.together, at_once=AT_ONCE)["seconds"],
    }


def _figures(
    own: list[float], peers: list[float], count: int, seconds_at_peak: float
) -> dict[str, float]:
    median = statistics.median(own)
    # The ratio is taken turn by turn: what slows the machine for a while slows both.
    ratio = statistics.median(peer / mine for peer, mine in zip(peers, own, strict=True))
    return {
        "per second": round(count / median, 2),
        "ms": round(1000 * median / count, 3),
        "times the peer": round(ratio, 2),
        "of the peak": round(seconds_at_peak / median, 3),
    }


def _type_of(name: str) -> str:
    kind = name.rpartition(" ")[2]
    return kind if kind in ("bfloat16", "int8") else "float32"


def _best_batch_size(options: argparse.Namespace, texts: list[str]) -> int:
    seconds = {}
    for size in BATCH_SIZES:
        name = f"sentence-transformers {size}"
        with Process(options.peers, name, options.folder) as model:
            seconds[size] = min(model.ask("documents", texts=texts)["seconds"] for _ in range(2))
    return min(seconds, key=lambda size: seconds[size])
