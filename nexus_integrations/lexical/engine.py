"""tantivy as this package uses it: one schema, whole commits, and bytes that are really gone."""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from nexus_integrations.extras import extra
from nexus_integrations.lexical.analysis import Analysis

with extra("lexical"):
    from tantivy import (
        DocAddress,
        Document,
        FieldType,
        Index,
        IndexWriter,
        Occur,
        Query,
        Schema,
        SchemaBuilder,
        Searcher,
        TextAnalyzer,
        TextAnalyzerBuilder,
        Tokenizer,
    )

_BUILDING = 128_000_000  # bytes that a writer gathers before it writes a segment
_CHANGING = 16_000_000
# What two terms in a row weigh beside a term. Chosen on training questions of five corpora, where
# pairs gave up to .03 of nDCG@10; pairs of learned questions cost more than they gave.
_PAIR = 0.3
# What a question that a passage did not answer takes from its score: this share of the idf of the
# terms in common with the question asked. On held-out questions, with wrong passages among the
# first three turned down, it gave +.007 to +.012 nDCG@10 on policyqa and ±.002 on three others.
_DOWN = 0.1
_MARGIN = 1_000  # passages searched beyond k, at most, where some were turned down
_VALUES = 1_000  # in one query
_REMEMBERED = 200_000  # ids, some 30 MB


class Passage(NamedTuple):
    """A passage as stored: its own text, the questions that it answered, and those it did not."""

    id: str
    text: str
    questions: Mapping[str, str] = {}
    refused: Mapping[str, str] = {}

    def without(self, question_ids: Container[str]) -> "Passage":
        """Return the passage without some questions."""
        questions, refused = (
            {id_: text for id_, text in some.items() if id_ not in question_ids}
            for some in (self.questions, self.refused)
        )
        return self._replace(questions=questions, refused=refused)


class _Entry(NamedTuple):
    """What a search needs to know of a passage: its id, and terms of questions turned down."""

    id: str
    refused: list[frozenset[str]]


class _View(NamedTuple):
    """A commit as it is read; what was read of it, by segment and entry; passages turned down."""

    searcher: Searcher
    entries: dict[tuple[int, int], _Entry]
    refusing: int


