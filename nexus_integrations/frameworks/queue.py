"""Calls from many threads and event loops, embedded in few batches, one at a time."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from nexus_integrations.backends import Role
from nexus_integrations.backends.batches import batches_by_length
from nexus_integrations.protocols import Floats

Encode = Callable[[list[str]], Floats]

# A batch of calls, or a part of a long one, has at most this many texts and characters (some 8,000
# tokens): a query that comes in meanwhile waits that long, below a second on two cores.
_TEXTS = 256
_CHARACTERS = 32_768
# A model cuts a text off; this much of it takes time.
_READ = 2048


@dataclass(frozen=True, eq=False)
class _Call:
    encode: Encode
    texts: list[str]
    alone: bool
    future: "Future[Floats]" = field(default_factory=Future)


class EmbeddingQueue:
    """The calls that wait for one encoder, and the thread that works them off.

    When the thread becomes free it takes all calls of a role that are waiting as one batch: nothing
    waits for company, and company comes by itself when there is much to do. A batch of queries and
    one of documents take turns. The thread ends when the queue is no longer used.
    """

    def __init__(self) -> None:
        self._waiting: dict[Role, deque[_Call]] = {"query": deque(), "document": deque()}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nexus-embedding")
        self._working = threading.Lock()

    def embed_here(self, encode: Encode, texts: list[str]) -> Floats | None:
        """Embed texts by the caller's thread where nothing waits and nothing runs, else give None.

        That spares a lone call two changes of thread.
        """
        if any(self._waiting.values()) or not self._working.acquire(blocking=False):
            return None
        try:
            return encode(texts)
        finally:
            self._working.release()

    def submit(
        self, encode: Encode, texts: list[str], role: Role, *, alone: bool = False
    ) -> "Future[Floats]":
        """Embed texts of one role by `encode`, the same for every call of this role.

        With `alone` they share a batch with no other call. A call whose future is cancelled while
        it waits is not embedded.
        """
        call = _Call(encode, texts, alone)
        self._waiting[role].append(call)
        self._thread.submit(self._turn)  # as many turns as calls: a turn may find nothing to do
        return call.future

    def _turn(self) -> None:
        with self._working:  # taken first: what comes in meanwhile shares the batch
            for role in self._waiting:
                if calls := _taken(self._waiting[role]):
                    _embed(calls)


def _taken(waiting: deque[_Call]) -> list[_Call]:
    """Take the first call, and those after it that fit into one batch with it."""
    calls: list[_Call] = []
    texts = characters = 0
    while waiting:
        call = waiting[0]
        texts += len(call.texts)
        characters += sum(_length(text) for text in call.texts)
        full = texts > _TEXTS or characters > _CHARACTERS
        if calls and (full or call.alone or calls[0].alone):
            break
        waiting.popleft()
        if call.future.set_running_or_notify_cancel():
            calls.append(call)
    return calls


def _embed(calls: list[_Call]) -> None:
    """Embed calls as one batch; when that fails, each on its own: an error is one caller's."""
    texts = [text for call in calls for text in call.texts]
    try:
        vectors = calls[0].encode(texts)
        if len(vectors) != len(texts):
            raise RuntimeError(f"the encoder gave {len(vectors)} vectors for {len(texts)} texts")
    except BaseException as error:  # whatever it is, a caller waits for it
        if len(calls) == 1:
            calls[0].future.set_exception(error)
        else:
            for call in calls:
                _embed([call])
        return
    start = 0
    for call in calls:
        call.future.set_result(vectors[start : start + len(call.texts)])
        start += len(call.texts)


def parts(texts: Sequence[str]) -> Iterator[list[int]]:
    """Yield the texts' rows in parts that fit into a batch, the longest first, equal together."""
    order = sorted(range(len(texts)), key=texts.__getitem__)
    lengths = [_length(texts[row]) for row in order]
    for part in batches_by_length(lengths, _CHARACTERS, rows=_TEXTS):
        yield [order[place] for place in part]


def _length(text: str) -> int:
    return min(len(text), _READ)
