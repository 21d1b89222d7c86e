"""`tune`: every stage judged on questions that did not choose it, kept where it helps, undone."""

import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tantivy")

from conftest import TableBackbone, ToyEncoder

from nexus_integrations import FinetuneConfig, LexicalIndex, RetrievalDataset, TuneConfig, tune
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.retrievers import DenseRetriever, HybridRetriever
from nexus_integrations.tuning import TuneResult, judge
from nexus_integrations.tuning.overlay import Overlay

DOCUMENTS, EACH, DIMENSION = 40, 6, 12
QUICK = FinetuneConfig(dendrites=0, epochs=30, learning_rate=1e-2, gamma=0.0, anchor=0.0)
HEADS = TuneConfig(heads=QUICK)
CONFIG = TuneConfig(heads=None)  # which takes a tenth of the time


class Case:
    """Passages, and questions whose vectors are the passages', turned and blurred.

    `words` says what a question has in common with its passage: "alias" is a word that only the
    passage's questions share, which every second one has; "own" is the passage's, "noise" one that
    no other text has.
    """

    def __init__(self, words: str, blur: float = 0.4) -> None:
        draw = np.random.default_rng(0)
        documents = draw.normal(size=(DOCUMENTS, DIMENSION))
        turn = np.linalg.qr(draw.normal(size=(DIMENSION, DIMENSION)))[0]
        turned = documents @ (np.eye(DIMENSION) + turn)
        self.corpus = {f"d{n}": f"topic{n} lies here" for n in range(DOCUMENTS)}
        table = dict(zip(self.corpus.values(), documents, strict=True))
        queries, relevant = {}, {}
        for number in range(DOCUMENTS * EACH):
            row = number % DOCUMENTS
            alias = f"alias{row}" if number // DOCUMENTS % 2 else f"noise{number}"
            word = {"alias": alias, "own": f"topic{row}", "noise": f"noise{number}"}[words]
            queries[f"q{number}"] = f"question {number} {word}"
            relevant[f"q{number}"] = [f"d{row}"]
            table[queries[f"q{number}"]] = turned[row] + blur * draw.normal(size=DIMENSION) * 2
        units = {t: (v / np.linalg.norm(v)).astype(np.float32) for t, v in table.items()}
        self.encoder = DendriticEncoder(TableBackbone(units))
        self.vectors = np.stack([units[text] for text in self.corpus.values()])
        self.index = MemoryIndex(list(self.corpus), self.vectors)
        data = RetrievalDataset(queries=queries, corpus=self.corpus, relevant_docs=relevant)
        self.train, self.dev, self.test = data.split(0.7, 0.1, 0.2)

    def stored(self):
        return self.index.vectors(list(self.corpus))


def stage(result: TuneResult, name: str):
    (found,) = [stage for stage in result.stages if stage.name == name]
    return found


@pytest.fixture(scope="module")
def tuned():
    """The case in which every stage helps, tuned in memory."""
    case = Case("alias")
    return case, tune(case.index, case.encoder, case.train, case.dev, HEADS, test=case.test)


def test_what_helps_is_kept(tuned):
    """Heads undo the turn, words find the alias: both are kept, and the test set shows it."""
    case, result = tuned
    assert [found.name for found in result.stages] == ["heads", "nudge", "questions", "weight"]
    assert stage(result, "heads").kept
    assert stage(result, "questions").kept
    assert result.weight > 0
    before, after = (result.evaluations[when].metrics["ndcg@10"] for when in ("before", "after"))
    assert after > before + 0.1
    assert isinstance(result.retriever, HybridRetriever)
    assert result.lexical is not None
    assert result.lexical.learned == case.train.queries.keys() | case.dev.queries.keys()
    assert result.record.judged == len(case.train) + len(case.dev)


def test_the_table_names_every_stage_with_its_interval(tuned):
    """A line each: name, before, after, gain, interval, kept or left out."""
    _, result = tuned
    lines = str(result).splitlines()
    assert lines[0] == "ndcg@10 of 192 questions (3 folds by query), before and after"
    for line, found in zip(lines[1:], result.stages, strict=False):
        assert line.startswith(found.name)
        assert f"{found.gain:+.4f} ({found.interval[0]:+.4f} to" in line
    assert lines[-1].startswith("test, after: ")


def test_a_question_is_not_judged_with_its_own_words():
    """Every question has a word of its own: were it learned, every question would find its passage.

    The words of others are of no use, so that learning is left out, and words altogether.
    """
    case = Case("noise")
    result = tune(case.index, case.encoder, case.train, None, CONFIG)
    assert not stage(result, "questions").kept
    assert stage(result, "questions").gain <= 0
    assert result.weight == 0
    assert stage(result, "weight").setting == "vectors alone"
    assert result.lexical is not None
    assert result.lexical.learned == set()


