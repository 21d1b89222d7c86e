"""The other parts of the benchmark: quality of vectors, cold start, and memory of a job."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np

from benchmarks.embedding.process import PEER, PEERS, RUNTIME, Process
from nexus_integrations import DendriticEncoder, RetrievalDataset, evaluate
from nexus_integrations.index import MemoryIndex
from nexus_integrations.protocols import Floats
from nexus_integrations.retrievers import DenseRetriever

CHARACTERS = 300  # of a passage while memory is watched: a third of it, to save minutes


def quality(options: argparse.Namespace) -> dict[str, Any]:
    """Compare vectors with the peer's vectors, and the rankings of each precision."""
    encoders = {
        kind: DendriticEncoder.load(options.folder, precision=kind)
        for kind in ("float32", "bfloat16", "int8")
    }
    found: dict[str, Any] = {}
    for name in ("covidqa", "policyqa"):
        dataset = RetrievalDataset.from_beir(options.data / name, split="test")
        found[name] = _by_precision(encoders, dataset, _peers_vectors(dataset, options))
    encoder, texts = encoders["float32"], list(dataset.corpus.values())[:64]
    alone = np.concatenate([encoder.encode_documents([text]) for text in texts])
    together = encoder.encode_documents(texts)
    found["batch of 1 against 64, largest difference"] = float(np.abs(alone - together).max())
    return found


def _peers_vectors(dataset: RetrievalDataset, options: argparse.Namespace) -> list[Floats]:
    with Process(options.peers, PEER, options.folder) as peer, _folder() as folder:
        kinds = {"documents": dataset.corpus, "queries": dataset.queries}
        for task, texts in kinds.items():
            peer.ask(task, texts=list(texts.values()), path=str(folder / f"{task}.npy"))
        return [np.load(folder / f"{task}.npy") for task in kinds]


def _by_precision(
    encoders: Mapping[str, DendriticEncoder], dataset: RetrievalDataset, theirs: Sequence[Floats]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    base: float | None = None
    for kind, encoder in encoders.items():
        ours = [
            encoder.encode_documents(list(dataset.corpus.values())),
            encoder.encode_queries(list(dataset.queries.values())),
        ]
        index = MemoryIndex(list(dataset.corpus), ours[0])
        value = evaluate(DenseRetriever(index, encoder), dataset).metrics["ndcg@10"]
        base = value if base is None else base
        found[kind] = {
            "ndcg@10": round(value, 4),
            "ndcg@10 beyond float32": round(value - base, 4),
            **_differences(ours, theirs),
        }
    return found


def _differences(ours: Sequence[Floats], theirs: Sequence[Floats]) -> dict[str, float]:
    found: dict[str, float] = {}
    for kind, own, other in zip(("passages", "questions"), ours, theirs, strict=True):
        cosines = (own * other).sum(axis=1)
        found[f"{kind}, largest difference"] = float(f"{np.abs(own - other).max():.1e}")
        found[f"{kind}, mean cosine"] = round(float(cosines.mean()), 6)
        found[f"{kind}, smallest cosine"] = round(float(cosines.min()), 6)
    return found


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Time how long exported models and the peers take from process start to the first vector."""
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, list[float]] = {}
    with _folder() as exported:
        for kind in ("float32", "int8"):
            encoder = DendriticEncoder.load(options.folder)
            encoder.export(exported / kind, precision="int8" if kind == "int8" else "float32")
        for turn in range(options.repeats + 1):  # the first one fills the file cache
            for python, names in ((options.runtime, RUNTIME), (options.peers, PEERS)):
                for name in names:
                    kind = "int8" if name.endswith("int8") else "float32"
                    theirs = python == options.peers
                    folder = options.folder if theirs else str(exported / kind)
                    with Process(python, name.split()[0], folder) as model:
                        if turn:
                            seconds.setdefault(name, []).append(model.seconds)
                            peaks.setdefault(name, []).append(model.memory["peak_mb"])
    peer = statistics.median(seconds[PEER])
    return {
        name: {
            "seconds": round(statistics.median(values), 2),
            "of the peer's": round(statistics.median(values) / peer, 2),
            "peak MB": round(statistics.median(peaks[name])),
        }
        for name, values in seconds.items()
    }


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Watch the memory of `nexus embed` while it embeds many passages in int8."""
    dataset = RetrievalDataset.from_beir(options.data / "covidqa", split="test")
    passages = list(dataset.corpus.values())
    with _folder() as folder:
        source = folder / "passages.jsonl"
        with source.open("w", encoding="utf-8") as file:
            for number in range(options.passages):
                # The texts differ, because equal texts are embedded once.
                text = f"{number}. {passages[number % len(passages)][:CHARACTERS]}"
                file.write(json.dumps({"_id": str(number), "text": text}) + "\n")
        command = [sys.executable, "-m", "nexus_integrations", "embed", str(source)]
        command += [str(folder / "vectors.npy"), "--model", options.folder, "--precision", "int8"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        resident: list[tuple[int, float]] = []
        parts = folder / "vectors.npy.parts"
        while process.poll() is None:
            sleep(1.0)
            status = Path(f"/proc/{process.pid}/status")
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            if "RssAnon" in lines:
                shards = len(list(parts.glob("*.parquet"))) if parts.is_dir() else 0
                resident.append((shards, int(lines["RssAnon"].split()[0]) / 1024))
        if process.returncode:
            raise RuntimeError(f"nexus embed ended with {process.returncode}")
    return {
        "passages": options.passages,
        **_growth(resident),
    }


def _growth(resident: Sequence[tuple[int, float]]) -> dict[str, float]:
    """Return anonymous memory in MB: when the third shard began, and the maximum after that."""
    running = [megabytes for shards, megabytes in resident if shards >= 2]
    if not running:
        raise RuntimeError("the job ended within two shards: give more --passages")
    return {
        "MB in the third shard": round(running[0], 1),
        "MB at most from there": round(max(running), 1),
    }


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
