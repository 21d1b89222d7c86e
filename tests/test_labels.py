"""Answers, quotes, files and pages to passages."""

import csv
import re

import pytest

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.data.labels import Passage, Question, match_answers, resolve_ids

LEAVE = Passage(
    id="leave-1", source="hr/leave.md", page="1", section="Annual leave",
    text="A request for annual leave goes to the head nurse. She signs form K-12 within",
)  # fmt: skip
SIGNED = Passage(
    id="leave-2", source="hr/leave.md", page="2", section="Signature",
    text="form K-12 within three days. Unsigned forms are returned.",
)  # fmt: skip
FRIDGE = Passage(
    id="fridge-1", source="lab/fridge.pdf", page="2", section="Alarm",
    text="If the fridge beeps at 11 °C, call the técnico on 4-711.",
)  # fmt: skip
PASSAGES = [LEAVE, SIGNED, FRIDGE]


def matched(passages=PASSAGES, **pointers):
    """Match one question and return its match."""
    return match_answers([Question(id="q", text="?", **pointers)], passages).matches[0]


@pytest.mark.parametrize(
    ("answer", "how", "ids"),
    [
        ("call the técnico on 4-711", "exact", ("fridge-1",)),
        ("CALL THE TECNICO, on 4 711!", "normalised", ("fridge-1",)),
        ("the fridge beeps at 11 C: cal the tecnico", "fuzzy", ("fridge-1",)),
        ("form K-12 within", "exact", ("leave-1", "leave-2")),  # both hold what they share
        ("She signs form K-12 within three days", "exact", ("leave-1", "leave-2")),  # the border
    ],
)
def test_an_answer_finds_its_passages(answer, how, ids):
    """As it stands, normalised, fuzzily, and across a border to both passages."""
    match = matched(answer=answer)
    assert (match.how, match.passage_ids) == (how, ids)


def test_a_word_is_no_part_of_a_word():
    """ "no" stands in "nothing" and "annual" in no passage but as a word."""
    passages = [Passage(id="a", text="nothing is known"), Passage(id="b", text="the answer is no")]
    assert matched(passages, answer="no").passage_ids == ("b",)


def test_words_without_spaces_are_found():
    """In Japanese a word begins and ends within a run of letters."""
    assert matched([Passage(id="a", text="受付は九時に開きます")], answer="九時").passage_ids == (
        "a",
    )


def test_file_and_page_narrow_and_decide():
    """The last parts of a path name a file; without an answer the whole page is relevant."""
    assert matched(source="leave.md", page="1").passage_ids == ("leave-1",)
    assert matched(source="HR/Leave.md", section="signature").passage_ids == ("leave-2",)
    twice = [LEAVE, Passage(id="copy", source="old.md", text=LEAVE.text)]
    assert matched(twice, answer="goes to the head nurse").passage_ids == ("leave-1", "copy")
    assert matched(twice, answer="goes to the head nurse", source="old.md").passage_ids == ("copy",)


@pytest.mark.parametrize(
    ("pointers", "note"),
    [
        ({"answer": "the director"}, "stands in no passage, and is short"),
        ({"answer": "the canteen is closed on Sundays and holidays"}, "nearest is .* of 100"),
        ({"source": "leave.md"}, "a whole document is no answer"),
        ({"source": "nowhere.md", "page": "1"}, "no document has this source"),
        ({"source": "leave.md", "page": "9"}, "no passage of this page"),
        ({"passage_ids": ("leave-1", "gone")}, "1 of its passage ids"),
        ({"answer": "?!"}, "no letters or digits"),
        ({}, "no answer, page, section or passage id"),
    ],
)
def test_nothing_is_guessed(pointers, note):
    """What points to no passage is listed with the reason."""
    labels = match_answers([Question(id="q", text="?", **pointers)], PASSAGES)
    assert labels.unmatched[0].passage_ids == ()
    assert re.search(note, labels.unmatched[0].note)
    with pytest.raises(ValueError, match="none of the 1 questions has a passage"):
        labels.dataset()


def test_an_answer_that_stands_everywhere_names_nothing():
    """Six equal passages: the question asks for a longer quote or the place."""
    passages = [Passage(id=str(n), text="Ask the head nurse.", source=f"{n}.md") for n in range(6)]
    assert "stands in 6 passages" in matched(passages, answer="head nurse").note
    assert matched(passages, answer="head nurse", source="3.md").passage_ids == ("3",)


def test_two_files_of_one_name():
    """The name alone is ambiguous, more of the path is not."""
    passages = [
        Passage(id="a", text="one", source="x/n.md"),
        Passage(id="b", text="two", source="y/n.md"),
    ]
    assert "2 documents have this file name" in matched(passages, answer="one", source="n.md").note
    assert matched(passages, answer="two", source="y/n.md").passage_ids == ("b",)


def test_a_person_corrects_the_file(tmp_path):
    """Saved, corrected in a spreadsheet, read back; the rest stays as it was."""
    questions = [
        Question(id="q1", text="=SUM(1)", answer="goes to the head nurse"),
        Question(id="q2", text="who?", answer="nobody knows this"),
    ]
    labels = match_answers(questions, PASSAGES)
    path = tmp_path / "labels.csv"
    labels.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(text.splitlines()))
    assert rows[0]["question"] == "'=SUM(1)"  # no formula for a spreadsheet to run
    path.write_text(text.replace("q2,who?,,", "q2,who?,fridge-1 leave-2,"), encoding="utf-8-sig")
    corrected = labels.corrected(path)
    assert [match.how for match in corrected.matches] == ["exact", "corrected"]
    assert corrected.dataset().relevant_docs == {"q1": ["leave-1"], "q2": ["fridge-1", "leave-2"]}
    path.write_text(text.replace("q2,who?,,", "q2,who?,missing,"), encoding="utf-8-sig")
    with pytest.raises(ValueError, match=r"row 3 of .* names passage 'missing'"):
        labels.corrected(path)


def test_print_counts_and_lists():
    """Counts by how, and the ids that need a person; no text of theirs."""
    questions = [
        Question(id="q1", text="secret", answer="goes to the head nurse"),
        Question(id="q2", text="secret", source="leave.md"),
    ]
    shown = str(match_answers(questions, PASSAGES))
    assert shown.splitlines()[0] == "1 of 2 questions have a passage (1 exact)"
    assert "q2: a whole document is no answer" in shown
    assert "secret" not in shown + repr(questions[0])


def test_ids_are_unique():
    """A repeated id is an error."""
    with pytest.raises(ValueError, match="passage id 'leave-1' occurs more than once"):
        match_answers([], [LEAVE, LEAVE])


def test_a_store_with_ids_of_its_own():
    """d1 is known by its text, white space aside; d2 by its id; d3 not at all."""
    dataset = RetrievalDataset(
        queries={"q1": "one?", "q2": "two?", "q3": "three?"},
        corpus={"d1": "first  text", "d2": "second", "d3": "third"},
        relevant_docs={"q1": ["d1"], "q2": ["d2", "d3"], "q3": ["d3"]},
    )
    stored = {"s-1": "first text", "s-9": "first text", "d2": "second", "s-3": "another"}
    resolved, unknown = resolve_ids(dataset, stored)
    assert resolved.relevant_docs == {"q1": ["s-1", "s-9"], "q2": ["d2"]}
    assert (resolved.dropped, unknown) == (1, ["d3"])
    with pytest.raises(ValueError, match="holds none of the 3 documents"):
        resolve_ids(dataset, {"s": "another"})
