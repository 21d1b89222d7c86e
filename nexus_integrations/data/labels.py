"""Labels from answers: which passage does a question's answer, quote, file or page point to?

People keep questions with an answer, a quote, a file name, a page or a URL beside them, and no
passage ids. `match_answers` finds the passages, says how each was found, and lists the questions
that it could not place. `Labels.save` writes a CSV for a person to correct, `Labels.load` reads it.
"""

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Literal, NamedTuple

from nexus_integrations.data.files import open_text, reading_csv
from nexus_integrations.data.retrieval import RetrievalDataset
from nexus_integrations.extras import extra
from nexus_integrations.files import written_whole

How = Literal["id", "exact", "normalised", "fuzzy", "place", "corrected", "none"]
"""How a question found its passages: by id, by its answer's text, by file and page, or not."""

# An answer that stands in more passages than this names none of them.
_MOST = 5
# A fuzzy match of a short answer is chance: "yes, on Monday" is like many texts.
_FUZZY_CHARACTERS = 20
_SHARED = 10  # signs: less in common at the border of two passages is chance
_COLUMNS = ("question_id", "question", "passage_ids", "how", "score", "note")


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A passage, and where it comes from as far as its loader tells.

    `source` is a file name, path or URL; `page` its page as printed; `section` its heading.
    Passages of one source stand in the order of the text.
    """

    id: str
    text: str = field(repr=False)
    source: str = ""
    page: str = ""
    section: str = ""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with whatever points to its answer; at least one of the other fields.

    `answer` is a text that stands in the passage, or nearly; `passage_ids` are ids where they are
    known; `source`, `page` and `section` narrow the search, or decide it where there is no answer.
    """

    id: str
    text: str = field(repr=False)
    answer: str = field(default="", repr=False)
    passage_ids: tuple[str, ...] = ()
    source: str = ""
    page: str = ""
    section: str = ""


