"""Questions with the passages that answer them.

The layout is that of LlamaIndex's `EmbeddingQAFinetuneDataset`: three dictionaries, `queries`,
`corpus` and `relevant_docs`. Every reader ends in the same checks, so that a dataset that exists is
a dataset that can be trained on.
"""

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nexus_integrations.data.files import (
    check_named_texts,
    digest,
    open_text,
    reading_csv,
    table_rows,
    unique_rows,
    without_duplicates,
)
from nexus_integrations.extras import extra


class QADataset(Protocol):
    """What LlamaIndex's `EmbeddingQAFinetuneDataset` holds; any object with these three fits."""

    queries: dict[str, str]
    corpus: dict[str, str]
    relevant_docs: dict[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class RetrievalDataset:
    """Queries, the whole corpus that they search, and the documents relevant to each query.

    On construction a query without relevant documents is dropped and counted in `dropped`, and a
    document listed twice for one query counts once. Raises `TypeError` for what is not text and
    `ValueError` for an empty dataset, a blank text, or a relevant id that is not in the corpus;
    each names the item.
    """

    queries: dict[str, str]
    corpus: dict[str, str]
    relevant_docs: dict[str, list[str]]
    dropped: int = 0
    """How many queries were left out because no document is relevant to them."""

    def __post_init__(self) -> None:
        check_named_texts("query", self.queries)
        check_named_texts("document", self.corpus)
        if not isinstance(self.relevant_docs, Mapping):
            raise TypeError(
                f"relevant_docs is a {type(self.relevant_docs).__name__}: expected a dictionary of "
                "query id to document ids"
            )
        unknown = next((id_ for id_ in self.relevant_docs if id_ not in self.queries), None)
        if unknown is not None:
            raise ValueError(f"relevant_docs names query {unknown!r}, which is not in queries")
        relevant: dict[str, list[str]] = {}
        for query_id in self.queries:
            listed = self.relevant_docs.get(query_id, [])
            if not isinstance(listed, (list, tuple)):
                raise TypeError(
                    f"relevant_docs[{query_id!r}] is {type(listed).__name__}: expected a list of "
                    "ids"
                )
            for id_ in listed:
                if not isinstance(id_, str) or id_ not in self.corpus:
                    raise ValueError(
                        f"query {query_id!r} names document {id_!r}, which is not in the corpus"
                    )
            if listed:
                relevant[query_id] = list(dict.fromkeys(listed))
        if not relevant:
            raise ValueError("the dataset is empty: no query has a relevant document")
        dropped = len(self.queries) - len(relevant)
        # A frozen dataclass settles its own fields only through object.__setattr__.
        object.__setattr__(self, "dropped", self.dropped + dropped)
        object.__setattr__(self, "relevant_docs", relevant)
        object.__setattr__(self, "queries", {id_: self.queries[id_] for id_ in relevant})

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.queries)

    def __repr__(self) -> str:
        """Counts only: a repr ends up in logs, where no text belongs."""
        return (
            f"RetrievalDataset({len(self.queries)} queries, {len(self.corpus)} documents, "
            f"{sum(map(len, self.relevant_docs.values()))} relevance judgements)"
        )

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over queries, corpus and judgements, which it does not give away."""
        return digest([self.queries, self.corpus, self.relevant_docs])

    @classmethod
    def from_beir(cls, folder: str | Path, *, split: str | None = None) -> "RetrievalDataset":
        """Read `corpus.jsonl`, `queries.jsonl` (or `.jsonl.gz`) and `qrels/<split>.tsv`.

        A document's title stands before its text, as BEIR has it; only the queries of the split
        are kept, the corpus is whole, and judgements of score 0 or less are no relevance. Raises
        `ValueError` without a split, and for one that the folder does not have.
        """
        folder = Path(folder)
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
        return cls(
            queries={id_: queries[id_] for id_ in relevant}, corpus=corpus, relevant_docs=relevant
        )

    @classmethod
    def from_json(cls, path: str | Path) -> "RetrievalDataset":
        """Read what `EmbeddingQAFinetuneDataset.save_json` writes: `.json`, or `.json.gz`."""
        path = Path(path)
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
        return cls(
            queries=content["queries"],
            corpus=content["corpus"],
            relevant_docs=content["relevant_docs"],
        )

    @classmethod
    def from_llama_index(cls, dataset: QADataset) -> "RetrievalDataset":
        """Take over any object with `queries`, `corpus` and `relevant_docs`.

        That is LlamaIndex's `EmbeddingQAFinetuneDataset`, wherever it is imported from.
        """
        return cls(
            queries=dict(dataset.queries),
            corpus=dict(dataset.corpus),
            relevant_docs=dict(dataset.relevant_docs),
        )

    @classmethod
    def from_langchain(
        cls, pairs: Iterable[tuple[str, Any]], documents: Iterable[Any] = ()
    ) -> "RetrievalDataset":
        """Read (question, answer) pairs, where an answer is a `Document`, an id, or a list of them.

        `documents` is the rest of the corpus; ids in the pairs refer to it. A `Document` without an
        id goes by the SHA-256 of its content, so that equal contents are one document. Equal
        questions become one query with the answers of all.
        """
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
        return cls(
            queries=numbered,
            corpus=corpus,
            relevant_docs={id_: answers[question] for id_, question in numbered.items()},
        )

    @classmethod
    def from_hub(
        cls,
        name: str,
        *,
        split: str = "train",
        query_column: str = "question",
        document_column: str = "context",
    ) -> "RetrievalDataset":
        """Read a dataset of (question, passage) rows with the `datasets` library.

        `name` is a hub name or a local folder that `datasets.load_dataset` reads. Equal passages
        become one document, equal questions one query.
        """
        import datasets

        rows = datasets.load_dataset(name, split=split)
        return cls.from_rows(rows, query_column=query_column, document_column=document_column)

    @classmethod
    def from_hub_records(cls, name: str, *, split: str = "train") -> "RetrievalDataset":
        """Read a dataset in the layout of the NUDGE paper's, such as `sepz/scifact_ft`.

        It has the parts `data_records` (record_id, text; one split for all), `qs` (q_id, input) and
        `qs_rel` (q_id, record_id, rel). `name` is a hub name, or a local folder with a folder per
        part that `datasets` wrote or reads. Raises `ValueError` for a part without a column.
        """
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
                raise ValueError(
                    f"{name}: {part} has no column {missing[0]!r}: {rows.column_names}"
                )
            found[part] = list(zip(*(rows[column] for column in names), strict=True))
            if part == "qs_rel" and "rel" in rows.column_names:
                relevances = zip(found[part], rows["rel"], strict=True)
                found[part] = [pair for pair, relevance in relevances if relevance > 0]
        relevant: dict[str, list[str]] = {}
        for query, record in found["qs_rel"]:
            relevant.setdefault(str(query), []).append(str(record))
        queries = {str(id_): text for id_, text in found["qs"]}
        return cls(
            queries={id_: text for id_, text in queries.items() if id_ in relevant},
            corpus={str(id_): text for id_, text in found["data_records"]},
            relevant_docs=relevant,
            dropped=len(queries.keys() - relevant.keys()),
        )

    @classmethod
    def from_table(
        cls,
        path: str | Path,
        *,
        query_column: str = "question",
        document_column: str = "context",
        id_column: str | None = None,
    ) -> "RetrievalDataset":
        """Read a file of (question, passage) rows: `.jsonl`, `.csv` (also `.gz`) or `.parquet`.

        Columns and ids are those of `from_rows`. Raises `ValueError` for another kind of file.
        """
        rows = table_rows(Path(path))
        return cls.from_rows(
            rows, query_column=query_column, document_column=document_column, id_column=id_column
        )

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[Mapping[str, Any]],
        *,
        query_column: str = "question",
        document_column: str = "context",
        id_column: str | None = None,
    ) -> "RetrievalDataset":
        """Take (question, passage) rows: a `datasets.Dataset`, or any dictionaries.

        Equal passages become one document and equal questions one query. `id_column` names the
        documents; otherwise they are numbered. Raises `ValueError` for a row without a column and
        for an id that stands for two passages.
        """
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
        return cls(
            queries={id_: text for text, id_ in queries.items()},
            corpus=corpus,
            relevant_docs=relevant,
        )

    def to_json(self, path: str | Path) -> None:
        """Write the JSON that `EmbeddingQAFinetuneDataset.from_json` reads."""
        content = {
            "queries": self.queries,
            "corpus": self.corpus,
            "relevant_docs": self.relevant_docs,
            "mode": "text",
        }
        Path(path).write_text(
            json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )

    def split(
        self, *shares: float, by: str = "query", seed: int = 0
    ) -> "tuple[RetrievalDataset, ...]":
        """Split the queries at random into parts of the given shares; each keeps the whole corpus.

        Shares are scaled to sum to one: `split(.8, .2)` and `split(4, 1)` are the same. With
        `by="document"` queries that share a relevant document, also through other queries, stay
        together, so that no part is judged on a document that another was trained on. Raises
        `ValueError` for shares that are not positive or a part that would be empty.
        """
        if len(shares) < 2 or min(shares) <= 0:
            raise ValueError(f"expected two or more positive shares, got {shares}")
        if by not in ("query", "document"):
            raise ValueError(f"by must be 'query' or 'document', not {by!r}")
        groups = [[id_] for id_ in self.queries] if by == "query" else self._groups_by_document()
        order = np.random.default_rng(seed).permutation(len(groups))
        queries = [id_ for number in order for id_ in groups[number]]
        sizes = np.repeat(
            [len(groups[number]) for number in order], [len(groups[number]) for number in order]
        )  # (n_queries,)
        starts = np.repeat(
            np.cumsum([0, *(len(groups[n]) for n in order)])[:-1],
            [len(groups[number]) for number in order],
        )  # (n_queries,)
        # A group falls whole into the part that holds its middle.
        middles = (starts + sizes / 2) / len(queries)
        bounds = np.cumsum(shares) / sum(shares)
        part_of = np.searchsorted(bounds[:-1], middles, side="right")
        parts = [
            [q for q, p in zip(queries, part_of, strict=True) if p == n] for n in range(len(shares))
        ]
        for number, part in enumerate(parts):
            if not part:
                raise ValueError(
                    f"part {number} of {shares} would be empty: {len(self.queries)} queries in "
                    f"{len(groups)} groups are too few"
                )
        return tuple(self.subset(part) for part in parts)

    def joined(self, other: "RetrievalDataset") -> "RetrievalDataset":
        """Return the queries and the corpora of both, as for training on train and dev together.

        Raises `ValueError` for an id that stands for different texts in the two.
        """
        for mine, theirs in ((self.queries, other.queries), (self.corpus, other.corpus)):
            for id_ in mine.keys() & theirs.keys():
                if mine[id_] != theirs[id_]:
                    raise ValueError(f"id {id_!r} stands for different texts in the two datasets")
        relevant = {id_: list(found) for id_, found in self.relevant_docs.items()}
        for id_, found in other.relevant_docs.items():
            relevant[id_] = [*relevant.get(id_, []), *found]
        return RetrievalDataset(
            queries={**self.queries, **other.queries},
            corpus={**self.corpus, **other.corpus},
            relevant_docs=relevant,
            dropped=self.dropped + other.dropped,
        )

    def subset(self, query_ids: Iterable[str]) -> "RetrievalDataset":
        """Return the dataset of these queries over the same corpus."""
        chosen = list(query_ids)
        return replace(
            self,
            queries={id_: self.queries[id_] for id_ in chosen},
            relevant_docs={id_: self.relevant_docs[id_] for id_ in chosen},
            dropped=0,
        )

    def _groups_by_document(self) -> list[list[str]]:
        with extra("nudge"):
            from scipy.sparse import coo_array
            from scipy.sparse.csgraph import connected_components

        rows = {id_: row for row, id_ in enumerate(self.queries)}
        columns = {id_: len(rows) + column for column, id_ in enumerate(self.corpus)}
        edges = [(rows[q], columns[d]) for q, found in self.relevant_docs.items() for d in found]
        left, right = np.array(edges).T
        size = len(rows) + len(columns)
        graph = coo_array((np.ones(len(edges)), (left, right)), shape=(size, size))
        labels = connected_components(graph, directed=False)[1][: len(rows)]
        groups: dict[int, list[str]] = {}
        for id_, label in zip(rows, labels, strict=True):
            groups.setdefault(int(label), []).append(id_)
        return list(groups.values())


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
