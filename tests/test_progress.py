"""What a progress bar says on a terminal."""

import io
import sys
from functools import partial

import pytest
from tqdm.auto import tqdm

from nexus_integrations import progress


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("role", ["query", "document"])
def test_it_says_what_is_embedded(role: str, tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries or documents, in English; nothing where the output is no terminal."""
    encode = {"query": tiny.encode_queries, "document": tiny.encode_documents}[role]
    plural = {"query": "queries", "document": "documents"}[role]
    monkeypatch.setattr(progress, "progress_bar", partial(tqdm, disable=None))  # without delay
    for stream, said in ((Terminal(), f"embed {plural}: "), (io.StringIO(), "")):
        monkeypatch.setattr(sys, "stderr", stream)
        encode(["one", "two words"])
        assert stream.getvalue().lstrip("\r").startswith(said)
        assert bool(stream.getvalue()) == bool(said)
