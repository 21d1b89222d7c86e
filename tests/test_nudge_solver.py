"""NUDGE in closed form: turns and shifts by hand, rankings, and parity with the authors' code."""

import numpy as np
import pytest

from nexus_integrations.nudge.solver import (
    GAMMAS,
    NUDGE_FT_GAMMAS,
    Shift,
    Turn,
    most_answers_first,
    query_sums,
    rankings,
)


def row(*values: float) -> np.ndarray:
    return np.array([values], dtype=np.float32)


def random_units(rng, n: int, dimension: int = 16) -> np.ndarray:
    vectors = rng.normal(size=(n, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def problem():
    """50 documents, 40 training and 30 dev queries near one to three documents each."""
    rng = np.random.default_rng(7)
    documents = random_units(rng, 50)

    def ask(n, among):
        answers = [
            sorted(rng.choice(among, size=rng.integers(1, 4), replace=False).tolist())
            for _ in range(n)
        ]
        noisy = np.stack([documents[a].mean(0) for a in answers]) + 0.3 * random_units(rng, n)
        noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
        return noisy.astype(np.float32), answers

    return documents, *ask(40, 30), *ask(30, 50)


def test_query_sums_by_hand():
    """Document 0 answers both queries, document 1 the second, document 2 none."""
    queries = np.array([[1, 0], [0, 1]], dtype=np.float32)
    np.testing.assert_array_equal(query_sums(queries, [[0], [1, 0]], 3), [[1, 1], [0, 1], [0, 0]])


def test_query_sums_take_one_query_out_exactly():
    """Without a query the sum is what it would have been had nobody asked it."""
    queries = random_units(np.random.default_rng(0), 5)
    with_all = query_sums(queries, [[0], [0], [1], [0], []], 2)
    without = query_sums(queries, [[0], [], [1], [0], []], 2)
    np.testing.assert_allclose(with_all[0] - queries[1], without[0], atol=1e-6)
    np.testing.assert_array_equal(with_all[1], without[1])


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [
        (0.0, (1, 0)),
        # c = 1 − .1/2 = .95, s = √(1 − .9025) = .31225
        (0.1, (0.95, 0.0975**0.5)),
        # c = 1 − .4/2 = .8, s = .6
        (0.4, (0.8, 0.6)),
        # 1 − 1/2 lies beyond the angle of G, where cos 45° = √½: the turn ends there.
        (1.0, (0.5**0.5, 0.5**0.5)),
        (3.9, (0.5**0.5, 0.5**0.5)),
    ],
)
def test_turn_by_hand(gamma, expected):
    """v = (1, 0) turns towards G = (1, 1) until γ or the angle of G stops it."""
    turned = Turn.of(row(1, 0), row(1, 1)).at(gamma)
    assert turned.dtype == np.float32
    np.testing.assert_allclose(turned[0], expected, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.02, 0.1, 0.5])
def test_gamma_is_the_squared_distance(gamma):
    """‖v(γ) − v‖² = γ, wherever G lies far enough away."""
    turned = Turn.of(row(0, 0, 1), row(2, 1, 0.1)).at(gamma)
    assert np.sum((turned - row(0, 0, 1)) ** 2) == pytest.approx(gamma, abs=1e-5)
    assert np.linalg.norm(turned) == pytest.approx(1, abs=1e-6)


def test_lengths_of_document_and_sum_do_not_matter():
    """v = (5, 0) and G = (.3, .3) turn as (1, 0) and (1, 1) do."""
    np.testing.assert_allclose(
        Turn.of(row(5, 0), row(0.3, 0.3)).at(0.1),
        Turn.of(row(1, 0), row(1, 1)).at(0.1),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("sums", "why"),
    [
        ((-0.1, 1), "⟨v, G⟩ < 0"),
        ((-1, 0), "opposite"),
        ((3, 0), "G ∥ v"),
        ((3, 1e-7), "parallel within rounding"),
        ((0, 0), "no query left"),
    ],
)
def test_some_documents_stay(sums, why):
    """A document stays when its questions point away from it, along it, or nowhere."""
    np.testing.assert_array_equal(Turn.of(row(1, 0), row(*sums)).at(0.4), row(1, 0), err_msg=why)


def test_a_sum_at_a_right_angle_turns():
    """⟨v, G⟩ = 0 is not below zero: (1, 0) turns towards (0, 2) by c = .8."""
    np.testing.assert_allclose(Turn.of(row(1, 0), row(0, 2)).at(0.4), row(0.8, 0.6), atol=1e-6)


