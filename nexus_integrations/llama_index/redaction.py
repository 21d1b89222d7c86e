"""Keep text out of what LlamaIndex's observers see of an embedding.

Its base class hands the texts to events, callbacks and spans. Stand-ins go that way instead, and
become the texts again where a vector or a cache entry is looked up.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR

_Method = TypeVar("_Method", bound=Callable[..., Any])

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
