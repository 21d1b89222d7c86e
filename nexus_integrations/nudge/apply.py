"""Nudge an index: read the touched vectors, choose γ, judge, record, and only then write."""

from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.evaluation import check_relevant_are_stored
from nexus_integrations.index.checks import check_vectors
from nexus_integrations.nudge.config import NudgeConfig
from nexus_integrations.nudge.gamma import Choice, Queries, choose, judged_gain
from nexus_integrations.nudge.life import StateFolder
from nexus_integrations.nudge.reference import reference
from nexus_integrations.nudge.result import MOVED, NudgeResult, lengths_of_moves
from nexus_integrations.nudge.state import NudgeState, Variant, content_hashes
from nexus_integrations.nudge.state_files import RESULT
from nexus_integrations.nudge.stored import check_unit, present_rows, same_rows
from nexus_integrations.protocols import Encoder, Floats, Metric, VectorIndex
from nexus_integrations.retrievers.dense import check_fits


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
    is written to `state_dir` before the index is; without it the state lives as long as the result.
    An index that this state nudged already is judged and nudged from its base vectors again;
    questions that were observed since stay in, and those that were forgotten stay out. A nudge that
    is not kept leaves everything as it was, an earlier nudge too.

    Raises `ValueError` before anything is written: for a relevant document that is not in the
    index, vectors that do not fit or cannot be ranked, NUDGE-M on an index that does not rank by
    the dot product, and a state of another encoder or of another store.
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
        folder.finish(index)
        folder.check_store(index)
        planned = _planned(index, encoder, train, queries, config, folder)
        result = _carry_out(index, planned, judging, config, folder)
        return replace(
            result,
            dropped=train.dropped + (0 if dev is None else dev.dropped),
            forgotten=len(folder.forgotten_among(train.queries)),
            seconds=perf_counter() - begun,
        )


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
        folder.check_store(index)
        config = replace(config or NudgeConfig(), variant=folder.state.variant)
        _check_encoder(folder, encoder)
        _check_dev(config, dev)
        if dev is not None:
            check_relevant_are_stored(index, dev)
        judging = None if dev is None else _encoded(encoder, dev)
        present = present_rows(
            folder.state.document_ids, index, range(len(folder.state.document_ids))
        )
        result = _carry_out(index, folder.state.with_documents(present), judging, config, folder)
        return replace(result, seconds=perf_counter() - begun)


def _planned(
    index: VectorIndex,
    encoder: Encoder,
    train: RetrievalDataset,
    queries: Floats,
    config: NudgeConfig,
    folder: StateFolder,
) -> NudgeState:
    """Return the state that this nudge would leave, γ aside.

    Documents that an earlier nudge moved are in it, so that every γ sees them at rest.
    """
    forgotten = folder.forgotten_among(train.queries)
    kept = [row for row, id_ in enumerate(train.queries) if id_ not in forgotten]
    names = list(train.queries)
    relevant = list(train.relevant_docs.values())
    touched = list(dict.fromkeys(d for row in kept for d in relevant[row]))
    if not touched:
        raise ValueError(f"all {len(names)} training questions were forgotten in this state")
    rows = {id_: row for row, id_ in enumerate(touched)}
    base = index.vectors(touched)
    check_vectors(touched, base, Metric.COSINE)
    planned = NudgeState(
        phase="applying",
        variant=config.variant,
        gamma=0.0 if config.gamma is None else config.gamma,
        metric=index.metric.value,
        fingerprint=encoder.fingerprint,
        document_ids=touched,
        content_sha256=content_hashes([train.corpus[id_] for id_ in touched]),
        query_ids=[names[row] for row in kept],
        answers=[[rows[id_] for id_ in relevant[row]] for row in kept],
        base=base,
        queries=queries[kept],
    )
    if folder.state is not None:
        planned = _over(folder.state, planned, index)
    check_unit(planned.document_ids, planned.base, index.metric)
    return planned