def test_shift_by_hand():
    """v + γ·G/‖G‖: (1, 0) + ½·(3, 4)/5 = (1.3, .4); a document without questions stays."""
    np.testing.assert_allclose(Shift.of(row(1, 0), row(3, 4)).at(0.5), row(1.3, 0.4), atol=1e-6)
    np.testing.assert_array_equal(Shift.of(row(1, 0), row(0, 0)).at(0.5), row(1, 0))


def test_grids_are_those_documented():
    """The reference's grid has 25 steps of .02; ours starts at 0 and rises within 0 ≤ γ < 4."""
    np.testing.assert_allclose(NUDGE_FT_GAMMAS, np.arange(25) * 0.02, atol=1e-12)
    assert GAMMAS[0] == 0
    assert list(GAMMAS) == sorted(set(GAMMAS))
    assert GAMMAS[-1] < 4


@pytest.mark.parametrize("kind", [Turn, Shift])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_rankings_equal_really_moved_vectors(problem, kind, k):
    """Arithmetic on two products ranks as moving every document at every γ does."""
    documents, queries, answers, dev, _ = problem
    moves = kind.of(documents[:30], query_sums(queries, answers, 30))
    others = dev @ documents[30:].T
    gammas = [0.0, 0.05, 0.3]
    found = rankings(moves, dev, others, gammas, k)
    for gamma, ranked in zip(gammas, found, strict=True):
        scores = np.concatenate([dev @ moves.at(gamma).T, others], axis=1)
        np.testing.assert_array_equal(ranked, np.argsort(-scores, axis=1)[:, :k])


def test_rankings_of_fewer_documents_than_k():
    """Two moved and one other document make three entries, however many are asked for."""
    moves = Turn.of(np.eye(2, dtype=np.float32), np.zeros((2, 2), np.float32))
    # ⟨q, d⟩ = .6 and .8; the other has .7.
    assert rankings(moves, row(0.6, 0.8), row(0.7), [0.0], 10).tolist() == [[[1, 2, 0]]]


def test_most_answers_first_by_hand():
    """One document, (1, 0), shifts along (0, 1); the other stays at similarity .7 and .8.

    q₁ = (.6, .8) sees .6 + .8 γ ≥ .7 from γ = .125 on; q₂ = (.8, −.6) sees .8 − .6 γ ≥ .2 up to
    γ = 1. Both hold from .125 to 1, and the smallest γ of most is .125.
    """
    moves = Shift.of(row(1, 0), row(0, 1))
    queries = np.array([[0.6, 0.8], [0.8, -0.6]], dtype=np.float32)
    others = np.array([[0.7], [0.2]], dtype=np.float32)
    assert most_answers_first(moves, queries, others, [[0], [0]]) == pytest.approx(0.125, abs=1e-6)
    # Where the other document is the answer of q₁, γ = 0 has both first.
    assert most_answers_first(moves, queries, others, [[1], [0]]) == 0
    assert most_answers_first(moves, queries, others, [[], []]) == 0
    # An answer that nothing can lift: (−.8, −.6) sees −.8 − .6 γ, never .7.
    assert most_answers_first(moves, row(-0.8, -0.6), row(0.7), [[0]]) == 0


@pytest.mark.parametrize("gamma", [0.02, 0.1, 0.3, 0.48, 1.5])
def test_turn_equals_the_reference(problem, capsys, gamma):
    """Documents turned by `nudge-ft` and by us differ by rounding, with several answers each."""
    nudge = pytest.importorskip("nudge")
    documents, queries, answers, dev, dev_answers = problem
    theirs = nudge.NUDGEN("cpu").finetune_embeddings(
        documents,
        {"q_embs": queries, "q_ans_indx": answers},
        {"q_embs": dev, "q_ans_indx": dev_answers},
        gamma=gamma,
    )
    ours = Turn.of(documents, query_sums(queries, answers, 50)).at(gamma)
    capsys.readouterr()  # it prints
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.abs(theirs[:30] - documents[:30]).max() > 0.01


@pytest.mark.parametrize("gamma", [0.05, 0.4, 2.0])
def test_shift_equals_the_reference(problem, capsys, gamma):
    """The same for NUDGE-M."""
    nudge = pytest.importorskip("nudge")
    documents, queries, answers, dev, dev_answers = problem
    theirs = nudge.NUDGEM("cpu").finetune_embeddings(
        documents,
        {"q_embs": queries, "q_ans_indx": answers},
        {"q_embs": dev, "q_ans_indx": dev_answers},
        gamma=gamma,
    )
    capsys.readouterr()
    ours = Shift.of(documents, query_sums(queries, answers, 50)).at(gamma)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