class Engine:
    """Passages in a tantivy index: in a folder, or in memory when there is none."""

    def __init__(self, folder: Path | None, analysis: Analysis) -> None:
        self.folder = folder
        self._analysis = analysis
        self._schema = _schema()
        with self._reading():
            if folder is None:
                self._index = Index(self._schema)
            else:
                new = not any(folder.glob("*.store"))  # else a lost meta.json would look empty
                self._index = Index(self._schema, str(folder)) if new else Index.open(str(folder))
            self._index.register_tokenizer("terms", _between_spaces())
            self._view = self._viewed()
        self._seen = self._signature()
        self._replaced = 0  # entries since the last rewriting; in a folder, tantivy counts them

    @property
    def searcher(self) -> Searcher:
        """The last commit, also when another process made it."""
        if self.folder is not None and self._signature() != self._seen:
            self._reload()
        return self._view.searcher

    def top(self, terms: Sequence[str], k: int) -> list[tuple[str, float]]:
        """Return the k best passages by BM25, best first, of equal scores by id."""
        if not terms:
            return []
        with self._reading():
            searcher = self.searcher
            depth = k + min(self._view.refusing, _MARGIN)
            found = searcher.search(self._any_of(terms), depth, count=False).hits
            named = list(self._scored(searcher, terms, found))
        return sorted(named, key=lambda pair: (-pair[1], pair[0]))[:k]

    def scores(self, terms: Sequence[str], ids: Sequence[str]) -> dict[str, float]:
        """Return the BM25 of those of `ids` that hold one of the terms."""
        if not terms:
            return {}
        words = self._any_of(terms)
        found: dict[str, float] = {}
        with self._reading():
            searcher = self.searcher
            for batch, asked in self._with_values("id", ids):
                both = [(Occur.Must, Query.const_score_query(asked, 0.0)), (Occur.Must, words)]
                hits = searcher.search(Query.boolean_query(both), len(batch), count=False).hits
                found.update(self._scored(searcher, terms, hits))
        return found

    def ids(self) -> Iterator[str]:
        """Yield the ids of all passages."""
        searcher = self.searcher
        for address in _all(searcher, Query.all_query()):
            yield _id(searcher, address)

    def present(self, ids: Sequence[str]) -> set[str]:
        """Return those of `ids` that are stored."""
        searcher = self.searcher
        queries = [query for _, query in self._with_values("id", ids)]
        return {_id(searcher, address) for query in queries for address in _all(searcher, query)}

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """Return those of the passages that are stored, by id."""
        searcher = self.searcher
        found = {}
        with self._reading():
            for _, asked in self._with_values("id", ids):
                for address in _all(searcher, asked):
                    passage = _passage(searcher.doc(address))
                    found[passage.id] = passage
        return found

    def answering(self, question_ids: Sequence[str] | None = None) -> dict[str, Passage]:
        """Return the passages that answered one of the questions, by default any question."""
        searcher = self.searcher
        if question_ids is None:
            asked = Query.range_query(self._schema, "asked", FieldType.Integer, lower_bound=1)
            queries = [asked]
        else:
            queries = [query for _, query in self._with_values("question", question_ids)]
        found = {}
        with self._reading():
            for query in queries:
                for address in _all(searcher, query):
                    passage = _passage(searcher.doc(address))
                    found[passage.id] = passage
        return found

    @contextmanager
    def changing(self, *, building: bool = False) -> Iterator["Change"]:
        """Give what a change is made with; it is committed whole in the end, or not at all.

        Raises `RuntimeError` when another process, or another thread, is changing the folder, and
        `OSError` when the change cannot be written.
        """
        change = Change(self._writer(_BUILDING if building else _CHANGING), self._document)
        try:
            yield change
            change.commit()
            self._replaced += change.replaced
        finally:
            del change.writer  # of what was not committed nothing stays
            self._collect()

    def rewrite(self, instead: Mapping[str, Passage], *, replaced: bool = True) -> None:
        """Put passages in place of others by id, so that nothing of those is left in the folder.

        For that every segment that ever held a question is written anew in the same commit: what a
        question left lies in no other. With `replaced` so is every segment with a replaced entry.
        """
        searcher = self.searcher
        chosen = self._stained(searcher) | (self._with_dead(searcher) if replaced else set())
        if not chosen:
            self._collect()  # files that a killed process left
            return
        self._replaced = 0
        with self.changing(building=True) as change:
            for address in _all(searcher, Query.all_query()):
                if address.segment_ord in chosen:
                    passage = _passage(searcher.doc(address))
                    change.put(instead.get(passage.id, passage))
            del searcher  # it would keep the old files in use

    def dead_share(self) -> float:
        """Return the share of replaced entries, which BM25 still counts, among all: 0..1."""
        dead, alive = self._replaced, self.searcher.num_docs
        if self.folder is not None:
            dead = sum(map(_dead, self._segments()))
        return dead / (dead + alive) if dead else 0.0

    def _with_dead(self, searcher: Searcher) -> set[int]:
        if self.folder is None:  # memory does not tell which
            return set(range(searcher.num_segments))
        return {number for number, segment in enumerate(self._segments()) if _dead(segment)}

    def _stained(self, searcher: Searcher) -> set[int]:
        """Return the segments in which an entry, replaced ones included, holds a question."""
        segments = self._segments()
        alive = Counter(address.segment_ord for address in _all(searcher, Query.all_query()))
        expected = {n: segment["max_doc"] - _dead(segment) for n, segment in enumerate(segments)}
        if alive != Counter(expected):
            return set(range(searcher.num_segments))  # in memory, or in an order that is not ours
        return {
            number
            for number, segment in enumerate(segments)
            if any(
                searcher.fast_field_values(
                    "asked", [DocAddress(number, row) for row in range(segment["max_doc"])]
                )
            )
        }

    def _segments(self) -> list[dict[str, Any]]:
        """Return what `meta.json` says of each segment, in the order of the searcher's."""
        if self.folder is None:
            return []
        segments = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))["segments"]
        return list(segments)

    def _viewed(self) -> _View:
        searcher = self._index.searcher()
        turned_down = Query.range_query(self._schema, "refused", FieldType.Integer, lower_bound=1)
        return _View(searcher, {}, len(list(_all(searcher, turned_down))))

    def _scored(
        self, searcher: Searcher, terms: Sequence[str], hits: Sequence[tuple[float, DocAddress]]
    ) -> Iterator[tuple[str, float]]:
        """Yield id and score of what was found, lowered where a like question was turned down."""
        asked = set(terms)
        for score, address in hits:
            entry = self._entry(searcher, address)
            if entry.refused:
                common = max(
                    sum(self._idf(searcher, term) for term in asked & refused)
                    for refused in entry.refused
                )
                score = max(score - _DOWN * common, 0.0)
            yield entry.id, score

    def _idf(self, searcher: Searcher, term: str) -> float:
        holding = searcher.doc_freq("words", term)
        return math.log(1 + (max(searcher.num_docs - holding, 0) + 0.5) / (holding + 0.5))

    def _entry(self, searcher: Searcher, address: DocAddress) -> _Entry:
        """Return an entry; those read lately are remembered, since reading one takes 10 µs."""
        view, place = self._view, (address.segment_ord, address.doc)
        found = view.entries.get(place) if searcher is view.searcher else None
        if found is None:
            stored = searcher.doc(address)
            refused = _questions(stored.get_first("refusals")).values()
            terms = [frozenset(self._analysis.terms(text)) for text in refused]
            found = _Entry(str(stored.get_first("id")), terms)
            if searcher is view.searcher:  # else another thread has read a later commit
                if len(view.entries) >= _REMEMBERED:
                    view.entries.clear()
                view.entries[place] = found
        return found

    def _any_of(self, terms: Sequence[str]) -> Query:
        each = [Query.term_query(self._schema, "words", term, "freq") for term in terms]
        for pair in self._analysis.pairs(terms):
            query = Query.term_query(self._schema, "words", pair, "freq")
            each.append(Query.boost_query(query, _PAIR))
        return Query.boolean_query([(Occur.Should, query) for query in each])

    def _with_values(self, field: str, values: Sequence[str]) -> Iterator[tuple[list[str], Query]]:
        """Yield batches of values, each with the query for entries that have one of them."""
        for start in range(0, len(values), _VALUES):
            batch = list(values[start : start + _VALUES])
            yield batch, Query.term_set_query(self._schema, field, batch)

    def _document(self, passage: Passage) -> Document:
        document = Document()
        document.add_text("id", passage.id)
        document.add_integer("asked", len(passage.questions) + len(passage.refused))
        document.add_integer("refused", len(passage.refused))
        document.add_bytes("text", passage.text.encode("utf-8", "replace"))
        terms = self._analysis.terms(passage.text)
        document.add_text("words", " ".join([*terms, *self._analysis.pairs(terms)]))
        for field, some in (("questions", passage.questions), ("refusals", passage.refused)):
            if some:  # JSON in ASCII: any text survives it
                document.add_bytes(field, json.dumps(dict(some)).encode())
        for question_id in {**passage.questions, **passage.refused}:
            document.add_text("question", question_id)
        for question in passage.questions.values():
            document.add_text("words", " ".join(self._analysis.terms(question)))
        return document

    def _writer(self, heap: int) -> IndexWriter:
        try:  # one thread, so that equal input gives equal segments
            writer = self._index.writer(heap, 1)
            # Files that no commit needs, also of a process that was killed: names occur again.
            writer.garbage_collect_files()
            return writer
        except ValueError as error:
            if "LockBusy" in str(error):
                raise RuntimeError(
                    f"another process is changing the lexical index in {self.folder}, or another "
                    "thread: wait until it has ended"
                ) from None
            raise OSError(
                f"the lexical index in {self.folder} cannot be written: {error}"
            ) from None

    def _collect(self) -> None:
        """Read the last commit, and remove the files that only earlier ones need."""
        self._reload()
        self._writer(_CHANGING)

    def _reload(self) -> None:
        with self._reading():
            seen = self._signature()
            self._index.reload()
            self._view = self._viewed()
            self._seen = seen

    def _signature(self) -> object:
        if self.folder is None:
            return None
        found = os.stat(self.folder / "meta.json")
        return found.st_mtime_ns, found.st_ino, found.st_size

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Say of a folder that tantivy cannot read that it is damaged."""
        try:
            yield
        except Exception as error:
            if self.folder is None:
                raise
            raise ValueError(
                f"the lexical index in {self.folder} is damaged ({type(error).__name__}): remove "
                "the folder and build it again"
            ) from error
        except BaseException as error:  # a panic in Rust is no Exception
            if type(error).__name__ != "PanicException":
                raise
            raise ValueError(
                f"the lexical index in {self.folder} is damaged: remove the folder and build it "
                "again"
            ) from None


class Change:
    """A change that is being made: passages put in place of what had their ids, or removed."""

    def __init__(self, writer: IndexWriter, document: Callable[[Passage], Document]) -> None:
        self.writer = writer
        self.replaced = 0
        self._document = document

    def put(self, passage: Passage, *, new: bool = False) -> None:
        """Store a passage; with `new` nothing has its id yet."""
        if not new:
            self.remove(passage.id)
        document = self._document(passage)
        with _written():
            self.writer.add_document(document)

    def remove(self, id_: str) -> None:
        """Remove the passage with this id, if there is one."""
        self.replaced += 1
        with _written():
            self.writer.delete_documents_by_term("id", id_)

    def commit(self) -> None:
        """Make the change last."""
        with _written():
            self.writer.commit()
            self.writer.wait_merging_threads()


@contextmanager
def _written() -> Iterator[None]:
    """Say `OSError` where tantivy cannot write, as on a full disk; its messages name files alone.

    A thread of its own writes: what is told by an addition may be the fault of one long before it.
    """
    try:
        yield
    except ValueError as error:
        raise OSError(
            f"the lexical index could not be written and stays as it was: {error}"
        ) from None


def _schema() -> Schema:
    """Everything searchable is in `words`; `text` and `questions` are what it is made of."""
    builder = SchemaBuilder()
    builder.add_text_field("id", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_text_field("question", tokenizer_name="raw", index_option="basic")
    builder.add_integer_field("asked", indexed=True, fast=True)  # the number of questions
    builder.add_integer_field("refused", indexed=True, fast=True)  # of those, not answered
    builder.add_text_field("words", tokenizer_name="terms", index_option="freq")
    builder.add_bytes_field("text", stored=True)
    builder.add_bytes_field("questions", stored=True)
    builder.add_bytes_field("refusals", stored=True)
    return builder.build()


def _between_spaces() -> TextAnalyzer:
    return TextAnalyzerBuilder(Tokenizer.whitespace()).build()


def _all(searcher: Searcher, query: Query) -> Iterator[DocAddress]:
    """Yield what a query that scores nothing finds, in the order in which it is stored."""
    for _, address in searcher.search(query, max(1, searcher.num_docs), count=False).hits:
        yield address


def _id(searcher: Searcher, address: DocAddress) -> str:
    return str(searcher.doc(address).get_first("id"))


def _passage(document: Document) -> Passage:
    text = document.get_first("text")
    return Passage(
        str(document.get_first("id")),
        "" if text is None else bytes(text).decode(),
        _questions(document.get_first("questions")),
        _questions(document.get_first("refusals")),
    )


def _questions(stored: Any) -> dict[str, str]:
    found: dict[str, str] = {} if stored is None else json.loads(bytes(stored))
    return found


def _dead(segment: Mapping[str, Any]) -> int:
    deletes = segment["deletes"]
    return 0 if deletes is None else int(deletes["num_deleted_docs"])
