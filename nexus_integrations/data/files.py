"""Text files, plain or gzipped, the rows that they hold, and checks of texts."""

import csv
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nexus_integrations.extras import extra

_LONGEST_FIELD = 2**24  # characters: a quote that is never closed must not read the whole file


def check_texts(texts: Sequence[str]) -> None:
    """Raise `TypeError` for a bare string, or for an item that is not text, which it names."""
    if isinstance(texts, (str, bytes)):
        raise TypeError("expected a list of texts, got one string: write [text]")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {number} is {type(text).__name__}, expected str")


def check_named_texts(what: str, texts: Mapping[str, str]) -> None:
    if not isinstance(texts, Mapping):
        raise TypeError(
            f"the {what} texts are a {type(texts).__name__}: expected a dictionary of id to text"
        )
    for id_, text in texts.items():
        if not isinstance(id_, str):
            raise TypeError(f"{what} id {id_!r} is {type(id_).__name__}, expected str")
        if not isinstance(text, str):
            raise TypeError(f"{what} {id_!r} is {type(text).__name__}, expected str")
        if not text.strip():
            raise ValueError(f"{what} {id_!r} is blank")


def digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def open_text(path: Path) -> IO[str]:
    """Open a file of UTF-8, plain or gzipped, without the mark that spreadsheets begin it with."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


@contextmanager
def reading_csv(path: Path) -> Iterator[None]:
    """Let fields be long inside; a file that is no CSV is a `ValueError` that names it."""
    # The limit is the process's, the module knows no other; 131,072, as it comes, is few.
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    try:
        yield
    except csv.Error as error:
        raise ValueError(f"{path} is not valid CSV: {error}") from None


def unique_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file, or of the same with `.gz`; an id seen twice is an error."""
    if not path.exists():
        path = path.with_name(path.name + ".gz")
    seen: set[str] = set()
    for number, row in _numbered(path):
        if not isinstance(row, dict) or "_id" not in row or "text" not in row:
            raise ValueError(f"line {number} of {path} lacks _id or text")
        if row["_id"] in seen:
            raise ValueError(f"line {number} of {path}: id {row['_id']!r} occurs twice")
        seen.add(row["_id"])
        yield row


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = Counter(key for key, _ in pairs)
        raise ValueError(f"key {next(k for k, times in keys.items() if times > 1)!r} occurs twice")
    return content


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file; a line that holds none is an error that names it."""
    for number, row in _numbered(path):
        if not isinstance(row, dict):
            raise ValueError(f"line {number} of {path} is no JSON object")
        yield row


def _numbered(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the lines of a JSONL file, parsed, and their numbers; blank ones are passed over."""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} of {path} is not valid JSON: {error}") from None


def table_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a `.jsonl`, `.csv` (with a header; both also `.gz`) or `.parquet` file."""
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind == ".jsonl":
        yield from json_lines(path)
    elif kind == ".csv":
        with reading_csv(path), open_text(path) as file:
            yield from csv.DictReader(file)
    elif path.suffix == ".parquet":
        with extra("train"):
            from pyarrow import parquet
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    else:
        raise ValueError(f"{path} is neither .jsonl, .csv (or these with .gz) nor .parquet")
