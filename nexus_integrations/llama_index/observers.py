"""What LlamaIndex's observers see of an embedding: events, callbacks and spans.

Its base class hands them the texts. To keep these out, stand-ins go that way instead, and become
the texts again where a vector or a cache entry is looked up.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from llama_index.core.callbacks import CallbackManager
from llama_index.core.instrumentation.event_handlers import NullEventHandler
from llama_index.core.instrumentation.span_handlers import NullSpanHandler
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR

_Method = TypeVar("_Method", bound=Callable[..., Any])

# Where the base class, and a class of this package, report what they do.
_DISPATCHERS = ("llama_index.core.base.embeddings.base", "nexus_integrations.llama_index.embedding")

_texts: "ContextVar[Mapping[str, str] | None]" = ContextVar(
    "nexus_integrations_texts", default=None
)


@contextmanager
def stand_ins(texts: list[str], *, redact: bool) -> Iterator[list[str]]:
    """Give one stand-in per text, valid inside; the texts themselves without `redact`.

    What is no text stays as it is, for the encoder to refuse.
    """
    shown = texts
    if redact:
        shown = [
            f"(redacted {number})" if isinstance(text, str) else text
            for number, text in enumerate(texts)
        ]
    token = _texts.set(dict(zip(shown, texts, strict=True)) if redact else {})
    try:
        yield shown
    finally:
        _texts.reset(token)


def original(text: str) -> str:
    """Return the text that a stand-in stands for, and any other text as it is."""
    return (_texts.get() or {}).get(text, text)


def is_reported() -> bool:
    """Tell whether this is within `stand_ins`, where what is asked for goes to observers."""
    return _texts.get() is not None


def without_span(method: _Method) -> _Method:
    """Keep LlamaIndex from recording a method's arguments; what the method calls has its span."""
    setattr(method, DISPATCHER_SPAN_DECORATED_ATTR, True)  # as if it were decorated already
    return method


def is_observed(callbacks: CallbackManager) -> bool:
    """Tell whether anyone looks on: the events of a short query take as long as its vector."""
    if callbacks.handlers:
        return True
    for name in _DISPATCHERS:
        dispatcher = get_dispatcher(name)
        while True:
            # What has the type itself does nothing; what is derived from it may.
            if any(type(handler) is not NullEventHandler for handler in dispatcher.event_handlers):
                return True
            if any(type(handler) is not NullSpanHandler for handler in dispatcher.span_handlers):
                return True
            if not dispatcher.propagate:
                break
            dispatcher = dispatcher.parent
    return False
