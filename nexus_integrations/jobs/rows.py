"""Rows of text with ids, read from files as a stream: JSONL, CSV, Parquet, retrieval datasets.

A file is read a record at a time and can be entered at any record, so a job's memory does not grow
with its input. The standard library reads JSON and CSV, because it tells the line of each record.
"""

import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.data.files import reading_csv

Kind = Literal["jsonl", "csv", "parquet", "dataset"]

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file of rows, and which of its columns are the id and the text.

    A space joins several text columns, as BEIR joins title and text.
    """

    path: Path
    kind: Kind
    id_column: str
    text_columns: tuple[str, ...]
    delimiter: str = ","

    @property
    def unit(self) -> str:
        """What `Row.line` counts, from 1."""
        return "line" if self.kind in ("jsonl", "csv") else "row"


class Row(NamedTuple):
    """One record of a file: a row, or what is wrong with it.

    `offset` is where it begins, in bytes of the uncompressed file or in rows, and `line` the number
    of its first line or of its row, from 1.
    """

    offset: int
    line: int
    id: str
    text: str
    problem: str | None = None


def read_rows(file: InputFile, offset: int = 0, line: int = 1) -> Iterator[Row]:
    """Yield the rows of a file from the one at `offset`, whose line number is `line`."""
    reader = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet, "dataset": _dataset}[file.kind]
    return reader(file, offset, line)


def jsonl_keys(path: Path) -> list[str]:
    """Return the keys of the first line that is an object."""
    with _opened_bytes(path) as stream:
        for raw in stream:
            try:
                content = json.loads(raw.removeprefix(_BOM))
            except ValueError:
                continue
            if isinstance(content, dict):
                return list(content)
    return []


def csv_header(path: Path, delimiter: str) -> tuple[list[str], int, int]:
    """Return the column names, and offset and line number of what follows."""
    with reading_csv(path), _opened_bytes(path) as stream:
        lines = _Lines(stream)
        header = next(csv.reader(lines, delimiter=delimiter), [])
        return header, lines.offset, lines.line


def parquet_file(path: Path) -> Any:
    """Open a Parquet file; raises `ValueError` for any other."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from None


def _row(file: InputFile, offset: int, line: int, values: Sequence[Any]) -> Row:
    """Make a row of the values of the id column and of the text columns."""
    id_, *parts = values
    if isinstance(id_, int) and not isinstance(id_, bool):
        id_ = str(id_)
    problem = _problem(file, id_, parts)
    if problem is not None:
        return Row(offset, line, "", "", problem)
    text = parts[0] if len(parts) == 1 else " ".join(part for part in parts if part).strip()
    return Row(offset, line, id_, text)


def _problem(file: InputFile, id_: Any, parts: Sequence[Any]) -> str | None:
    """Say what is wrong with an id or the texts of a row, without showing them."""
    if id_ is None or id_ == "":
        return "has no id"
    if not isinstance(id_, str):
        return f"has an id of type {type(id_).__name__}: expected a string or an integer"
    try:
        id_.encode()
    except UnicodeEncodeError:
        return "has an id with a lone surrogate, which no file can hold"
    if parts[-1] is None:  # a title may be missing, the text may not
        return f"has no {file.text_columns[-1]}"
    odd = next((part for part in parts if not isinstance(part, (str, type(None)))), None)
    return None if odd is None else f"has a text of type {type(odd).__name__}: expected a string"


def _opened_bytes(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _jsonl(file: InputFile, offset: int, line: int) -> Iterator[Row]:
    columns = (file.id_column, *file.text_columns)
    with _opened_bytes(file.path) as stream:
        stream.seek(offset)
        for number, raw in enumerate(stream, start=line):
            begun, offset = offset, offset + len(raw)
            if not raw.strip():
                continue
            try:
                content = json.loads(raw.removeprefix(_BOM) if begun == 0 else raw)
            except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
                what = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8"
                yield Row(begun, number, "", "", f"is not valid JSON: {what}")
                continue
            if isinstance(content, dict):
                yield _row(file, begun, number, [content.get(name) for name in columns])
            else:
                what = f"is a {type(content).__name__}: expected an object"
                yield Row(begun, number, "", "", what)


class _Lines:
    """The lines of a CSV file as the csv module wants them, with count and offset."""

    def __init__(self, stream: IO[bytes], offset: int = 0, line: int = 1) -> None:
        self._stream = stream
        self.offset = offset
        self.line = line
        """Offset and number of the next line."""
        self.undecodable = False

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        raw = self._stream.readline()
        if not raw:
            raise StopIteration
        if self.offset == 0:
            self.offset, raw = len(_BOM) * raw.startswith(_BOM), raw.removeprefix(_BOM)
        self.offset += len(raw)
        self.line += 1
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.undecodable = True
            return raw.decode(errors="replace")


def _csv(file: InputFile, offset: int, line: int) -> Iterator[Row]:
    header, after_offset, after_line = csv_header(file.path, file.delimiter)
    columns = [header.index(name) for name in (file.id_column, *file.text_columns)]
    if offset == 0:
        offset, line = after_offset, after_line
    with reading_csv(file.path), _opened_bytes(file.path) as stream:
        stream.seek(offset)
        lines = _Lines(stream, offset, line)
        reader = csv.reader(lines, delimiter=file.delimiter, strict=True)
        while True:
            begun, number = lines.offset, lines.line
            lines.undecodable = False
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(begun, number, "", "", f"is not valid CSV: {error}")
                continue
            if not fields:
                continue
            if lines.undecodable:
                yield Row(begun, number, "", "", "is not UTF-8")
            elif len(fields) != len(header):
                what = f"has {len(fields)} fields: expected {len(header)}, as the header has"
                yield Row(begun, number, "", "", what)
            else:
                yield _row(file, begun, number, [fields[column] for column in columns])


def _parquet(file: InputFile, offset: int, line: int) -> Iterator[Row]:
    content = parquet_file(file.path)
    columns = [file.id_column, *file.text_columns]
    row = 0
    for group in range(content.num_row_groups):
        size = content.metadata.row_group(group).num_rows
        if row + size <= offset:  # a group before the one that is entered
            row += size
            continue
        for batch in content.iter_batches(1024, row_groups=[group], columns=columns):
            lists = [batch.column(name).to_pylist() for name in columns]
            for values in zip(*lists, strict=True):
                if row >= offset:
                    yield _row(file, row, row + 1, values)
                row += 1


def _dataset(file: InputFile, offset: int, line: int) -> Iterator[Row]:
    # A dataset is small beside a corpus, and is checked as a whole.
    for row, values in enumerate(RetrievalDataset.from_json(file.path).corpus.items()):
        if row >= offset:
            yield _row(file, row, row + 1, values)
