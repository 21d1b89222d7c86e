"""Nudging an index, recording it, undoing it."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.evaluation import evaluate
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.nudge import NudgeConfig, nudge_index
from nexus_integrations.nudge.life import StateFolder
from nexus_integrations.nudge.solver import Shift, Turn, query_sums
from nexus_integrations.nudge.state import content_hashes
from nexus_integrations.nudge.state_files import StateFiles
from nexus_integrations.retrievers import DenseRetriever

SECRET = "ZEBRA-TEXT"


def by_hand(toy, metric="cosine"):
    """Three documents, one question at (.6, .8) that "east" answers, one dev question."""
    encoder = toy({"up right": (0.6, 0.8), "straight up": (0.5, 0.9)})
    vectors = np.array([[1, 0], [0, 1], [-1, 0]], dtype=np.float32)
    index = MemoryIndex(["east", "north", "west"], vectors, metric)
    corpus = {"east": "a", "north": "b", "west": "c"}
    train = RetrievalDataset(
        queries={"q1": "up right"}, corpus=corpus, relevant_docs={"q1": ["east"]}
    )
    dev = RetrievalDataset(
        queries={"q2": "straight up"}, corpus=corpus, relevant_docs={"q2": ["east"]}
    )
    return index, encoder, train, dev


class World:
    """60 documents on a sphere, 40 training and 20 dev queries with one to three answers each."""

    def __init__(self, toy, metric="cosine", lengths=False, seed=11):
        rng = np.random.default_rng(seed)

        def units(n):
            vectors = rng.normal(size=(n, 12))
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

        directions = units(60)
        self.vectors = directions.astype(np.float32)
        if lengths:
            self.vectors = (directions * rng.uniform(0.5, 3, (60, 1))).astype(np.float32)
        self.ids = [f"d{row}" for row in range(60)]
        corpus = {id_: f"{SECRET} document {id_}" for id_ in self.ids}
        table, parts = {}, []
        for name, n, among in (("train", 40, 25), ("dev", 20, 60)):
            queries, relevant = {}, {}
            for row in range(n):
                answers = rng.choice(among, size=rng.integers(1, 4), replace=False)
                text = f"{SECRET} {name} question {row}"
                table[text] = directions[answers].mean(0) + 0.4 * units(1)[0]
                queries[f"{name}{row}"] = text
                relevant[f"{name}{row}"] = [f"d{a}" for a in answers]
            parts.append(RetrievalDataset(queries=queries, corpus=corpus, relevant_docs=relevant))
        self.train, self.dev = parts
        self.table = table
        self.encoder = toy(table)
        self.index = MemoryIndex(self.ids, self.vectors, metric)
        self.touched = list(dict.fromkeys(d for f in parts[0].relevant_docs.values() for d in f))

    def nudge(self, config=None, dev=True, **options):
        return nudge_index(
            self.index, self.encoder, self.train, self.dev if dev else None, config, **options
        )

    def stored(self):
        return self.index.vectors(self.ids)

    def moves(self, kind=Turn):
        rows = {id_: row for row, id_ in enumerate(self.touched)}
        answers = [[rows[d] for d in found] for found in self.train.relevant_docs.values()]
        queries = self.encoder.encode_queries(list(self.train.queries.values()))
        base = self.vectors[[self.ids.index(id_) for id_ in self.touched]]
        return kind.of(base, query_sums(queries, answers, len(base)))


@pytest.fixture
def world(toy):
    return World(toy)


FIXED = NudgeConfig(gamma=0.1)


# What a nudge does.


def test_a_fixed_gamma_by_hand(toy):
    """γ = .4 turns (1, 0) towards (.6, .8) by c = .8, s = .6; the other documents stay."""
    index, encoder, train, _ = by_hand(toy)
    report = nudge_index(index, encoder, train, config=NudgeConfig(gamma=0.4))
    np.testing.assert_allclose(
        index.vectors(["east", "north", "west"]), [[0.8, 0.6], [0, 1], [-1, 0]], atol=1e-6
    )
    assert (report.gamma, report.chosen_by, report.curve) == (0.4, "fixed", {})
    assert (report.queries, report.touched, report.moved, report.dropped) == (1, 1, 1, 0)
    # ‖(.8, .6) − (1, 0)‖ = √(.04 + .36) = √γ
    np.testing.assert_allclose(report.distances, [0.4**0.5], atol=1e-6)


def test_the_dev_question_chooses_gamma(toy):
    """The dev question at (.5, .9) finds "east" first once it is nearer than (0, 1).

    Turned by γ, east is (c, s), and .5 c + .9 s > .9 when s > .75 or so: with the end of the turn
    at (.6, .8), ⟨q, east⟩ = .3 + .72 = 1.02 > .9 (over ‖q‖). So recall@1 is 0 at γ = 0 and .4,
    where .5·.8 + .9·.6 = .94 > .9 already holds; at γ = .2 it is .45 + .9·√.19 = .842 < .9.
    """
    index, encoder, train, dev = by_hand(toy)
    config = NudgeConfig(metric="recall@1", gammas=(0.0, 0.2, 0.8, 0.4))
    report = nudge_index(index, encoder, train, dev, config)
    assert report.curve == {0.0: 0, 0.2: 0, 0.4: 1, 0.8: 1}
    assert list(report.curve) == [0.0, 0.2, 0.4, 0.8]
    assert (report.gamma, report.chosen_by) == (0.4, "dev")  # the smallest of equals
    np.testing.assert_allclose(index.vectors(["east"]), [[0.8, 0.6]], atol=1e-6)


def test_nothing_moves_when_no_gamma_helps(toy):
    """A dev question that finds its answer unmoved keeps γ = 0, the index, and no state."""
    index, encoder, train, _ = by_hand(toy)
    dev = RetrievalDataset(
        queries={"q": "straight up"}, corpus=train.corpus, relevant_docs={"q": ["north"]}
    )
    report = nudge_index(index, encoder, train, dev)
    assert (report.gamma, report.moved) == (0, 0)
    np.testing.assert_array_equal(index.vectors(["east"]), [[1, 0]])
    assert report.folder.state is None
    assert report.undo(index) == 0


def test_untouched_documents_do_not_change_a_bit(world):
    """Only documents that answer a training query move."""
    report = world.nudge(FIXED)
    untouched = [row for row, id_ in enumerate(world.ids) if id_ not in world.touched]
    assert len(untouched) >= 35
    assert world.stored()[untouched].tobytes() == world.vectors[untouched].tobytes()
    assert report.touched == len(world.touched)
    assert 0 < report.moved <= report.touched


def test_distances_stay_within_gamma(world):
    """√γ bounds every document's move, and the moves are those of the solver."""
    report = world.nudge(FIXED)
    assert report.distances.dtype == np.float32
    assert report.distances.max() <= 0.1**0.5 + 1e-6
    np.testing.assert_allclose(world.index.vectors(world.touched), world.moves().at(0.1), atol=1e-6)


