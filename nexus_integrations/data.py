"""Questions with the passages that answer them, and sentence pairs with scores.

The layout is that of LlamaIndex's `EmbeddingQAFinetuneDataset`: three dictionaries, `queries`,
`corpus` and `relevant_docs`. Every reader ends in the same checks, so that a dataset that exists is
a dataset that can be trained on.
"""

import csv
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from nexus_integrations.types import Floats


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
        _check_texts("query", self.queries)
        _check_texts("document", self.corpus)
        unknown = next((id_ for id_ in self.relevant_docs if id_ not in self.queries), None)
        if unknown is not None:
            raise ValueError(f"relevant_docs names query {unknown!r}, which is not in queries")
        relevant: dict[str, list[str]] = {}
        for query_id in self.queries:
            listed = self.relevant_docs.get(query_id, [])
            if not isinstance(listed, (list, tuple)):
                what = (
                    f"the string {listed!r}" if isinstance(listed, str) else type(listed).__name__
                )
                raise TypeError(f"relevant_docs[{query_id!r}] is {what}: expected a list of ids")
            for id_ in listed:
                if id_ not in self.corpus:
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
        return _digest([self.queries, self.corpus, self.relevant_docs])

    @classmethod
    def from_beir(cls, folder: str | Path, *, split: str = "test") -> "RetrievalDataset":
        """Read `corpus.jsonl`, `queries.jsonl` (or `.jsonl.gz`) and `qrels/<split>.tsv`.

        A document's title stands before its text, as BEIR has it; only the queries of the split
        are kept, the corpus is whole, and judgements of score 0 or less are no relevance.
        """
        folder = Path(folder)
        corpus = {}
        for row in _unique_rows(folder / "corpus.jsonl"):
            if not isinstance(row["text"], str):
                what = type(row["text"]).__name__
                raise TypeError(f"document {row['_id']!r} is {what}, expected str")
            corpus[row["_id"]] = f"{row.get('title') or ''} {row['text']}".strip()
        queries = {row["_id"]: row["text"] for row in _unique_rows(folder / "queries.jsonl")}
        relevant: dict[str, list[str]] = {}
        path = folder / "qrels" / f"{split}.tsv"
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                if row["query-id"] not in queries:
                    raise ValueError(f"{path} names query {row['query-id']!r}, unknown in {folder}")
                found = relevant.setdefault(row["query-id"], [])
                if float(row["score"]) > 0:
                    found.append(row["corpus-id"])
        return cls(
            queries={id_: queries[id_] for id_ in relevant}, corpus=corpus, relevant_docs=relevant
        )

    @classmethod
    def from_json(cls, path: str | Path) -> "RetrievalDataset":
        """Read what `EmbeddingQAFinetuneDataset.save_json` writes: `.json`, or `.json.gz`."""
        path = Path(path)
        with _open_text(path) as file:
            # Two equal keys would silently become one: json keeps the last.
            try:
                content = json.load(file, object_pairs_hook=_without_duplicates)
            except (json.JSONDecodeError, EOFError) as error:
                raise ValueError(f"{path} is not valid JSON: {error}") from None
        missing = {"queries", "corpus", "relevant_docs"} - set(content)
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
        for column in (query_column, document_column):
            if column not in rows.column_names:
                raise ValueError(
                    f"{name} has no column {column!r}: it has {', '.join(rows.column_names)}"
                )
        documents: dict[str, str] = {}
        queries: dict[str, str] = {}
        relevant: dict[str, list[str]] = {}
        for row in rows:
            document_id = documents.setdefault(row[document_column], f"d{len(documents)}")
            query_id = queries.setdefault(row[query_column], f"q{len(queries)}")
            relevant.setdefault(query_id, []).append(document_id)
        return cls(
            queries={id_: text for text, id_ in queries.items()},
            corpus={id_: text for text, id_ in documents.items()},
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


@dataclass(frozen=True, kw_only=True)
class SimilarityDataset:
    """Sentence pairs with a similarity score each, as in the STS Benchmark.

    `scores` is float32 (n,), scaled to 0..1 from `scale`. Raises `ValueError` for an empty dataset,
    sides of different length, a blank sentence, or a score outside the scale; each names the pair.
    """

    sentences1: list[str]
    sentences2: list[str]
    scores: Floats = field(repr=False)

    def __post_init__(self) -> None:
        if not len(self.sentences1) == len(self.sentences2) == len(self.scores):
            raise ValueError(
                f"{len(self.sentences1)} first and {len(self.sentences2)} second sentences, "
                f"{len(self.scores)} scores: expected equal numbers"
            )
        if not self.sentences1:
            raise ValueError("the dataset is empty")
        for side in (self.sentences1, self.sentences2):
            _check_texts("sentence of pair", {str(row): text for row, text in enumerate(side)})
        scores = np.asarray(self.scores, dtype=np.float32)
        bad = ~((scores >= 0) & (scores <= 1))
        if bad.any():
            raise ValueError(
                f"pair {int(np.argmax(bad))} has the scaled score {scores[np.argmax(bad)]}, "
                "outside 0..1: give the scale of your scores"
            )
        object.__setattr__(self, "scores", scores)

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.sentences1)

    def __repr__(self) -> str:
        """Counts only: a repr ends up in logs, where no text belongs."""
        return f"SimilarityDataset({len(self)} pairs)"

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over sentences and scores, which it does not give away."""
        return _digest([self.sentences1, self.sentences2, self.scores.tolist()])

    def subset(self, rows: Sequence[int]) -> "SimilarityDataset":
        """Return the dataset of the pairs with these numbers."""
        return SimilarityDataset(
            sentences1=[self.sentences1[row] for row in rows],
            sentences2=[self.sentences2[row] for row in rows],
            scores=self.scores[list(rows)],
        )

    @classmethod
    def from_csv(
        cls, path: str | Path, *, scale: tuple[float, float] = (0.0, 5.0)
    ) -> "SimilarityDataset":
        """Read rows of sentence1, sentence2, score without a header (`.csv` or `.csv.gz`)."""
        with _open_text(Path(path)) as file:
            rows = list(csv.reader(file))
        for number, row in enumerate(rows):
            if len(row) != 3:
                raise ValueError(f"row {number} of {path} has {len(row)} fields, expected 3")
        return cls._scaled(rows, scale)

    @classmethod
    def from_hub(
        cls,
        name: str = "mteb/stsbenchmark-sts",
        *,
        split: str = "train",
        columns: tuple[str, str, str] = ("sentence1", "sentence2", "score"),
        scale: tuple[float, float] = (0.0, 5.0),
    ) -> "SimilarityDataset":
        """Read sentence pairs with the `datasets` library: a hub name or a local folder."""
        import datasets

        rows = datasets.load_dataset(name, split=split)
        missing = [column for column in columns if column not in rows.column_names]
        if missing:
            raise ValueError(f"{name} has no column {missing[0]!r}: {', '.join(rows.column_names)}")
        return cls._scaled([[row[column] for column in columns] for row in rows], scale)

    @classmethod
    def _scaled(
        cls, rows: Sequence[Sequence[Any]], scale: tuple[float, float]
    ) -> "SimilarityDataset":
        low, high = scale
        if not low < high:
            raise ValueError(f"scale must be (lowest, highest), not {scale}")
        scores = np.empty(len(rows))
        for number, row in enumerate(rows):
            try:
                scores[number] = float(row[2])
            except (TypeError, ValueError):
                raise ValueError(
                    f"pair {number} has the score {row[2]!r}: expected a number"
                ) from None
            if not low <= scores[number] <= high:
                raise ValueError(
                    f"pair {number} has the score {row[2]}, outside {low:g}..{high:g}: give the "
                    "scale of your scores"
                )
        return cls(
            sentences1=[row[0] for row in rows],
            sentences2=[row[1] for row in rows],
            scores=((scores - low) / (high - low)).astype(np.float32),
        )


def check_texts(texts: Sequence[str]) -> None:
    """Raise `TypeError` for a bare string, or for an item that is not text, which it names."""
    if isinstance(texts, (str, bytes)):
        raise TypeError("expected a list of texts, got one string: write [text]")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {number} is {type(text).__name__}, expected str")


def _check_texts(what: str, texts: Mapping[str, str]) -> None:
    for id_, text in texts.items():
        if not isinstance(id_, str):
            raise TypeError(f"{what} id {id_!r} is {type(id_).__name__}, expected str")
        if not isinstance(text, str):
            raise TypeError(f"{what} {id_!r} is {type(text).__name__}, expected str")
        if not text.strip():
            raise ValueError(f"{what} {id_!r} is blank")


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _unique_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file, or of the same with `.gz`; an id seen twice is an error."""
    if not path.exists():
        path = path.with_name(path.name + ".gz")
    seen: set[str] = set()
    with _open_text(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} of {path} is not valid JSON: {error}") from None
            if not isinstance(row, dict) or "_id" not in row or "text" not in row:
                raise ValueError(f"line {number} of {path} lacks _id or text")
            if row["_id"] in seen:
                raise ValueError(f"line {number} of {path}: id {row['_id']!r} occurs twice")
            seen.add(row["_id"])
            yield row


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} occurs twice")
    return content
