"""One look for every progress bar."""

from functools import partial
from typing import Literal, NoReturn

from tqdm.auto import tqdm

progress_bar = partial(tqdm, disable=None, delay=1.0, leave=False, dynamic_ncols=True)
"""tqdm, silent where the output is no terminal and for what ends within a second."""


def embedding_bar(total: int, role: Literal["query", "document"]) -> "tqdm[NoReturn]":
    """Return the bar over so many texts of one role."""
    texts = {"query": "queries", "document": "documents"}[role]
    return progress_bar(total=total, desc=f"embed {texts}", unit="text")
