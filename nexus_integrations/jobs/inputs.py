"""Which files a job reads, and which of their columns hold ids and texts."""

from collections.abc import Sequence
from pathlib import Path

from nexus_integrations.jobs.rows import InputFile, Kind, csv_header, jsonl_keys, parquet_file

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


def find_inputs(
    names: Sequence[str | Path],
    *,
    id_column: str | None = None,
    text_columns: Sequence[str] = (),
) -> list[InputFile]:
    """Return the files that `names` stand for, in order, with their columns.

    A name is a file, a folder (its JSONL, CSV and Parquet files in the order of their paths), or a
    BEIR folder, also as `folder:split`, of which the corpus is read. Columns that are not given are
    found by the usual names. Raises `FileNotFoundError` for a name that does not exist and
    `ValueError` for a file of another kind, a folder without files, and columns that are not found.
    """
    found: list[InputFile] = []
    for name in names:
        path = Path(name)
        folder, _, _ = str(name).rpartition(":")
        if not path.exists() and folder and Path(folder).is_dir():
            path = Path(folder)
        beir = (path / "corpus.jsonl", path / "corpus.jsonl.gz")
        corpus = next((file for file in beir if file.is_file()), None)
        if corpus is not None:
            found.append(
                InputFile(
                    path=corpus.resolve(),
                    kind="jsonl",
                    id_column=id_column or "_id",
                    text_columns=tuple(text_columns) or ("title", "text"),
                )
            )
        elif path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _is_table(file, path))
            if not inside:
                raise ValueError(f"{path} holds no .jsonl, .csv, .tsv or .parquet file")
            found += [_opened(file, id_column, tuple(text_columns)) for file in inside]
        elif path.is_file():
            found.append(_opened(path, id_column, tuple(text_columns)))
        else:
            raise FileNotFoundError(f"{name} does not exist")
    return found


def _kind(path: Path) -> Kind | None:
    """Return the kind of a file by its name; `.gz` may follow, except for Parquet."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        kind = _KINDS.get(Path(path.stem).suffix.lower())
        return None if kind == "parquet" else kind
    return _KINDS.get(suffix)


def _is_table(path: Path, folder: Path) -> bool:
    """Tell whether a file of a folder is read: not a hidden one, and no .json, often settings."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.is_file() and not hidden and _kind(path) not in (None, "dataset")


def _opened(path: Path, id_column: str | None, text_columns: tuple[str, ...]) -> InputFile:
    """Find out the kind and the columns of a file."""
    kind = _kind(path)
    if kind is None:
        raise ValueError(
            f"{path} is not of a kind that is read: expected .jsonl, .ndjson, .csv, .tsv (each "
            "also with .gz), .parquet, or a retrieval dataset (.json)"
        )
    path = path.resolve()  # a Ray worker has another working directory
    if kind == "dataset":
        return InputFile(path=path, kind=kind, id_column="id", text_columns=("text",))
    splits: dict[str, list[str]] = {}
    if kind == "csv":
        splits = {sign: csv_header(path, sign)[0] for sign in _DELIMITERS}
    elif kind == "parquet":
        splits = {",": list(parquet_file(path).schema_arrow.names)}
    else:
        splits = {",": jsonl_keys(path)}
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
    """Return the id column and the text columns, or None where one of them is missing."""
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