def test_words_that_answer_alone(monkeypatch):
    """A question has its passage's word and a vector of nothing: words weigh more than vectors."""
    case = Case("own", blur=50.0)
    result = tune(case.index, case.encoder, case.train, case.dev, CONFIG, test=case.test)
    assert result.weight >= 1
    assert result.evaluations["after"].metrics["ndcg@10"] > 0.95


def test_undo_leaves_nothing(tuned):
    """Vectors and words are those from before; a second undo finds nothing."""
    case = Case("alias")
    result = tune(case.index, case.encoder, case.train, case.dev, CONFIG)
    assert stage(result, "nudge").kept == (not np.array_equal(case.stored(), case.vectors))
    done = result.undo()
    assert done["questions"] == len(case.train) + len(case.dev)
    assert case.stored() == pytest.approx(case.vectors, abs=1e-7)
    assert result.lexical is not None
    assert result.lexical.learned == set()
    assert result.undo() == {"vectors": 0, "questions": 0}


@pytest.mark.parametrize("in_place", [True, False])
def test_a_result_saves_itself_and_loads_again(tmp_path, in_place, monkeypatch):
    """The same hits with the same scores, from what lies in one private folder; undo works."""
    case = Case("alias")
    state = tmp_path / "saved" if in_place else None
    result = tune(case.index, case.encoder, case.train, case.dev, CONFIG, state_dir=state)
    monkeypatch.setattr(DendriticEncoder, "save", lambda self, folder: None)
    monkeypatch.setattr(DendriticEncoder, "load", lambda folder: case.encoder)
    result.save(tmp_path / "saved")
    assert (tmp_path / "saved").stat().st_mode & 0o777 == 0o700
    loaded = TuneResult.load(tmp_path / "saved", case.index)
    texts = list(case.test.queries.values())
    for ours, theirs in zip(
        result.retriever.search(texts, 5), loaded.retriever.search(texts, 5), strict=True
    ):
        assert np.array_equal(ours, theirs)
    assert loaded.record == result.record
    loaded.undo()
    assert case.stored() == pytest.approx(case.vectors, abs=1e-7)


def test_a_folder_of_another_tuning_is_refused(tmp_path, monkeypatch):
    """Nothing there, another encoder, other words."""
    with pytest.raises(FileNotFoundError, match=r"holds no tune\.json"):
        TuneResult.load(tmp_path, Case("own").index)
    case = Case("alias")
    result = tune(case.index, case.encoder, case.train, None, CONFIG, state_dir=tmp_path / "a")
    monkeypatch.setattr(DendriticEncoder, "save", lambda self, folder: None)
    monkeypatch.setattr(DendriticEncoder, "load", lambda folder: case.encoder)
    result.save(tmp_path / "a")
    good = (tmp_path / "a" / "tune.json").read_text()
    for old, match in (
        (result.record.corpus, "are another's than those tuned with"),
        (result.record.encoder, "is another than the one that was tuned"),
    ):
        (tmp_path / "a" / "tune.json").write_text(good.replace(old, "0"))
        with pytest.raises(ValueError, match=match):
            TuneResult.load(tmp_path / "a", case.index)


def test_it_goes_on_after_a_kill(tmp_path, monkeypatch):
    """Killed when the index is nudged and the words are not learned: heads are found again."""
    case = Case("alias")
    whole = tune(case.index, case.encoder, case.train, case.dev, HEADS, test=case.test)
    whole.undo()

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(HybridRetriever, "coverage", killed)  # the last step but one
        with pytest.raises(Killed):
            tune(case.index, case.encoder, case.train, case.dev, HEADS, state_dir=tmp_path)
    monkeypatch.setattr(judge, "finetune", killed)  # nothing is trained again
    again = tune(
        case.index, case.encoder, case.train, case.dev, HEADS, state_dir=tmp_path, test=case.test
    )
    assert again.stages == whole.stages
    assert again.weight == whole.weight
    assert again.evaluations["before"].metrics == whole.evaluations["before"].metrics
    assert again.evaluations["after"].metrics == whole.evaluations["after"].metrics


def test_nothing_is_written_before_all_is_judged(monkeypatch):
    """An error while judging leaves index and words as they were."""
    case = Case("alias")
    words = LexicalIndex()
    words.fill(case.corpus)
    monkeypatch.setattr(judge, "mean_interval", None)
    with pytest.raises(TypeError):
        tune(case.index, case.encoder, case.train, None, CONFIG, lexical=words)
    assert np.array_equal(case.stored(), case.vectors)
    assert words.learned == set()


def test_questions_that_the_words_knew_before_stay():
    """What a user's index observed itself is neither judged with nor undone."""
    case = Case("alias")
    words = LexicalIndex()
    words.fill(case.corpus)
    words.observe("mine", "an old question", ["d0"])
    result = tune(case.index, case.encoder, case.train, None, CONFIG, lexical=words)
    assert words.learned == {"mine", *case.train.queries}
    result.undo()
    assert words.learned == {"mine"}


