"""Nudge an index: read the touched vectors, choose γ, record, replace; and undo."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.evaluation import check_fits, check_relevant_are_stored, metric_depth
from nexus_integrations.index.memory import check_vectors
from nexus_integrations.nudge.gamma import Judges, cross_validated
from nexus_integrations.nudge.solver import GAMMAS, NUDGE_FT_GAMMAS, Shift, Turn
from nexus_integrations.nudge.state import NudgeState, StateFolder, Variant, content_hashes
from nexus_integrations.types import Encoder, Floats, Metric, VectorIndex

Solver = Literal["closed-form", "nudge-ft"]
Rule = Literal["curve", "nudge-ft"]

# How far a stored vector may be from length one where the index does not normalise by itself.
_UNIT = 1e-3
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
    """

    variant: Variant = "n"
    metric: str = "ndcg@10"
    gamma: float | None = None
    gammas: tuple[float, ...] = GAMMAS
    rule: Rule = "curve"
    solver: Solver = "closed-form"
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("variant", self.variant, ("n", "m")),
            ("rule", self.rule, ("curve", "nudge-ft")),
            ("solver", self.solver, ("closed-form", "nudge-ft")),
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
        if self.folds < 2:
            raise ValueError(f"cross-validation needs at least 2 folds, not {self.folds}")


