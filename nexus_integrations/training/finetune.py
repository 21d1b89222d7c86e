"""Fine-tuning: from an encoder and datasets to a tuned encoder and its numbers."""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch  # noqa: F401  (first, so that the extra `train` is named where it is missing)

from nexus_integrations.data import RetrievalDataset, SimilarityDataset, near_duplicates
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.encoder.head import DendriticHead
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.nudge.gamma import Judges
from nexus_integrations.nudge.solver import GAMMAS, Turn, query_sums
from nexus_integrations.protocols import VectorIndex
from nexus_integrations.training.averaging import averaged
from nexus_integrations.training.checkpoint import Checkpoint
from nexus_integrations.training.config import FinetuneConfig, HeadsKind
from nexus_integrations.training.growing import require_perforatedai
from nexus_integrations.training.heads import Heads
from nexus_integrations.training.objectives import Objective, RetrievalObjective
from nexus_integrations.training.prepare import prepare
from nexus_integrations.training.result import Epoch, FinetuneResult
from nexus_integrations.training.trained import Trained

Dataset = RetrievalDataset | SimilarityDataset

_DEV_SHARE = 0.15


def finetune(
    encoder: DendriticEncoder,
    train: Dataset,
    dev: Dataset | None = None,
    config: FinetuneConfig | None = None,
    *,
    index: VectorIndex | None = None,
    checkpoint_dir: str | Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> FinetuneResult:
    """Train heads for `encoder` and return it with them; the encoder given is not changed.

    Training starts from the backbone's vectors: heads that the encoder has on the trained side are
    replaced. With `index`, which this encoder filled and no nudge has moved, the documents' vectors
    are read from there and no passage is embedded again; otherwise the corpus is embedded here.
    Without `dev` a share of .15 of the training set is split off, by query or, with
    `split_by="document"`, so that no dev query's document was trained on. When no epoch beats the
    untrained heads on dev, the heads stay untrained.

    With `checkpoint_dir` the state after every epoch is kept there, with the best epoch's weights
    and `metrics.json`, of averaged runs in a folder each. Called again with equal arguments,
    training resumes after the last epoch and ends with equal weights. Growing dendrites on a frozen
    backbone takes seconds and cannot be resumed.

    `on_epoch` is called after every epoch, for a progress display or a logger.

    Raises `ImportError` when dendrites are asked for and perforatedai is missing, `RuntimeError`
    when growth fails, `TypeError` for datasets of two kinds, `ValueError` for a setting or argument
    that this training does not have, for a single query, for passages of one vector, for sentence
    pairs of equal scores, whose rank correlation is undefined, and for a checkpoint of another run.
    Where memory is short for a corpus, training continues against a sample of it, with a warning.
    """
    pairs = isinstance(train, SimilarityDataset)
    config = (config or FinetuneConfig()).resolved("pairs" if pairs else "questions")
    if checkpoint_dir is not None and config.dendrites and config.backbone == "frozen":
        raise ValueError(
            "checkpoint_dir: growing dendrites on a frozen backbone takes seconds and cannot be "
            "resumed: leave it out, or train with dendrites=0"
        )
    if config.dendrites:
        require_perforatedai()
    train, dev, dev_source, config = _with_dev(train, dev, config)
    begun = perf_counter()
    objective = prepare(encoder, train, dev, config, index)
    kind = config.heads or "shared"
    dropped = repeated = 0
    if isinstance(train, RetrievalDataset) and isinstance(dev, RetrievalDataset):
        dropped, repeated = train.dropped + dev.dropped, len(near_duplicates(train, dev))
    embedded = perf_counter()
    baseline = objective.score(Heads(objective.dimension, kind))
    checkpoint = None
    if checkpoint_dir is not None:
        checkpoint = Checkpoint(Path(checkpoint_dir), _identity(encoder, train, dev, config))
    untrained = Trained.untrained(objective, 2 if kind == "separate" else 1)
    objective, trained, history = _trained(
        objective, config, untrained, checkpoint=checkpoint, on_epoch=on_epoch
    )
    score = max(epoch.score for epoch in history)
    if config.average > 1:
        score = _score(objective, trained, kind)
    if not score > baseline:
        trained, score = untrained, baseline
    gamma = _best_gamma(objective, trained.heads, kind)
    if config.refit and score > baseline:
        trained, _ = averaged(
            objective.with_dev_in_train(),
            config,
            untrained.tower,
            dendrites=trained.dendrites,
            dev_chooses=False,
        )
    tuned = _with_trained(encoder, objective, trained, kind)
    return FinetuneResult.of(
        tuned,
        metric="spearman" if pairs else "ndcg@10",
        baseline_score=baseline,
        score=score,
        dendrites=trained.dendrites,
        gamma=gamma,
        dev_source=dev_source,
        dropped=dropped,
        repeated=repeated,
        seconds=perf_counter() - embedded,
        embedding_seconds=embedded - begun,
        fingerprint=tuned.fingerprint,
        document_fingerprint=tuned.document_fingerprint,
        config=config,
        history=history,
    )


def _with_dev(
    train: Dataset, dev: Dataset | None, config: FinetuneConfig
) -> tuple[Dataset, Dataset, str, FinetuneConfig]:
    """Split dev off where none is given; tell where it came from."""
    if dev is not None:
        if config.split_by is not None:
            raise ValueError(
                f"split_by={config.split_by!r} changes nothing where dev is given: leave one out"
            )
        return train, dev, "given", config
    how = f"share {_DEV_SHARE}"
    if isinstance(train, RetrievalDataset):
        config = replace(config, split_by=config.split_by or "query")
        by = config.split_by or "query"
        kept, dev = train.split(1 - _DEV_SHARE, _DEV_SHARE, by=by, seed=config.seed)
        source = f"split off from the training set by {by}, {how}"
        return replace(kept, dropped=train.dropped), dev, source, config
    order = np.random.default_rng(config.seed).permutation(len(train)).tolist()
    size = max(2, round(_DEV_SHARE * len(train)))
    source = f"split off from the training set by pair, {how}"
    return train.subset(order[size:]), train.subset(order[:size]), source, config


def _trained(
    objective: Objective,
    config: FinetuneConfig,
    untrained: Trained,
    *,
    checkpoint: Checkpoint | None,
    on_epoch: Callable[[Epoch], None] | None,
) -> tuple[Objective, Trained, list[Epoch]]:
    """Train, against fewer passages where memory is short; return what was trained, and on what."""
    while True:
        try:
            return objective, *averaged(
                objective,
                config,
                untrained.tower,
                dendrites=config.dendrites,
                checkpoint=checkpoint,
                on_epoch=on_epoch,
            )
        except (MemoryError, RuntimeError) as error:
            smaller = _smaller(objective, config.seed, error)
            if smaller is None:
                raise
            objective = smaller


def _smaller(objective: Objective, seed: int, error: Exception) -> RetrievalObjective | None:
    """Return the objective with a quarter of the passages, if memory was what training lacked.

    Kept are all answers and a random sample of the others. None where nothing can be left out.
    """
    # PyTorch's allocator raises RuntimeError, also across the border to the growing child.
    lacking = isinstance(error, MemoryError) or "allocate memory" in str(error)
    if not lacking or not isinstance(objective, RetrievalObjective):
        return None
    count = len(objective.documents)
    smaller = objective.sampled(count // 4, seed)
    if len(smaller.documents) == count:
        return None
    warnings.warn(
        f"memory was short for {count} passages in the loss: training continues against "
        f"{len(smaller.documents)}, all answers and a random sample of the others. The dev score "
        "is over these alone",
        UserWarning,
        stacklevel=4,
    )
    return smaller


def _score(objective: Objective, trained: Trained, kind: HeadsKind) -> float:
    """Return the dev score of linear heads, and of the backbone trained with them."""
    if objective.tower is not None:
        objective.tower.load_state_dict(trained.tower)
    return objective.score(Heads.linear(trained.heads, kind))


def _best_gamma(
    objective: Objective, heads: Sequence[DendriticHead], kind: HeadsKind
) -> float | None:
    """Return the γ that serves the dev queries best, the smallest of equals."""
    if not isinstance(objective, RetrievalObjective):
        return None
    documents = objective.documents.numpy()
    if kind != "query":
        documents = heads[-1].transform(documents)
    index = MemoryIndex([str(row) for row in range(len(documents))], documents)
    query, document = objective.answers.numpy().T
    touched, entry = np.unique(document, return_inverse=True)
    answers: list[list[int]] = [[] for _ in objective.queries]
    for row, place in zip(query.tolist(), entry.tolist(), strict=True):
        answers[row].append(place)
    sums = query_sums(heads[0].transform(objective.queries.numpy()), answers, len(touched))
    relevant: dict[str, list[str]] = {}
    for row, found in objective.dev_answers.tolist():
        relevant.setdefault(str(row), []).append(str(found))
    judges = Judges(
        index,
        heads[0].transform(objective.dev_queries.numpy()),
        relevant,
        [str(row) for row in touched],
        "ndcg@10",
    )
    means = judges.values(Turn.of(documents[touched], sums), GAMMAS, range(len(relevant)))
    return GAMMAS[int(means.mean(axis=1).argmax())]


def _with_trained(
    encoder: DendriticEncoder, objective: Objective, trained: Trained, kind: HeadsKind
) -> DendriticEncoder:
    heads = trained.heads
    if objective.tower is not None:
        objective.tower.load_state_dict(trained.tower)
        backbone = objective.tower.backbone()
        return DendriticEncoder(backbone, query_head=heads[0], document_head=heads[-1])
    document_head = encoder.document_head if kind == "query" else heads[-1]
    return encoder.with_heads(query_head=heads[0], document_head=document_head)


def _identity(
    encoder: DendriticEncoder, train: Dataset, dev: Dataset, config: FinetuneConfig
) -> str:
    """Return a SHA-256, in hex, of all that the trained weights depend on."""
    settings = json.dumps(asdict(config))
    parts = [encoder.fingerprint, train.digest, dev.digest, settings]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
