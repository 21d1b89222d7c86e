"""A model in a process of its own, and the models that are compared."""

import json
import os
import subprocess
from time import perf_counter
from typing import Any

PEER = "HuggingFaceEmbedding"
OURS = ("NexusEmbedding", "NexusEmbedding bfloat16", "NexusEmbedding int8")
PEERS = (PEER, "HuggingFaceEmbeddings")
RUNTIME = ("DendriticEncoder", "NexusEmbeddings", "NexusEmbedding", "NexusEmbedding int8")
AT_ONCE = 32  # questions that are asked at the same time


class Process:
    """A model in a process of its own."""

    def __init__(self, python: str, name: str, folder: str) -> None:
        """Start it and wait for its first vector."""
        begun = perf_counter()
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.embedding.worker", name, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Each runs as its users run it, without a network.
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