def test_length_is_kept_under_the_cosine(toy):
    """A store of vectors of any length gets turned vectors of the same length."""
    world = World(toy, lengths=True)
    world.nudge(FIXED)
    np.testing.assert_allclose(
        np.linalg.norm(world.stored(), axis=1), np.linalg.norm(world.vectors, axis=1), rtol=1e-5
    )
    unit = world.index.vectors(world.touched)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, world.moves().at(0.1), atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("judge", ["ndcg@10", "recall@1", "mrr@3"])
def test_the_curve_equals_brute_force(toy, metric, judge):
    """Each point of the curve is what evaluate gives on an index whose vectors really moved."""
    world = World(toy, metric)
    gammas = (0.0, 0.02, 0.1, 0.3, 0.48)
    report = world.nudge(NudgeConfig(gammas=gammas, metric=judge))
    moves = world.moves()
    for gamma in gammas:
        moved = MemoryIndex(world.ids, world.vectors, metric)
        moved.replace(world.touched, moves.at(gamma))
        value = evaluate(DenseRetriever(moved, world.encoder), world.dev, metrics=[judge]).metrics[
            judge
        ]
        assert report.curve[gamma] == pytest.approx(value, abs=1e-9), gamma
    assert report.curve[report.gamma] == max(report.curve.values())
    assert len(set(report.curve.values())) > 1


def test_the_curve_of_variant_m_equals_brute_force(toy):
    """The same for NUDGE-M on a dot-product index."""
    world = World(toy, "dot")
    gammas = (0.0, 0.05, 0.2, 1.0)
    report = world.nudge(NudgeConfig(variant="m", gammas=gammas, keep="always"))
    for gamma in gammas:
        moved = MemoryIndex(world.ids, world.vectors, "dot")
        moved.replace(world.touched, world.moves(Shift).at(gamma))
        value = evaluate(
            DenseRetriever(moved, world.encoder), world.dev, metrics=["ndcg@10"]
        ).metrics["ndcg@10"]
        assert report.curve[gamma] == pytest.approx(value, abs=1e-9), gamma
    np.testing.assert_allclose(
        world.index.vectors(world.touched), world.moves(Shift).at(report.gamma), atol=1e-6
    )