@dataclass(frozen=True, kw_only=True)
class Match:
    """What was found for one question: passages, how, a score of 0 to 100, and why if nothing."""

    question_id: str
    passage_ids: tuple[str, ...]
    how: How
    score: float = 100.0
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The matches of all questions, in their order.

    `print` counts them by how they were found, and lists the ids of questions without a passage.
    """

    questions: list[Question] = field(repr=False)
    passages: dict[str, str] = field(repr=False)
    matches: list[Match] = field(repr=False)

    @property
    def unmatched(self) -> list[Match]:
        """The questions that no passage was found for, and why."""
        return [match for match in self.matches if not match.passage_ids]

    def dataset(self) -> RetrievalDataset:
        """Return the matched questions over all passages; the others are counted in `dropped`.

        Raises `ValueError` when no question has a passage.
        """
        if len(self.unmatched) == len(self.matches):
            raise ValueError(
                f"none of the {len(self.matches)} questions has a passage: save the labels, look "
                "at the column `note`, and correct `passage_ids`"
            )
        return RetrievalDataset(
            queries={question.id: question.text for question in self.questions},
            corpus=dict(self.passages),
            relevant_docs={match.question_id: list(match.passage_ids) for match in self.matches},
        )

    def save(self, path: str | Path) -> None:
        """Write a CSV that a spreadsheet opens: a question a row, with ids, how, score and note.

        It holds the questions' texts. To correct a row, write passage ids into `passage_ids`,
        separated by spaces; an empty cell leaves the question out.
        """
        texts = {question.id: question.text for question in self.questions}
        with written_whole(Path(path)) as draft:
            draft.chmod(0o600)
            with draft.open("w", encoding="utf-8-sig", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(_COLUMNS)
                for match in self.matches:
                    rows.writerow(
                        [
                            match.question_id,
                            _inert(texts[match.question_id]),
                            " ".join(match.passage_ids),
                            match.how,
                            f"{match.score:.0f}",
                            match.note,
                        ]
                    )

    def corrected(self, path: str | Path) -> "Labels":
        """Return the labels with the ids that a person wrote into the file of `save`.

        Raises `ValueError`, which names the row, for a question or a passage that is not known.
        """
        known = {match.question_id: match for match in self.matches}
        path = Path(path)
        with reading_csv(path), open_text(path) as file:
            rows = csv.DictReader(file)
            missing = {"question_id", "passage_ids"} - set(rows.fieldnames or ())
            if missing:
                raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))}")
            for row in rows:
                found = tuple((row["passage_ids"] or "").split())
                match = known.get(row["question_id"])
                if match is None:
                    raise ValueError(f"row {rows.line_num} of {path} names an unknown question")
                unknown = [id_ for id_ in found if id_ not in self.passages]
                if unknown:
                    raise ValueError(
                        f"row {rows.line_num} of {path} names passage {unknown[0]!r}, which the "
                        "documents do not hold"
                    )
                if found != match.passage_ids:
                    known[match.question_id] = Match(
                        question_id=match.question_id, passage_ids=found, how="corrected"
                    )
        return Labels(
            questions=self.questions, passages=self.passages, matches=list(known.values())
        )

    def __str__(self) -> str:
        """Return a few lines: counts by how, and the ids of the questions without a passage."""
        counts: dict[str, int] = {}
        for match in self.matches:
            counts[match.how] = counts.get(match.how, 0) + 1
        found = ", ".join(f"{count} {how}" for how, count in counts.items() if how != "none")
        matched = len(self.matches) - len(self.unmatched)
        lines = [f"{matched} of {len(self.matches)} questions have a passage ({found or 'none'})"]
        lines += [f"  {match.question_id}: {match.note}" for match in self.unmatched[:20]]
        if len(self.unmatched) > 20:
            lines.append(f"  and {len(self.unmatched) - 20} more: see the saved file")
        return "\n".join(lines)


def match_answers(
    questions: Iterable[Question], passages: Iterable[Passage], *, similarity: float = 90.0
) -> Labels:
    """Find the passages that answer each question; nothing is guessed silently.

    A question's own ids decide. Else its answer is looked for, in the passages of its `source`,
    `page` and `section` where it has them: as it stands, then without regard to case, accents,
    punctuation and space, then fuzzily, from a `similarity` of 0 to 100 on (the partial ratio of
    rapidfuzz, over answers of 20 characters and more). An answer across the border of two passages
    counts for both. Without an answer all passages of the source and page are relevant, and of a
    source alone none: a whole file is no answer. An answer that stands in more than five passages
    names none of them. Raises `ValueError` for a repeated id, and `ImportError` without rapidfuzz.
    """
    questions, passages = list(questions), list(passages)
    for what, ids in (
        ("question", Counter(question.id for question in questions)),
        ("passage", Counter(passage.id for passage in passages)),
    ):
        if ids and ids.most_common(1)[0][1] > 1:
            raise ValueError(f"{what} id {ids.most_common(1)[0][0]!r} occurs more than once")
    library = _Library(passages)
    return Labels(
        questions=questions,
        passages={passage.id: passage.text for passage in passages},
        matches=[library.match(question, similarity) for question in questions],
    )


def resolve_ids(
    dataset: RetrievalDataset, stored: Mapping[str, str]
) -> tuple[RetrievalDataset, list[str]]:
    """Return the dataset under the ids of a store, and the ids of documents it does not hold.

    Loaders and splitters give documents ids that a store does not take over, or none that last.
    `stored` is the store's text by id: a document that the store does not know by its id is known
    by its text, without regard to white space; of equal texts all are taken. The corpus becomes
    the store's. Questions whose documents are all unknown are dropped and counted. Raises
    `ValueError` when no question is left.
    """
    by_text: dict[str, list[str]] = {}
    for id_, text in stored.items():
        by_text.setdefault(" ".join(text.split()), []).append(id_)
    unknown: list[str] = []
    places: dict[str, list[str]] = {}
    for id_ in dict.fromkeys(id_ for found in dataset.relevant_docs.values() for id_ in found):
        text = " ".join(dataset.corpus[id_].split())
        same = [id_] if " ".join(stored.get(id_, "").split()) == text else by_text.get(text, [])
        if not same:
            unknown.append(id_)
        places[id_] = same
    relevant = {
        query: [id_ for one in found for id_ in places[one]]
        for query, found in dataset.relevant_docs.items()
    }
    if not any(relevant.values()):
        raise ValueError(
            f"the store holds none of the {len(places)} documents that answer a question: neither "
            "their ids nor their texts. Was it filled with other passages, or split in another way?"
        )
    resolved = RetrievalDataset(
        queries=dataset.queries,
        corpus=dict(stored),
        relevant_docs=relevant,
        dropped=dataset.dropped,
    )
    return resolved, unknown


class _Span(NamedTuple):
    """A passage's place in the text of its source: [start, stop)."""

    id: str
    start: int
    stop: int


