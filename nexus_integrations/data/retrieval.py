"""Questions with the passages that answer them.

The layout is that of LlamaIndex's `EmbeddingQAFinetuneDataset`: three dictionaries, `queries`,
`corpus` and `relevant_docs`. Every reader ends in the same checks, so that a dataset that exists is
a dataset that can be trained on.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nexus_integrations.data.files import check_named_texts, digest, table_rows
from nexus_integrations.data.readers import (
    parts_of_langchain,
    parts_of_rows,
    read_beir,
    read_hub_records,
    read_json_dataset,
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
        return cls(**read_beir(Path(folder), split))

    @classmethod
    def from_json(cls, path: str | Path) -> "RetrievalDataset":
        """Read what `EmbeddingQAFinetuneDataset.save_json` writes: `.json`, or `.json.gz`."""
        return cls(**read_json_dataset(Path(path)))

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
        return cls(**parts_of_langchain(pairs, documents))

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
        return cls(**read_hub_records(name, split))

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
        return cls(**parts_of_rows(rows, query_column, document_column, id_column))

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
