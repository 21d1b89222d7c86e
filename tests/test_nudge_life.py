"""A nudged index in use: observe, forget, refresh, the guard, locks, and failures in between."""

import base64
import errno
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from threading import Event, Thread
from time import sleep
from typing import Any

import numpy as np
import pytest
from test_index_contract import postgres_uri  # noqa: F401
from test_nudge_apply import World, by_hand

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.frameworks.postprocessor import Postprocessor
from nexus_integrations.index.file import FileIndex
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.nudge import NudgeConfig, StateFolder, choose_gamma_again, nudge_index
from nexus_integrations.nudge.state_files import StateFiles

FIXED = NudgeConfig(gamma=0.1)
NEW = "d25"  # answers no training question, and lies on the side of dev0, dev1 and dev2


class Life(World):
    """A nudged `World` in which questions of the dev set are asked: question k is "dev<k>"."""

    def __init__(self, toy, folder, metric="cosine", config=FIXED, **options):
        super().__init__(toy, metric, **options)
        self.metric = metric
        self.config = config
        self.folder = StateFolder(folder)
        self.nudge(config, state_dir=self.folder)

    def question(self, id_):
        text = self.dev.queries.get(id_) or self.train.queries[id_]
        return self.encoder.encode_queries([text])[0]

    def observe(self, id_, document, folder=None, **options):
        options = {
            "content": self.train.corpus[document],
            "fingerprint": self.encoder.fingerprint,
            **options,
        }
        folder = folder or self.folder
        folder.observe(self.index, self.question(id_), document, query_id=id_, **options)

    def fresh(self, asked=(), without=(), dev=None, config=None):
        """The index and state of a nudge from scratch with these questions more and those less."""
        kept = self.train.subset(id_ for id_ in self.train.queries if id_ not in without)
        asked = {id_: found for id_, found in dict(asked).items() if id_ not in without}
        train = RetrievalDataset(
            queries={**kept.queries, **{id_: self.dev.queries[id_] for id_ in asked}},
            corpus=self.train.corpus,
            relevant_docs={**kept.relevant_docs, **{id_: [d] for id_, d in asked.items()}},
        )
        index = MemoryIndex(self.ids, self.vectors, self.metric)
        report = nudge_index(index, self.encoder, train, dev, config or self.config)
        return index.vectors(self.ids), report.folder.state

    def base(self, *ids):
        return self.vectors[[self.ids.index(id_) for id_ in ids]]


@pytest.fixture
def life(toy, tmp_path):
    return Life(toy, tmp_path)


def contents(state):
    """What a state says, whatever the order of its documents and questions."""
    names = state.document_ids
    return {
        "settings": (state.phase, state.variant, state.gamma, state.metric, state.fingerprint),
        "documents": {
            id_: (hash_, base.tobytes())
            for id_, hash_, base in zip(names, state.content_sha256, state.base, strict=True)
        },
        "questions": {
            id_: (query.tobytes(), sorted(names[row] for row in found))
            for id_, query, found in zip(state.query_ids, state.queries, state.answers, strict=True)
        },
    }


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def journal(folder):
    (path,) = folder.glob("observed-*.jsonl")
    return path


def recorded(index, monkeypatch):
    """Record the ids of every call of `index.replace`."""
    calls, replace = [], index.replace
    monkeypatch.setattr(index, "replace", lambda ids, v: (calls.append(list(ids)), replace(ids, v)))
    return calls


# Observing.


@pytest.mark.parametrize(
    ("metric", "config", "lengths"),
    [
        ("cosine", FIXED, False),
        ("cosine", FIXED, True),
        ("dot", NudgeConfig(gamma=0.2, variant="m"), False),
        ("l2", FIXED, False),
    ],
)
@pytest.mark.parametrize("document", ["d3", NEW])
def test_observing_equals_nudging_with_the_question(
    toy, tmp_path, metric, config, lengths, document
):
    """One document moves, to where a nudge from scratch at the same γ puts it; no other does."""
    life = Life(toy, tmp_path, metric, config, lengths=lengths)
    before = life.stored()
    life.observe("dev0", document)
    expected, state = life.fresh({"dev0": document})
    np.testing.assert_allclose(life.stored(), expected, atol=1e-6)
    assert np.abs(life.stored() - before).max() > 1e-3
    rest = [row for row, id_ in enumerate(life.ids) if id_ != document]
    assert life.stored()[rest].tobytes() == before[rest].tobytes()
    assert contents(life.folder.state) == contents(state)


def test_observing_by_hand(toy, tmp_path):
    """γ = .4 turns north, (0, 1), towards a question at (.8, .6) by c = .8, s = .6: (.6, .8)."""
    index, encoder, train, _ = by_hand(toy)
    report = nudge_index(
        index, encoder, train, config=NudgeConfig(gamma=0.4), state_dir=tmp_path / "state"
    )
    question = np.array([0.8, 0.6], dtype=np.float32)
    report.folder.observe(index, question, "north", query_id="asked")
    np.testing.assert_allclose(index.vectors(["north"]), [[0.6, 0.8]], atol=1e-6)
    np.testing.assert_allclose(index.vectors(["east"]), [[0.8, 0.6]], atol=1e-6)
    assert report.undo(index) == 2
    np.testing.assert_array_equal(index.vectors(["east", "north"]), [[1, 0], [0, 1]])


def test_many_observations_equal_one_nudge(life, tmp_path):
    """Several questions of a document, old and new ones, add up; a new object reads them all."""
    asked = {"dev0": NEW, "dev1": "d3", "dev2": NEW, "dev3": "d41", "dev4": "d3"}
    for id_, document in asked.items():
        life.observe(id_, document)
    expected, state = life.fresh(asked)
    np.testing.assert_allclose(life.stored(), expected, atol=1e-6)
    assert contents(StateFolder(tmp_path).state) == contents(state)
    assert contents(StateFiles(tmp_path).read()[0]) == contents(life.folder.state)
    StateFolder(tmp_path).undo(life.index)
    assert life.stored().tobytes() == life.vectors.tobytes()