def test_the_curve_where_nearly_all_documents_move(toy):
    """The search goes deeper when a query's neighbours all move, down to an index all touched."""
    for kept in (26, 30):
        world = World(toy)
        ids = world.ids[:kept]
        answered = [q for q, f in world.dev.relevant_docs.items() if set(f) <= set(ids)]
        dev = world.dev.subset(answered)
        gammas = (0.0, 0.1, 0.4)
        index = MemoryIndex(ids, world.vectors[:kept])
        report = nudge_index(index, world.encoder, world.train, dev, NudgeConfig(gammas=gammas))
        for gamma in gammas:
            moved = MemoryIndex(ids, world.vectors[:kept])
            moved.replace(world.touched, world.moves().at(gamma))
            value = evaluate(
                DenseRetriever(moved, world.encoder), dev, metrics=["ndcg@10"]
            ).metrics["ndcg@10"]
            assert report.curve[gamma] == pytest.approx(value, abs=1e-9), (kept, gamma)


@pytest.mark.parametrize("batch", [256, 7])
def test_cross_validation_judges_a_query_without_itself(world, batch, monkeypatch):
    """With as many folds as queries each is judged where all others have moved the documents."""
    monkeypatch.setattr("nexus_integrations.nudge.gamma._QUERY_BATCH", batch)
    gammas = (0.0, 0.1, 0.4)
    config = NudgeConfig(gammas=gammas, metric="mrr@10", folds=len(world.train))
    report = world.nudge(config, dev=False)
    assert report.chosen_by == "cross-validation"
    for gamma in gammas:
        values = []
        for query in world.train.queries:
            others = world.train.subset(id_ for id_ in world.train.queries if id_ != query)
            index = MemoryIndex(world.ids, world.vectors)
            nudge_index(index, world.encoder, others, config=NudgeConfig(gamma=gamma))
            judged = world.train.subset([query])
            values.append(evaluate(DenseRetriever(index, world.encoder), judged).metrics["mrr@10"])
        assert report.curve[gamma] == pytest.approx(np.mean(values), abs=1e-9)


def test_cross_validation_is_fixed_by_its_seed(toy):
    """Equal seeds choose from equal curves; another seed draws other folds."""
    curves = [
        World(toy).nudge(NudgeConfig(folds=2, seed=seed), dev=False).curve for seed in (0, 0, 1)
    ]
    assert curves[0] == curves[1] != curves[2]


def test_one_training_query_cannot_vote_for_itself(toy):
    """Judged without itself nothing moves, so every γ is equal and the smallest, 0, is chosen."""
    index, encoder, train, _ = by_hand(toy)
    assert nudge_index(index, encoder, train).gamma == 0


def test_dropped_queries_are_counted(toy):
    """Queries without a relevant document, of train and of dev, are in the report."""
    index, encoder, train, dev = by_hand(toy)
    train = replace(train, queries={**train.queries, "x": "no answer"})
    dev = replace(dev, queries={**dev.queries, "x": "none", "y": "none either"})
    assert nudge_index(index, encoder, train, dev).dropped == 3


# The reference package, as a rule and as a solver.


def reference(world, variant):
    nudge = pytest.importorskip("nudge")
    queries = world.encoder.encode_queries(list(world.train.queries.values()))
    dev_queries = world.encoder.encode_queries(list(world.dev.queries.values()))
    solver = nudge.NUDGEN("cpu") if variant == "n" else nudge.NUDGEM("cpu")

    def rows(dataset):
        return [[world.ids.index(d) for d in f] for f in dataset.relevant_docs.values()]

    return solver.finetune_embeddings(
        world.vectors.copy(),
        {"q_embs": queries, "q_ans_indx": rows(world.train)},
        {"q_embs": dev_queries, "q_ans_indx": rows(world.dev)},
    )


