"""Encoders shared by a process: what holds one carries a model's name, not its weights."""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from nexus_integrations.backends import Role
from nexus_integrations.encoder import DendriticEncoder

IN_MEMORY = "(in memory)"
"""The model's name of an encoder that was given, not loaded."""

_T = TypeVar("_T")
_Version = tuple[str, int, int]

_loaded: "WeakValueDictionary[tuple[str, str, _Version | None], DendriticEncoder]" = (
    WeakValueDictionary()
)
_loading = threading.Lock()


class SharedEncoder:
    """The encoder of one model on one device, loaded on first use and once per process.

    Copies are the object itself; a pickle holds name, device and fingerprint, so that another
    process loads the same model or says that it is not the same any more.
    """

    def __init__(self, model: str, device: str = "cpu", fingerprint: str | None = None) -> None:
        """Name an encoder; `fingerprint`, where given, is what it must have once loaded."""
        self.model = model
        self.device = device
        self.fingerprint = fingerprint
        """The encoder's fingerprint as far as known: None before the encoder is loaded."""
        self._encoder: DendriticEncoder | None = None
        self._namespaces: dict[Role, str] = {}

    @classmethod
    def of(cls, encoder: DendriticEncoder) -> "SharedEncoder":
        """Hold an encoder that is in memory."""
        model = getattr(encoder.backbone, "model", None)  # not every backbone is a torch model
        shared = cls(IN_MEMORY, str(getattr(model, "device", "cpu")), encoder.fingerprint)
        shared._encoder = encoder
        return shared

    def get(self) -> DendriticEncoder:
        """Return the encoder.

        Raises what `DendriticEncoder.load` raises, and `ValueError` when the model is not the one
        whose fingerprint was recorded.
        """
        if self._encoder is None:
            encoder = _load(self.model, self.device)
            if self.fingerprint not in (None, encoder.fingerprint):
                raise ValueError(
                    f"model {self.model!r} has the fingerprint {encoder.fingerprint[:12]}…, but "
                    f"{self.fingerprint[:12]}… was recorded: the model was replaced since, and its "
                    "vectors do not mix with stored ones. Restore the model, or leave out "
                    "`fingerprint` and index anew"
                )
            self._encoder, self.fingerprint = encoder, encoder.fingerprint
        return self._encoder

    def cache_namespace(self, role: Role) -> str:
        """Return what a cache of this role's vectors should be keyed by beside the text.

        Encoders that differ in their query head alone share the namespace of documents.
        """
        if role not in self._namespaces:
            encoder = self.get()
            whole = encoder.document_fingerprint if role == "document" else encoder.fingerprint
            self._namespaces[role] = f"nexus-{role}-{whole}"
        return self._namespaces[role]

    async def acache_namespace(self, role: Role) -> str:
        """Return `cache_namespace` without loading the model in the event loop."""
        if role in self._namespaces:
            return self._namespaces[role]
        return await in_background(self.cache_namespace, role)

    def public_name(self) -> str:
        """Return the model's name without its path, which can tell whose model it is."""
        path = Path(self.model)
        return "(local folder)" if path.is_absolute() or path.is_dir() else self.model

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedEncoder":
        return self

    def __reduce__(self) -> tuple[type["SharedEncoder"], tuple[str, str, str | None]]:
        if self.model == IN_MEMORY:
            raise TypeError(
                "an encoder in memory cannot be pickled: save it with encoder.save(folder) and "
                "give the folder as model_name"
            )
        return SharedEncoder, (self.model, self.device, self.fingerprint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SharedEncoder) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[str, str, str | None]:
        return self.model, self.device, self.fingerprint if self.model == IN_MEMORY else None


async def in_background(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call `function` in the process's one embedding thread, while the event loop goes on.

    Calls queue up: embedding gains nothing from threads side by side, and memory does not grow with
    the number of callers.
    """
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_embedding_thread(os.getpid()), function, *arguments)


@cache
def _embedding_thread(process: int) -> ThreadPoolExecutor:
    # By process: a fork copies the executor without its thread.
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="nexus-embedding")


def _load(model: str, device: str) -> DendriticEncoder:
    if model == IN_MEMORY:
        raise ValueError(
            "this describes an encoder that was in memory only: save it with encoder.save(folder) "
            "and give the folder as model_name"
        )
    key = (model, device, _version(Path(model).expanduser()))
    with _loading:
        encoder = _loaded.get(key)
        if encoder is None:
            encoder = _loaded[key] = DendriticEncoder.load(model, device=device)
        return encoder


def _version(folder: Path) -> _Version | None:
    """Tell the states of a folder apart, or return None for a name that is no folder."""
    if not folder.is_dir():
        return None
    stamps = [file.stat() for file in folder.rglob("*") if file.is_file()]
    changed = max((stamp.st_mtime_ns for stamp in stamps), default=0)
    return str(folder.resolve()), sum(stamp.st_size for stamp in stamps), changed