@dataclass(frozen=True, kw_only=True)
class NudgeReport:
    """What a nudge did.

    `curve` maps each γ tried to the metric on the queries that chose it (`chosen_by`: "dev",
    "cross-validation", or "fixed", where the curve is empty). `touched` documents answer a training
    query, `moved` of them are stored elsewhere now; `distances`, float32 (touched,), are the
    Euclidean distances between old and new vectors scaled to a base of length one. `dropped` counts
    queries without a relevant document, which the datasets left out.
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
    seconds: float
    distances: Floats = field(repr=False)
    folder: StateFolder = field(repr=False)

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
) -> NudgeReport:
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
    if folder.state is not None and folder.state.fingerprint != encoder.fingerprint:
        raise ValueError(
            "this index was nudged with another encoder (its fingerprint differs): undo that nudge "
            "with its state, or nudge with the same encoder"
        )
    check_relevant_are_stored(index, *((train,) if dev is None else (train, dev)))
    queries = encoder.encode_queries(list(train.queries.values()))  # (n_train, dimension)
    dev_queries = None if dev is None else encoder.encode_queries(list(dev.queries.values()))
    folder.undo(index)

    touched = list(dict.fromkeys(d for found in train.relevant_docs.values() for d in found))
    rows = {id_: row for row, id_ in enumerate(touched)}
    base = index.vectors(touched)  # (n_touched, dimension)
    check_vectors(touched, base, Metric.COSINE)
    _check_unit(touched, base, index.metric)
    planned = NudgeState(
        phase="applying",
        variant=config.variant,
        gamma=0.0 if config.gamma is None else config.gamma,
        metric=index.metric.value,
        fingerprint=encoder.fingerprint,
        document_ids=touched,
        content_sha256=content_hashes([train.corpus[id_] for id_ in touched]),
        query_ids=list(train.queries),
        answers=[[rows[id_] for id_ in found] for found in train.relevant_docs.values()],
        base=base,
        queries=queries,
    )
    curve: dict[float, float] = {}
    chosen_by = "fixed"
    if config.solver == "nudge-ft":
        gamma, targets = _reference(index, planned, dev, dev_queries, config.gamma)
        planned = replace(planned, gamma=gamma)
        chosen_by = chosen_by if config.gamma is not None else "nudge-ft"
    else:
        if config.gamma is None:
            gamma, curve = _choose(index, planned, train, dev, dev_queries, config)
            planned = replace(planned, gamma=gamma)
            chosen_by = "cross-validation" if dev is None else "dev"
        targets = planned.targets()
    distances = np.linalg.norm(targets - base, axis=1) / np.linalg.norm(base, axis=1)
    moved = int((distances > _MOVED).sum())
    if moved:
        folder.apply(planned, targets, index)
    return NudgeReport(
        gamma=planned.gamma,
        variant=config.variant,
        metric=config.metric,
        chosen_by=chosen_by,
        curve=curve,
        queries=len(train),
        touched=len(touched),
        moved=moved,
        dropped=train.dropped + (0 if dev is None else dev.dropped),
        seconds=perf_counter() - begun,
        distances=distances,
        folder=folder,
    )


def _choose(
    index: VectorIndex,
    planned: NudgeState,
    train: RetrievalDataset,
    dev: RetrievalDataset | None,
    dev_queries: Floats | None,
    config: NudgeConfig,
) -> tuple[float, dict[float, float]]:
    """Return the best γ, the smallest of equals, and the curve it was chosen from."""
    make = Turn if config.variant == "n" else Shift
    gammas, metric = config.gammas, config.metric
    if config.rule == "nudge-ft":
        gammas, metric = NUDGE_FT_GAMMAS, "recall@1"
    if dev is None or dev_queries is None:
        if config.rule == "nudge-ft" and config.variant == "m":
            raise ValueError('rule="nudge-ft" for variant "m" has no cross-validation: give dev')
        judges = Judges(index, planned.queries, train.relevant_docs, planned.document_ids, metric)
        values = cross_validated(
            judges, make, planned.base, planned.answers, gammas, config.folds, config.seed
        )
    else:
        judges = Judges(index, dev_queries, dev.relevant_docs, planned.document_ids, metric)
        moves = make.of(planned.base, planned.sums)
        if config.rule == "nudge-ft" and isinstance(moves, Shift):
            return judges.most_answers_first(moves), {}
        values = judges.values(moves, gammas, range(len(dev)))
    means = values.mean(axis=1)  # (n_gammas,)
    curve = {gamma: float(mean) for gamma, mean in sorted(zip(gammas, means, strict=True))}
    return max(curve, key=lambda gamma: (curve[gamma], -gamma)), curve


def _reference(
    index: VectorIndex,
    planned: NudgeState,
    dev: RetrievalDataset | None,
    dev_queries: Floats | None,
    gamma: float | None,
) -> tuple[float, Floats]:
    """Return γ and the targets as `nudge-ft` computes them, float32 (n_touched, dimension)."""
    from nudge import NUDGEM, NUDGEN

    if dev is None or dev_queries is None:
        raise ValueError('solver="nudge-ft" needs a dev set')
    relevant = [id_ for found in dev.relevant_docs.values() for id_ in found]
    inside = list(dict.fromkeys([*planned.document_ids, *relevant]))
    rows = {id_: row for row, id_ in enumerate(inside)}
    outside = [id_ for batch in index.ids() for id_ in batch if id_ not in rows]
    solver = NUDGEN("cpu") if planned.variant == "n" else NUDGEM("cpu")
    with contextlib.redirect_stdout(io.StringIO()):  # it reports to standard output
        vectors = solver.finetune_embeddings(
            index.vectors(inside),
            {"q_embs": planned.queries, "q_ans_indx": planned.answers},
            {
                "q_embs": dev_queries,
                "q_ans_indx": [
                    [rows[id_] for id_ in found] for found in dev.relevant_docs.values()
                ],
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


def _check_unit(ids: Sequence[str], vectors: Floats, metric: Metric) -> None:
    """NUDGE is derived for unit vectors; under the cosine their length does not matter."""
    if metric is Metric.COSINE:
        return
    off = np.abs(np.linalg.norm(vectors, axis=1) - 1)
    if off.max() > _UNIT:
        raise ValueError(
            f"the vector of document {ids[int(off.argmax())]!r} has length "
            f"{np.linalg.norm(vectors[off.argmax()]):.3f}: NUDGE on an index that ranks by the "
            f"{metric} needs vectors of length one; store normalised vectors"
        )