@pytest.mark.parametrize("seed", [10, 11, 14, 17, 24])
@pytest.mark.parametrize("variant", ["n", "m"])
def test_rule_and_solver_equal_the_reference(toy, variant, seed, capsys):
    """nudge-ft itself, our solver with its rule, and it run by us store the same vectors."""
    metric = "dot" if variant == "m" else "cosine"
    ruled, solved = World(toy, metric, seed=seed), World(toy, metric, seed=seed)
    expected = reference(ruled, variant)
    capsys.readouterr()
    first = ruled.nudge(
        NudgeConfig(variant=variant, rule="nudge-ft", keep="always" if variant == "n" else None)
    )
    second = solved.nudge(NudgeConfig(variant=variant, solver="nudge-ft"))
    assert capsys.readouterr().out == ""
    np.testing.assert_allclose(ruled.stored(), expected, atol=1e-5)
    np.testing.assert_allclose(solved.stored(), expected, atol=1e-5)
    assert first.gamma == pytest.approx(second.gamma, abs=1e-3)
    assert second.chosen_by == "nudge-ft"


def test_the_reference_really_moves_something(toy, capsys):
    """Over the seeds above the rules choose γ > 0, so that the comparison compares."""
    gammas = [
        World(toy, "dot", seed=seed).nudge(NudgeConfig(variant=v, rule="nudge-ft")).gamma
        for seed in (10, 11, 14, 17, 24)
        for v in "nm"
    ]
    assert sum(gamma > 0 for gamma in gammas) >= 5


def test_the_reference_solver_with_a_given_gamma(toy, capsys):
    """The reference turns by the γ given, and keeps lengths under the cosine as ours does."""
    ours, theirs = World(toy, lengths=True), World(toy, lengths=True)
    ours.nudge(FIXED)
    report = theirs.nudge(NudgeConfig(gamma=0.1, solver="nudge-ft"))
    np.testing.assert_allclose(ours.stored(), theirs.stored(), atol=1e-5)
    assert (report.gamma, report.chosen_by) == (0.1, "fixed")
    assert report.undo(theirs.index) == len(theirs.touched)
    assert theirs.stored().tobytes() == theirs.vectors.tobytes()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (NudgeConfig(solver="nudge-ft"), "needs a dev set"),
        (NudgeConfig(variant="m", rule="nudge-ft"), "has no cross-validation: give dev"),
    ],
)
def test_what_the_reference_cannot_do_without_dev(toy, config, message):
    """Both are refused, and an earlier nudge of this index is then still in place."""
    world = World(toy, "dot")
    folder = StateFolder(None)
    world.nudge(FIXED, state_dir=folder)
    before = world.stored()
    with pytest.raises(ValueError, match=message):
        world.nudge(config, dev=False, state_dir=folder)
    assert world.stored().tobytes() == before.tobytes()


# What is refused.


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_variant_m_needs_the_dot_product(toy, metric):
    """Off length one, the cosine undoes a shift and L2 misreads it."""
    world = World(toy, metric)
    with pytest.raises(ValueError, match=f"ranks by the {metric}"):
        world.nudge(NudgeConfig(variant="m"))
    assert world.stored().tobytes() == world.vectors.tobytes()


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_vectors_off_length_one_are_refused(toy, metric):
    """Where the store does not normalise, NUDGE needs unit vectors; the document is named."""
    world = World(toy, metric)
    vector = 1.01 * world.index.vectors([world.touched[3]])
    world.index.replace([world.touched[3]], vector)
    with pytest.raises(ValueError, match=rf"'{world.touched[3]}' has length 1\.010.*the {metric}"):
        world.nudge(FIXED)


def test_relevant_document_missing_in_the_index(world):
    """Query and document are named before anything is written."""
    index = MemoryIndex(world.ids[1:], world.vectors[1:])
    with pytest.raises(ValueError, match=r"'d0', relevant to query 'train\d+', is not in the ind"):
        nudge_index(index, world.encoder, world.train, config=FIXED)
    missing = RetrievalDataset(
        queries={"q": "up"}, corpus={"d99": "text"}, relevant_docs={"q": ["d99"]}
    )
    with pytest.raises(ValueError, match="'d99', relevant to query 'q'"):
        nudge_index(world.index, world.encoder, world.train, missing, FIXED)
    assert world.stored().tobytes() == world.vectors.tobytes()


def test_encoder_of_another_dimension(world, toy):
    """An encoder that did not fill the index is told apart by its dimension."""
    with pytest.raises(ValueError, match="dimension 3, the index holds 12"):
        nudge_index(world.index, toy({"a": (1, 0, 0)}), world.train)


