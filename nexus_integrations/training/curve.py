"""How many questions to write: the gain against the number of training questions."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.evaluation import Comparison, Evaluation, compare, evaluate
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.nudge import NudgeConfig, nudge_index
from nexus_integrations.protocols import VectorIndex
from nexus_integrations.retrievers import DenseRetriever
from nexus_integrations.training.config import FinetuneConfig
from nexus_integrations.training.finetune import finetune

SIZES = (25, 50, 100, 250, 500, 1000)
"""Numbers of training questions, unless told otherwise."""

_DEV_SHARE = 0.15
_BATCH = 8192


def learning_curve(
    encoder: DendriticEncoder,
    train: RetrievalDataset,
    dev: RetrievalDataset | None = None,
    *,
    test: RetrievalDataset,
    sizes: Sequence[int] = SIZES,
    config: FinetuneConfig | None = None,
    index: VectorIndex | None = None,
    seeds: Sequence[int] = (0,),
) -> dict[int, Comparison]:
    """Return what fine-tuning and then NUDGE-N gain on `test`, by number of training questions.

    A `Report` draws it as its `learning_curve`. The questions of a smaller size are among those of
    a larger one, in an order drawn by each seed, and each seed trains by `config`; a comparison is
    of each question's mean over the seeds. A size above the number of questions is replaced by all
    of them. Without `dev` a share of .15 of the questions of a size is held out to choose by, and
    is counted with them. With `index`, which the encoder filled and no nudge has moved, no passage
    is embedded again; it is read whole and not changed.

    Raises `ValueError` for a size below 2, for an encoder that has heads, for a trainable backbone,
    and what `finetune` raises.
    """
    config = config or FinetuneConfig()
    wanted = sorted({min(size, len(train)) for size in sizes})
    if not wanted or wanted[0] < 2:
        raise ValueError(f"a training set has at least 2 questions, got the sizes {list(sizes)}")
    if config.backbone == "trainable":
        raise ValueError(
            "a learning curve is of heads on stored vectors: a trained backbone would have to "
            'embed all passages anew for each point; leave backbone at "frozen"'
        )
    if encoder.query_head is not None or encoder.document_head is not None:
        raise ValueError("the encoder has heads already: begin with the one without")
    plain = _copy(encoder, train, index)
    before = evaluate(DenseRetriever(plain, encoder), test)
    curve = {}
    for size in wanted:
        runs = []
        for seed in seeds:
            order = np.random.default_rng(seed).permutation(list(train.queries)).tolist()
            some = train.subset(order[:size])
            runs.append(_tuned(encoder, some, dev, test, replace(config, seed=seed), plain))
        curve[size] = compare(before, _mean(runs))
    return curve


def _tuned(
    encoder: DendriticEncoder,
    train: RetrievalDataset,
    dev: RetrievalDataset | None,
    test: RetrievalDataset,
    config: FinetuneConfig,
    plain: MemoryIndex,
) -> Evaluation:
    if dev is None:
        by = config.split_by or "query"
        train, dev = train.split(1 - _DEV_SHARE, _DEV_SHARE, by=by, seed=config.seed)
        config = replace(config, split_by=None)
    result = finetune(encoder, train, dev, config, index=plain)
    tuned = result.encoder
    index = _copy(encoder, train, plain)
    if tuned.document_head is not None:
        ids = [id_ for batch in index.ids() for id_ in batch]
        index.replace(ids, tuned.document_head.transform(index.vectors(ids)))
    if config.refit:  # dev was trained on: γ is the one found before that
        gamma = NudgeConfig(gamma=result.gamma)
        nudge_index(index, tuned, train.joined(dev), config=gamma)
    else:
        nudge_index(index, tuned, train, dev)
    return evaluate(DenseRetriever(index, tuned), test)


def _copy(
    encoder: DendriticEncoder, train: RetrievalDataset, index: VectorIndex | None
) -> MemoryIndex:
    """Return the documents' vectors as an index of its own, ranked by the cosine."""
    if index is None:
        texts = list(train.corpus.values())
        return MemoryIndex(list(train.corpus), encoder.encode_documents(texts))
    ids = [id_ for batch in index.ids() for id_ in batch]
    parts = [index.vectors(ids[start : start + _BATCH]) for start in range(0, len(ids), _BATCH)]
    return MemoryIndex(ids, np.concatenate(parts))


def _mean(runs: Sequence[Evaluation]) -> Evaluation:
    """Return the evaluation whose value of each question is its mean over the runs."""
    per_query = {
        metric: np.mean([run.per_query[metric] for run in runs], axis=0)
        for metric in runs[0].per_query
    }
    means = {metric: float(values.mean()) for metric, values in per_query.items()}
    return replace(runs[0], metrics=means, per_query=per_query)
