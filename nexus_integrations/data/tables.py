"""Questions from the tables that people keep: any column names, delimiter and encoding."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexus_integrations.data.files import json_lines, open_text, reading_csv
from nexus_integrations.data.labels import Passage, Question
from nexus_integrations.extras import extra

FIELDS: dict[str, tuple[str, ...]] = {
    "text": ("question", "query", "user_input", "input", "prompt", "frage", "pregunta"),
    "answer": ("answer", "quote", "reference", "ground_truth", "expected_output", "expected_answer",
               "context", "antwort", "respuesta"),
    "passage_ids": ("passage_ids", "passage_id", "document_ids", "document_id", "doc_id",
                    "node_id", "chunk_id"),
    "source": ("source", "file", "file_name", "filename", "document", "path", "url", "datei"),
    "page": ("page", "page_label", "page_number", "seite"),
    "section": ("section", "heading", "title", "abschnitt"),
    "id": ("question_id", "query_id", "id", "_id"),
}  # fmt: skip
"""Per field of `Question` the column names that it is looked for under, in this order."""

_PASSAGE_FIELDS: dict[str, tuple[str, ...]] = {
    "id": ("id", "_id", "passage_id", "doc_id", "document_id", "node_id", "chunk_id"),
    "text": ("text", "content", "page_content", "passage", "body"),
    "source": FIELDS["source"],
    "page": FIELDS["page"],
    "section": FIELDS["section"],
}

_SNIFFED = 64 * 1024  # characters of a file that tell its delimiter


@dataclass(frozen=True, kw_only=True)
class QuestionTable:
    """The questions of a file, and which column each field was read from.

    `columns` maps a field of `Question` to its column; `unused` are the other columns; `blank`
    counts the rows without a question, which are left out.
    """

    questions: list[Question]
    columns: dict[str, str]
    unused: list[str]
    blank: int

    def __str__(self) -> str:
        """Return one line: how many questions, from which columns."""
        read = ", ".join(f"{field} from {column!r}" for field, column in self.columns.items())
        blank = f"; {self.blank} rows without a question left out" if self.blank else ""
        return f"{len(self.questions)} questions: {read}{blank}"


def read_questions(
    path: str | Path, columns: Mapping[str, str] | None = None, *, encoding: str | None = None
) -> QuestionTable:
    """Read a CSV or TSV with a header, JSONL, Parquet or Excel file (`.xlsx`).

    Columns are found by their names (`FIELDS`), or named by `columns`, field of `Question` to
    column. The delimiter of a CSV is told from its beginning; its encoding is UTF-8 or UTF-16 by
    its mark, or else Windows-1252, unless `encoding` says otherwise. Ids that a file does not have
    are q1, q2 … by row. Raises `ValueError` for a file without a column of questions, which names
    the columns that it has; for a header that looks like a row; and for one that cannot be read.
    """
    path = Path(path)
    rows = list(_rows(path, encoding))
    if not rows:
        raise ValueError(f"{path} holds no rows below its header")
    names = list(rows[0])
    found = _columns(names, columns or {}, path)
    questions, blank = [], 0
    for number, row in enumerate(rows, start=1):
        given = {field: _text(row.get(column)) for field, column in found.items()}
        if not given["text"]:
            blank += 1
            continue
        ids = given.pop("passage_ids", "")
        id_ = given.pop("id", "") or f"q{number}"
        questions.append(Question(id=id_, passage_ids=tuple(ids.split()), **given))
    return QuestionTable(
        questions=questions,
        columns=found,
        unused=[name for name in names if name not in found.values()],
        blank=blank,
    )


def read_passages(path: str | Path) -> list[Passage]:
    """Read passages from a CSV or TSV with a header, JSONL, Parquet or Excel file.

    Columns are found by their names: an id ("id", "_id", "doc_id" …), the text ("text", "content",
    "page_content" …), and source, page and section where there are such. Raises `ValueError` for a
    file without ids or texts.
    """
    path = Path(path)
    rows = list(_rows(path, None))
    names = list(rows[0]) if rows else []
    by_name = {name.strip().casefold().replace(" ", "_"): name for name in reversed(names)}
    found = {
        field: next((by_name[n] for n in usual if n in by_name), None)
        for field, usual in _PASSAGE_FIELDS.items()
    }
    for field in ("id", "text"):
        if found[field] is None:
            usual = ", ".join(_PASSAGE_FIELDS[field])
            raise ValueError(f"{path} has no column of the passages' {field} ({usual})")
    return [
        Passage(**{field: _text(row.get(column)) for field, column in found.items() if column})
        for row in rows
    ]


def _columns(names: list[str], given: Mapping[str, str], path: Path) -> dict[str, str]:
    """Return field to column; `given` decides, the usual names propose."""
    unknown = set(given) - set(FIELDS)
    if unknown:
        raise ValueError(f"no field is called {sorted(unknown)[0]!r}: expected {', '.join(FIELDS)}")
    absent = [column for column in given.values() if column not in names]
    if absent:
        raise ValueError(f"{path} has no column {absent[0]!r}, it has {_listed(names)}")
    by_name = {name.strip().casefold().replace(" ", "_"): name for name in reversed(names)}
    found = {}
    for field, usual in FIELDS.items():
        column = given.get(field) or next((by_name[n] for n in usual if n in by_name), None)
        if column is not None:
            found[field] = column
    if "text" not in found:
        raise ValueError(
            f"{path} has no column of questions by a usual name ({', '.join(FIELDS['text'])}): "
            f"name it, as in columns={{'text': ...}}. Its first line has {_listed(names)}; "
            "if that is data, add a line with column names"
        )
    return found


def _listed(names: list[str]) -> str:
    """Name a few columns; a first line that is data would be a user's text, and is only counted."""
    short = [name for name in names if len(name) <= 30]
    if len(short) < len(names):
        return f"{len(names)} columns, {len(names) - len(short)} of them too long for a name"
    return ", ".join(names)