def test_encoder_of_another_fingerprint(world, toy, tmp_path):
    """A second nudge with another encoder is refused, and leaves the first in place."""
    world.nudge(FIXED, state_dir=tmp_path)
    before = world.stored()
    other = toy(world.table, name="another")
    with pytest.raises(ValueError, match="nudged with another encoder"):
        nudge_index(world.index, other, world.train, config=FIXED, state_dir=tmp_path)
    assert world.stored().tobytes() == before.tobytes()
    assert StateFolder(tmp_path).state is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "x"}, "variant must be one of"),
        ({"rule": "x"}, "rule must be one of"),
        ({"solver": "x"}, "solver must be one of"),
        ({"gamma": -0.1}, "γ must lie in 0 ≤ γ < 4.0 for this variant, not -0.1"),
        ({"gamma": 4.0}, "not 4.0"),
        ({"gamma": float("nan")}, "not nan"),
        ({"gammas": (0.1, 5.0)}, "not 5.0"),
        ({"variant": "m", "gamma": float("inf")}, "not inf"),
        ({"gammas": ()}, "gammas is empty"),
        ({"metric": "accuracy"}, "unknown metric 'accuracy'"),
        ({"folds": 1}, "at least 2 folds, not 1"),
    ],
)
def test_settings_are_checked_on_construction(options, message):
    """A setting outside its range is named; the shift of NUDGE-M may exceed 4."""
    with pytest.raises(ValueError, match=re.escape(message)):
        NudgeConfig(**options)
    assert NudgeConfig(variant="m", gamma=5.0).gamma == 5


# Undo, and nudging again.


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_undo_restores_every_bit(toy, metric):
    """The stored vectors are the base vectors again, whatever their length."""
    world = World(toy, metric, lengths=metric == "cosine")
    report = world.nudge(FIXED)
    assert world.stored().tobytes() != world.vectors.tobytes()
    assert report.undo(world.index) == len(world.touched)
    assert world.stored().tobytes() == world.vectors.tobytes()
    assert report.undo(world.index) == 0


@pytest.mark.parametrize("on_disk", [False, True])
def test_nudging_twice_equals_nudging_once(toy, tmp_path, on_disk):
    """The second nudge starts from base vectors, with the same γ and with another."""
    again, once = World(toy), World(toy)
    folder = tmp_path if on_disk else StateFolder(None)
    for gamma in (0.1, 0.1, 0.3, 0.05):
        report = again.nudge(NudgeConfig(gamma=gamma), state_dir=folder)
    once.nudge(NudgeConfig(gamma=0.05))
    assert again.stored().tobytes() == once.stored().tobytes()
    report.undo(again.index)
    assert again.stored().tobytes() == again.vectors.tobytes()


def test_choosing_again_sees_the_base_vectors(world, tmp_path):
    """The curve of a second choice is that of the first, not one of vectors moved twice."""
    first = world.nudge(NudgeConfig(keep="always"), state_dir=tmp_path)
    assert first.moved
    second = world.nudge(NudgeConfig(keep="always"), state_dir=tmp_path)
    assert second.curve == first.curve
    assert second.gamma == first.gamma


def test_fewer_questions_move_fewer_documents(world, tmp_path):
    """Nudged again with half the questions, documents of the other half are back at their base."""
    world.nudge(FIXED, state_dir=tmp_path)
    half = world.train.subset(list(world.train.queries)[:5])
    report = nudge_index(world.index, world.encoder, half, config=FIXED, state_dir=tmp_path)
    fresh = MemoryIndex(world.ids, world.vectors)
    nudge_index(fresh, world.encoder, half, config=FIXED)
    assert world.stored().tobytes() == fresh.vectors(world.ids).tobytes()
    assert report.touched < len(world.touched)


def test_an_older_report_undoes_the_newer_nudge_of_its_folder(world, tmp_path):
    """The folder, not the object that first opened it, knows what is moved."""
    few = world.train.subset(list(world.train.queries)[:5])
    older = nudge_index(world.index, world.encoder, few, config=FIXED, state_dir=tmp_path)
    world.nudge(FIXED, state_dir=tmp_path)
    older.undo(world.index)
    assert world.stored().tobytes() == world.vectors.tobytes()


