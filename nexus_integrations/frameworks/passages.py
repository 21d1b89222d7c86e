"""What a store holds beside vectors: what each framework tells of its passages."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Passages(ABC, Generic[Item]):
    """What a store holds beside vectors, through the framework's object: texts and metadata."""

    @abstractmethod
    def items(self, ids: Sequence[str]) -> dict[str, Item]:
        """Return those of the passages that are stored, by id, as the framework's own class."""

    @abstractmethod
    def text(self, item: Item) -> str:
        """Return the text by which a passage was embedded."""

    @abstractmethod
    def near(self, query: list[float], k: int, filters: Any) -> list[str]:
        """Return the ids of the k nearest passages that the filter keeps, best first.

        Raises `NotImplementedError` for a store that applies no filters.
        """

    @abstractmethod
    def kept(self, ids: list[str], filters: Any) -> set[str]:
        """Return those of the passages that the filter keeps, as the store itself judges.

        Raises `NotImplementedError` for a store that applies no filters.
        """
