"""Fine-tuning: embed every text once, train heads on the vectors, return an encoder with them."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from nexus_integrations.data import RetrievalDataset, SimilarityDataset, near_duplicates
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.encoder.head import DendriticHead
from nexus_integrations.evaluation import check_relevant_are_stored
from nexus_integrations.index.checks import check_vectors
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.nudge.gamma import Judges
from nexus_integrations.nudge.solver import GAMMAS, Turn, query_sums
from nexus_integrations.progress import progress_bar
from nexus_integrations.protocols import Floats, Metric, VectorIndex
from nexus_integrations.retrievers.dense import check_fits
from nexus_integrations.training.checkpoint import Checkpoint
from nexus_integrations.training.fit import Keep, Schedule, Trained, fit_linear
from nexus_integrations.training.heads import Heads, HeadsKind
from nexus_integrations.training.losses import LOSSES, Loss
from nexus_integrations.training.objectives import (
    Objective,
    RetrievalObjective,
    SimilarityObjective,
)
from nexus_integrations.training.perforated import grow, require_perforatedai
from nexus_integrations.training.record import Epoch, TrainingRecord

if TYPE_CHECKING:
    from nexus_integrations.training.texts import TextRetrievalObjective, TextSimilarityObjective

# Above this many passages the softmax runs over mined negatives instead of the whole corpus.
_POOL = 50_000
_NEGATIVES = 50
_QUERY_BATCH = 256
_DEV_SHARE = 0.15


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How to train heads. Raises `ValueError` on construction for values outside their range.

    `backbone`: "frozen" trains heads on vectors embedded once; "trainable" trains all weights, of
    heads and backbone, on the texts: minutes instead of seconds, and every document is embedded
    anew afterwards. `heads`: "query" maps queries alone, so that stored document vectors stay
    valid; "shared" maps both roles by one head; "separate" gives each role its own. `dendrites`
    is how many perforatedai may grow, one per cycle of `epochs` while the dev score rises; 0 trains
    a linear head without it.
    `tries` is how many random starts a dendrite gets before growth ends. `warmup_epochs` is the
    length of the cycle before the first dendrite, where it differs.

    A cycle is AdamW with `learning_rate` warmed up over its first tenth and falling linearly to
    zero (with `decay` False it stays as it is), in batches of `batch_size` queries (or sentence
    pairs); a trained backbone has its own `backbone_learning_rate` and, with `dropout`, that of its
    architecture, which takes half as long again. `loss` is that of sentence pairs, see
    `similarity_loss`. `scale` is the inverse temperature of every softmax; `anchor`
    weighs the squared change of vectors, in the loss; `gamma` is the γ of the NUDGE-N that training
    expects to follow (0: none). Both are of a frozen backbone alone. With `refit` heads of the size
    that dev chose are trained once more, on train and dev together. `average` is how many runs, of
    the seeds from `seed` on, are averaged weight by weight (model soups, Wortsman et al., 2022): of
    linear heads, since dendrites of two runs have no order in common.

    The defaults were chosen by cross-validation over the train and dev queries of two corpora.
    """

    backbone: Literal["frozen", "trainable"] = "frozen"
    heads: HeadsKind = "query"
    dendrites: int = 3
    tries: int = 2
    epochs: int = 12
    warmup_epochs: int | None = None
    loss: Loss = "cosent"
    learning_rate: float = 1e-3
    backbone_learning_rate: float = 2e-5
    dropout: bool = False
    decay: bool = True
    batch_size: int = 64
    weight_decay: float = 0.0
    scale: float = 25.0
    anchor: float = 0.5
    gamma: float = 0.02
    refit: bool = False
    average: int = 1
    split_by: str = "query"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.heads not in ("query", "shared", "separate"):
            raise ValueError(f"heads must be 'query', 'shared' or 'separate', not {self.heads!r}")
        if self.split_by not in ("query", "document"):
            raise ValueError(f"split_by must be 'query' or 'document', not {self.split_by!r}")
        if self.backbone not in ("frozen", "trainable"):
            raise ValueError(f"backbone must be 'frozen' or 'trainable', not {self.backbone!r}")
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, not {self.loss!r}")
        if self.warmup_epochs is not None and self.warmup_epochs < 1:
            raise ValueError(f"warmup_epochs must be at least 1, not {self.warmup_epochs}")
        for name, least in (
            ("dendrites", 0),
            ("tries", 1),
            ("epochs", 1),
            ("batch_size", 1),
            ("average", 1),
            ("weight_decay", 0),
            ("anchor", 0),
        ):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("learning_rate", "backbone_learning_rate", "scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.gamma < 4:
            raise ValueError(f"gamma must lie in 0 ≤ γ < 4, not {self.gamma}")
        if self.average > 1 and self.dendrites:
            raise ValueError(
                "dendrites of several runs cannot be averaged: use average with dendrites=0"
            )

    def settings(self) -> dict[str, Any]:
        """Return every setting that has a part in training, by name.

        A frozen backbone has no dropout, and a single run no average.
        """
        found = asdict(self)
        if self.backbone == "frozen":
            del found["dropout"]
        if self.average == 1:
            del found["average"]
        return found


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """A trained encoder and how it came about.

    `history` holds every epoch, of averaged runs one after another; `baseline_score` and `score`
    are the dev score (`metric`: nDCG@10, or Spearman's ρ of sentence pairs) before and after, the
    latter before any refit. `gamma` is the
    γ of a NUDGE-N with the training queries that serves the dev queries best (None for sentence
    pairs and after the backbone was trained): after a refit, which has seen the dev queries, it is
    the one to nudge with. `dev_source` tells where the dev set came from, `repeated` how many dev
    queries nearly equal a training query (see `near_duplicates`; a dev score over such tells less),
    `dropped` how many queries without a relevant document were left out, `seconds` the time of
    training alone and `embedding_seconds` that of embedding the texts.
    """

    encoder: DendriticEncoder
    history: list[Epoch]
    metric: Literal["ndcg@10", "spearman"]
    baseline_score: float
    score: float
    gamma: float | None
    dev_source: str
    dropped: int
    repeated: int
    seconds: float
    embedding_seconds: float

    def save(self, folder: str | Path) -> None:
        """Save the encoder and, beside it, how it was trained: `training.json`, for `nexus report`.

        Raises what `DendriticEncoder.save` raises.
        """
        self.encoder.save(folder)
        TrainingRecord.of(self).save(folder)


def finetune(
    encoder: DendriticEncoder,
    train: RetrievalDataset | SimilarityDataset,
    dev: RetrievalDataset | SimilarityDataset | None = None,
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
    and `metrics.json`, of averaged runs in a folder each; called again with equal arguments,
    training goes on behind the last epoch and ends with equal weights. Growing dendrites on a
    frozen backbone takes seconds and starts again; so does training a backbone on questions.

    `on_epoch` is called after every epoch, as the loggers of `training.loggers` are.

    Raises `ImportError` when dendrites are asked for and perforatedai is missing, `RuntimeError`
    when growth fails, `TypeError` for datasets of two kinds, `ValueError` for a single
    query, for passages of one vector, for sentence pairs of equal scores, whose rank correlation is
    undefined, and for a checkpoint of another run. Where memory is short for a corpus, training
    goes on against a sample of it, with a warning.
    """
    config = config or FinetuneConfig()
    if config.dendrites:
        require_perforatedai()
    dev_source = "given"
    if dev is None:
        dev_source = f"split off from the training set by {config.split_by}, share {_DEV_SHARE}"
        train, dev = _split(train, config)
    begun = perf_counter()
    objective: Objective
    dropped = repeated = 0
    if isinstance(train, RetrievalDataset) and isinstance(dev, RetrievalDataset):
        if config.backbone == "trainable":
            objective = _retrieval_by_texts(encoder, train, dev, config, index)
        else:
            objective = _retrieval(encoder, train, dev, config, index)
        dropped = train.dropped + dev.dropped
        repeated = len(near_duplicates(train, dev))
    elif isinstance(train, SimilarityDataset) and isinstance(dev, SimilarityDataset):
        config = replace(config, heads="shared")  # a pair has no query and document
        objective = _similarity(encoder, train, dev, config)
    else:
        raise TypeError(f"train is a {type(train).__name__}, dev a {type(dev).__name__}")
    embedded = perf_counter()
    start = {} if objective.tower is None else _copied(objective.tower.state_dict())
    baseline = score = objective.score(Heads(objective.dimension, config.heads))
    checkpoint = None
    if checkpoint_dir is not None and objective.kind != "text-retrieval":
        checkpoint = Checkpoint(Path(checkpoint_dir), _identity(encoder, train, dev, config))
    while True:
        try:
            trained, history = _averaged(
                objective, config, start, keep="best", checkpoint=checkpoint, tell=on_epoch
            )
            break
        except (MemoryError, RuntimeError) as error:
            smaller = _smaller(objective, config, error)
            if smaller is None:
                raise
            objective = smaller
    reached = max(epoch.score for epoch in history)
    if config.average > 1:
        reached = _score(objective, trained, config.heads)
    if reached > baseline:
        score = reached
    else:
        untrained = [DendriticHead.untrained(objective.dimension) for _ in trained.heads]
        trained = Trained(heads=untrained, tower=start)
    gamma = _best_gamma(objective, trained.heads, config.heads)
    if config.refit and score > baseline:
        grown = replace(config, dendrites=max(head.dendrites for head in trained.heads))
        trained, _ = _averaged(objective.with_dev_in_train(), grown, start, keep="last")
    return FinetuneResult(
        encoder=_with_trained(encoder, objective, trained, config.heads),
        history=history,
        metric="ndcg@10" if isinstance(train, RetrievalDataset) else "spearman",
        baseline_score=baseline,
        score=score,
        gamma=gamma,
        dev_source=dev_source,
        dropped=dropped,
        repeated=repeated,
        seconds=perf_counter() - embedded,
        embedding_seconds=embedded - begun,
    )


def _smaller(
    objective: Objective, config: FinetuneConfig, error: Exception
) -> RetrievalObjective | None:
    """Return the objective with a quarter of the passages, if memory was what training lacked.

    Kept are all answers and a random sample of the others. None where nothing can be left out.
    """
    # PyTorch's allocator raises RuntimeError, also across the border to the growing child.
    lacking = isinstance(error, MemoryError) or "allocate memory" in str(error)
    if not lacking or not isinstance(objective, RetrievalObjective):
        return None
    count = len(objective.documents)
    answers = torch.cat([objective.answers[:, 1], objective.dev_answers[:, 1]]).unique()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))
    others = order[~torch.isin(order, answers)][: max(0, count // 4 - len(answers))]
    kept = torch.cat([answers, others])
    if len(kept) == count:
        return None
    warnings.warn(
        f"memory was short for {count} passages in the loss: training goes on against {len(kept)}, "
        "all answers and a random sample of the others. The dev score is over these alone",
        UserWarning,
        stacklevel=3,
    )
    rows = torch.full((count,), -1).index_copy(0, kept, torch.arange(len(kept)))

    def renumbered(pairs: Tensor) -> Tensor:
        return torch.stack([pairs[:, 0], rows[pairs[:, 1]]], dim=1)

    return replace(
        objective,
        documents=objective.documents[kept],
        answers=renumbered(objective.answers),
        dev_answers=renumbered(objective.dev_answers),
    )


def _averaged(
    objective: Objective,
    config: FinetuneConfig,
    start: Mapping[str, Tensor],
    keep: Keep,
    checkpoint: Checkpoint | None = None,
    tell: Callable[[Epoch], None] | None = None,
) -> tuple[Trained, list[Epoch]]:
    """Train as many runs as are averaged, each from `start`; return the mean and all epochs."""
    runs: list[Trained] = []
    history: list[Epoch] = []
    for number in range(config.average):
        if objective.tower is not None:
            objective.tower.load_state_dict(start)
        done, elapsed = len(history), history[-1].seconds if history else 0.0

        def on_epoch(epoch: Epoch, done: int = done, elapsed: float = elapsed) -> None:
            history.append(
                replace(epoch, epoch=done + epoch.epoch, seconds=elapsed + epoch.seconds)
            )
            if tell is not None:
                tell(history[-1])

        seed = config.seed + number
        if checkpoint is not None and config.average > 1:
            own: Checkpoint | None = checkpoint.part(f"seed-{seed}")
        else:
            own = checkpoint
        runs.append(_trained(objective, replace(config, seed=seed), keep, own, on_epoch))
    return Trained.mean(runs), history


def _score(objective: Objective, trained: Trained, side: HeadsKind) -> float:
    """Return the dev score of linear heads, and of the backbone trained with them."""
    if objective.tower is not None:
        objective.tower.load_state_dict(trained.tower)
    return objective.score(Heads.linear(trained.heads, side))


def _trained(
    objective: Objective,
    config: FinetuneConfig,
    keep: Keep,
    checkpoint: Checkpoint | None,
    tell: Callable[[Epoch], None],
) -> Trained:
    """Return one head, or two for side "separate", with a trained backbone."""
    schedule = Schedule(
        epochs=config.epochs,
        first_epochs=config.warmup_epochs,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        constant=not config.decay,
        backbone_rate=config.backbone_learning_rate,
    )
    total = schedule.length(0) + config.dendrites * config.epochs
    title = "fine-tune" if keep == "best" else "refit"
    with progress_bar(total=total, desc=title, unit="epoch") as bar:

        def on_epoch(epoch: Epoch) -> None:
            tell(epoch)
            bar.update()
            scored = {"dev": f"{epoch.score:.4f}"} if keep == "best" else {}
            bar.set_postfix(dendrites=epoch.dendrites, **scored)

        if config.dendrites:
            trained = grow(
                objective,
                config.heads,
                schedule,
                dendrites=config.dendrites,
                tries=config.tries,
                seed=config.seed,
                keep=keep,
                on_epoch=on_epoch,
                checkpoint=checkpoint if config.backbone == "trainable" else None,
            )
        else:
            trained = fit_linear(
                objective,
                config.heads,
                schedule,
                config.seed,
                on_epoch,
                keep=keep,
                checkpoint=checkpoint,
            )
    return trained


def _best_gamma(
    objective: Objective, heads: Sequence[DendriticHead], side: HeadsKind
) -> float | None:
    """Return the γ that serves the dev queries best, the smallest of equals."""
    if not isinstance(objective, RetrievalObjective):
        return None
    documents = objective.documents.numpy()
    if side != "query":
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
    encoder: DendriticEncoder, objective: Objective, trained: Trained, side: HeadsKind
) -> DendriticEncoder:
    heads = trained.heads
    if objective.tower is not None:
        objective.tower.load_state_dict(trained.tower)
        backbone = objective.tower.backbone()
        return DendriticEncoder(backbone, query_head=heads[0], document_head=heads[-1])
    if side == "query":
        return encoder.with_heads(query_head=heads[0], document_head=encoder.document_head)
    return encoder.with_heads(query_head=heads[0], document_head=heads[-1])


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def _identity(
    encoder: DendriticEncoder,
    train: RetrievalDataset | SimilarityDataset,
    dev: RetrievalDataset | SimilarityDataset,
    config: FinetuneConfig,
) -> str:
    """Return a SHA-256, in hex, of all that the trained weights depend on."""
    parts = [encoder.fingerprint, train.digest, dev.digest, json.dumps(config.settings())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _split(
    train: RetrievalDataset | SimilarityDataset, config: FinetuneConfig
) -> tuple[RetrievalDataset | SimilarityDataset, RetrievalDataset | SimilarityDataset]:
    if isinstance(train, RetrievalDataset):
        kept, dev = train.split(1 - _DEV_SHARE, _DEV_SHARE, by=config.split_by, seed=config.seed)
        return replace(kept, dropped=train.dropped), dev
    order = np.random.default_rng(config.seed).permutation(len(train)).tolist()
    size = max(2, round(_DEV_SHARE * len(train)))
    return train.subset(order[size:]), train.subset(order[:size])


def _retrieval(
    encoder: DendriticEncoder,
    train: RetrievalDataset,
    dev: RetrievalDataset,
    config: FinetuneConfig,
    index: VectorIndex | None,
) -> RetrievalObjective:
    if len(train) < 2:
        raise ValueError("the training set has one query: a head fitted to it would know no other")
    if index is None:
        corpus = {**train.corpus, **dev.corpus}
        texts = list(corpus.values())
        # Under side "query" documents keep the head they have; otherwise theirs is trained anew.
        embedded = (
            encoder.encode_documents(texts)
            if config.heads == "query"
            else encoder.backbone_vectors(texts, "document")
        )
        index = MemoryIndex(list(corpus), embedded)
    elif config.heads != "query" and encoder.document_head is not None:
        raise ValueError(
            "the index holds vectors that the encoder's document head has mapped already: train "
            "anew from the encoder without heads and its index"
        )
    check_fits(index, encoder)
    check_relevant_are_stored(index, train, dev)
    queries = encoder.backbone_vectors(list(train.queries.values()), "query")
    dev_queries = encoder.backbone_vectors(list(dev.queries.values()), "query")
    if len(index) <= _POOL:
        ids = [id_ for batch in index.ids() for id_ in batch]
    else:
        ids = _mined(index, [queries, dev_queries], [train, dev], config)
    rows = {id_: row for row, id_ in enumerate(ids)}
    documents = index.vectors(ids)  # (n_documents, dimension)
    check_vectors(ids, documents, Metric.COSINE)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    if len(documents) > 1 and not np.ptp(documents, axis=0).any():
        raise ValueError(
            f"all {len(documents)} passages have the same vector: no training tells them apart"
        )
    return RetrievalObjective(
        queries=torch.from_numpy(queries),
        documents=torch.from_numpy(documents),
        answers=_pairs(train, rows),
        dev_queries=torch.from_numpy(dev_queries),
        dev_answers=_pairs(dev, rows),
        scale=config.scale,
        gamma=config.gamma,
        anchor=config.anchor,
    )


def _retrieval_by_texts(
    encoder: DendriticEncoder,
    train: RetrievalDataset,
    dev: RetrievalDataset,
    config: FinetuneConfig,
    index: VectorIndex | None,
) -> "TextRetrievalObjective":
    from nexus_integrations.training.texts import TextRetrievalObjective
    from nexus_integrations.training.tower import Tower

    if len(train) < 2:
        raise ValueError("the training set has one query: an encoder fitted to it knows no other")
    if config.heads == "query":
        raise ValueError(
            "a trained backbone changes documents as well: use heads='shared' or 'separate' with "
            "backbone='trainable', and embed the documents anew afterwards"
        )
    corpus = {**train.corpus, **dev.corpus}
    if index is None:
        vectors = encoder.backbone_vectors(list(corpus.values()), "document")
    elif encoder.document_head is not None:
        raise ValueError("the index holds vectors that a document head has mapped: give no index")
    else:
        check_fits(index, encoder)
        vectors = index.vectors(list(corpus))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    tower = Tower.copy_of(encoder.backbone, dropout=config.dropout)
    rows = {id_: row for row, id_ in enumerate(corpus)}
    documents = tower.pieces(list(corpus.values()), "document")
    queries, dev_queries = (
        tower.pieces(list(part.queries.values()), "query") for part in (train, dev)
    )
    return TextRetrievalObjective(
        tower=tower,
        pieces=queries.pieces,
        starts=queries.starts,
        document_pieces=documents.pieces,
        document_starts=documents.starts,
        vectors=torch.from_numpy(vectors),
        answers=_pairs(train, rows),
        dev_pieces=dev_queries.pieces,
        dev_starts=dev_queries.starts,
        dev_answers=_pairs(dev, rows),
        scale=config.scale,
    )


def _mined(
    index: VectorIndex,
    queries: Sequence[Floats],
    datasets: Sequence[RetrievalDataset],
    config: FinetuneConfig,
) -> list[str]:
    """Return the ids to train against: all answers, the nearest others, and random ones."""
    pool: dict[str, None] = {}
    for vectors, dataset in zip(queries, datasets, strict=True):
        pool.update(dict.fromkeys(d for found in dataset.relevant_docs.values() for d in found))
        for start in range(0, len(vectors), _QUERY_BATCH):
            for found in index.search(vectors[start : start + _QUERY_BATCH], _NEGATIVES).ids:
                pool.update(dict.fromkeys(found))
    ids = [id_ for batch in index.ids() for id_ in batch]
    order = np.random.default_rng(config.seed).permutation(len(ids))
    for place in order.tolist():
        if len(pool) >= _POOL:
            break
        pool[ids[place]] = None
    return list(pool)


def _pairs(dataset: RetrievalDataset, rows: dict[str, int]) -> Tensor:
    """Return the relevant (query number, document row) pairs, int64 (n_pairs, 2), by query."""
    return torch.tensor(
        [
            [number, rows[id_]]
            for number, found in enumerate(dataset.relevant_docs.values())
            for id_ in found
        ]
    )


def _similarity(
    encoder: DendriticEncoder,
    train: SimilarityDataset,
    dev: SimilarityDataset,
    config: FinetuneConfig,
) -> "SimilarityObjective | TextSimilarityObjective":
    for name, pairs in (("train", train), ("dev", dev)):
        if np.ptp(pairs.scores) == 0:
            raise ValueError(
                f"all {len(pairs)} scores of the {name} pairs are {pairs.scores[0]:g}: similarity "
                "is learnt and judged from pairs whose scores differ (Spearman's ρ is undefined)"
            )
    if config.backbone == "trainable":
        from nexus_integrations.training.texts import TextSimilarityObjective
        from nexus_integrations.training.tower import Tower

        tower = Tower.copy_of(encoder.backbone, dropout=config.dropout)
        pieces = tower.pieces([*train.sentences1, *train.sentences2], "document")
        dev_pieces = tower.pieces([*dev.sentences1, *dev.sentences2], "document")
        return TextSimilarityObjective(
            tower=tower,
            pieces=pieces.pieces,
            starts=pieces.starts,
            scores=torch.from_numpy(train.scores),
            dev_pieces=dev_pieces.pieces,
            dev_starts=dev_pieces.starts,
            dev_scores=torch.from_numpy(dev.scores),
            loss_name=config.loss,
            scale=config.scale,
        )

    def vectors(texts: list[str]) -> Tensor:
        return torch.from_numpy(encoder.backbone_vectors(texts, "document"))

    return SimilarityObjective(
        first=vectors(train.sentences1),
        second=vectors(train.sentences2),
        scores=torch.from_numpy(train.scores),
        dev_first=vectors(dev.sentences1),
        dev_second=vectors(dev.sentences2),
        dev_scores=torch.from_numpy(dev.scores),
        loss_name=config.loss,
        scale=config.scale,
        anchor=config.anchor,
    )