def test_deleted_documents_are_passed_over(world, tmp_path):
    """Undo restores the documents that are still there, and counts them."""
    world.nudge(FIXED, state_dir=tmp_path)
    kept = [id_ for id_ in world.ids if id_ not in world.touched[:4]]
    smaller = MemoryIndex(kept, world.index.vectors(kept))
    assert StateFolder(tmp_path).undo(smaller) == len(world.touched) - 4
    rows = [world.ids.index(id_) for id_ in kept]
    assert smaller.vectors(kept).tobytes() == world.vectors[rows].tobytes()


def test_undo_when_every_document_is_gone(world):
    """A store without any of them is taken for another one: only who insists drops the state."""
    result = world.nudge(FIXED)
    other = MemoryIndex(["new"], np.ones((1, 12), np.float32))
    with pytest.raises(ValueError, match=r"does not belong to the store .* none of the 23 doc"):
        result.undo(other)
    assert result.undo(world.index) == 23  # where they are, they can be put back still
    result = world.nudge(FIXED)
    assert result.undo(other, force=True) == 0
    assert result.folder.state is None


# The state on disk.


def test_the_state_survives_the_process(world, tmp_path, package_environment):
    """Another interpreter, given the folder and the moved vectors, restores every bit."""
    world.nudge(FIXED, state_dir=tmp_path / "state")
    np.savez(tmp_path / "moved.npz", ids=world.ids, vectors=world.stored())
    program = """
import sys, numpy as np
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.nudge import StateFolder
saved = np.load("moved.npz")
ids = saved["ids"].tolist()
index = MemoryIndex(ids, saved["vectors"])
StateFolder("state").undo(index)
np.save("restored.npy", index.vectors(ids))
"""
    subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, check=True, env=package_environment
    )
    assert np.load(tmp_path / "restored.npy").tobytes() == world.vectors.tobytes()
    assert {file.name for file in (tmp_path / "state").iterdir()} <= {".lock"}


def test_the_state_is_on_disk_before_the_store_is_written(world, tmp_path, monkeypatch):
    """When the store is called, the folder holds phase "applying" with the base vectors."""
    seen = []

    def failing_replace(ids, vectors):
        state = StateFiles(tmp_path).read()[0]
        seen.append((state.phase, state.document_ids == ids, state.base.tobytes()))
        raise OSError("the store is down")

    monkeypatch.setattr(world.index, "replace", failing_replace)
    with pytest.raises(OSError, match="the store is down"):
        world.nudge(FIXED, state_dir=tmp_path)
    base = world.vectors[[world.ids.index(id_) for id_ in world.touched]]
    assert seen == [("applying", True, base.tobytes())]


@pytest.mark.parametrize("phase", ["applying", "undoing"])
@pytest.mark.parametrize("written", [0, 7, None])
def test_a_half_applied_state_is_undone(world, tmp_path, phase, written):
    """With none, seven or all documents moved, a new process restores all."""
    world.nudge(FIXED, state_dir=tmp_path)
    moved = world.index.vectors(world.touched)
    StateFiles(tmp_path).write(replace(StateFiles(tmp_path).read()[0], phase=phase))
    crashed = MemoryIndex(world.ids, world.vectors)
    crashed.replace(world.touched[:written], moved[:written])
    folder = StateFolder(tmp_path)
    assert folder.state.phase == phase
    assert folder.undo(crashed) == len(world.touched)
    assert crashed.vectors(world.ids).tobytes() == world.vectors.tobytes()
    assert StateFolder(tmp_path).state is None


def test_a_half_applied_state_is_finished_by_nudging_again(world, toy, tmp_path):
    """Nudging again after a crash gives what a nudge without a crash gives."""
    whole = World(toy)
    whole.nudge(FIXED)
    world.nudge(FIXED, state_dir=tmp_path)
    moved = world.index.vectors(world.touched)
    StateFiles(tmp_path).write(replace(StateFiles(tmp_path).read()[0], phase="applying"))
    world.index = MemoryIndex(world.ids, world.vectors)
    world.index.replace(world.touched[:7], moved[:7])
    world.nudge(FIXED, state_dir=tmp_path)
    assert world.stored().tobytes() == whole.stored().tobytes()


