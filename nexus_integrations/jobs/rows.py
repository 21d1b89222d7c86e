"""Rows of text with ids, read from files as a stream: JSONL, CSV, Parquet, retrieval datasets.

Files are read a record at a time and can be entered in the middle, so that a job's memory does not
grow with its input and a shard can be read by whoever embeds it. JSON and CSV are read by the
standard library, which tells the line of each record, Parquet by pyarrow.
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

_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".json": "dataset",
}
_ID_COLUMNS = ("id", "_id", "doc_id", "document_id", "node_id", "chunk_id", "pid")
_TEXT_COLUMNS = ("text", "content", "contents", "page_content", "passage", "document", "body")
_DELIMITERS = (",", ";", "\t", "|")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file of rows, and which of its columns are the id and the text.

    Several text columns are joined by a space, as BEIR joins title and text.
    """

    path: Path
    kind: Kind
    id_column: str
    text_columns: tuple[str, ...]
    delimiter: str = ","

    @property
    def unit(self) -> str:
        """What `Record.line` counts, from 1."""
        return "line" if self.kind in ("jsonl", "csv") else "row"


class Record(NamedTuple):
    """One record of a file: a row, or what is wrong with it.

    `offset` is where it begins, in bytes of the uncompressed file or in rows, and `line` the number
    of its first line or of its row, from 1.
    """

    offset: int
    line: int
    id: str
    text: str
    problem: str | None = None


def find_inputs(
    names: Sequence[str | Path],
    *,
    id_column: str | None = None,
    text_columns: Sequence[str] = (),
) -> list[InputFile]:
    """Return the files that `names` stand for, in order, with their columns.

    A name is a file, a folder (whose JSONL, CSV and Parquet files are taken in the order of their
    paths), or a BEIR folder, also as `folder:split`, of which the corpus is meant. Columns that are
    not given are found by the usual names. Raises `FileNotFoundError` for what is not there and
    `ValueError` for a file of another kind, a folder without files, and columns that are not found.
    """
    found: list[InputFile] = []
    for name in names:
        path = Path(name)
        folder, _, _ = str(name).rpartition(":")
        if not path.exists() and folder and Path(folder).is_dir():
            path = Path(folder)
        corpus = _beir_corpus(path)
        if corpus is not None:
            beir = InputFile(
                path=corpus.resolve(),
                kind="jsonl",
                id_column=id_column or "_id",
                text_columns=tuple(text_columns) or ("title", "text"),
            )
            found.append(beir)
        elif path.is_dir():
            inside = sorted(p for p in path.rglob("*") if _visible(p, path) and _is_table(p))
            if not inside:
                raise ValueError(f"{path} holds no .jsonl, .csv, .tsv or .parquet file")
            found += [_opened(file, id_column, tuple(text_columns)) for file in inside]
        elif path.is_file():
            found.append(_opened(path, id_column, tuple(text_columns)))
        else:
            raise FileNotFoundError(f"{name} does not exist")
    return found


def read_records(file: InputFile, offset: int = 0, line: int = 1) -> Iterator[Record]:
    """Yield the records of a file from the one at `offset`, whose line number is `line`."""
    reader = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet, "dataset": _dataset}[file.kind]
    return reader(file, offset, line)


