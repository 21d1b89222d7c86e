"""Encoders shared by a process: what holds one carries a model's name, not its weights."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from nexus_integrations.backends import Backend, Precision, Role
from nexus_integrations.backends.process import folder_version, on_fork, shared
from nexus_integrations.data import check_texts
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.frameworks.queue import EmbeddingQueue, Encode, parts
from nexus_integrations.progress import embedding_bar
from nexus_integrations.protocols import Floats

IN_MEMORY = "(in memory)"
"""The model's name of an encoder that was given, not loaded."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Which encoder: what `DendriticEncoder.load` is given."""

    model: str
    device: str = "cpu"
    backend: Backend = "auto"
    precision: Precision | None = None
    num_threads: int | None = None


class _Process:
    """The threads of one process; a fork starts with new ones."""

    def __init__(self) -> None:
        self.queueing = threading.Lock()
        self.queues: WeakKeyDictionary[DendriticEncoder, EmbeddingQueue] = WeakKeyDictionary()
        self.loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nexus-loading")


_process = _Process()


def _begin_process() -> None:
    global _process
    _process = _Process()


on_fork(_begin_process)


class SharedEncoder:
    """The encoder of one model, run in one way, loaded on first use and once per process.

    Copies are the object itself; a pickle holds settings and fingerprint, so that another process
    loads the same model or says that it is not the same any more.
    """

    def __init__(self, settings: EncoderSettings, fingerprint: str | None = None) -> None:
        """Name an encoder; `fingerprint`, where given, is what it must have once loaded."""
        self.settings = settings
        self.fingerprint = fingerprint
        """The encoder's fingerprint as far as known: None before the encoder is loaded."""
        self._encoder: DendriticEncoder | None = None
        self._namespaces: dict[Role, str] = {}

    @classmethod
    def of(cls, encoder: DendriticEncoder) -> "SharedEncoder":
        """Hold an encoder that is in memory."""
        backbone = encoder.backbone
        settings = EncoderSettings(
            model=IN_MEMORY,
            device=backbone.device,
            backend=backbone.backend,
            precision=backbone.precision,
        )
        shared = cls(settings, encoder.fingerprint)
        shared._encoder = encoder
        return shared

    def get(self) -> DendriticEncoder:
        """Return the encoder.

        Raises what `DendriticEncoder.load` raises, and `ValueError` when the model is not the one
        whose fingerprint was recorded.
        """
        if self._encoder is None:
            encoder = _load(self.settings)
            if self.fingerprint not in (None, encoder.fingerprint):
                raise ValueError(
                    f"model {self.settings.model!r} in {encoder.backbone.precision} has the "
                    f"fingerprint {encoder.fingerprint[:12]}…, but {self.fingerprint[:12]}… was "
                    "recorded: the model was replaced since, or runs in another precision, and its "
                    "vectors do not mix with stored ones. Restore the model or the precision, or "
                    "leave out `fingerprint` and index anew"
                )
            self._encoder, self.fingerprint = encoder, encoder.fingerprint
        return self._encoder

    def embed(self, texts: Sequence[str], role: Role, *, gather: bool = True) -> list[list[float]]:
        """Return a unit vector per text, as Python floats.

        The encoder's one thread does it: with `gather` together with what other callers want,
        without a wait, and long lists in parts, so that others get their turn. The caller's own
        thread, which is sooner, embeds a single text that finds ONNX Runtime free. Raises what
        `get` raises, and `TypeError` for what is no list of texts.
        """
        check_texts(texts)
        encoder = self.get()
        rows = _Rows(texts)
        if len(texts) == 1 and encoder.backbone.backend == "onnx":
            # PyTorch would keep a team of threads for every thread that it is called from.
            vectors = _queue_of(encoder).embed_here(_encode_of(encoder, role), list(texts))
            if vectors is not None:
                rows.take([0], vectors)
                return rows.vectors
        for part, future in rows.submitted(encoder, role, gather):
            try:
                rows.take(part, future.result())
            finally:
                future.cancel()  # for an interrupted wait; otherwise it is done
        return rows.vectors

    async def aembed(
        self, texts: Sequence[str], role: Role, *, gather: bool = True
    ) -> list[list[float]]:
        """Return what `embed` returns while the event loop goes on."""
        check_texts(texts)
        encoder = self._encoder
        if encoder is None:
            encoder = await in_background(self.get)
        rows = _Rows(texts)
        for part, future in rows.submitted(encoder, role, gather):
            rows.take(part, await asyncio.wrap_future(future))
        return rows.vectors

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
        path = Path(self.settings.model)
        return "(local folder)" if path.is_absolute() or path.is_dir() else self.settings.model

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedEncoder":
        return self

    def __reduce__(self) -> tuple[type["SharedEncoder"], tuple[EncoderSettings, str | None]]:
        if self.settings.model == IN_MEMORY:
            raise TypeError(
                "an encoder in memory cannot be pickled: save it with encoder.save(folder) and "
                "give the folder as `model`"
            )
        return SharedEncoder, (self.settings, self.fingerprint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SharedEncoder) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[EncoderSettings, str | None]:
        return self.settings, self.fingerprint if self.settings.model == IN_MEMORY else None


class _Rows:
    """The vectors of one call, which come in parts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self.vectors: list[list[float]] = [[]] * len(texts)

    def submitted(
        self, encoder: DendriticEncoder, role: Role, gather: bool
    ) -> "Iterator[tuple[list[int], Future[Floats]]]":
        """Queue part after part, the next one when the last is taken: others come in between."""
        queue = _queue_of(encoder)
        encode = _encode_of(encoder, role)
        whole = list(parts(self._texts))
        with embedding_bar(len(self._texts), role) if len(whole) > 1 else nullcontext() as bar:
            for part in whole:
                texts = [self._texts[row] for row in part]
                yield part, queue.submit(encode, texts, role, alone=not gather)
                if bar is not None:
                    bar.update(len(part))

    def take(self, part: list[int], vectors: Floats) -> None:
        """Put the vectors of a part, float32 (n, dimension), in their places."""
        for row, vector in zip(part, vectors.tolist(), strict=True):
            self.vectors[row] = vector


async def in_background(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call `function`, which may load a model, in a thread, while the event loop goes on."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_process.loader, function, *arguments)


def _encode_of(encoder: DendriticEncoder, role: Role) -> Encode:
    return encoder.encode_queries if role == "query" else encoder.encode_documents


def _queue_of(encoder: DendriticEncoder) -> EmbeddingQueue:
    with _process.queueing:
        queue = _process.queues.get(encoder)
        if queue is None:
            queue = _process.queues[encoder] = EmbeddingQueue()
        return queue


def _load(settings: EncoderSettings) -> DendriticEncoder:
    if settings.model == IN_MEMORY:
        raise ValueError(
            "this describes an encoder that was in memory only: save it with encoder.save(folder) "
            "and give the folder as `model`"
        )
    folder = Path(settings.model).expanduser()
    # A folder that was written anew since is another model.
    version = folder_version(folder) if folder.is_dir() else None
    return shared(
        (settings, version),
        lambda: DendriticEncoder.load(
            settings.model,
            device=settings.device,
            backend=settings.backend,
            precision=settings.precision,
            num_threads=settings.num_threads,
        ),
    )
