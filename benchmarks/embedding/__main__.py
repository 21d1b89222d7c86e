"""Measure embedding against the classes it replaces: `python -m benchmarks.embedding DATA`.

DATA holds the BEIR folders covidqa and policyqa. Every model runs in a process and an environment
of its own, with no setting but its folder. The processes take turns, so that all see the same
machine, and the benchmark prints medians over the turns. `make bench-peers` makes the environment
of the peers, `make .venv/installed-runtime` the one without PyTorch.

Parts: `speed` (passages, mixed lengths, questions one by one and 32 at once, beside the operations
per second that a large matrix product reaches), `quality` (differences to the peer's vectors,
nDCG@10 by precision), `start` (from starting a process to its first vector, memory) and `memory`
(while `nexus embed` embeds `--passages` passages). `--output PATH` resumes from PATH.json, where
other parts keep their figures, and writes PATH.md from all. It runs on Linux.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.embedding.page import page
from benchmarks.embedding.parts import memory, quality, start
from benchmarks.embedding.speed import speed
from nexus_integrations.encoder.source import find_model

PARTS = {"speed": speed, "quality": quality, "start": start, "memory": memory}


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
    parser.add_argument("--output", type=Path, help="write OUTPUT.json and OUTPUT.md")
    options = parser.parse_args()
    options.folder = str(find_model(options.model or "all-MiniLM-L6-v2"))
    content: dict[str, Any] = {}
    if options.output and record.file_of(options.output, ".json").is_file():
        content = json.loads(record.file_of(options.output, ".json").read_text(encoding="utf-8"))
    for part in options.parts:
        content[part] = {**PARTS[part](options), "machine": _machine(options)}
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


if __name__ == "__main__":
    main()
