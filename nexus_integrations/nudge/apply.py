"""Nudge an index: read the touched vectors, choose γ, record, replace; and undo."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.evaluation import (
    check_relevant_are_stored,
    mean_interval,
    metric_depth,
)
from nexus_integrations.index.checks import check_vectors
from nexus_integrations.nudge.gamma import Judges, cross_validated
from nexus_integrations.nudge.life import StateFolder, check_unit
from nexus_integrations.nudge.solver import GAMMAS, NUDGE_FT_GAMMAS, Shift, Turn
from nexus_integrations.nudge.state import NudgeState, Variant, content_hashes
from nexus_integrations.protocols import Encoder, Floats, Metric, VectorIndex
from nexus_integrations.retrievers.dense import check_fits

Solver = Literal["closed-form", "nudge-ft"]
Rule = Literal["curve", "nudge-ft"]
Keep = Literal["if-better", "always"]

# Below this share of its length a vector has not moved: float32 cannot tell.
_MOVED = 1e-6


@dataclass(frozen=True, kw_only=True)
class NudgeConfig:
    """How to nudge. Raises `ValueError` on construction for values outside their range.

    `variant` "n" turns documents and keeps their length; "m" shifts them, for indexes that rank by
    the dot product. γ is the bound on a document's move: the squared distance between unit vectors
    under "n" (0 ≤ γ < 4), the distance under "m". It is `gamma` where given; otherwise, under the
    rule "curve", the γ of `gammas` with the best dev `metric`, the smallest of equals. The rule
    "nudge-ft" is that of the reference: the grid 0, 0.02 … 0.48 by recall@1 under "n", the exact
    optimum of answers ranked first under "m".

    Without a dev set γ is chosen by cross-validation over the training queries, in `folds` folds
    drawn with `seed`. `solver` "nudge-ft" runs the reference package in place of ours, with its own
    rule unless `gamma` is given; it reads the whole corpus and needs a dev set.

    With `keep` "if-better" a nudge whose γ was chosen on a curve is judged on questions that did
    not choose it, and is not written unless their mean difference is positive; with `confidence`
    (0.9, say) unless the lower bound of its interval is. `dry_run` writes nothing.
    """

    variant: Variant = "n"
    metric: str = "ndcg@10"
    gamma: float | None = None
    gammas: tuple[float, ...] = GAMMAS
    rule: Rule = "curve"
    solver: Solver = "closed-form"
    keep: Keep = "if-better"
    confidence: float | None = None
    dry_run: bool = False
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("variant", self.variant, ("n", "m")),
            ("rule", self.rule, ("curve", "nudge-ft")),
            ("solver", self.solver, ("closed-form", "nudge-ft")),
            ("keep", self.keep, ("if-better", "always")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {value!r}")
        upper = 4.0 if self.variant == "n" else np.inf
        for gamma in (*self.gammas, *(() if self.gamma is None else (self.gamma,))):
            if not 0 <= gamma < upper:
                raise ValueError(f"γ must lie in 0 ≤ γ < {upper} for this variant, not {gamma}")
        metric_depth(self.metric)  # raises for an unknown metric
        if not self.gammas:
            raise ValueError("gammas is empty: give at least one γ to choose from")
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie in 0 < c < 1, not {self.confidence}")
        if self.folds < 2:
            raise ValueError(f"cross-validation needs at least 2 folds, not {self.folds}")


@dataclass(frozen=True, kw_only=True)
class NudgeResult:
    """What a nudge did.

    `curve` maps each γ tried to the metric on the queries that chose it (`chosen_by`: "dev",
    "cross-validation", or "fixed", where the curve is empty). `touched` documents answer a training
    query, `moved` of them are stored elsewhere now; `distances`, float32 (touched,), are the
    Euclidean distances between old and new vectors scaled to a base of length one. `dropped` counts
    queries without a relevant document, which the datasets left out.

    `gain` is the mean paired difference in the metric, with its `interval`, of the judging queries
    at a γ that the others chose; None where γ was not chosen on a curve. `written` tells whether
    the nudge was kept. `approximate` tells that the index may have missed near documents when γ was
    chosen; similarities of documents that move are exact in any case.
    """

    gamma: float
    variant: Variant
    metric: str
    chosen_by: str
    curve: dict[float, float]
    queries: int
    touched: int
    moved: int
    dropped: int
    gain: float | None
    interval: tuple[float, float] | None
    written: bool
    approximate: bool
    seconds: float
    distances: Floats = field(repr=False)
    folder: StateFolder = field(repr=False)

    def __str__(self) -> str:
        """Return one line: what was done, at which γ, and what it gained."""
        moved = f"{self.moved or 'none'} of {self.touched} documents"
        done = f"{moved} moved" if self.written or not self.moved else f"dry run: {moved} to move"
        line = f"{done}, {self.queries} questions, γ = {self.gamma:g} ({self.chosen_by})"
        if self.gain is not None and self.interval is not None:
            low, high = self.interval
            line += (
                f"; {self.metric} {self.gain:+.3f} ({low:+.3f} to {high:+.3f}) on questions that "
                "did not choose γ"
            )
        if self.approximate:
            line += "; other documents as the store's approximate search finds them"
        return line

    def undo(self, index: VectorIndex) -> int:
        """Put the base vectors back into the index; return how many documents were restored."""
        return self.folder.undo(index)


def nudge_index(
    index: VectorIndex,
    encoder: Encoder,
    train: RetrievalDataset,
    dev: RetrievalDataset | None = None,
    config: NudgeConfig | None = None,
    *,
    state_dir: str | Path | StateFolder | None = None,
) -> NudgeResult:
    """Move the index's vectors of the documents that answer training queries, in place.

    `encoder` must be the one that filled the index and encodes its queries. What is needed to undo
    is written to `state_dir` before the index is; without it the state lives as long as the report.
    An index that this state nudged already starts from its base vectors again.

    Raises `ValueError` before anything is written: for a relevant document that is not in the
    index, vectors that do not fit or cannot be ranked, NUDGE-M on an index that does not rank by
    the dot product, and a state of another encoder.
    """
    begun = perf_counter()
    config = config or NudgeConfig()
    folder = state_dir if isinstance(state_dir, StateFolder) else StateFolder(state_dir)
    check_fits(index, encoder)
    _check_variant(index.metric, config.variant)
    _check_dev(config, dev)
    with folder.locked():
        _check_encoder(folder, encoder)
        check_relevant_are_stored(index, *((train,) if dev is None else (train, dev)))
        queries = encoder.encode_queries(list(train.queries.values()))  # (n_train, dimension)
        judging = None if dev is None else _encoded(encoder, dev)
        if not config.dry_run:
            folder.undo(index)
        touched = list(dict.fromkeys(d for found in train.relevant_docs.values() for d in found))
        texts = [train.corpus[id_] for id_ in touched]
        if folder.state is not None:  # a dry run beside a nudge, whose documents it sees at rest
            others = [id_ for id_ in folder.state.document_ids if id_ not in set(touched)]
            gone = index.missing(others)
            touched += [id_ for id_ in others if id_ not in gone]
        rows = {id_: row for row, id_ in enumerate(touched)}
        base = _base_vectors(touched, index, folder)
        check_vectors(touched, base, Metric.COSINE)
        check_unit(touched, base, index.metric)
        planned = NudgeState(
            phase="applying",
            variant=config.variant,
            gamma=0.0 if config.gamma is None else config.gamma,
            metric=index.metric.value,
            fingerprint=encoder.fingerprint,
            document_ids=touched,
            content_sha256=content_hashes(texts),
            query_ids=list(train.queries),
            answers=[[rows[id_] for id_ in found] for found in train.relevant_docs.values()],
            base=base,
            queries=queries,
        )
        dropped = train.dropped + (0 if dev is None else dev.dropped)
        return _carry_out(index, planned, judging, config, folder, dropped, begun)


def choose_gamma_again(
    index: VectorIndex,
    encoder: Encoder,
    dev: RetrievalDataset | None = None,
    config: NudgeConfig | None = None,
    *,
    state_dir: str | Path | StateFolder,
) -> NudgeResult:
    """Choose γ anew for the questions that the state holds now, and move the documents to it.

    For a nudge that has learned from use, or forgotten: the state has all that is needed, so no
    training set is given and nothing but `dev` is encoded. A γ that does not help is not written:
    the nudge stays as it is. Raises `ValueError` when nothing is nudged, and as `nudge_index` does.
    """
    begun = perf_counter()
    folder = state_dir if isinstance(state_dir, StateFolder) else StateFolder(state_dir)
    with folder.locked():
        folder.finish(index)
        if folder.state is None:
            raise ValueError("nothing is nudged here: nudge the index first")
        config = replace(config or NudgeConfig(), variant=folder.state.variant)
        _check_encoder(folder, encoder)
        _check_dev(config, dev)
        if dev is not None:
            check_relevant_are_stored(index, dev)
        judging = None if dev is None else _encoded(encoder, dev)
        return _carry_out(index, folder.state, judging, config, folder, 0, begun)


def _carry_out(
    index: VectorIndex,
    planned: NudgeState,
    dev: "_Queries | None",
    config: NudgeConfig,
    folder: StateFolder,
    dropped: int,
    begun: float,
) -> NudgeResult:
    """Choose γ where it is not given, judge, write, and report."""
    curve: dict[float, float] = {}
    gain, interval, chosen_by, better = None, None, "fixed", True
    if config.solver == "nudge-ft":
        gamma, targets = _reference(index, planned, dev, config.gamma)
        planned = replace(planned, gamma=gamma)
        chosen_by = chosen_by if config.gamma is not None else "nudge-ft"
    else:
        if config.gamma is None:
            gamma, curve, values = _choose(index, planned, dev, config)
            planned = replace(planned, gamma=gamma)
            chosen_by = "cross-validation" if dev is None else "dev"
            if values is not None:
                gain, interval = _judged(values, config)
                bound = gain if config.confidence is None else interval[0]
                better = bound > 0 or config.keep == "always"
        else:
            planned = replace(planned, gamma=config.gamma)
        targets = planned.targets()
    distances = np.linalg.norm(targets - planned.base, axis=1)
    distances /= np.linalg.norm(planned.base, axis=1)
    moved = int((distances > _MOVED).sum())
    written = better and moved > 0 and not config.dry_run
    if written:
        folder.apply(planned, targets, index)
    return NudgeResult(
        gamma=planned.gamma,
        variant=config.variant,
        metric=config.metric,
        chosen_by=chosen_by,
        curve=curve,
        queries=len(planned.query_ids),
        touched=len({row for found in planned.answers for row in found}),
        moved=moved if written or config.dry_run else 0,
        dropped=dropped,
        gain=gain,
        interval=interval,
        written=written,
        approximate=bool(curve) and index.approximate,
        seconds=perf_counter() - begun,
        distances=distances,
        folder=folder,
    )


class _Queries(NamedTuple):
    """Judging queries: unit vectors, float32 (n_queries, dimension), and relevant ids of each."""

    vectors: Floats
    relevant: Mapping[str, Sequence[str]]


def _encoded(encoder: Encoder, dataset: RetrievalDataset) -> _Queries:
    vectors = encoder.encode_queries(list(dataset.queries.values()))
    return _Queries(vectors, dataset.relevant_docs)


def _base_vectors(ids: Sequence[str], index: VectorIndex, folder: StateFolder) -> Floats:
    """Return the vectors of `ids` as no nudge has moved them, float32 (n, dimension)."""
    vectors = index.vectors(ids)
    if folder.state is not None:  # a dry run leaves the present nudge in place
        for row, id_ in enumerate(ids):
            if id_ in folder.state.rows:
                vectors[row] = folder.state.base[folder.state.rows[id_]]
    return vectors


def _choose(
    index: VectorIndex, planned: NudgeState, dev: _Queries | None, config: NudgeConfig
) -> tuple[float, dict[float, float], NDArray[np.float64] | None]:
    """Return the best γ, the smallest of equals; the curve; and the values per judging query.

    The values are float64 (1 + n_gammas, n_queries): where nothing moves, then along the curve.
    They are None where γ follows from no curve.
    """
    make = Turn if config.variant == "n" else Shift
    gammas, metric = sorted(set(config.gammas)), config.metric
    if config.rule == "nudge-ft":
        gammas, metric = list(NUDGE_FT_GAMMAS), "recall@1"
    if dev is None:
        own = {
            id_: [planned.document_ids[row] for row in found]
            for id_, found in zip(planned.query_ids, planned.answers, strict=True)
        }
        judges = Judges(index, planned.queries, own, planned.document_ids, metric)
        values = cross_validated(
            judges, make, planned.base, planned.answers, [0.0, *gammas], config.folds, config.seed
        )
    else:
        judges = Judges(index, dev.vectors, dev.relevant, planned.document_ids, metric)
        moves = make.of(planned.base, planned.sums)
        if config.rule == "nudge-ft" and isinstance(moves, Shift):
            return judges.most_answers_first(moves), {}, None
        values = judges.values(moves, [0.0, *gammas], range(len(dev.relevant)))
    means = values[1:].mean(axis=1)  # (n_gammas,)
    curve = {gamma: float(mean) for gamma, mean in zip(gammas, means, strict=True)}
    return max(curve, key=lambda gamma: (curve[gamma], -gamma)), curve, values


def _judged(values: NDArray[np.float64], config: NudgeConfig) -> tuple[float, tuple[float, float]]:
    """Return the mean gain, and its interval, of queries at the γ that the other queries choose.

    `values` are those of `_choose`, float64 (1 + n_gammas, n_queries). Where dev queries judge, the
    training queries have no say: heads that were trained on them find their answers without a
    nudge.
    """
    before, after = values[0], values[1:]
    n_queries = len(before)
    order = np.random.default_rng(config.seed).permutation(n_queries)
    gains = np.zeros(n_queries)
    for fold in range(min(config.folds, n_queries)):
        judging = order[fold :: config.folds]
        others = np.setdiff1d(order, judging)
        means = after[:, others if len(others) else judging].mean(axis=1)  # (n_gammas,)
        gains[judging] = after[int(means.argmax()), judging] - before[judging]
    return float(gains.mean()), mean_interval(gains, config.confidence or 0.95, config.seed)


def _reference(
    index: VectorIndex,
    planned: NudgeState,
    dev: _Queries | None,
    gamma: float | None,
) -> tuple[float, Floats]:
    """Return γ and the targets as `nudge-ft` computes them, float32 (n_touched, dimension)."""
    from nudge import NUDGEM, NUDGEN

    assert dev is not None, "checked before anything was read"
    relevant = [id_ for found in dev.relevant.values() for id_ in found]
    inside = list(dict.fromkeys([*planned.document_ids, *relevant]))
    rows = {id_: row for row, id_ in enumerate(inside)}
    outside = [id_ for batch in index.ids() for id_ in batch if id_ not in rows]
    solver = NUDGEN("cpu") if planned.variant == "n" else NUDGEM("cpu")
    with contextlib.redirect_stdout(io.StringIO()):  # it reports to standard output
        vectors = solver.finetune_embeddings(
            index.vectors(inside),
            {"q_embs": planned.queries, "q_ans_indx": planned.answers},
            {
                "q_embs": dev.vectors,
                "q_ans_indx": [[rows[id_] for id_ in found] for found in dev.relevant.values()],
            },
            nontrain_embeddings=index.vectors(outside) if outside else None,
            gamma=gamma,
        )[: len(planned.base)]
    length = np.linalg.norm(planned.base, axis=1, keepdims=True)
    moves = np.linalg.norm(vectors - planned.base / length, axis=1)  # (n_touched,)
    if gamma is None:  # it does not tell: γ bounds the squared move under "n", the move under "m"
        furthest = float(moves.max())
        gamma = furthest**2 if planned.variant == "n" else furthest
    return gamma, vectors if planned.variant == "m" else vectors * length


def _check_variant(metric: Metric, variant: Variant) -> None:
    if variant == "m" and metric is not Metric.DOT:
        raise ValueError(
            f"NUDGE-M moves vectors off length one, which an index that ranks by the {metric} "
            'undoes or misreads: use variant="n", or an index that ranks by the dot product'
        )


def _check_encoder(folder: StateFolder, encoder: Encoder) -> None:
    if folder.state is not None and folder.state.fingerprint != encoder.fingerprint:
        raise ValueError(
            "this index was nudged with another encoder (its fingerprint differs): undo that nudge "
            "with its state, or nudge with the same encoder"
        )


def _check_dev(config: NudgeConfig, dev: RetrievalDataset | None) -> None:
    if dev is None and config.solver == "nudge-ft":
        raise ValueError('solver="nudge-ft" needs a dev set')
    exact = config.rule == "nudge-ft" and config.variant == "m" and config.gamma is None
    if dev is None and exact:
        raise ValueError('rule="nudge-ft" for variant "m" has no cross-validation: give dev')
