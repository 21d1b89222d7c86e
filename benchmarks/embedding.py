"""Measure embedding against the classes it replaces: `python -m benchmarks.embedding DATA`.

DATA holds the BEIR folders covidqa and policyqa. Every model runs in a process of its own, in its
own environment, with nothing set but its folder; the processes take turns, so that all see the same
machine, and medians over the turns are printed. `make bench-peers` makes the environment of the
peers, `make .venv/installed-runtime` the one without PyTorch.

Parts: `speed` (passages, mixed lengths, questions one by one and 32 at once, beside the operations
per second that a large matrix product reaches), `quality` (differences to the peer's vectors,
nDCG@10 by precision), `start` (from starting a process to its first vector, memory) and `memory`
(while `nexus embed` embeds `--passages` passages). `--output PATH` goes on from PATH.json: parts
that are not asked for keep their figures there, and PATH.md is written from all. Runs on Linux.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from benchmarks import record
from nexus_integrations import DendriticEncoder, RetrievalDataset, evaluate
from nexus_integrations.encoder.source import find_model
from nexus_integrations.index import MemoryIndex
from nexus_integrations.protocols import Floats
from nexus_integrations.retrievers import DenseRetriever

PARTS = ("speed", "quality", "start", "memory")
PEER = "HuggingFaceEmbedding"
OURS = ("NexusEmbedding", "NexusEmbedding bfloat16", "NexusEmbedding int8")
PEERS = (PEER, "HuggingFaceEmbeddings")
RUNTIME = ("DendriticEncoder", "NexusEmbeddings", "NexusEmbedding", "NexusEmbedding int8")
BATCH_SIZES = (8, 16, 32, 64, 128)  # of plain sentence-transformers, of which it gets the best
AT_ONCE = 32
LENGTHS = (5, 256)  # of the mixed texts, in word pieces
_CHARACTERS = 300  # of a passage while memory is watched: a third, so that it takes minutes


class Process:
    """A model in a process of its own."""

    def __init__(self, python: str, name: str, folder: str) -> None:
        """Start it and wait for its first vector."""
        begun = perf_counter()
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.embedding_worker", name, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Each as its users run it, without a network.
            env={
                **{key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"},
                "HF_HUB_OFFLINE": "1",
            },
        )
        self.memory = self._answer()
        self.seconds = perf_counter() - begun

    def ask(self, task: str, **details: Any) -> dict[str, Any]:
        """Have one task done and return what was measured."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"task": task, **details}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a model's process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def main() -> None:
    """Run the parts that the command line asks for and print the JSON of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", help="folder or hub name; by default all-MiniLM-L6-v2")
    parser.add_argument("--peers", default=".venv/peers/bin/python")
    parser.add_argument("--runtime", default=".venv/runtime/bin/python")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--passages", type=int, default=100_000, help="of the part `memory`")
    parser.add_argument("--output", help="write the figures to OUTPUT.json and OUTPUT.md")
    options = parser.parse_args()
    options.folder = str(find_model(options.model or "all-MiniLM-L6-v2"))
    content: dict[str, Any] = {}
    if options.output and Path(f"{options.output}.json").is_file():
        content = json.loads(Path(f"{options.output}.json").read_text(encoding="utf-8"))
    measure = {"speed": speed, "quality": quality, "start": start, "memory": memory}
    for part in options.parts:
        content[part] = {**measure[part](options), "machine": _machine(options)}
        if options.output:
            record.write(options.output, content, page(content))
    print(json.dumps(content, indent=1))


def _machine(options: argparse.Namespace) -> dict[str, str]:
    names = "llama-index-embeddings-huggingface langchain-huggingface sentence-transformers torch"
    code = f"from importlib.metadata import version; print(*map(version, {names.split()!r}))"
    shown = subprocess.run([options.peers, "-c", code], capture_output=True, text=True, check=True)
    peers = dict(zip(names.split(), shown.stdout.split(), strict=True))
    ours = record.machine("onnxruntime", "torch", "sentence-transformers")
    return {**ours, **{f"peers' {name}": version for name, version in peers.items()}}


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Time all models, one after another, again and again."""
    dataset = RetrievalDataset.from_beir(options.data / "covidqa", split="test")
    passages = list(dataset.corpus.values())
    passages = passages[:: len(passages) // 96][:96]
    mixed = _mixed(passages, options.folder)
    questions = list(dataset.queries.values())
    single, together = questions[:100], questions[: 6 * AT_ONCE]
    plain = f"sentence-transformers {_best_batch_size(options, passages[:64])}"
    peak: dict[str, list[float]] = {}
    seconds: dict[str, dict[str, list[float]]] = {}
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
                found = {
                    "passages": model.ask("documents", texts=passages)["seconds"],
                    "mixed": model.ask("documents", texts=mixed)["seconds"],
                    "question": statistics.median(model.ask("queries", texts=single)["seconds"]),
                    "at once": model.ask("concurrent", texts=together, at_once=AT_ONCE)["seconds"],
                }
                for what, value in found.items() if turn else ():
                    if value is not None:
                        seconds.setdefault(what, {}).setdefault(name, []).append(value)
    counts = {
        "passages": len(passages),
        "mixed": len(mixed),
        "question": 1,
        "at once": len(together),
    }
    texts = {"passages": passages, "mixed": mixed, "question": single, "at once": together}
    work = {
        what: operations(texts[what], options.folder) * counts[what] / len(texts[what])
        for what in counts
    }
    best = {kind: max(values) for kind, values in peak.items()}
    return {
        "turns": options.repeats,
        "word pieces": {
            what: round(float(np.mean(_lengths(texts[what], options.folder))), 1) for what in texts
        },
        "peak, operations per second": {
            kind: round(value / 1e9, 1) for kind, value in best.items()
        },
        "models": {
            what: {
                name: {
                    "per second": round(counts[what] / statistics.median(found), 2),
                    "ms": round(1000 * statistics.median(found) / counts[what], 3),
                    # Turn by turn, so that what slows the machine for a while cancels out.
                    "times the peer": round(
                        statistics.median(
                            peer / own for peer, own in zip(by_name[PEER], found, strict=True)
                        ),
                        2,
                    ),
                    "of the peak": round(
                        work[what] / statistics.median(found) / best[_type_of(name)], 3
                    ),
                }
                for name, found in by_name.items()
            }
            for what, by_name in seconds.items()
        },
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


def _tokenizer(folder: str) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTHS[1])
    return tokenizer


def _lengths(texts: Sequence[str], folder: str) -> list[int]:
    return [len(found.ids) for found in _tokenizer(folder).encode_batch(list(texts))]


def _mixed(passages: Sequence[str], folder: str, count: int = 256) -> list[str]:
    """Cut passages to lengths drawn evenly from `LENGTHS`, in no order."""
    rng = random.Random(0)
    tokenizer = _tokenizer(folder)
    texts = []
    for number in range(count):
        text = passages[number % len(passages)]
        pieces = tokenizer.encode(text)
        last = min(rng.randint(*LENGTHS), len(pieces.ids)) - 2  # without the mark at the end
        texts.append(text[: pieces.offsets[last][1]])
    rng.shuffle(texts)
    return texts


def operations(texts: Sequence[str], folder: str) -> float:
    """Count a BERT's additions and multiplications over texts, without padding.

    Per layer and word piece 2 · (4 h² + 2 h f) for the linear layers and 4 · n · h for the
    attention, of width h, feed-forward width f, and n word pieces in the text.
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    wide, inner = config["hidden_size"], config["intermediate_size"]
    lengths = np.array(_lengths(texts, folder), dtype=np.float64)
    linear = lengths.sum() * 2 * (4 * wide**2 + 2 * wide * inner)
    return float(config["num_hidden_layers"] * (linear + 4 * wide * (lengths**2).sum()))


def quality(options: argparse.Namespace) -> dict[str, Any]:
    """Compare vectors with the peer's, and rankings by precision."""
    found: dict[str, Any] = {}
    encoders = {
        kind: DendriticEncoder.load(options.folder, precision=kind)
        for kind in ("float32", "bfloat16", "int8")
    }
    for name in ("covidqa", "policyqa"):
        dataset = RetrievalDataset.from_beir(options.data / name, split="test")
        passages, questions = list(dataset.corpus.values()), list(dataset.queries.values())
        with Process(options.peers, PEER, options.folder) as peer, _folder() as folder:
            peer.ask("documents", texts=passages, path=str(folder / "passages.npy"))
            peer.ask("queries", texts=questions, path=str(folder / "questions.npy"))
            theirs = [np.load(folder / f"{kind}.npy") for kind in ("passages", "questions")]
        base = None
        found[name] = {}
        for kind, encoder in encoders.items():
            ours = [encoder.encode_documents(passages), encoder.encode_queries(questions)]
            run = evaluate(
                DenseRetriever(MemoryIndex(list(dataset.corpus), ours[0]), encoder), dataset
            )
            base = run if base is None else base
            gain = run.metrics["ndcg@10"] - base.metrics["ndcg@10"]
            found[name][kind] = {
                "ndcg@10": round(run.metrics["ndcg@10"], 4),
                "ndcg@10 beyond float32": round(gain, 4),
                **_differences(ours, theirs),
            }
    encoder = encoders["float32"]
    texts = passages[:64]
    alone = np.concatenate([encoder.encode_documents([text]) for text in texts])
    together = encoder.encode_documents(texts)
    found["batch of 1 against 64, largest difference"] = float(np.abs(alone - together).max())
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
    """Time from starting a process to its first vector, the exported model's and the peers'."""
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
    """Watch a process that embeds many passages by `nexus embed` in int8."""
    dataset = RetrievalDataset.from_beir(options.data / "covidqa", split="test")
    passages = list(dataset.corpus.values())
    with _folder() as folder:
        source = folder / "passages.jsonl"
        with source.open("w", encoding="utf-8") as file:
            for number in range(options.passages):
                # All different, or they would be embedded once.
                text = f"{number}. {passages[number % len(passages)][:_CHARACTERS]}"
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
    """Return memory beyond files, in MB: once the third shard began, and at most after that."""
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


_TITLES = {
    "passages": "passages of covidqa",
    "mixed": "texts of 5 to 256 word pieces, shuffled",
    "question": "one question after another",
    "at once": f"questions, {AT_ONCE} at once",
}


def page(content: dict[str, Any]) -> str:
    """Return the page of all parts, in Markdown."""
    parts = [
        "# Embedding at the machine's speed\n\nWritten by `python -m benchmarks.embedding`. All "
        "models take turns in one run, each in a process of its own with nothing set but the "
        f"model's folder; medians. Ratios are against LlamaIndex's `{PEER}`.\n"
    ]
    if found := content.get("speed"):
        parts.append("## Speed\n")
        for what, title in _TITLES.items():
            rows = [
                (name, row["per second"], row["ms"], row["times the peer"], row["of the peak"])
                for name, row in found["models"][what].items()
            ]
            head = ("model", "per second", "ms each", "times the peer", "of the peak")
            pieces = found["word pieces"][what]
            parts.append(f"### {title}, {pieces} word pieces\n\n{record.table(head, rows)}")
        peaks = found["peak, operations per second"]
        parts.append(
            "Of the peak: the model's operations, counted without padding, per second, as a share "
            "of what a large matrix product of the same type reaches in the same run on the same "
            "cores: "
            + ", ".join(f"{kind} {value} G/s" for kind, value in peaks.items())
            + ". `sentence-transformers` has its best batch size, which its name tells.\n"
        )
        parts.append(_versions(found))
    if found := content.get("quality"):
        rows = [
            (
                name,
                kind,
                f"{row['ndcg@10']:.4f}",
                f"{row['ndcg@10 beyond float32']:+.4f}",
                f"{row['passages, largest difference']:.1e}",
                f"{row['passages, mean cosine']:.6f}",
                f"{row['questions, mean cosine']:.6f}",
                f"{min(row['passages, smallest cosine'], row['questions, smallest cosine']):.6f}",
            )
            for name in ("covidqa", "policyqa")
            for kind, row in found[name].items()
        ]
        head = (
            *("set", "precision", "nDCG@10", "beyond float32", "largest difference"),
            *("mean cosine, passages", "mean cosine, questions", "smallest cosine"),
        )
        alone = found["batch of 1 against 64, largest difference"]
        parts.append(
            f"## Quality\n\nAgainst the vectors of `{PEER}`, test questions.\n\n"
            f"{record.table(head, rows)}\nA passage alone against the same among 64, float32: "
            f"{alone:.1e} at most.\n"
        )
        parts.append(_versions(found))
    if found := content.get("start"):
        rows = [
            (name, row["seconds"], row["of the peer's"], row["peak MB"])
            for name, row in found.items()
            if name != "machine"
        ]
        head = ("model", "s", "of the peer's", "MB resident at most")
        parts.append(
            "## Cold start\n\nFrom starting a process to its first vector; ours without PyTorch, "
            f"from an exported folder.\n\n{record.table(head, rows)}"
        )
        parts.append(_versions(found))
    if found := content.get("memory"):
        parts.append(
            f"## Memory\n\n`nexus embed` over {found['passages']:,} texts, the beginnings of "
            f"passages ({_CHARACTERS} characters), int8: {found['MB in the third shard']} MB while "
            f"the third shard was embedded, {found['MB at most from there']} MB at most until the "
            "end (anonymous memory: without the files that are mapped).\n"
        )
        parts.append(_versions(found))
    return "\n".join(parts)


def _versions(part: dict[str, Any]) -> str:
    return ", ".join(map(" ".join, part["machine"].items())) + ".\n"


if __name__ == "__main__":
    main()