class _Text:
    """The text of one source, its passages joined without what they share at their borders."""

    def __init__(self, passages: Sequence[Passage], normalised: bool) -> None:
        self.spans: list[_Span] = []
        parts: list[str] = []
        end = 0
        before = ""
        for passage in passages:
            text = _normalised(passage.text) if normalised else passage.text
            shared = _overlap(before, text)
            start = end - shared
            if not shared and parts:
                parts.append(" ")
                start = end = end + 1
            parts.append(text[shared:])
            end += len(text) - shared
            self.spans.append(_Span(passage.id, start, end))
            before = text
        self.text = "".join(parts)

    def holding(self, start: int, stop: int) -> list[str]:
        """Return the passages that hold [start, stop) whole, or else those that it touches."""
        whole = [span.id for span in self.spans if span.start <= start and stop <= span.stop]
        touched = [span.id for span in self.spans if span.start < stop and start < span.stop]
        return whole or touched

    def find(self, answer: str) -> list[str]:
        """Return the passages that the answer stands in."""
        found: dict[str, None] = {}
        place = self.text.find(answer)
        while place >= 0:
            stop = place + len(answer)
            if not _within_word(self.text, place) and not _within_word(self.text, stop):
                found.update(dict.fromkeys(self.holding(place, stop)))
            place = self.text.find(answer, place + 1)
        return list(found)


class _Source:
    """The passages of one file, in order, as they stand and normalised."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = passages

    @cached_property
    def exact(self) -> _Text:
        return _Text(self.passages, normalised=False)

    @cached_property
    def normalised(self) -> _Text:
        return _Text(self.passages, normalised=True)


class _Library:
    """All passages, by source."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.ids = {passage.id for passage in passages}
        grouped: dict[str, list[Passage]] = {}
        for number, passage in enumerate(passages):
            # Passages of unknown origin are no neighbours.
            grouped.setdefault(passage.source or f"\0{number}", []).append(passage)
        self.sources = {name: _Source(found) for name, found in grouped.items()}
        self.narrowed: dict[tuple[str, str, str], list[_Source]] = {}

    def match(self, question: Question, similarity: float) -> Match:
        """Return what points from the question to passages, and how."""
        if question.passage_ids:
            return self._by_id(question)
        places = self._places(question)
        if isinstance(places, str):
            return _nothing(question, places)
        if question.answer.strip():
            return self._by_answer(question, places, similarity)
        return _by_place(question, places)

    def _by_id(self, question: Question) -> Match:
        unknown = [id_ for id_ in question.passage_ids if id_ not in self.ids]
        if unknown:
            return _nothing(question, f"{len(unknown)} of its passage ids are not in the documents")
        return Match(question_id=question.id, passage_ids=question.passage_ids, how="id")

    def _places(self, question: Question) -> "list[_Source] | str":
        """Return the passages that file, page and section leave, or why there are none."""
        key = (question.source, question.page, question.section)
        if not any(key):
            return list(self.sources.values())
        if key in self.narrowed:
            return self.narrowed[key]
        names = _named(question.source, self.sources)
        if question.source and not names:
            return "no document has this source"
        if len({PurePath(name).parent for name in names}) > 1:
            return f"{len(names)} documents have this file name: give more of the path"
        found = []
        for name in names or list(self.sources):
            kept = [
                passage
                for passage in self.sources[name].passages
                if (not question.page or passage.page == question.page)
                and (not question.section or _same(passage.section, question.section))
            ]
            if kept:
                found.append(_Source(kept))
        if not found:
            return "the document has no passage of this page or section"
        self.narrowed[key] = found
        return found

    def _by_answer(self, question: Question, places: list[_Source], similarity: float) -> Match:
        answer = question.answer.strip()
        plain = _normalised(answer)
        if not plain:
            return _nothing(question, "the answer has no letters or digits")
        ways: tuple[tuple[How, list[str]], ...] = (
            ("exact", [id_ for place in places for id_ in place.exact.find(answer)]),
            ("normalised", [id_ for place in places for id_ in place.normalised.find(plain)]),
        )
        for how, found in ways:
            if len(found) > _MOST:
                return _nothing(
                    question,
                    f"the answer stands in {len(found)} passages: give a longer quote, or the "
                    "file and page",
                )
            if found:
                return Match(question_id=question.id, passage_ids=tuple(found), how=how)
        return _fuzzy(question, plain, places, similarity)


