"""Names that are imported on first use, and what to install where that fails."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Let a library that is missing inside be an `ImportError` that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "nexus_integrations"):
            raise
        raise ImportError(
            f'{missing} is missing: pip install "nexus-integrations[{name}]"', name=error.name
        ) from error


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's `__getattr__`, which imports each name from its home on first use.

    `homes` gives the module of each name, below the package. What these modules need beyond the
    base installation is what the extra `train` brings.
    """

    def getattr_(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with extra("train"):
            return getattr(import_module(f"{package}.{homes[name]}"), name)

    return getattr_
