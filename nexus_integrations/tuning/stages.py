"""Heads, NUDGE, questions on passages, weight: each judged, and kept where it helps."""

from pathlib import Path
from time import perf_counter

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.evaluation import METRICS, check_relevant_are_stored, evaluate
from nexus_integrations.lexical import LexicalIndex
from nexus_integrations.nudge import NudgeConfig, StateFolder, nudge_index
from nexus_integrations.protocols import Encoder, VectorIndex
from nexus_integrations.retrievers import DenseRetriever, HybridRetriever
from nexus_integrations.retrievers.dense import check_fits
from nexus_integrations.retrievers.hybrid import check_same_corpus
from nexus_integrations.tuning.config import TuneConfig
from nexus_integrations.tuning.judge import Judging, with_query_head
from nexus_integrations.tuning.overlay import remembering
from nexus_integrations.tuning.result import NUDGE, WORDS, TuneRecord, TuneResult, retriever_of

_LEAST = 10  # questions


def tune(
    index: VectorIndex,
    encoder: Encoder,
    train: RetrievalDataset,
    dev: RetrievalDataset | None = None,
    config: TuneConfig | None = None,
    *,
    lexical: LexicalIndex | None = None,
    state_dir: str | Path | None = None,
    test: RetrievalDataset | None = None,
) -> TuneResult:
    """Fit a retriever over vectors and words to questions with their passages.

    `encoder` is the one that filled the index; one that is no `DendriticEncoder` gets no heads.
    Without `lexical` the words are those of the datasets' corpora. The stages are heads for
    questions, NUDGE of the stored vectors, the words of questions on the passages that they answer,
    and the weight between vectors and words. Each is judged on questions that did not choose it,
    and left out where it does not help; what is kept is fitted once more on all questions of
    `train` and `dev`. Nothing is written to the index or the words before all is judged.

    `state_dir` keeps what undoes the nudge, heads as they are trained, and the words where
    `lexical` is not given. A call with equal arguments after one that was interrupted finds the
    heads that were trained, and does the rest again from the state before. Without it the state
    lives as long as the result. `test` questions are asked before and after, and decide nothing.

    Raises `ImportError` when a library is missing, `ValueError` for fewer than ten questions, a
    relevant passage that the index or the words lack, the words of another corpus, and as
    `finetune` and `nudge_index` do.
    """
    begun = perf_counter()
    config = config or TuneConfig()
    folder = None if state_dir is None else Path(state_dir)
    if folder is not None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_fits(index, encoder)
    known = (train,) if dev is None else (train, dev)
    check_relevant_are_stored(index, *known)
    questions = train if dev is None else train.joined(dev)
    if len(questions) < _LEAST:
        raise ValueError(
            f"{len(questions)} questions are too few to fit and to judge with: give at least "
            f"{_LEAST}"
        )
    lexical = _words(index, lexical, questions, folder, config)
    state = StateFolder(None if folder is None else folder / NUDGE)
    state.undo(index)  # of a call that was interrupted, or an earlier one
    if lexical is not None:
        lexical.forget(lexical.learned & questions.queries.keys())
    job = Judging(index, remembering(encoder), questions, lexical, folder, config)
    metrics = list(dict.fromkeys([*METRICS, config.metric]))
    evaluations = {}
    if test is not None:
        evaluations["before"] = evaluate(DenseRetriever(index, encoder), test, metrics=metrics)
    verdict = job.verdict(train, dev)
    kept = {stage.name for stage in verdict.stages if stage.kept}
    tuned = encoder
    if "heads" in kept:
        tuned = with_query_head(encoder, job.head(train, dev, last=True))
    if "nudge" in kept:
        fixed = NudgeConfig(gamma=verdict.gamma)
        nudge_index(index, tuned, questions, config=fixed, state_dir=state)
    if lexical is not None and "questions" in kept:
        lexical.learn(questions.queries, questions.relevant_docs)
    retriever = retriever_of(index, tuned, lexical, verdict.weight)
    if test is not None:
        evaluations["after"] = evaluate(retriever, test, metrics=metrics)
    record = TuneRecord(
        metric=config.metric,
        stages=verdict.stages,
        weight=verdict.weight,
        gamma=verdict.gamma if "nudge" in kept else 0.0,
        questions=len(questions),
        judged=verdict.judged,
        judged_by=verdict.judged_by,
        encoder=tuned.fingerprint,
        corpus="" if lexical is None else lexical.corpus,
        coverage=retriever.coverage() if isinstance(retriever, HybridRetriever) else None,
        learned=sorted(questions.queries) if "questions" in kept else [],
        seconds=perf_counter() - begun,
    )
    return TuneResult(
        retriever=retriever, record=record, lexical=lexical, nudge=state, evaluations=evaluations
    )


def _words(
    index: VectorIndex,
    lexical: LexicalIndex | None,
    questions: RetrievalDataset,
    folder: Path | None,
    config: TuneConfig,
) -> LexicalIndex | None:
    """Return the words to tune with, made of the corpus where none are given."""
    if not config.words:
        if lexical is not None:
            raise ValueError("words=False leaves words out: give no lexical index with it")
        return None
    if lexical is None:
        lexical = LexicalIndex(None if folder is None else folder / WORDS, language=config.language)
        lexical.refresh(questions.corpus)
    elif config.language not in (None, lexical.language):
        raise ValueError(
            f"the words given were indexed as {lexical.language}, not {config.language}: leave "
            "`language` out"
        )
    check_same_corpus(index, lexical)
    answers = {id_ for found in questions.relevant_docs.values() for id_ in found}
    missing = lexical.missing(sorted(answers))
    if missing:
        raise ValueError(
            f"passage {min(missing)!r}, relevant to a question, is not in the lexical index "
            f"({len(missing)} such passages): fill it with the whole corpus first"
        )
    return lexical