def _fuzzy(question: Question, answer: str, places: Sequence[_Source], similarity: float) -> Match:
    """Return the passages whose text is most like the answer, from `similarity` on."""
    if len(answer) < _FUZZY_CHARACTERS:
        return _nothing(question, "the answer stands in no passage, and is short for a fuzzy match")
    with extra("train"):
        from rapidfuzz import fuzz
    best, ids = 0.0, []
    for place in places:
        text = place.normalised
        found = fuzz.partial_ratio_alignment(answer, text.text, score_cutoff=max(best, 50.0))
        if found is not None and found.score > best:
            best = found.score
            ids = text.holding(found.dest_start, found.dest_end)
    if best < similarity:
        return _nothing(
            question, f"the answer stands in no passage; the nearest is {best:.0f} of 100 alike"
        )
    return Match(question_id=question.id, passage_ids=tuple(ids), how="fuzzy", score=best)


def _by_place(question: Question, places: Sequence[_Source]) -> Match:
    if not question.page and not question.section:
        why = "it has no answer, page, section or passage id"
        if question.source:
            why = "a whole document is no answer: give an answer, a page or a section"
        return _nothing(question, why)
    ids = tuple(passage.id for place in places for passage in place.passages)
    return Match(question_id=question.id, passage_ids=ids, how="place")


def _nothing(question: Question, why: str) -> Match:
    return Match(question_id=question.id, passage_ids=(), how="none", score=0.0, note=why)


def _named(source: str, names: Mapping[str, object]) -> list[str]:
    """Return the sources of this name: the whole of it, or its last parts."""
    if not source:
        return []
    if source in names:
        return [source]
    asked = PurePath(source.casefold()).parts
    return [name for name in names if PurePath(name.casefold()).parts[-len(asked) :] == asked]


def _same(one: str, other: str) -> bool:
    return _normalised(one) == _normalised(other)


def _normalised(text: str) -> str:
    """Return the text's letters and digits, in lower case without accents, words apart."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    kept = "".join(sign for sign in folded if not unicodedata.combining(sign))
    return " ".join(re.findall(r"\w+", kept))


def _within_word(text: str, place: int) -> bool:
    """Tell whether a word goes on at this place: "no" does not stand in "nothing"."""
    around = text[max(0, place - 1) : place + 1]
    # Beyond U+2E80 are scripts whose words no space divides.
    return len(around) == 2 and place > 0 and all(c.isalnum() and c < "\u2e80" for c in around)


def _overlap(before: str, after: str) -> int:
    """Return how many signs at the end of one passage stand at the beginning of the next."""
    begin = after[:_SHARED]
    place = before.find(begin, max(0, len(before) - len(after))) if len(begin) == _SHARED else -1
    while place >= 0:
        size = len(before) - place
        if after.startswith(before[place:]):
            return size
        place = before.find(begin, place + 1)
    return 0


def _inert(text: str) -> str:
    """Return text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