def test_enough_dev_questions_judge_alone():
    """With `enough` at their number no folds are made."""
    case = Case("alias")
    config = replace(CONFIG, enough=len(case.dev))
    result = tune(case.index, case.encoder, case.train, case.dev, config)
    assert (result.record.judged_by, result.record.judged) == ("dev", len(case.dev))


def test_any_encoder_but_no_heads():
    """An encoder that is not ours has no heads to train; the other stages are tried."""
    case = Case("alias")
    known = case.encoder.backbone.table
    result = tune(case.index, ToyEncoder(known), case.train, None, CONFIG)
    assert [found.name for found in result.stages] == ["nudge", "questions", "weight"]
    with pytest.raises(TypeError, match="ToyEncoder cannot be saved"):
        result.save("anywhere")


def test_stages_that_are_not_wanted():
    """Without words there is no weight; each stage can be left out."""
    case = Case("alias")
    config = TuneConfig(heads=None, nudge=True, words=False, questions=False)
    result = tune(case.index, case.encoder, case.train, None, config)
    assert [found.name for found in result.stages] == ["nudge"]
    assert (result.lexical, result.weight) == (None, 0)
    assert isinstance(result.retriever, DenseRetriever)
    config = TuneConfig(heads=None, nudge=False, questions=False)
    result = tune(case.index, case.encoder, case.train, None, config)
    assert [found.name for found in result.stages] == ["weight"]


def test_folds_by_document_judge_passages_that_nobody_asked_about():
    """No passage of a judging question was asked about: learned words are of no use there."""
    case = Case("alias")
    result = tune(case.index, case.encoder, case.train, None, replace(CONFIG, split_by="document"))
    assert not stage(result, "questions").kept
    assert result.record.judged_by == "3 folds by document"


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    """Too few questions, words of others, words without a relevant passage, two languages."""
    case = Case("alias")
    few = case.train.subset(list(case.train.queries)[:9])
    with pytest.raises(ValueError, match="9 questions are too few"):
        tune(case.index, case.encoder, few, None, CONFIG)
    other = LexicalIndex()
    other.add(["x"], ["y"])
    with pytest.raises(ValueError, match="words of another corpus"):
        tune(case.index, case.encoder, case.train, None, CONFIG, lexical=other)
    part = LexicalIndex()
    part.add(["d0"], [case.corpus["d0"]])
    with pytest.raises(ValueError, match=r"is not in the lexical index \(39 such passages\)"):
        tune(case.index, case.encoder, case.train, None, CONFIG, lexical=part)
    spanish = replace(CONFIG, language="spanish")
    with pytest.raises(ValueError, match="were indexed as english, not spanish"):
        tune(case.index, case.encoder, case.train, None, spanish, lexical=part)
    without = TuneConfig(heads=None, words=False, questions=False)
    with pytest.raises(ValueError, match="give no lexical index with it"):
        tune(case.index, case.encoder, case.train, None, without, lexical=part)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"heads": FinetuneConfig(dendrites=0, heads="shared")}, "heads need heads='query'"),
        ({"words": False}, "questions=True needs words=True"),
        ({"weights": ()}, "weights is empty"),
        ({"weights": (-1.0,)}, "at least 0"),
        ({"weights": (math.nan,)}, "at least 0"),
        ({"metric": "f1"}, "unknown metric"),
        ({"folds": 1}, "at least 2 folds"),
        ({"split_by": "day"}, "split_by must be"),
        ({"enough": 0}, "enough must be at least 1"),
        ({"confidence": 1.0}, "confidence must lie in"),
    ],
)
def test_settings_outside_their_range(settings, match):
    """Each is refused on construction."""
    with pytest.raises(ValueError, match=match):
        TuneConfig(**settings)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("moved", [1, 30, 60])
def test_an_overlay_is_an_index_with_other_vectors(metric, moved):
    """Held against an index that was written, for few moved vectors and for all."""
    draw = np.random.default_rng(0)
    ids = [f"d{n}" for n in range(60)]
    vectors = draw.normal(size=(60, 5)).astype(np.float32)
    written, base = MemoryIndex(ids, vectors, metric), MemoryIndex(ids, vectors, metric)
    overlay = Overlay(base)
    chosen = [ids[n] for n in draw.permutation(60)[:moved]]
    new = draw.normal(size=(moved, 5)).astype(np.float32)
    for index in (overlay, written):
        index.replace(chosen, new)
    queries = draw.normal(size=(7, 5)).astype(np.float32)
    ours, theirs = overlay.search(queries, 12), written.search(queries, 12)
    assert ours.ids == theirs.ids
    assert ours.similarities == pytest.approx(theirs.similarities, abs=1e-5)
    assert np.array_equal(overlay.vectors(ids), written.vectors(ids))
    assert np.array_equal(base.vectors(ids), vectors)