def _suffix(path: Path) -> Kind | None:
    """Return the kind of a file by its name; `.gz` may follow, but for Parquet."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        kind = _KINDS.get(Path(path.stem).suffix.lower())
        return None if kind == "parquet" else kind
    return _KINDS.get(suffix)


def _is_table(path: Path) -> bool:
    """Tell whether a file of a folder is meant: other .json is settings more often than texts."""
    return _suffix(path) not in (None, "dataset")


def _visible(path: Path, folder: Path) -> bool:
    return path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)


def _beir_corpus(folder: Path) -> Path | None:
    for name in ("corpus.jsonl", "corpus.jsonl.gz"):
        if (folder / name).is_file():
            return folder / name
    return None


def _opened(path: Path, id_column: str | None, text_columns: tuple[str, ...]) -> InputFile:
    """Find out the kind and the columns of a file."""
    kind = _suffix(path)
    if kind is None:
        raise ValueError(
            f"{path} is not of a kind that is read: expected .jsonl, .ndjson, .csv, .tsv (each "
            "also with .gz), .parquet, or a retrieval dataset (.json)"
        )
    path = path.resolve()  # another process, of a Ray worker, has another working directory
    if kind == "dataset":
        RetrievalDataset.from_json(path)  # raises for what is none
        return InputFile(path=path, kind=kind, id_column="id", text_columns=("text",))
    splits: dict[str, list[str]] = {}
    if kind == "csv":
        splits = {sign: _csv_header(path, sign)[0] for sign in _DELIMITERS}
    elif kind == "parquet":
        splits = {",": list(_parquet_file(path).schema_arrow.names)}
    else:
        splits = {",": _jsonl_keys(path)}
    for delimiter, columns in splits.items():
        chosen = _choose(columns, id_column, text_columns)
        if chosen is not None:
            return InputFile(
                path=path,
                kind=kind,
                id_column=chosen[0],
                text_columns=chosen[1],
                delimiter=delimiter,
            )
    wanted = [id_column or f"an id ({', '.join(_ID_COLUMNS)})"]
    wanted += text_columns or [f"a text ({', '.join(_TEXT_COLUMNS)})"]
    found = splits[","]
    # The first line of a CSV file without a header is content, which no message shows.
    shown = f"{len(found)} columns" if kind == "csv" else f"the columns {found or 'none'}"
    raise ValueError(
        f"{path.name} has {shown}: expected {' and '.join(wanted)}. "
        "Name them with --id-column and --text-column (id_column and text_columns)"
    )


def _choose(
    columns: Sequence[str], id_column: str | None, text_columns: tuple[str, ...]
) -> tuple[str, tuple[str, ...]] | None:
    """Return the id and the text columns, or None where one is not there."""
    if id_column is None:
        id_column = next((name for name in _ID_COLUMNS if name in columns), None)
    if not text_columns:
        text = next((name for name in _TEXT_COLUMNS if name in columns), None)
        text_columns = () if text is None else (text,)
        if id_column == "_id" and text == "text" and "title" in columns:
            text_columns = ("title", "text")  # BEIR, whose title stands before the text
    if id_column is None or not text_columns or not {id_column, *text_columns} <= set(columns):
        return None
    return id_column, text_columns


def _record(file: InputFile, offset: int, line: int, values: Sequence[Any]) -> Record:
    """Make a record of the values of the id column and of the text columns."""
    id_, *parts = values
    if isinstance(id_, int) and not isinstance(id_, bool):
        id_ = str(id_)
    problem = None
    if id_ is None or id_ == "":
        problem = "has no id"
    elif not isinstance(id_, str):
        problem = f"has an id of type {type(id_).__name__}: expected a string or a whole number"
    elif not _encodable(id_):
        problem = "has an id with a lone surrogate, which no file can hold"
    elif parts[-1] is None:  # a title may be missing, the text may not
        problem = f"has no {file.text_columns[-1]}"
    else:
        odd = next((part for part in parts if not isinstance(part, (str, type(None)))), None)
        if odd is not None:
            problem = f"has a text of type {type(odd).__name__}: expected a string"
    if problem is not None:
        return Record(offset, line, "", "", problem)
    text = parts[0] if len(parts) == 1 else " ".join(part for part in parts if part).strip()
    return Record(offset, line, id_, text)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _opened_bytes(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _jsonl(file: InputFile, offset: int, line: int) -> Iterator[Record]:
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
                yield Record(begun, number, "", "", f"is not valid JSON: {what}")
                continue
            if not isinstance(content, dict):
                what = type(content).__name__
                yield Record(begun, number, "", "", f"is a {what}: expected an object")
                continue
            values = [content.get(name) for name in (file.id_column, *file.text_columns)]
            yield _record(file, begun, number, values)


def _jsonl_keys(path: Path) -> list[str]:
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


def _csv_header(path: Path, delimiter: str) -> tuple[list[str], int, int]:
    """Return the column names, and offset and line number of what follows."""
    with reading_csv(path), _opened_bytes(path) as stream:
        lines = _Lines(stream)
        header = next(csv.reader(lines, delimiter=delimiter), [])
        return header, lines.offset, lines.line


def _csv(file: InputFile, offset: int, line: int) -> Iterator[Record]:
    header, after_offset, after_line = _csv_header(file.path, file.delimiter)
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
                yield Record(begun, number, "", "", f"is not valid CSV: {error}")
                continue
            if not fields:
                continue
            if lines.undecodable:
                yield Record(begun, number, "", "", "is not UTF-8")
            elif len(fields) != len(header):
                what = f"has {len(fields)} fields: expected {len(header)}, as the header has"
                yield Record(begun, number, "", "", what)
            else:
                yield _record(file, begun, number, [fields[column] for column in columns])


def _parquet_file(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from None


def _parquet(file: InputFile, offset: int, line: int) -> Iterator[Record]:
    content = _parquet_file(file.path)
    columns = [file.id_column, *file.text_columns]
    before = 0  # rows of the groups before this one
    for group in range(content.num_row_groups):
        size = content.metadata.row_group(group).num_rows
        if before + size > offset:
            row = before
            for batch in content.iter_batches(1024, row_groups=[group], columns=columns):
                if row + len(batch) > offset:
                    lists = [batch.column(name).to_pylist() for name in columns]
                    for place, values in enumerate(zip(*lists, strict=True), start=row):
                        if place >= offset:
                            yield _record(file, place, place + 1, values)
                row += len(batch)
        before += size


def _dataset(file: InputFile, offset: int, line: int) -> Iterator[Record]:
    # Datasets are small beside corpora, and checked as a whole.
    for row, values in enumerate(RetrievalDataset.from_json(file.path).corpus.items()):
        if row >= offset:
            yield _record(file, row, row + 1, values)