def test_an_undo_that_fails_can_be_repeated(world, tmp_path, monkeypatch):
    """While the store is down the state stays; afterwards the undo succeeds."""
    report = world.nudge(FIXED, state_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(world.index, "replace", lambda *_: (_ for _ in ()).throw(OSError("down")))
        with pytest.raises(OSError, match="down"):
            report.undo(world.index)
    assert StateFolder(tmp_path).state.phase == "undoing"
    assert report.undo(world.index) == len(world.touched)
    assert world.stored().tobytes() == world.vectors.tobytes()


def test_the_state_holds_no_text(world, tmp_path):
    """Ids, vectors and hashes are on disk; not a word of a query or a document, nor drafts."""
    world.nudge(FIXED, state_dir=tmp_path)
    files = sorted(tmp_path.iterdir())
    kept = [re.sub(r"-\w+", "", file.name) for file in files if file.name != ".lock"]
    assert kept == ["nudge.json", "state.json", "vectors.safetensors"]
    assert all(file.stat().st_mode & 0o077 == 0 for file in files if file.name != "nudge.json")
    for file in files:
        assert SECRET.encode() not in file.read_bytes()
        assert b"question" not in file.read_bytes()
    assert SECRET not in repr(StateFolder(tmp_path).state)


def test_the_state_round_trips(world, tmp_path):
    """What is read is what was written, and computes the vectors that are stored."""
    report = world.nudge(FIXED, state_dir=tmp_path)
    state = StateFiles(tmp_path).read()[0]
    held = report.folder.state
    assert (state.phase, state.variant, state.gamma, state.metric) == (
        "applied",
        "n",
        0.1,
        "cosine",
    )
    assert state.fingerprint == world.encoder.fingerprint
    assert state.base.tobytes() == held.base.tobytes()
    assert state.queries.tobytes() == held.queries.tobytes()
    assert (state.document_ids, state.answers) == (held.document_ids, held.answers)
    assert state.content_sha256 == content_hashes([world.train.corpus[d] for d in world.touched])
    np.testing.assert_allclose(state.targets(), world.index.vectors(world.touched), atol=1e-7)


def test_content_hashes_are_sha256():
    """SHA-256 of the UTF-8 bytes; lone surrogates do not stop it."""
    assert content_hashes(["abc"]) == [
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    ]
    assert len(content_hashes(["\ud800"])[0]) == 64


def damage(folder, how):
    state, tensors = folder / "state.json", next(folder.glob("*.safetensors"))
    content = json.loads(state.read_text())
    if how == "json cut off":
        state.write_bytes(state.read_bytes()[:-40])
    elif how == "json empty":
        state.write_bytes(b"")
    elif how == "json a list":
        state.write_text("[]")
    elif how == "not UTF-8":
        state.write_bytes(b"\xff\xfe\x00")
    elif how == "vectors cut off":
        tensors.write_bytes(tensors.read_bytes()[:-4])
    elif how == "vectors tampered":
        data = bytearray(tensors.read_bytes())
        data[-1] ^= 1
        tensors.write_bytes(data)
    elif how == "vectors gone":
        tensors.unlink()
    else:
        if how == "field gone":
            del content["gamma"]
        elif how == "id gone":
            content["document_ids"].pop()
        elif how == "ids swapped":
            ids = content["document_ids"]
            ids[0], ids[1] = ids[1], ids[0]
        elif how == "version":
            content["version"] = 99
        elif how == "format":
            content["format"] = "other"
        state.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("json cut off", "is damaged"),
        ("json empty", "is damaged"),
        ("json a list", "is damaged"),
        ("not UTF-8", "is damaged"),
        ("vectors cut off", "was altered: its SHA-256 differs"),
        ("vectors tampered", "was altered: its SHA-256 differs"),
        ("vectors gone", "is damaged"),
        ("field gone", "was altered: its SHA-256 differs"),
        ("id gone", "was altered: its SHA-256 differs"),
        ("ids swapped", "was altered"),
        ("version", "is of another format"),
        ("format", "is of another format"),
    ],
)
def test_a_damaged_state_is_refused(world, tmp_path, how, message):
    """No undo and no nudge goes on from a state that is not what was written."""
    world.nudge(FIXED, state_dir=tmp_path)
    moved = world.stored()
    damage(tmp_path, how)
    with pytest.raises(ValueError, match=message):
        StateFolder(tmp_path)
    with pytest.raises(ValueError, match=message):
        world.nudge(FIXED, state_dir=tmp_path)
    assert world.stored().tobytes() == moved.tobytes()


def test_an_empty_or_missing_folder_holds_no_state(tmp_path):
    """Nothing is moved, and asking creates nothing."""
    assert StateFolder(tmp_path).state is None
    assert StateFolder(tmp_path / "missing").state is None
    assert not (tmp_path / "missing").exists()