def _over(earlier: NudgeState, planned: NudgeState, index: VectorIndex) -> NudgeState:
    """Return the plan over an earlier nudge: from its base vectors, with what it observed."""
    hashes = dict(zip(earlier.document_ids, earlier.content_sha256, strict=True))
    others = [id_ for id_ in earlier.document_ids if id_ not in planned.rows]
    gone = index.missing(others)
    others = [id_ for id_ in others if id_ not in gone]
    ids = [*planned.document_ids, *others]
    base = index.vectors(ids)
    known = [row for row, id_ in enumerate(ids) if id_ in earlier.rows]
    before = [earlier.rows[ids[row]] for row in known]
    ours = same_rows(base[known], earlier.targets()[before])
    # Any other vector was embedded anew: it is the document's base now.
    for row, place, own in zip(known, before, ours.tolist(), strict=True):
        if own:
            base[row] = earlier.base[place]
    plan = replace(
        planned,
        document_ids=ids,
        base=base,
        content_sha256=[*planned.content_sha256, *(hashes[id_] for id_ in others)],
    )
    return _with_observed(plan, earlier)


def _with_observed(plan: NudgeState, earlier: NudgeState) -> NudgeState:
    """Add the observed questions of an earlier nudge that the plan does not have."""
    observed = set(earlier.observed_ids) - set(plan.query_ids)
    numbers = [row for row, id_ in enumerate(earlier.query_ids) if id_ in observed]
    answers = [
        [
            plan.rows[earlier.document_ids[row]]
            for row in earlier.answers[number]
            if earlier.document_ids[row] in plan.rows
        ]
        for number in numbers
    ]
    kept = [place for place, found in enumerate(answers) if found]
    names = [earlier.query_ids[numbers[place]] for place in kept]
    vectors = earlier.queries[[numbers[place] for place in kept]]
    return replace(
        plan,
        query_ids=[*plan.query_ids, *names],
        answers=[*plan.answers, *(answers[place] for place in kept)],
        queries=np.concatenate([plan.queries, vectors]),
        observed_ids=names,
    )


def _carry_out(
    index: VectorIndex,
    planned: NudgeState,
    dev: Queries | None,
    config: NudgeConfig,
    folder: StateFolder,
) -> NudgeResult:
    """Choose γ where it is not given, judge, write, and tell."""
    choice, chosen_by, targets = Choice(config.gamma or 0.0, {}, None), "fixed", None
    gain, interval, better = None, None, True
    if config.solver == "nudge-ft":
        gamma, targets = reference(index, planned, dev, config.gamma)
        choice = Choice(gamma, {}, None)
        chosen_by = chosen_by if config.gamma is not None else "nudge-ft"
    elif config.gamma is None:
        choice = choose(index, planned, dev, config)
        chosen_by = "cross-validation" if dev is None else "dev"
        if choice.values is not None:
            gain, interval = judged_gain(choice.values, config)
            bound = gain if config.confidence is None else interval[0]
            better = bound > 0 or config.keep == "always"
    planned = replace(planned, gamma=choice.gamma)
    targets = planned.targets() if targets is None else targets
    distances = lengths_of_moves(planned.base, targets)
    moved = int((distances > MOVED).sum())
    written = better and moved > 0 and not config.dry_run
    if written:
        folder.apply(planned, targets, index)
    result = NudgeResult(
        gamma=choice.gamma,
        variant=config.variant,
        metric=config.judged_by,
        chosen_by=chosen_by,
        curve=choice.curve,
        queries=len(planned.query_ids),
        touched=len({row for found in planned.answers for row in found}),
        moved=moved if written or config.dry_run else 0,
        gain=gain,
        interval=interval,
        written=written,
        approximate=bool(choice.curve) and index.approximate,
        fingerprint=planned.fingerprint,
        distances=distances,
        folder=folder,
    )
    untouched = folder.state is None and not config.dry_run  # so that a report can tell why
    if folder.folder is not None and (written or untouched):
        result.save(folder.folder / RESULT)
    return result


def _encoded(encoder: Encoder, dataset: RetrievalDataset) -> Queries:
    vectors = encoder.encode_queries(list(dataset.queries.values()))
    return Queries(vectors, dataset.relevant_docs)


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
