"""A backbone run by ONNX Runtime: a graph, a tokenizer, and no PyTorch."""

import os
import shutil
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load_file

from nexus_integrations.backends import Role, load_backbone
from nexus_integrations.backends.folder import (
    GRAPH,
    PROBE,
    RuntimeModel,
    copy_runtime,
    precise_digest,
    read_runtime,
)
from nexus_integrations.backends.process import folder_version
from nexus_integrations.backends.session import open_session, run_session
from nexus_integrations.backends.stream import embed
from nexus_integrations.backends.threads import Turns, cores
from nexus_integrations.protocols import Floats, Integers

# Tokens of a batch. More fill the second-level cache of a core and gain nothing.
_BATCH_TOKENS = 512

# Longer texts are not padded: attention takes longer with a mask, and one of them fills a core.
_PADDED_TO = 64

# The least cosine of the probe's vectors in int8: CPUs add up the same integers, and the float32
# between them in another order.
_SAME = 0.9999

# Sessions that a fork copied. Ending one waits for threads that are not there.
_inherited: list[Any] = []


class OnnxBackbone:
    """A backbone's graph in ONNX Runtime, on the CPU.

    All threads together compute a lone batch; each of several batches has a thread of its own, and
    as many run as there are threads, whoever calls. A fork starts with sessions of its own.
    """

    backend: Literal["onnx"] = "onnx"
    device = "cpu"

    def __init__(
        self,
        runtime: Path,
        model: RuntimeModel,
        *,
        folder: Path | None = None,
        num_threads: int | None = None,
        temporary: bool = False,
    ) -> None:
        """Load the graph of a runtime folder, which is removed in the end where it is `temporary`.

        `folder` is the model's folder, where the graph was made from one.
        """
        self.folder = folder if folder is not None else runtime
        self.runtime = runtime
        self.num_threads = num_threads
        if temporary:
            weakref.finalize(self, _remove, runtime, os.getpid())
        self._model = model
        self._session: Any = None
        self._one: Any = None
        self._begin_process()
        if model.precision == "int8":
            self._check_probe()

    @classmethod
    def load(cls, folder: Path, num_threads: int | None = None) -> "OnnxBackbone":
        """Load a runtime folder.

        Raises `ValueError` for one that is damaged or that gives other vectors on this machine,
        `ImportError` without onnxruntime.
        """
        return cls(folder, read_runtime(folder), num_threads=num_threads)

    @property
    def precision(self) -> Literal["float32", "int8"]:
        """What it computes in."""
        return self._model.precision

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self._model.dimension

    @property
    def max_length(self) -> int:
        """How many tokens of a text are read; the rest is cut off."""
        return self._model.tokenizer.max_length

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over all that a vector depends on beside its text.

        An exported folder's is computed from its files, and is another than that of the model it
        was exported from: nobody can tell from a graph which model it came from. A graph of the
        user's own cache, which this package exported from the model's files, has the model's.
        """
        if self.folder == self.runtime:
            return self._model.digest
        return precise_digest(self._model.made_from, self.precision)

    @property
    def float32_digest(self) -> str:
        """The `digest` that this model has in float32; an exported folder has its own alone."""
        return self._model.digest if self.folder == self.runtime else self._model.made_from

    def encode(self, texts: Sequence[str], role: Role) -> tuple[Floats, int]:
        """Return unit vectors, float32 (n, dimension), and how many texts were cut off."""
        if self._process != os.getpid():  # a fork copies a session without its threads
            self._begin_process()
        return embed(
            texts,
            role,
            self._model.tokenizer,
            self._run,
            dimension=self.dimension,
            batch_tokens=_BATCH_TOKENS,
            padded_to=_PADDED_TO,
            runs=self._turns.threads,
            run_beside=self._run_beside if self._turns.threads > 1 else None,
        )

    def save(self, folder: Path) -> None:
        """Write the model's folder in float32, or a copy of the runtime folder."""
        if self.folder == self.runtime:
            copy_runtime(self.runtime, folder)
        else:
            load_backbone(self.folder, backend="torch", precision="float32").save(folder)

    def _run(self, ids: Integers, mask: Integers) -> Floats:
        """Run a batch by all threads."""
        with self._turns.all():
            return run_session(self._session, ids, mask)

    def _run_beside(self, ids: Integers, mask: Integers) -> Floats:
        """Run a batch by one thread, the caller's, beside others."""
        with self._turns.one():
            return run_session(self._session_of_one(), ids, mask)

    def _session_of_one(self) -> Any:
        with self._making:
            if self._one is None:
                self._one = self._open(1)
            return self._one

    def _begin_process(self) -> None:
        self._turns = Turns(self.num_threads or cores())
        self._making = threading.Lock()
        _inherited.extend([self._session, self._one])
        self._session = self._open(self._turns.threads)
        self._one = None
        self._process = os.getpid()

    def _open(self, num_threads: int) -> Any:
        """Load the graph, and make sure that it is the one whose digest is known."""
        graph = open_session(self.runtime / GRAPH, num_threads)
        if folder_version(self.runtime) != self._model.version:
            found = read_runtime(self.runtime)
            if found.digest != self._model.digest:
                raise ValueError(f"{self.runtime} was changed since it was read: load it again")
            self._model = found
        return graph

    def _check_probe(self) -> None:
        probe = load_file(self.runtime / PROBE)
        found = self._run(probe["input_ids"], np.ones_like(probe["input_ids"]))
        cosine = float((found * probe["vectors"]).sum(axis=1).min())
        if not cosine >= _SAME:
            raise ValueError(
                f"this CPU does not compute {self.folder} in int8 as the one that it was "
                f"quantised on (cosine {cosine:.4f}): use float32, or quantise the model here"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnnxBackbone":
        return self

    def __reduce__(self) -> tuple[Callable[..., "OnnxBackbone"], tuple[Any, ...]]:
        return _unpickled, (self.folder, self.precision, self.num_threads)


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a fork may end before its parent
        shutil.rmtree(folder, ignore_errors=True)


def _unpickled(folder: Path, precision: Literal["float32", "int8"], num_threads: int | None) -> Any:
    return load_backbone(folder, backend="onnx", precision=precision, num_threads=num_threads)
