"""Records: results that save themselves as JSON and load again.

Numbers, ids and hashes. An error names the file and the field, and shows nothing of the content.
"""

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from nexus_integrations.files import read_json, write_json

NOT_SAVED = {"saved": False}
"""The metadata of a field that JSON does not hold; it has a default."""

_Kind = TypeVar("_Kind", bound="Record")


class Record:
    """A dataclass whose fields JSON can hold: numbers, strings, arrays, and containers of them."""

    def to_json(self) -> dict[str, Any]:
        """Return what `save` writes, by field."""
        content: dict[str, Any] = plain(self)
        return content

    def save(self, path: str | Path) -> None:
        """Write the fields to a JSON file, whole or not at all."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls: type[_Kind], path: str | Path) -> _Kind:
        """Read what `save` wrote; fields that are not the class's are passed over.

        Raises `ValueError`, which names the field, for anything else.
        """
        content = read_json(Path(path))
        try:
            return _read(cls, content, "")  # type: ignore[no-any-return]
        except _Malformed as error:
            raise ValueError(
                f"{path} is no saved {cls.__name__}: its field {error} is missing or malformed"
            ) from None


class _Malformed(Exception):
    """Holds the name of a field."""


def plain(value: Any) -> Any:
    """Return what JSON can hold in place of a value: a number that is not finite becomes null."""
    if is_dataclass(value):
        return {name: plain(getattr(value, name)) for name in _saved(value)}
    if isinstance(value, np.ndarray):
        if value.dtype == np.float32:  # as few digits as tell it from its neighbours
            value = value.astype(str).astype(np.float64)
        return plain(value.tolist())
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None  # JSON has no other
    return str(value) if isinstance(value, Path) else value


def _read(hint: Any, content: Any, name: str) -> Any:
    """Return the content as the type `hint` says; `name` is that of the field."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if content is None and type(None) in arguments:
            return None
        return _read(next(a for a in arguments if a is not type(None)), content, name)
    if origin is Literal and content in arguments:
        return content
    if is_dataclass(hint) or hasattr(hint, "_fields"):
        return _read_fields(hint, content, name)
    if origin is np.ndarray:
        return _read_array(arguments, content, name)
    if origin is dict and isinstance(content, dict):
        try:
            keys = [arguments[0](key) for key in content]
        except ValueError:
            raise _Malformed(name) from None
        return dict(
            zip(keys, (_read(arguments[1], v, name) for v in content.values()), strict=True)
        )
    if origin is list and isinstance(content, list):
        return [_read(arguments[0], item, name) for item in content]
    if origin is tuple and isinstance(content, list) and arguments[-1:] == (...,):
        return tuple(_read(arguments[0], item, name) for item in content)
    if origin is tuple and isinstance(content, list) and len(content) == len(arguments):
        return tuple(_read(a, item, name) for a, item in zip(arguments, content, strict=True))
    if hint is float and (content is None or type(content) in (int, float)):
        return float("nan") if content is None else float(content)
    if hint is Path and isinstance(content, str):
        return Path(content)
    if type(content) is hint:
        return content
    raise _Malformed(name)


def _read_fields(kind: Any, content: Any, name: str) -> Any:
    hints = get_type_hints(kind)
    found = {}
    for field in kind._fields if hasattr(kind, "_fields") else _saved(kind):
        shown = name or repr(field)
        if not isinstance(content, dict) or field not in content:
            raise _Malformed(shown)
        found[field] = _read(hints[field], content[field], shown)
    return kind(**found)


def _read_array(arguments: tuple[Any, ...], content: Any, name: str) -> Any:
    (dtype,) = get_args(arguments[1])
    try:
        return np.array(content, dtype=dtype)  # null is NaN
    except (TypeError, ValueError, OverflowError):
        raise _Malformed(name) from None


def _saved(kind: Any) -> list[str]:
    return [field.name for field in fields(kind) if field.metadata.get("saved", True)]
