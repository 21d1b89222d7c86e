"""Readers of questions with their passages: files and objects in, three dictionaries out."""

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from nexus_integrations.data.files import (
    open_text,
    reading_csv,
    unique_rows,
    without_duplicates,
)


class _Texts(TypedDict):
    queries: dict[str, str]
    corpus: dict[str, str]
    relevant_docs: dict[str, list[str]]


class Parts(_Texts, total=False):
    """What a `RetrievalDataset` is made of, before its checks."""

    dropped: int


def read_beir(folder: Path, split: str | None) -> Parts:
    """Read a BEIR folder; see `RetrievalDataset.from_beir`."""
    known = sorted(path.name.removesuffix(".tsv") for path in (folder / "qrels").glob("*.tsv"))
    if split not in known:
        wrong = "name a split" if split is None else f"there is no split {split!r}"
        raise ValueError(f"{wrong}: {folder} has {', '.join(known) or 'none'} in qrels/")
    corpus = {}
    for row in unique_rows(folder / "corpus.jsonl"):
        if not isinstance(row["text"], str):
            what = type(row["text"]).__name__
            raise TypeError(f"document {row['_id']!r} is {what}, expected str")
        corpus[row["_id"]] = f"{row.get('title') or ''} {row['text']}".strip()
    queries = {row["_id"]: row["text"] for row in unique_rows(folder / "queries.jsonl")}
    relevant: dict[str, list[str]] = {}
    path = folder / "qrels" / f"{split}.tsv"
    with reading_csv(path), open_text(path) as file:
        rows = csv.DictReader(file, delimiter="\t")
        columns = ("query-id", "corpus-id", "score")
        if not set(columns) <= set(rows.fieldnames or ()):
            raise ValueError(
                f"{path} has {len(rows.fieldnames or ())} columns in its first line: expected "
                f"{', '.join(columns)}, separated by tabs"
            )
        for row in rows:
            if row["query-id"] not in queries:
                raise ValueError(f"{path} names query {row['query-id']!r}, unknown in {folder}")
            found = relevant.setdefault(row["query-id"], [])
            try:
                score = float(row["score"])
            except (TypeError, ValueError):
                raise ValueError(
                    f"line {rows.line_num} of {path} has a score that is no number"
                ) from None
            if score > 0:
                found.append(row["corpus-id"])
    return Parts(
        queries={id_: queries[id_] for id_ in relevant}, corpus=corpus, relevant_docs=relevant
    )


def read_json_dataset(path: Path) -> Parts:
    """Read LlamaIndex's JSON; see `RetrievalDataset.from_json`."""
    with open_text(path) as file:
        # Two equal keys would silently become one: json keeps the last.
        try:
            content = json.load(file, object_pairs_hook=without_duplicates)
        except (json.JSONDecodeError, UnicodeDecodeError, EOFError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
    missing = {"queries", "corpus", "relevant_docs"}
    missing -= content.keys() if isinstance(content, dict) else set()
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}: not a retrieval dataset")
    return Parts(
        queries=content["queries"],
        corpus=content["corpus"],
        relevant_docs=content["relevant_docs"],
    )


def parts_of_langchain(pairs: Iterable[tuple[str, Any]], documents: Iterable[Any]) -> Parts:
    """Take LangChain's documents; see `RetrievalDataset.from_langchain`."""
    corpus: dict[str, str] = {}

    def add(document: Any) -> str:
        id_ = document.id
        if id_ is None:  # ids are kept in states and reports, where no text belongs
            id_ = "sha256-" + hashlib.sha256(document.page_content.encode()).hexdigest()
        if corpus.setdefault(id_, document.page_content) != document.page_content:
            raise ValueError(f"two documents with different contents have the id {id_!r}")
        return str(id_)

    for document in documents:
        add(document)
    answers: dict[str, list[str]] = {}
    for question, answer in pairs:
        found = answers.setdefault(question, [])
        for one in answer if isinstance(answer, (list, tuple)) else [answer]:
            found.append(one if isinstance(one, str) else add(one))
    numbered = {f"q{number}": question for number, question in enumerate(answers)}
    return Parts(
        queries=numbered,
        corpus=corpus,
        relevant_docs={id_: answers[question] for id_, question in numbered.items()},
    )


def read_hub_records(name: str, split: str) -> Parts:
    """Read the NUDGE paper's layout; see `RetrievalDataset.from_hub_records`."""
    columns = {
        "data_records": ("record_id", "text"),
        "qs": ("q_id", "input"),
        "qs_rel": ("q_id", "record_id"),
    }
    found = {}
    for part, names in columns.items():
        rows = _hub_part(name, part, "train" if part == "data_records" else split)
        missing = [column for column in names if column not in rows.column_names]
        if missing:
            raise ValueError(f"{name}: {part} has no column {missing[0]!r}: {rows.column_names}")
        found[part] = list(zip(*(rows[column] for column in names), strict=True))
        if part == "qs_rel" and "rel" in rows.column_names:
            relevances = zip(found[part], rows["rel"], strict=True)
            found[part] = [pair for pair, relevance in relevances if relevance > 0]
    relevant: dict[str, list[str]] = {}
    for query, record in found["qs_rel"]:
        relevant.setdefault(str(query), []).append(str(record))
    queries = {str(id_): text for id_, text in found["qs"]}
    return Parts(
        queries={id_: text for id_, text in queries.items() if id_ in relevant},
        corpus={str(id_): text for id_, text in found["data_records"]},
        relevant_docs=relevant,
        dropped=len(queries.keys() - relevant.keys()),
    )


def parts_of_rows(
    rows: Iterable[Mapping[str, Any]],
    query_column: str,
    document_column: str,
    id_column: str | None,
) -> Parts:
    """Take (question, passage) rows; see `RetrievalDataset.from_rows`."""
    numbers: dict[str, str] = {}
    corpus: dict[str, str] = {}
    queries: dict[str, str] = {}
    relevant: dict[str, list[str]] = {}
    for number, row in enumerate(rows):
        for column in filter(None, (query_column, document_column, id_column)):
            if column not in row:
                raise ValueError(
                    f"row {number} has no column {column!r}: it has {', '.join(map(str, row))}"
                )
        text = row[document_column]
        if id_column is None:
            id_ = numbers.setdefault(text, f"d{len(numbers)}")
        else:
            id_ = str(row[id_column])
        if corpus.setdefault(id_, text) != text:
            raise ValueError(f"row {number}: document id {id_!r} stands for two passages")
        query_id = queries.setdefault(row[query_column], f"q{len(queries)}")
        relevant.setdefault(query_id, []).append(id_)
    return Parts(
        queries={id_: text for text, id_ in queries.items()},
        corpus=corpus,
        relevant_docs=relevant,
    )


def _hub_part(name: str, part: str, split: str) -> Any:
    """Return a split of a part as a `datasets.Dataset`, from the hub or from a folder."""
    import datasets

    folder = Path(name) / part
    if not folder.is_dir():
        return datasets.load_dataset(name, part, split=split)
    if (folder / "dataset_dict.json").is_file():  # Arrow files, as `save_to_disk` writes them
        return datasets.load_from_disk(str(folder))[split]
    splits = datasets.load_dataset(str(folder))
    return splits["validation" if split == "dev" and split not in splits else split]