def test_observations_without_a_folder(toy):
    """In memory the same happens, for as long as the object lives."""
    life = Life(toy, None)
    life.observe("dev0", NEW)
    np.testing.assert_allclose(life.stored(), life.fresh({"dev0": NEW})[0], atol=1e-6)
    assert life.folder.forget(life.index, {"dev0"}.__contains__).questions == 1
    assert life.stored().tobytes() == life.fresh()[0].tobytes()


@pytest.mark.parametrize("anew", [False, True])
def test_observing_writes_one_vector_and_one_line(life, tmp_path, monkeypatch, anew):
    """State and vectors stay as files, the journal grows, the store gets one id per question.

    So it is when every question comes from an object of its own, as in a framework.
    """
    life.observe("dev0", "d3")
    first, line = files(tmp_path), journal(tmp_path).stat().st_size
    calls = recorded(life.index, monkeypatch)
    for number in range(1, 5):
        life.observe(f"dev{number}", "d3", StateFolder(tmp_path) if anew else None)
    assert calls == [["d3"]] * 4
    now = files(tmp_path)
    assert now.keys() == first.keys()
    assert len(journal(tmp_path).read_bytes()) == 5 * line
    for name in first:
        if name != journal(tmp_path).name:
            assert now[name] == first[name]


@pytest.mark.parametrize("document", ["d3", NEW])
@pytest.mark.parametrize("then", ["finish", "observe", "forget", "refresh", "same object"])
def test_an_observation_that_did_not_reach_the_store(life, tmp_path, monkeypatch, document, then):
    """It is in the journal, so the next operation, of this or another object, moves its document.

    The store is written for this document alone.
    """
    with monkeypatch.context() as patch:
        patch.setattr(life.index, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            life.observe("dev0", document)
    calls = recorded(life.index, monkeypatch)
    folder = life.folder if then == "same object" else StateFolder(tmp_path)
    if then == "observe":
        life.observe("dev1", "d5", folder)
    elif then == "forget":
        assert folder.forget(life.index, {"dev1"}.__contains__).questions == 0
    elif then == "refresh":
        assert folder.refresh(life.index) == {"deleted": 0, "changed": 0, "moved": 0}
    else:
        assert folder.finish(life.index)
        assert not folder.finish(life.index)
    assert calls[0] == [document]
    asked = {"dev0": document, **({"dev1": "d5"} if then == "observe" else {})}
    np.testing.assert_allclose(life.stored(), life.fresh(asked)[0], atol=1e-6)


def test_an_unfinished_line_of_the_journal(life, tmp_path):
    """A process died while it wrote a line: the question was not asked, and later ones are."""
    life.observe("dev0", NEW)
    with journal(tmp_path).open("ab") as file:
        file.write(b'{"query_id": "dev1", "document_id": "d5", "query": "AAAA')
    assert StateFolder(tmp_path).state.query_ids[-1] == "dev0"
    life.observe("dev2", "d5", StateFolder(tmp_path))
    assert StateFolder(tmp_path).state.query_ids[-2:] == ["dev0", "dev2"]
    np.testing.assert_allclose(life.stored(), life.fresh({"dev0": NEW, "dev2": "d5"})[0], atol=1e-6)
    whole = journal(tmp_path).read_bytes()
    journal(tmp_path).write_bytes(whole[:-1])  # the second copy of the last record
    assert StateFolder(tmp_path).state.query_ids[-1] == "dev2"
    journal(tmp_path).write_bytes(whole[: len(whole) // 2 + 100])  # the first one, not finished
    assert StateFolder(tmp_path).state.query_ids[-1] == "dev0"


def test_a_journal_of_whole_lines_that_make_no_sense(life, tmp_path):
    """What nobody wrote is a damaged record: it is named, all others count, and undo asks."""
    life.observe("dev0", NEW)
    with journal(tmp_path).open("ab") as file:
        file.write(b'{"query_id": "dev1"}\n')
    with pytest.warns(UserWarning, match=r"records 2 of the journal .* are damaged"):
        folder = StateFolder(tmp_path)
    assert folder.state.query_ids[-1] == "dev0"
    with pytest.raises(ValueError, match=r"records 2 .* cannot be put back"):
        folder.undo(life.index)
    assert folder.undo(life.index, force=True) == len(life.touched) + 1
    assert life.stored().tobytes() == life.vectors.tobytes()


@pytest.mark.parametrize("seed", range(3))
def test_no_flipped_bit_of_the_journal_loses_a_record(life, tmp_path, seed):
    """Each record is there twice, with a checksum and its length: also line ends may be damaged."""
    for number in range(3):
        life.observe(f"dev{number}", NEW)
    whole = journal(tmp_path).read_bytes()
    ends = [place for place, sign in enumerate(whole) if sign == ord("\n")]
    places = [*ends, *np.random.default_rng(seed).integers(0, len(whole), 20).tolist()]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        journal(tmp_path).write_bytes(damaged)
        assert StateFolder(tmp_path).state.query_ids[-3:] == ["dev0", "dev1", "dev2"], place


@pytest.mark.parametrize(
    ("document", "options", "error", "message"),
    [
        ("d3", {"query_id": "train0"}, ValueError, "question 'train0' is in the state already"),
        ("d3", {"query_id": "dev9"}, ValueError, "question 'dev9' is in the state already"),
        ("d3", {"fingerprint": "f" * 64}, ValueError, "by another encoder than the nudge's"),
        ("nowhere", {}, KeyError, "'nowhere'"),
        ("d3", {"query": np.ones(5)}, ValueError, r"of shape \(12,\), got one of shape \(5,\)"),
        ("d3", {"query": np.full(12, np.nan)}, ValueError, "expected a finite question vector"),
        (NEW, {"query": np.ones((1, 12))}, ValueError, r"got one of shape \(1, 12\)"),
    ],
)
def test_what_cannot_be_observed(life, tmp_path, document, options, error, message):
    """The reason is told, and neither store nor folder has changed."""
    life.observe("dev9", "d5")
    stored, before = life.stored(), files(tmp_path)
    options = {"query": life.question("dev0"), "query_id": "dev0", **options}
    with pytest.raises(error, match=message):
        life.folder.observe(life.index, options.pop("query"), document, **options)
    assert life.stored().tobytes() == stored.tobytes()
    assert files(tmp_path) == before


def test_observing_a_moved_document_that_is_gone(life, tmp_path):
    """A document of the state that the store no longer holds is unknown, and nothing is kept."""
    before = files(tmp_path)
    kept = [id_ for id_ in life.ids if id_ != "d3"]
    life.index = MemoryIndex(kept, life.index.vectors(kept))
    assert "d3" in life.folder.state.rows
    with pytest.raises(KeyError, match="'d3'"):
        life.observe("dev0", "d3")
    assert files(tmp_path) == before


@pytest.mark.parametrize(("factor", "length"), [(2, "2.000"), (0, "0.000")])
def test_observing_with_a_vector_off_length_one(life, tmp_path, factor, length):
    """It would weigh more or less than other questions; nothing is written."""
    before, stored = files(tmp_path), life.stored()
    with pytest.raises(ValueError, match=f"question's vector has length {length}"):
        life.folder.observe(life.index, factor * life.question("dev0"), NEW, query_id="dev0")
    assert (files(tmp_path), life.stored().tobytes()) == (before, stored.tobytes())


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_observing_a_document_off_length_one(toy, tmp_path, metric):
    """As for nudging: only the cosine knows how to turn it."""
    life = Life(toy, tmp_path, metric)
    life.index.replace([NEW], 3 * life.base(NEW))
    stored = life.stored()
    with pytest.raises(ValueError, match=f"document '{NEW}' has length 3.000.*by the {metric}"):
        life.observe("dev0", NEW)
    assert life.stored().tobytes() == stored.tobytes()
    assert "dev0" not in StateFolder(tmp_path).state.query_ids


def test_observing_without_a_nudge(life, tmp_path):
    """There is no γ yet, and none after undo."""
    life.folder.undo(life.index)
    with pytest.raises(ValueError, match="nothing is nudged here yet: nudge the index first"):
        life.observe("dev0", "d3")
    assert files(tmp_path) == {}


# Forgetting.


ASKED = {"dev0": NEW, "dev1": "d3", "dev2": "d41", "dev3": "d3"}


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize(
    "which",
    [
        {"dev1"},  # its document has other questions: the vectors' file is as before it was asked
        {"dev0"},
        {"train0"},
        {"train3", "train4", "dev0", "dev3"},
        {f"train{row}" for row in range(1, 40)} | {"dev0", "dev1"},
    ],
    ids=lambda which: f"{len(which)}-{min(which)}",
)
def test_forgetting_leaves_what_never_having_asked_does(life, tmp_path, which, reopened):
    """Store and state are those of a nudge at the same γ that never saw the questions."""
    for id_, document in ASKED.items():
        life.observe(id_, document)
    folder = StateFolder(tmp_path) if reopened else life.folder
    assert folder.forget(life.index, which.__contains__).questions == len(which)
    expected, state = life.fresh(ASKED, without=which)
    np.testing.assert_allclose(life.stored(), expected, atol=1e-6)
    assert contents(folder.state) == contents(state)
    assert contents(StateFolder(tmp_path).state) == contents(state)
    idle = [row for row, id_ in enumerate(life.ids) if id_ not in state.rows]
    assert life.stored()[idle].tobytes() == life.vectors[idle].tobytes()
    for id_ in which:
        assert_gone(tmp_path, id_, life.question(id_))
    assert folder.forget(life.index, which.__contains__).questions == 0


def assert_gone(folder, id_, vector):
    raw = vector.astype("<f4").tobytes()
    marks = (f'"{id_}"'.encode(), raw, base64.b64encode(raw))
    for path in folder.iterdir():
        for mark in marks:
            assert mark not in path.read_bytes(), (path.name, id_)


def test_a_question_leaves_traces_until_it_is_forgotten(life, tmp_path):
    """So that looking for traces finds them where there are any."""
    life.observe("dev0", NEW)
    for id_ in ("dev0", "train0"):
        with pytest.raises(AssertionError, match=id_):
            assert_gone(tmp_path, id_, life.question(id_))


def test_observed_and_forgotten_at_once(life, tmp_path):
    """The folder is, bit for bit, what it was; the journal does not come back with the vectors."""
    before, stored = files(tmp_path), life.stored()
    life.observe("dev0", "d3")
    assert life.folder.forget(life.index, {"dev0"}.__contains__).questions == 1
    after = files(tmp_path)
    assert b"dev0" not in after.pop("forgotten.json")  # a hash under a key
    assert after == before
    np.testing.assert_allclose(life.stored(), stored, atol=1e-6)
    assert "dev0" not in StateFolder(tmp_path).state.query_ids


def test_forgetting_everything(life, tmp_path):
    """All documents are at their base, bit for bit; the nudge's γ stays for the next question."""
    life.observe("dev0", NEW)
    assert life.folder.forget(life.index, lambda _: True).questions == len(life.train.queries) + 1
    assert life.stored().tobytes() == life.vectors.tobytes()
    folder = StateFolder(tmp_path)
    assert (folder.state.document_ids, folder.state.gamma) == ([], 0.1)
    life.observe("dev1", "d3", folder)
    question = RetrievalDataset(
        queries={"dev1": life.dev.queries["dev1"]},
        corpus=life.train.corpus,
        relevant_docs={"dev1": ["d3"]},
    )
    index = MemoryIndex(life.ids, life.vectors)
    nudge_index(index, life.encoder, question, config=FIXED)
    np.testing.assert_allclose(life.stored(), index.vectors(life.ids), atol=1e-6)


@pytest.mark.parametrize("with_dev", [False, True])
def test_gamma_chosen_again_after_forgetting(life, tmp_path, with_dev):
    """The curve, γ, store and state are those of a nudge that chooses γ without the questions."""
    which = {"train1", "train2", "dev1"}
    config = NudgeConfig(keep="always", gammas=(0.02, 0.1, 0.3))
    dev = life.dev.subset(list(life.dev.queries)[5:]) if with_dev else None
    for id_, document in ASKED.items():
        life.observe(id_, document)
    life.folder.forget(life.index, which.__contains__)
    report = choose_gamma_again(life.index, life.encoder, dev, config, state_dir=tmp_path)
    expected, state = life.fresh(ASKED, without=which, dev=dev, config=config)
    assert report.written
    assert report.gamma == state.gamma != 0.1
    np.testing.assert_allclose(life.stored(), expected, atol=1e-6)
    assert contents(StateFolder(tmp_path).state) == contents(state)


def test_choosing_again_needs_a_nudge(life, tmp_path):
    """Without a state there are no questions to choose for."""
    life.folder.undo(life.index)
    with pytest.raises(ValueError, match="nothing is nudged here: nudge the index first"):
        choose_gamma_again(life.index, life.encoder, state_dir=tmp_path)


# Refreshing.


def ingested(life, changes=(), deleted=(), added=()):
    """The index after an ingestion: other vectors, fewer documents, more documents."""
    vectors = dict(zip(life.ids, life.stored(), strict=True)) | dict(changes)
    vectors = {id_: vector for id_, vector in vectors.items() if id_ not in deleted} | dict(added)
    life.index = MemoryIndex(list(vectors), np.stack(list(vectors.values())))
    return life.index


OTHER = np.eye(12, dtype=np.float32)[0]


def test_refreshing_what_is_in_line_changes_nothing(life, tmp_path):
    """Nothing was deleted, changed or ingested again."""
    life.observe("dev0", NEW)
    stored = life.stored()
    assert life.folder.refresh(life.index) == {"deleted": 0, "changed": 0, "moved": 0}
    assert life.stored().tobytes() == stored.tobytes()
    assert contents(life.folder.state) == contents(life.fresh({"dev0": NEW})[1])


def test_refreshing_after_a_deletion(life, tmp_path):
    """The documents, and the questions that they alone answered, are out of the state."""
    life.observe("dev0", NEW)
    index = ingested(life, deleted=["d3", NEW])
    assert life.folder.refresh(index) == {"deleted": 2, "changed": 0, "moved": 0}
    state = StateFolder(tmp_path).state
    assert not {"d3", NEW} & set(state.document_ids)
    assert "dev0" not in state.query_ids
    assert_gone(tmp_path, "dev0", life.question("dev0"))
    assert life.folder.undo(index) == len(life.touched) - 1
    kept = [id_ for id_ in life.ids if id_ not in ("d3", NEW)]
    assert index.vectors(kept).tobytes() == life.base(*kept).tobytes()


@pytest.mark.parametrize("by_text", [False, True])
@pytest.mark.parametrize("observed", [None, "d5", NEW])
def test_refreshing_after_a_change(life, tmp_path, by_text, observed):
    """A new text's vector stays, through undo too; another process finds it so.

    Also where the last question asked was of that very document.
    """
    if observed:
        life.observe("dev0", observed)
    changed = [observed or "d5", "d3"]
    index = ingested(life, dict.fromkeys(changed, OTHER))
    before = life.stored()
    texts = life.train.corpus | dict.fromkeys(changed, "a new text")
    counts = StateFolder(tmp_path).refresh(index, texts if by_text else None)
    assert counts == {"deleted": 0, "changed": 2, "moved": 0}
    assert life.stored().tobytes() == before.tobytes()
    assert not set(changed) & set(StateFolder(tmp_path).state.document_ids)
    StateFolder(tmp_path).undo(index)
    np.testing.assert_array_equal(index.vectors(changed), [OTHER, OTHER])
    rest = [id_ for id_ in life.ids if id_ not in changed]
    assert index.vectors(rest).tobytes() == life.base(*rest).tobytes()


def test_a_changed_text_is_told_by_its_hash_alone(life):
    """A new text whose vector happens to be the old one's is a change all the same."""
    index = ingested(life, {"d3": life.base("d3")[0]})
    texts = {"d3": "a new text", "d5": life.train.corpus["d5"]}
    assert life.folder.refresh(index, texts) == {"deleted": 0, "changed": 1, "moved": 0}
    assert index.vectors(["d3"]).tobytes() == life.base("d3").tobytes()


@pytest.mark.parametrize("by_text", [False, True])
def test_refreshing_what_was_ingested_again(life, by_text):
    """The same text has its base vector again, and is moved again."""
    stored = life.stored()
    again = ["d3", "d5", "d7"]
    index = ingested(life, dict(zip(again, life.base(*again), strict=True)))
    counts = life.folder.refresh(index, life.train.corpus if by_text else None)
    assert counts == {"deleted": 0, "changed": 0, "moved": 3}
    np.testing.assert_allclose(life.stored(), stored, atol=1e-6)


def test_refreshing_leaves_new_documents_where_they_are(life):
    """A document that nobody asked about is none of the nudge's."""
    index = ingested(life, added={"d99": OTHER})
    assert life.folder.refresh(index, life.train.corpus | {"d99": "new"})["moved"] == 0
    np.testing.assert_array_equal(index.vectors(["d99"]), [OTHER])
    assert "d99" not in life.folder.state.rows


def test_refreshing_without_a_nudge(tmp_path, life):
    """There is nothing to bring in line."""
    counts = StateFolder(tmp_path / "none").refresh(life.index)
    assert counts == {"deleted": 0, "changed": 0, "moved": 0}


# The guard.


def judged(toy, helped):
    """East turns from (1, 0) to (.8, .6) at γ = .4, and passes north for questions near (.5, .9).

    ⟨(.5, .9), east⟩ is .5 < .9 = ⟨(.5, .9), north⟩ before and .4 + .54 = .94 > .9 after. `helped`
    such questions want east, one wants north.
    """
    index, _, train, _ = by_hand(toy)
    table = {"up right": (0.6, 0.8), **{f"wants {row}": (0.5, 0.9) for row in range(helped + 1)}}
    queries = {f"w{row}": f"wants {row}" for row in range(helped + 1)}
    relevant = {id_: ["east"] for id_ in queries} | {"w0": ["north"]}
    dev = RetrievalDataset(queries=queries, corpus=train.corpus, relevant_docs=relevant)
    return index, toy(table), train, dev


def config(**options):
    return NudgeConfig(metric="recall@1", gammas=(0.0, 0.4), **options)


def fixed(**options):
    return NudgeConfig(gamma=0.4, **options)


def test_a_nudge_that_does_not_help_is_not_written(toy, tmp_path):
    """Two questions gain and one loses, so γ = .4 is best; but judged by the others' choice:

    the loser is judged at their γ = .4 and loses 1; of each winner the others are at odds, choose
    the smaller γ = 0, and nothing changes. The gain is (−1 + 0 + 0)/3.
    """
    index, encoder, train, dev = judged(toy, helped=2)
    before = index.vectors(["east", "north", "west"])
    report = nudge_index(index, encoder, train, dev, config(), state_dir=tmp_path)
    assert report.curve == pytest.approx({0.0: 1 / 3, 0.4: 2 / 3})
    assert (report.gamma, report.written, report.moved) == (0.4, False, 0)
    assert report.gain == pytest.approx(-1 / 3)
    low, high = report.interval
    assert -1 <= low <= report.gain <= high <= 0
    assert index.vectors(["east", "north", "west"]).tobytes() == before.tobytes()
    assert (report.folder.state, list(files(tmp_path))) == (None, ["nudge.json"])  # for the report


def test_a_grid_without_zero_is_judged_against_the_unmoved_index(toy, tmp_path):
    """With γ = .4 alone to choose, two questions gain 1 and one loses 1: the gain is 1/3."""
    index, encoder, train, dev = judged(toy, helped=2)
    only = NudgeConfig(metric="recall@1", gammas=(0.4,))
    report = nudge_index(index, encoder, train, dev, only, state_dir=tmp_path)
    assert set(report.curve) == {0.4}
    assert report.gain == pytest.approx(1 / 3)
    assert report.written


def test_a_report_in_one_line(toy):
    """What was done, at which γ, and what it gained; a refusal and a dry run say that they are."""
    index, encoder, train, dev = judged(toy, helped=2)
    for settings, line in (
        (config(), r"none of 1 documents moved, .* \(dev\); recall@1 -0\.333 \(-1.000 to"),
        (fixed(dry_run=True), "dry run: 1 of 1 documents to move, "),
        (fixed(), r"1 of 1 documents moved, 1 questions, γ = 0\.4 \(fixed\)$"),
    ):
        assert re.match(line, str(nudge_index(index, encoder, train, dev, settings)))


def test_a_nudge_that_does_not_help_is_written_when_told_to(toy, tmp_path):
    """keep="always" reports the same and writes."""
    index, encoder, train, dev = judged(toy, helped=2)
    report = nudge_index(index, encoder, train, dev, config(keep="always"), state_dir=tmp_path)
    assert (report.written, report.moved) == (True, 1)
    assert report.gain == pytest.approx(-1 / 3)
    np.testing.assert_allclose(index.vectors(["east"]), [[0.8, 0.6]], atol=1e-6)
    assert report.undo(index) == 1


def test_a_nudge_that_does_not_help_leaves_an_earlier_one(toy, tmp_path):
    """Nudging again with other judges is judged first: what was there stays, and can be undone."""
    index, encoder, train, dev = judged(toy, helped=2)
    fixed = nudge_index(index, encoder, train, config=NudgeConfig(gamma=0.4), state_dir=tmp_path)
    assert fixed.written
    assert (fixed.gain, fixed.interval) == (None, None)
    before = files(tmp_path)
    assert not nudge_index(index, encoder, train, dev, config(), state_dir=tmp_path).written
    np.testing.assert_allclose(index.vectors(["east"]), [[0.8, 0.6]], atol=1e-6)
    assert files(tmp_path) == before
    assert StateFolder(tmp_path).undo(index) == 1
    np.testing.assert_array_equal(index.vectors(["east"]), [[1, 0]])


def test_confidence_asks_for_more(toy, tmp_path):
    """Three winners and a loser: each is judged at γ = .4, and the gain is (1 + 1 + 1 − 1)/4.

    A resample of four holds two losers or more, so gains nothing, with probability .26: the 90 %
    interval reaches 0, and only without `confidence` is the nudge written. Thirty winners suffice.
    """
    index, encoder, train, dev = judged(toy, helped=3)
    report = nudge_index(index, encoder, train, dev, config(confidence=0.9))
    assert report.gain == pytest.approx(0.5)
    assert report.interval[0] <= 0 < report.interval[1]
    assert not report.written
    np.testing.assert_array_equal(index.vectors(["east"]), [[1, 0]])
    assert nudge_index(index, encoder, train, dev, config()).written
    index, encoder, train, dev = judged(toy, helped=30)
    report = nudge_index(index, encoder, train, dev, config(confidence=0.9))
    assert report.gain == pytest.approx(29 / 31)
    assert report.interval[0] > 0
    assert report.written


def test_a_dry_run_writes_nothing(toy, tmp_path):
    """The report is that of the nudge; index and folder are as they were."""
    world, whole = World(toy), World(toy)
    dry = NudgeConfig(keep="always", dry_run=True)
    report = world.nudge(dry, state_dir=tmp_path)
    expected = whole.nudge(NudgeConfig(keep="always"))
    assert (report.curve, report.gamma, report.moved) == (
        expected.curve,
        expected.gamma,
        expected.moved,
    )
    assert (report.gain, report.interval) == (expected.gain, expected.interval)
    np.testing.assert_array_equal(report.distances, expected.distances)
    assert not report.written
    assert world.stored().tobytes() == world.vectors.tobytes()
    assert (report.folder.state, files(tmp_path)) == (None, {})


def test_a_dry_run_beside_a_nudge_starts_from_base(life, tmp_path):
    """The present nudge stays, in store and folder, and has no part in the figures."""
    stored, before = life.stored(), files(tmp_path)
    report = life.nudge(NudgeConfig(gamma=0.3, dry_run=True), state_dir=tmp_path)
    assert not report.written
    assert report.distances.max() <= 0.3**0.5 + 1e-6
    base = life.base(*life.touched)
    moves = np.linalg.norm(life.moves().at(0.3) - base, axis=1)
    np.testing.assert_allclose(report.distances, moves, atol=1e-6)
    curve = life.nudge(NudgeConfig(dry_run=True), state_dir=tmp_path).curve
    assert life.stored().tobytes() == stored.tobytes()
    assert files(tmp_path) == before
    life.folder.undo(life.index)
    assert life.nudge(NudgeConfig(dry_run=True)).curve == curve


# Locks.


HOLD = """
import sys, time
from nexus_integrations.nudge import StateFolder
with StateFolder(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(3600)
"""


def test_a_second_process_is_refused(life, tmp_path, package_environment):
    """While another process holds the folder nothing happens; the system frees it by killing it."""
    before, stored = files(tmp_path), life.stored()
    life.folder.wait = 0.01
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=package_environment
    ) as other:
        assert other.stdout.readline() == "held\n"
        for operation in (
            lambda: life.observe("dev0", NEW),
            lambda: life.folder.forget(life.index, lambda _: True),
            lambda: life.folder.refresh(life.index),
            lambda: life.folder.undo(life.index),
            lambda: life.nudge(FIXED, state_dir=StateFolder(tmp_path, wait=0.01)),
        ):
            with pytest.raises(RuntimeError, match=r"another process or thread .*: wait until"):
                operation()
        assert files(tmp_path) == before
        assert life.stored().tobytes() == stored.tobytes()
        other.send_signal(signal.SIGKILL)
    life.observe("dev0", NEW)
    np.testing.assert_allclose(life.stored(), life.fresh({"dev0": NEW})[0], atol=1e-6)


def test_two_objects_of_one_folder(life, tmp_path):
    """Each sees what the other wrote; while one is at work the other waits, and is refused."""
    other = StateFolder(tmp_path, wait=0.01)
    life.observe("dev0", NEW)
    life.observe("dev1", "d5", other)
    life.observe("dev2", "d5")
    assert contents(life.folder.state) == contents(
        life.fresh({"dev0": NEW, "dev1": "d5", "dev2": "d5"})[1]
    )
    with (
        life.folder.locked(),
        pytest.raises(RuntimeError, match=r"another process or thread .* for 0\.01 seconds"),
        other.locked(),
    ):
        pytest.fail("two at once")
    assert other.undo(life.index) == len(life.touched) + 1
    assert life.folder.undo(life.index) == 0
    assert life.stored().tobytes() == life.vectors.tobytes()


def test_opening_while_another_writes(life, tmp_path, monkeypatch):
    """Files that vanish between two reads, since a new state came, are no damage."""
    read, other = StateFiles.read, life.folder

    def interrupted(self: StateFiles):
        monkeypatch.setattr(StateFiles, "read", read)
        other.forget(life.index, {"train0"}.__contains__)
        raise ValueError("the nudge state is damaged: its vectors are gone")

    monkeypatch.setattr(StateFiles, "read", interrupted)
    folder = StateFolder(tmp_path)
    assert "train0" not in folder.state.query_ids
    assert contents(folder.state) == contents(other.state)


def test_a_state_that_changes_while_it_is_read_is_read_again(life, tmp_path, monkeypatch):
    """What was read without the lock is not trusted once the files are other ones."""
    read, other = StateFiles.read, life.folder

    def overtaken(self: StateFiles):
        monkeypatch.setattr(StateFiles, "read", read)
        found = read(self)
        other.forget(life.index, {"train0"}.__contains__)
        return found

    monkeypatch.setattr(StateFiles, "read", overtaken)
    folder = StateFolder(tmp_path)
    with folder.locked():
        assert "train0" not in folder.state.query_ids


def test_threads_take_turns_in_memory(toy, monkeypatch):
    """A question asked while another is being noted is not lost, nor what undoes it."""
    life = Life(toy, None)
    vectors, reading, go_on = life.index.vectors, Event(), Event()

    def slow(ids):
        reading.set()
        assert go_on.wait(30)
        return vectors(ids)

    monkeypatch.setattr(life.index, "vectors", slow)
    first = Thread(target=life.observe, args=("dev0", NEW))
    first.start()
    assert reading.wait(30)
    monkeypatch.setattr(life.index, "vectors", vectors)
    second = Thread(target=life.observe, args=("dev1", "d45"))
    second.start()
    second.join(0.2)
    go_on.set()
    first.join()
    second.join()
    assert {"dev0", "dev1"} <= set(life.folder.state.query_ids)
    assert life.folder.undo(life.index) == len(life.touched) + 2
    assert life.stored().tobytes() == life.vectors.tobytes()


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_copied_folder_has_a_lock_of_its_own(toy, tmp_path, on_disk):
    """A report, which holds its folder, can be sent to another process, also after use."""
    life = Life(toy, tmp_path if on_disk else None)
    copied = pickle.loads(pickle.dumps(life.folder))
    assert contents(copied.state) == contents(life.folder.state)
    copied.observe(life.index, life.question("dev0"), NEW, query_id="dev0")
    assert copied.undo(life.index) == len(life.touched) + 1
    assert life.stored().tobytes() == life.vectors.tobytes()


# Failures in between.


class HalfWay(MemoryIndex):
    """Writes half of what it is given and loses the connection, where `broken`."""

    broken = False

    def replace(self, ids, vectors):
        half = len(ids) // 2 if self.broken else len(ids)
        super().replace(ids[:half], vectors[:half])
        if self.broken:
            raise ConnectionError("the store went away")


OPERATIONS: dict[str, Callable[[Life], object]] = {
    "nudge": lambda life: life.nudge(NudgeConfig(gamma=0.3), state_dir=life.folder),
    "observe": lambda life: life.observe("dev1", "d5"),
    "observe new": lambda life: life.observe("dev1", "d45"),
    "forget": lambda life: life.folder.forget(life.index, {"train0", "dev0"}.__contains__),
    "refresh": lambda life: life.folder.refresh(life.index, {"d3": "a new text"}),
    "undo": lambda life: life.folder.undo(life.index),
}


def lived(toy, folder):
    """A life with one observed question, so that there is a journal, and re-ingested documents."""
    life = Life(toy, folder)
    life.observe("dev0", NEW)
    life.index = HalfWay(life.ids, life.stored())
    return life


def before_and_after(toy, folder, operation):
    life = lived(toy, folder)
    before = life.stored()
    if operation == "refresh":
        life.index.replace(["d3", "d7"], np.stack([OTHER, life.base("d7")[0]]))
    OPERATIONS[operation](life)
    return before, life.stored()


def prepared(toy, folder, operation):
    life = lived(toy, folder)
    if operation == "refresh":
        life.index.replace(["d3", "d7"], np.stack([OTHER, life.base("d7")[0]]))
    return life


def assert_is_one_of(stored, expected):
    assert any(np.allclose(stored, vectors, atol=1e-6, rtol=0) for vectors in expected)


def assert_undone(life, folder, operation):
    folder.undo(life.index)
    expected = life.vectors.copy()
    if operation == "refresh":
        expected[3] = OTHER
    assert life.stored().tobytes() == expected.tobytes()


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_store_that_fails_half_way(toy, tmp_path, operation, reopened):
    """The error comes through; the next operation finishes, and undo is exact before or after."""
    _, after = before_and_after(toy, tmp_path / "whole", operation)
    for finish in (True, False):
        folder = tmp_path / str(finish)
        life = prepared(toy, folder, operation)
        life.index.broken = True
        with pytest.raises(ConnectionError, match="the store went away"):
            OPERATIONS[operation](life)
        life.index.broken = False
        now = StateFolder(folder) if reopened else life.folder
        if finish:
            assert now.finish(life.index)
            np.testing.assert_allclose(life.stored(), after, atol=1e-6)
            assert not now.finish(life.index)
        assert_undone(life, now, operation)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk(toy, tmp_path, monkeypatch, operation, call):
    """Wherever the disk is full the error comes through, and what follows is whole.

    The n-th call of `os.fsync`, or of `os.replace`, fails, for every n until none is left.
    """
    before, after = before_and_after(toy, tmp_path / "whole", operation)
    real, failures = getattr(os, call), 0
    for number in range(20):
        folder = tmp_path / f"{number}"
        life = prepared(toy, folder, operation)
        present = life.stored()
        left = [number]

        def failing(*args, left=left):
            left[0] -= 1
            if left[0] == -1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                OPERATIONS[operation](life)
            except OSError as error:
                failures += error.errno == errno.ENOSPC
            else:
                break
        if operation.startswith("observe"):
            assert life.stored().tobytes() == before.tobytes()
            assert "dev1" not in StateFolder(folder).state.query_ids
        now = life.folder if number % 2 else StateFolder(folder)
        now.finish(life.index)
        assert_is_one_of(life.stored(), [before, present, after, life.vectors])
        assert not list(folder.glob(".state*")) + list(folder.glob(".vectors*"))
        assert len(list(folder.glob("vectors-*"))) <= 1
        if operation == "refresh":  # what it had not come to is done now
            OPERATIONS[operation](life)
        assert_undone(life, StateFolder(folder), operation)
    assert failures == number
    assert failures > 0 or (call == "replace" and operation.startswith("observe"))


def test_a_question_that_did_not_fit_on_the_disk_can_be_asked_again(life, tmp_path, monkeypatch):
    """The line that was not synced is taken back, so its id is still free."""
    life.observe("dev0", NEW)
    before = files(tmp_path)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            life.observe("dev1", "d5")
    assert files(tmp_path) == before
    life.observe("dev1", "d5")
    np.testing.assert_allclose(life.stored(), life.fresh({"dev0": NEW, "dev1": "d5"})[0], atol=1e-6)


def test_an_undo_that_was_stopped_goes_on(toy, tmp_path):
    """Found on opening, phase "undoing" is undone to the end before anything else happens."""
    life = prepared(toy, tmp_path, "undo")
    life.index.broken = True
    with pytest.raises(ConnectionError, match="the store went away"):
        life.folder.undo(life.index)
    life.index.broken = False
    assert life.stored().tobytes() != life.vectors.tobytes()
    folder = StateFolder(tmp_path)
    assert folder.state.phase == "undoing"
    with pytest.raises(ValueError, match="nothing is nudged here yet"):
        life.observe("dev1", "d5", folder)
    assert life.stored().tobytes() == life.vectors.tobytes()
    assert files(tmp_path) == {}


# The postprocessor of every framework.


class Toy(Postprocessor[MemoryIndex]):
    """The source is the index."""

    model: Any = None

    @property
    def encoder(self):
        return self.model

    def open_index(self, source):
        return source


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_postprocessor_does_it_all(toy, tmp_path, on_disk):
    """Apply, observe, forget, refresh, choose again, undo: by texts and ids."""
    world = World(toy)
    post = Toy(
        world.train, world.dev, FIXED, tmp_path if on_disk else None, None, model=world.encoder
    )
    index = world.index
    assert post.apply(index).moved > 0
    nudged = world.stored()
    text = world.dev.queries["dev0"]
    id_ = post.observe(index, text, NEW)
    assert id_.startswith("observed-")
    assert post.observe(index, text, NEW, query_id="mine") == "mine"
    with pytest.raises(ValueError, match="question 'mine' is in the state already"):
        post.observe(index, text, NEW, query_id="mine")
    assert world.stored().tobytes() != nudged.tobytes()
    assert post.refresh(index, world.train.corpus) == {"deleted": 0, "changed": 0, "moved": 0}
    changed = world.train.corpus | {NEW: "a new text"}  # the hash of its old one is in the state
    assert post.forget(index, id_).questions == 1
    assert post.forget(index, [id_, "mine"]).questions == 1
    assert world.stored().tobytes() == nudged.tobytes()
    other = post.observe(index, text, NEW, content="given")
    assert post.refresh(index, changed | {NEW: "given"})["changed"] == 0
    assert post.forget(index, lambda id_: id_ == other).questions == 1
    report = post.choose_gamma_again(index)
    assert (report.gamma, report.chosen_by, report.written) == (0.1, "fixed", True)
    assert post.undo(index) == len(world.touched)
    assert world.stored().tobytes() == world.vectors.tobytes()


def test_a_postprocessor_in_memory_knows_its_store(toy):
    """A second store is refused by all that would lose what undoes the first, and is unchanged.

    Afterwards the first is undone bit for bit; then the postprocessor is free for the second.
    """
    world = World(toy)
    post = Toy(world.train, world.dev, FIXED, None, None, model=world.encoder)
    other = MemoryIndex(world.ids, world.vectors)
    post.apply(world.index)
    again = MemoryIndex(world.ids, world.stored())  # the same store, opened anew
    post.observe(again, world.dev.queries["dev0"], NEW, query_id="mine")
    for refused in (
        post.apply,
        post.undo,
        post.choose_gamma_again,
        lambda index: post.forget(index, "mine"),
        lambda index: post.observe(index, world.dev.queries["dev1"], "d3"),
    ):
        with pytest.raises(ValueError, match="none of the vectors that it moved is in the store"):
            refused(other)
    assert other.vectors(world.ids).tobytes() == world.vectors.tobytes()
    assert post.undo(again) == len(world.touched) + 1
    assert again.vectors(world.ids).tobytes() == world.vectors.tobytes()
    assert post.apply(other).moved > 0


# Failures of a real disk and a real server.


@contextmanager
def files_limited_to(size):
    """Let no file grow beyond `size` bytes: a write that would raises, as on a full disk."""
    resource = pytest.importorskip("resource", reason="limits of file sizes are POSIX's")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("limit", [100, 5_000], ids=["state", "store"])
@pytest.mark.parametrize("operation", ["nudge", "observe new", "forget", "undo"])
def test_a_disk_that_takes_no_more(toy, tmp_path, operation, limit):
    """The state does not fit, or it does and the store's file does not: an error, nothing lost.

    What is left is opened anew, as after the disk was cleared.
    """
    before, after = before_and_after(toy, tmp_path / "whole", operation)
    life = lived(toy, tmp_path / "state")
    life.index.save(tmp_path / "index.parquet")
    life.index = FileIndex(tmp_path / "index.parquet")
    with files_limited_to(limit), pytest.raises(OSError, match="File too large"):
        OPERATIONS[operation](life)
    index, folder = FileIndex(tmp_path / "index.parquet"), StateFolder(tmp_path / "state")
    assert_is_one_of(index.vectors(life.ids), [before])  # one file, all or nothing
    assert folder.finish(index) is (limit == 5_000)
    assert_is_one_of(index.vectors(life.ids), [before if limit == 100 else after, life.vectors])
    folder.undo(index)
    assert FileIndex(index.path).vectors(life.ids).tobytes() == life.vectors.tobytes()


@pytest.mark.parametrize("operation", ["nudge", "observe new", "forget", "undo"])
def test_a_database_connection_lost_in_mid_write(toy, tmp_path, request, operation):
    """The server ends the connection while an UPDATE waits for a row that another one locks.

    The error comes through; a new connection finds every row at its base or a target, and finishes
    or undoes exactly.
    """
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
    from nexus_integrations.index.postgres import PostgresIndex

    uri = request.getfixturevalue("postgres_uri")
    _, after = before_and_after(toy, tmp_path / "whole", operation)
    life = lived(toy, tmp_path / "state")
    before, (row,) = life.stored(), life.index.vectors(["d0"])
    with psycopg.connect(uri, autocommit=True) as other:
        other.execute(f"CREATE TABLE lost (id text PRIMARY KEY, v vector({len(row)}))")
        try:
            other.execute(
                "INSERT INTO lost SELECT * FROM unnest(%s::text[], %s::text[]::vector[])",
                (life.ids, [str(vector) for vector in before.tolist()]),
            )
            life.index = PostgresIndex(uri, "lost", "id", "v", metric="cosine")
            lost = life.index.connection.info.backend_pid
            written = recorded(life.index, pytest.MonkeyPatch())
            with other.transaction():
                other.execute("SELECT 1 FROM lost FOR UPDATE")

                def end_it():
                    with psycopg.connect(uri, autocommit=True) as third:
                        waits = (
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                            "WHERE pid = %s AND wait_event_type = 'Lock'"
                        )
                        for _ in range(60_000):
                            if third.execute(waits, (lost,)).fetchall():
                                return
                            sleep(0.01)

                thread = Thread(target=end_it)
                thread.start()
                with pytest.raises(psycopg.OperationalError, match="terminating connection"):
                    OPERATIONS[operation](life)
                thread.join()
            assert written
            life.index = PostgresIndex(uri, "lost", "id", "v", metric="cosine")
            np.testing.assert_allclose(life.stored(), before, atol=1e-6)  # all rows or none
            folder = StateFolder(tmp_path / "state")
            assert folder.finish(life.index)
            np.testing.assert_allclose(life.stored(), after, atol=1e-6)
            assert_undone(life, folder, operation)
            life.index.connection.close()
        finally:
            other.execute("DROP TABLE lost")
