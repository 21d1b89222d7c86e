"""Choosing γ: how every γ would rank the questions that judge it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nexus_integrations.evaluation import mean_interval, metric_depth, score_rankings
from nexus_integrations.nudge.config import NudgeConfig
from nexus_integrations.nudge.solver import Shift, Turn, most_answers_first, query_sums, rankings
from nexus_integrations.nudge.state import NudgeState
from nexus_integrations.progress import progress_bar
from nexus_integrations.protocols import Floats, Metric, VectorIndex

_QUERY_BATCH = 256
_SEARCH_BATCH = 1024  # a pass over the corpus each


class Queries(NamedTuple):
    """Judging queries: unit vectors, float32 (n_queries, dimension), and relevant ids of each."""

    vectors: Floats
    relevant: Mapping[str, Sequence[str]]


class Choice(NamedTuple):
    """A γ, and the curve that it is the best of.

    `values` are float64 (1 + n_gammas, n_queries): per judging query the metric where nothing
    moves, then along the curve. None, with an empty curve, where γ follows from no curve.
    """

    gamma: float
    curve: dict[float, float]
    values: NDArray[np.float64] | None


def choose(
    index: VectorIndex, planned: NudgeState, dev: Queries | None, config: NudgeConfig
) -> Choice:
    """Return the γ with the best mean, the smallest of equals."""
    make = Turn if planned.variant == "n" else Shift
    gammas, metric = config.grid, config.judged_by
    if dev is None:
        own = {
            id_: [planned.document_ids[row] for row in found]
            for id_, found in zip(planned.query_ids, planned.answers, strict=True)
        }
        judges = Judges(index, planned.queries, own, planned.document_ids, metric)
        values = cross_validated(
            judges, make, planned.base, planned.answers, [0.0, *gammas], *config.splits
        )
    else:
        judges = Judges(index, dev.vectors, dev.relevant, planned.document_ids, metric)
        moves = make.of(planned.base, planned.sums)
        if config.rule == "nudge-ft" and isinstance(moves, Shift):
            return Choice(judges.most_answers_first(moves), {}, None)
        values = judges.values(moves, [0.0, *gammas], range(len(dev.relevant)))
    means = values[1:].mean(axis=1)  # (n_gammas,)
    curve = {gamma: float(mean) for gamma, mean in zip(gammas, means, strict=True)}
    return Choice(max(curve, key=lambda gamma: (curve[gamma], -gamma)), curve, values)


def judged_gain(
    values: NDArray[np.float64], config: NudgeConfig
) -> tuple[float, tuple[float, float]]:
    """Return the mean gain, and its interval, of queries at the γ that the other queries choose.

    `values` are those of a `Choice`. Where dev queries judge, the training queries have no say:
    heads that were trained on them find their answers without a nudge.
    """
    before, after = values[0], values[1:]
    n_queries = len(before)
    folds, seed = config.splits
    order = np.random.default_rng(seed).permutation(n_queries)
    gains = np.zeros(n_queries)
    for fold in range(min(folds, n_queries)):
        judging = order[fold::folds]
        others = np.setdiff1d(order, judging)
        means = after[:, others if len(others) else judging].mean(axis=1)  # (n_gammas,)
        gains[judging] = after[int(means.argmax()), judging] - before[judging]
    return float(gains.mean()), mean_interval(gains, config.confidence or 0.95, seed)


class Judges:
    """Questions that judge γ: what each finds among documents that no γ moves.

    The corpus enters only here, through one search per question.
    """

    def __init__(
        self,
        index: VectorIndex,
        queries: Floats,
        relevant: Mapping[str, Sequence[str]],
        touched: Sequence[str],
        metric: str,
    ) -> None:
        """Search `index` with `queries`, float32 (n_queries, dimension), unit rows.

        `relevant` holds the relevant ids per query id, in the order of `queries`; `touched` are the
        documents that may move, which the index holds unmoved now.
        """
        self.queries = queries
        self.relevant = relevant
        self.touched = touched
        self.metric = metric
        self.depth = metric_depth(metric)
        self.other_ids, self.others = _search_unmoved(index, queries, set(touched), self.depth)

    def values(
        self, moves: Turn | Shift, gammas: Sequence[float], rows: Sequence[int]
    ) -> NDArray[np.float64]:
        """Return the metric per γ for the questions `rows`: float64 (n_gammas, n_rows)."""
        names = list(self.relevant)
        values = np.zeros((len(gammas), len(rows)))
        starts = range(0, len(rows), _QUERY_BATCH)
        for start in progress_bar(starts, desc="choose γ", unit="batch"):
            batch = list(rows[start : start + _QUERY_BATCH])
            found = rankings(moves, self.queries[batch], self.others[batch], gammas, self.depth)
            scores = values[:, start : start + len(batch)]
            for number, ranked in enumerate(found):
                changed = np.arange(len(batch))
                if number:  # from one γ to the next most rankings stay as they are
                    scores[number] = scores[number - 1]
                    changed = np.flatnonzero((ranked != found[number - 1]).any(axis=1))
                runs = {
                    names[batch[place]]: self._ids(batch[place], ranked[place].tolist())
                    for place in changed
                }
                if runs:
                    found_by = score_rankings(runs, self.relevant, [self.metric])
                    scores[number, changed] = found_by[self.metric]
        return values

    def most_answers_first(self, moves: Shift) -> float:
        """Return the γ of `solver.most_answers_first` for these questions."""
        entries = {id_: entry for entry, id_ in enumerate(self.touched)}
        answers = []
        for row, found in enumerate(self.relevant.values()):
            answers.append([entries[id_] for id_ in found if id_ in entries])
            # Of the answers that do not move only the best can ever rank first.
            if self.other_ids[row] and self.other_ids[row][0] in found:
                answers[-1].append(len(entries))
        return most_answers_first(moves, self.queries, self.others[:, :1], answers)

    def _ids(self, row: int, entries: Sequence[int]) -> list[str]:
        """Name the entries of a ranking; places that no document fills are left out."""
        moving = len(self.touched)
        others = self.other_ids[row]
        return [
            self.touched[entry] if entry < moving else others[entry - moving]
            for entry in entries
            if entry < moving + len(others)
        ]


def cross_validated(
    judges: Judges,
    make: type[Turn] | type[Shift],
    base: Floats,
    answers: Sequence[Sequence[int]],
    gammas: Sequence[float],
    folds: int,
    seed: int,
) -> NDArray[np.float64]:
    """Return the metric per γ and training query, float64 (n_gammas, n_queries).

    Each query is judged on documents moved by the other folds' queries alone. `judges` are the
    training queries themselves, `base` float32 (n_touched, dimension).
    """
    order = np.random.default_rng(seed).permutation(len(answers))
    values = np.zeros((len(gammas), len(answers)))
    for fold in range(folds):
        judging = sorted(order[fold::folds].tolist())
        left_out = set(judging)
        kept = [[] if row in left_out else found for row, found in enumerate(answers)]
        moves = make.of(base, query_sums(judges.queries, kept, len(base)))
        values[:, judging] = judges.values(moves, gammas, judging)
    return values


def _search_unmoved(
    index: VectorIndex, queries: Floats, touched: set[str], depth: int
) -> tuple[list[list[str]], Floats]:
    """Return the `depth` nearest unmoved documents per query, and their dot products with it.

    Rows with fewer than `depth` are filled up with −∞. The search goes deeper, doubling, for the
    queries whose neighbours are mostly touched, until it finds no more. The size of the index is
    not asked for: a database counts all its rows to tell.
    """
    ids: list[list[str]] = [[] for _ in queries]
    products = np.full((len(queries), depth), -np.inf, dtype=np.float32)
    waiting = dict.fromkeys(range(len(queries)), 0)  # and how many documents were found before
    k = 4 * depth
    while waiting:
        unsettled = {}
        rows = list(waiting)
        for start in range(0, len(rows), _SEARCH_BATCH):
            batch = rows[start : start + _SEARCH_BATCH]
            hits = index.search(queries[batch], k)
            for row, found, similarities in zip(batch, hits.ids, hits.similarities, strict=True):
                unmoved = [place for place, id_ in enumerate(found) if id_ not in touched][:depth]
                if len(unmoved) < depth and len(found) > waiting[row]:
                    unsettled[row] = len(found)
                    continue
                ids[row] = [found[place] for place in unmoved]
                products[row, : len(unmoved)] = _products(similarities[unmoved], index.metric)
        waiting, k = unsettled, 2 * k
    return ids, products


def _products(similarities: Floats, metric: Metric) -> Floats:
    """Turn similarities of unit vectors into dot products: −‖q − d‖² is 2⟨q, d⟩ − 2."""
    if metric is Metric.L2:
        similarities = (similarities / 2 + 1).astype(np.float32)
    return similarities