def _rows(path: Path, encoding: str | None) -> Iterator[dict[str, Any]]:
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind in (".csv", ".tsv", ".txt"):
        yield from _csv_rows(path, encoding)
    elif kind in (".jsonl", ".ndjson"):
        yield from json_lines(path)
    elif kind == ".parquet":
        with extra("train"):
            from pyarrow import parquet
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    elif kind == ".xlsx":
        yield from _excel_rows(path)
    else:
        raise ValueError(f"{path} is neither .csv, .tsv, .jsonl, .parquet nor .xlsx")


def _csv_rows(path: Path, encoding: str | None) -> Iterator[dict[str, Any]]:
    text = _decoded(path, encoding)
    try:
        dialect: Any = csv.Sniffer().sniff(text[:_SNIFFED], delimiters=",;\t|")
    except csv.Error:  # one column, or quotes that hide the delimiter
        dialect = csv.excel_tab if path.suffix == ".tsv" else csv.excel
    with reading_csv(path):
        rows = csv.DictReader(text.splitlines(keepends=True), dialect=dialect)
        for row in rows:
            if None in row:
                raise ValueError(
                    f"line {rows.line_num} of {path} has more fields than the header: quote a "
                    "field that holds the delimiter"
                )
            yield row


def _decoded(path: Path, encoding: str | None) -> str:
    if path.suffix == ".gz":
        with open_text(path) as file:
            return file.read()
    raw = path.read_bytes()
    marks = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    tried = [encoding] if encoding else [marks.get(raw[:2], "utf-8-sig"), "cp1252"]
    for name in tried:
        try:
            return raw.decode(name)
        except UnicodeDecodeError:
            continue
    raise ValueError(f"{path} is not in {' or '.join(tried)}: give its encoding")


def _excel_rows(path: Path) -> Iterator[dict[str, Any]]:
    with extra("train"):
        import openpyxl
    try:
        sheet = openpyxl.load_workbook(path, read_only=True, data_only=True).active
        rows = sheet.iter_rows(values_only=True)
        header = [_text(cell) for cell in next(rows)]
    except Exception as error:  # openpyxl raises what zip and XML raise
        raise ValueError(f"{path} is no readable Excel file ({type(error).__name__})") from None
    for row in rows:
        if any(cell is not None for cell in row):
            yield dict(zip(header, row, strict=False))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):  # Parquet and JSONL hold lists of ids
        return " ".join(_text(one) for one in value)
    if isinstance(value, float) and value.is_integer():  # Excel's pages are 12.0
        value = int(value)
    return str(value).strip()
