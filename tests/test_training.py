"""Objectives by hand, and training linear heads."""

import logging
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
import torch

from nexus_integrations.data import RetrievalDataset, SimilarityDataset
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.encoder.head import DendriticHead
from nexus_integrations.evaluation import evaluate
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.nudge.solver import Turn, query_sums
from nexus_integrations.retrievers import DenseRetriever
from nexus_integrations.training import finetune as entry
from nexus_integrations.training import prepare
from nexus_integrations.training.config import FinetuneConfig
from nexus_integrations.training.finetune import finetune
from nexus_integrations.training.heads import Heads
from nexus_integrations.training.loop import Schedule
from nexus_integrations.training.objectives import (
    RetrievalObjective,
    SimilarityObjective,
)

LINEAR = FinetuneConfig(dendrites=0, epochs=6)


def make_objective(**changes) -> RetrievalObjective:
    """Queries (1, 0) and (.6, .8); documents (1, 0), (0, 1), (−1, 0), (.8, .6).

    The first query is answered by documents 0 and 3, the second by document 1.
    """
    parts = {
        "queries": torch.tensor([[1.0, 0.0], [0.6, 0.8]]),
        "documents": torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.8, 0.6]]),
        "answers": torch.tensor([[0, 0], [0, 3], [1, 1]]),
        "dev_queries": torch.tensor([[0.28, 0.96]]),
        "dev_answers": torch.tensor([[0, 0]]),
        "scale": 2.0,
        "gamma": 0.0,
        "anchor": 0.0,
        **changes,
    }
    return RetrievalObjective(**parts)


# Objectives.


def test_the_softmax_by_hand():
    """At scale 2 the first query sees 2, 0, −2, 1.6 and the second 1.2, 1.6, −1.2, 1.92.

    Document 3 is no rival of document 0, nor the other way about: both answer the first query.
    """
    rivals = exp(0) + exp(-2)
    first = (-log(exp(2) / (exp(2) + rivals)) - log(exp(1.6) / (exp(1.6) + rivals))) / 2
    second = -log(exp(1.6) / (exp(1.6) + exp(1.2) + exp(-1.2) + exp(1.92)))
    objective, heads = make_objective(), Heads(2, "query")
    assert float(objective.loss(heads, torch.tensor([0]))) == pytest.approx(first, abs=1e-6)
    assert float(objective.loss(heads, torch.tensor([1]))) == pytest.approx(second, abs=1e-6)
    both = float(objective.loss(heads, torch.tensor([1, 0])))
    assert both == pytest.approx((first + second) / 2, abs=1e-6)


def test_the_anchor_by_hand():
    """With W = [[0, 1], [0, 0]] the query (0, 1) becomes (1, 1)/√2: moved by 2 − √2, squared."""
    objective = make_objective(queries=torch.tensor([[0.0, 1.0], [1.0, 0.0]]), anchor=3.0)
    free = make_objective(queries=torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    # Of the four documents (0, 1) moves so too, and (.8, .6) to (1.4, .6)/‖·‖.
    cosine = (0.8 * 1.4 + 0.6 * 0.6) / (1.4**2 + 0.6**2) ** 0.5
    for kind, documents in (("query", 0.0), ("shared", (2 - 2**0.5 + 2 - 2 * cosine) / 4)):
        heads = Heads(2, kind)
        with torch.no_grad():
            heads.first.layer.weight[0, 1] = 1.0
            items = torch.tensor([0, 1])
            change = float(objective.loss(heads, items) - free.loss(heads, items))
        assert change == pytest.approx(3.0 * ((2 - 2**0.5) / 2 + documents), abs=1e-5)


def test_the_nudged_loss_by_hand():
    """Judged on the first query, document 1 stands where the second query alone turns it.

    γ = .4: (0, 1) turns towards (.6, .8) by c = .8, s = .6, which is (.6, .8) itself; documents 0
    and 3 answer only the query judged, so they stay. The scores at scale 2 are 2, 1.2, −2, 1.6.
    """
    objective, heads = make_objective(gamma=0.4), Heads(2, "query")
    objective.begin_epoch(heads)
    rivals = exp(1.2) + exp(-2)
    expected = (log(1 + rivals / exp(2)) + log(1 + rivals / exp(1.6))) / 2
    assert float(objective.loss(heads, torch.tensor([0]))) == pytest.approx(expected, abs=1e-6)


def test_the_nudged_loss_turns_as_the_solver_does():
    """Where no query of the batch is left out, the documents are those of NUDGE-N."""
    generator = torch.Generator().manual_seed(0)

    def units(n):
        return torch.nn.functional.normalize(torch.randn(n, 6, generator=generator), dim=1)

    documents = units(5)
    answers = torch.tensor([[query, (query * 2) % 5] for query in range(9)])
    queries = torch.nn.functional.normalize(documents[answers[:, 1]] + units(9), dim=1)
    objective = make_objective(queries=queries, documents=documents, answers=answers, gamma=0.3)
    objective.begin_epoch(Heads(6, "query"))
    none = torch.zeros(0, dtype=torch.int64)
    nudged = objective._nudged(documents, none, none)
    sums = query_sums(queries.numpy(), [[d] for _, d in answers.tolist()], 5)
    np.testing.assert_allclose(nudged, Turn.of(documents.numpy(), sums).at(0.3), atol=1e-5)
    assert (nudged - documents).abs().max() > 0.05


def test_the_loss_falls_towards_the_answers():
    """A step against the gradient brings a query nearer to its answer."""
    objective, heads = make_objective(), Heads(2, "query")
    loss = objective.loss(heads, torch.tensor([0, 1]))
    loss.backward()
    with torch.no_grad():
        for tensor in heads.parameters():
            tensor -= 0.1 * tensor.grad
    assert objective.loss(heads, torch.tensor([0, 1])) < loss


def test_the_dev_score_by_hand():
    """The dev query (.28, .96) sees .28, .96, −.28 and .8: its answer 0 has rank 3, 1/log₂ 4."""
    assert make_objective().score(Heads(2, "query")) == pytest.approx(0.5)


def test_cosent_by_hand():
    """Pairs of cosine 1, 0 and .6 with scores 0, 1 and 1, at scale 2.

    Wrong way round is the first pair against both others: log(1 + e^{2(1−0)} + e^{2(1−.6)}).
    """
    first = torch.tensor([[1.0, 0.0]] * 3)
    second = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    scores = torch.tensor([0.0, 1.0, 1.0])
    objective = SimilarityObjective(
        first=first,
        second=second,
        scores=scores,
        dev_first=first,
        dev_second=second,
        dev_scores=torch.tensor([1.0, 0.0, 0.5]),
        loss_name="cosent",
        scale=2.0,
        anchor=0.5,
    )
    loss = float(objective.loss(Heads(2, "shared"), torch.tensor([0, 1, 2])))
    assert loss == pytest.approx(log(1 + exp(2) + exp(0.8)), abs=1e-5)
    assert objective.score(Heads(2, "shared")) == pytest.approx(1)  # 1, 0, .6 rank as 1, 0, .5


def test_batches_cover_everything_once():
    """Ten items in batches of four, shuffled by the generator given."""
    objective = make_objective(queries=torch.eye(10), documents=torch.eye(10))
    found = [
        [b.tolist() for b in objective.batches(4, torch.Generator().manual_seed(s))]
        for s in (0, 0, 1)
    ]
    assert [len(batch) for batch in found[0]] == [4, 4, 2]
    assert sorted(item for batch in found[0] for item in batch) == list(range(10))
    assert found[0] == found[1] != found[2]


def test_the_learning_rate_rises_and_falls():
    """Of 20 steps two rise, ½ and 1, then (20 − step)/18 of the rate remains, down to 1/18."""
    schedule = Schedule(epochs=1, learning_rate=0.5, batch_size=1, weight_decay=0)
    shares = [schedule.share(step, 20) for step in (0, 1, 2, 11, 19)]
    assert shares == pytest.approx([0.5, 1, 1, 0.5, 1 / 18])
    assert {replace(schedule, constant=True).share(step, 20) for step in range(20)} == {1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": "left"}, "heads must be one of query, shared, separate, not 'left'"),
        ({"split_by": "passage"}, "split_by must be one of query, document, not 'passage'"),
        ({"dendrites": -1}, "dendrites must be at least 0, not -1"),
        ({"tries": 0}, "tries must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"anchor": float("nan")}, "anchor must be at least 0, not nan"),
        ({"weight_decay": -1}, "weight_decay must be at least 0"),
        ({"learning_rate": 0}, "learning_rate must be positive, not 0"),
        ({"backbone_learning_rate": 0}, "backbone_learning_rate must be positive"),
        ({"scale": -1}, "scale must be positive, not -1"),
        ({"backbone": "thawed"}, "backbone must be one of frozen, trainable, not 'thawed'"),
        ({"loss": "mse"}, "loss must be one of cosent, cosine, angle, not 'mse'"),
        ({"warmup_epochs": 0}, "warmup_epochs must be at least 1, not 0"),
        ({"gamma": 4}, "gamma must lie in 0 ≤ γ < 4, not 4"),
        ({"average": 0}, "average must be at least 1, not 0"),
        ({"average": 2}, "dendrites of several runs cannot be averaged: use average with dend"),
    ],
)
def test_settings_are_checked_on_construction(options, message):
    """A setting outside its range is named."""
    with pytest.raises(ValueError, match=message):
        FinetuneConfig(**options)


# Training on the demo corpus.


@pytest.mark.model
@pytest.mark.parametrize("kind", ["query", "shared", "separate"])
def test_a_linear_head_improves_dev_and_test(clinic, clinic_encoder, clinic_index, kind):
    """Every kind learns the clinic's words: ten points of nDCG@10 on dev, and better on test."""
    train, dev, test = clinic
    result = finetune(clinic_encoder, train, dev, replace(LINEAR, heads=kind), index=clinic_index)
    assert result.score > result.baseline_score + 0.1
    assert result.score == max(epoch.score for epoch in result.history)
    assert [epoch.epoch for epoch in result.history] == [1, 2, 3, 4, 5, 6]
    assert (result.dev_source, result.dropped) == ("given", 0)
    trained = result.encoder
    index = clinic_index
    if kind == "query":
        assert trained.document_head is None
        assert trained.document_fingerprint == clinic_encoder.document_fingerprint
    else:
        assert (trained.document_head is trained.query_head) == (kind == "shared")
        corpus = test.corpus
        index = MemoryIndex(list(corpus), trained.encode_documents(list(corpus.values())))
    found = {
        part: evaluate(DenseRetriever(index, trained), data, metrics=["ndcg@10"]).metrics["ndcg@10"]
        for part, data in (("dev", dev), ("test", test))
    }
    # The score reported is that of the heads returned.
    assert found["dev"] == pytest.approx(result.score, abs=1e-6)
    before = evaluate(
        DenseRetriever(clinic_index, clinic_encoder), test, metrics=["ndcg@10"]
    ).metrics["ndcg@10"]
    assert found["test"] > before + 0.05
    # The encoder given is what it was.
    assert clinic_encoder.query_head is clinic_encoder.document_head is None


@pytest.mark.model
def test_the_default_encoder_needs_no_index(clinic, clinic_encoder, clinic_index):
    """Embedding the corpus here or reading it from an index trains the same head."""
    train, dev, _ = clinic
    read = finetune(clinic_encoder, train, dev, LINEAR, index=clinic_index)
    asked = [role for role, _ in clinic_encoder.backbone.asked]
    assert asked.count("document") == 0
    assert asked.count("query") == len(train) + len(dev)
    embedded = finetune(clinic_encoder, train, dev, LINEAR)
    asked = [role for role, _ in clinic_encoder.backbone.asked]
    assert asked.count("document") == len(train.corpus)
    assert embedded.score == pytest.approx(read.score, abs=1e-6)


@pytest.mark.model
def test_training_is_fixed_by_its_seed(clinic, clinic_encoder, clinic_index):
    """Equal seeds give equal weights, bit for bit; another seed gives others."""
    train, dev, _ = clinic
    prints = [
        finetune(
            clinic_encoder, train, dev, replace(LINEAR, seed=seed), index=clinic_index
        ).encoder.fingerprint
        for seed in (0, 0, 1)
    ]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.model
def test_the_scale_of_stored_vectors_does_not_matter(clinic, clinic_encoder, clinic_index):
    """Vectors stored at twice the length train the same head: their direction counts."""
    train, dev, _ = clinic
    ids = next(clinic_index.ids())
    doubled = MemoryIndex(ids, 2 * clinic_index.vectors(ids))
    first, second = (
        finetune(clinic_encoder, train, dev, LINEAR, index=index)
        for index in (clinic_index, doubled)
    )
    assert first.score == pytest.approx(second.score, abs=1e-6)
    assert len(doubled.vectors(["leave-01"])) == 1
    np.testing.assert_array_equal(doubled.vectors(ids), 2 * clinic_index.vectors(ids))


@pytest.mark.model
@pytest.mark.parametrize("by", ["query", "document"])
def test_a_dev_set_split_off_is_reported(clinic, clinic_encoder, clinic_index, by):
    """Without dev .15 of the queries are split off, and the result tells how."""
    train, _, _ = clinic
    train = replace(train, queries={**train.queries, "x": "no answer"})
    config = replace(LINEAR, split_by=by, epochs=1)
    result = finetune(clinic_encoder, train, config=config, index=clinic_index)
    assert result.dev_source == f"split off from the training set by {by}, share 0.15"
    assert result.dropped == 1


@pytest.mark.model
def test_an_index_of_mapped_documents_is_refused(clinic, clinic_encoder, clinic_index):
    """A document head is trained from the backbone's vectors, which such an index has not."""
    train, dev, _ = clinic
    mapped = clinic_encoder.with_heads(query_head=None, document_head=DendriticHead.untrained(384))
    with pytest.raises(ValueError, match="document head has mapped already"):
        finetune(mapped, train, dev, replace(LINEAR, heads="shared"), index=clinic_index)


@pytest.mark.model
def test_a_missing_document_is_named(clinic, clinic_encoder, clinic_index):
    """An index without an answer cannot be trained on."""
    train, dev, _ = clinic
    ids = [id_ for id_ in train.corpus if id_ != "leave-01"]
    index = MemoryIndex(ids, clinic_index.vectors(ids))
    with pytest.raises(ValueError, match=r"'leave-01', relevant to query .* is not in the index"):
        finetune(clinic_encoder, train, dev, LINEAR, index=index)


@pytest.mark.model
def test_above_the_limit_negatives_are_mined(clinic, clinic_encoder, clinic_index, monkeypatch):
    """With room for 80 of 126 passages the pool has these and all answers, in the right rows."""
    train, dev, _ = clinic
    few = train.subset(list(train.queries)[:30])
    few_dev = dev.subset(list(dev.queries)[:10])
    needed = {d for part in (few, few_dev) for f in part.relevant_docs.values() for d in f}
    monkeypatch.setattr(prepare, "_NEGATIVES", 2)
    pools = []
    collect = prepare.prepare
    monkeypatch.setattr(entry, "prepare", lambda *given: pools.append(collect(*given)) or pools[-1])
    for limit in (80, 120):
        monkeypatch.setattr(prepare, "_POOL", limit)
        finetune(clinic_encoder, few, few_dev, replace(LINEAR, epochs=1), index=clinic_index)
    assert [len(pool.documents) for pool in pools] == [80, 120]
    assert len(needed) < 80
    # The answers point at the right rows of the pool.
    rows = pools[0].documents[pools[0].answers[:, 1]].numpy()
    expected = [d for found in few.relevant_docs.values() for d in found]
    np.testing.assert_allclose(rows, clinic_index.vectors(expected), atol=1e-6)


# Training on a few looked-up vectors.


@pytest.fixture
def small(table_encoder):
    """Eight questions around a circle; question i is answered by document i, a turn further."""
    angles = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    table = {f"q {n}": (np.cos(a), np.sin(a)) for n, a in enumerate(angles)}
    table |= {f"d {n}": (np.cos(a + 2), np.sin(a + 2)) for n, a in enumerate(angles)}
    dataset = RetrievalDataset(
        queries={f"q{n}": f"q {n}" for n in range(8)},
        corpus={f"d{n}": f"d {n}" for n in range(8)},
        relevant_docs={f"q{n}": [f"d{n}"] for n in range(8)},
    )
    return table_encoder(table), dataset


def test_a_turn_is_learnt(small):
    """Queries turned by 2 radians against their answers find them after training."""
    encoder, dataset = small
    config = replace(LINEAR, epochs=60, learning_rate=0.1, anchor=0.0, gamma=0.0)
    result = finetune(encoder, dataset, dataset, config)
    assert result.baseline_score < 0.5
    assert result.score == pytest.approx(1)


def test_one_query_is_refused(small):
    """A head fitted to one query knows no other; a split of one query has an empty part."""
    encoder, dataset = small
    single = dataset.subset(["q0"])
    with pytest.raises(ValueError, match="the training set has one query"):
        finetune(encoder, single, dataset, LINEAR)
    with pytest.raises(ValueError, match=r"part 1 of .* would be empty: 1 queries"):
        finetune(encoder, single, config=LINEAR)


def test_passages_of_one_vector_are_refused(small):
    """Equal texts under eight ids cannot be told apart."""
    encoder, dataset = small
    same = replace(dataset, corpus=dict.fromkeys(dataset.corpus, "d 0"))
    with pytest.raises(ValueError, match="all 8 passages have the same vector"):
        finetune(encoder, same, same, LINEAR)


def test_repeated_questions_are_counted(small):
    """Dev questions that training questions repeat make its score worth less."""
    encoder, dataset = small
    first, second = dataset.subset(["q0", "q1", "q2"]), dataset.subset(["q2", "q3"])
    assert finetune(encoder, first, second, replace(LINEAR, epochs=1)).repeated == 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 9 bytes")])
def test_where_memory_is_short_a_sample_of_the_corpus_is_trained_on(small, monkeypatch, error):
    """Four queries and 32 passages: the answers, and others up to a quarter, stay in the loss."""
    encoder, dataset = small
    corpus = {**dataset.corpus, **{f"x{n}": f"q {n % 8}" for n in range(24)}}
    train = replace(dataset, corpus=corpus).subset(["q0", "q1", "q2", "q3"])
    loss, seen = RetrievalObjective.loss, []

    def short_of_memory(objective, heads, items):
        seen.append(len(objective.documents))
        if len(objective.documents) > 8:
            raise error
        return loss(objective, heads, items)

    monkeypatch.setattr(RetrievalObjective, "loss", short_of_memory)
    with pytest.warns(UserWarning, match="memory was short for 32 passages.* against 8, all answ"):
        result = finetune(encoder, train, train, replace(LINEAR, epochs=2))
    assert seen == [32, 8, 8]
    assert len(result.history) == 2
    monkeypatch.setattr(
        RetrievalObjective, "loss", lambda *_: (_ for _ in ()).throw(RuntimeError("another error"))
    )
    with pytest.raises(RuntimeError, match="another error"):
        finetune(encoder, train, train, LINEAR)


def test_heads_stay_untrained_when_nothing_helps(small):
    """Where every answer is found already, no epoch is better than none."""
    encoder, dataset = small
    solved = replace(dataset, queries={f"q{n}": f"d {n}" for n in range(8)})
    result = finetune(encoder, solved, solved, LINEAR)
    assert result.score == result.baseline_score == 1
    assert result.encoder.query_head.is_identity
    assert result.encoder.fingerprint == encoder.fingerprint
    assert len(result.history) == 6


@pytest.mark.parametrize("kind", ["query", "separate"])
def test_runs_of_several_seeds_are_averaged(small, kind):
    """Every head is the mean of its like over seeds 4, 5 and 6; the score is that of the mean."""
    encoder, dataset = small
    config = replace(LINEAR, heads=kind, epochs=20, batch_size=2, learning_rate=0.05, anchor=0.0)
    runs = [finetune(encoder, dataset, dataset, replace(config, seed=seed)) for seed in (4, 5, 6)]
    told = []
    config = replace(config, seed=4, average=3)
    mean = finetune(encoder, dataset, dataset, config, on_epoch=told.append)
    for name in ("query_head",) if kind == "query" else ("query_head", "document_head"):
        weights = [getattr(run.encoder, name).weight for run in runs]
        assert not np.array_equal(weights[0], weights[1])
        np.testing.assert_allclose(
            getattr(mean.encoder, name).weight, np.mean(weights, axis=0), atol=1e-6
        )
    assert (
        mean.score
        == evaluate(
            DenseRetriever(
                MemoryIndex(
                    list(dataset.corpus),
                    mean.encoder.encode_documents(list(dataset.corpus.values())),
                ),
                mean.encoder,
            ),
            dataset,
        ).metrics["ndcg@10"]
    )
    assert told == mean.history
    assert [epoch.epoch for epoch in mean.history] == list(range(1, 61))
    assert [epoch.score for epoch in mean.history] == [e.score for r in runs for e in r.history]
    seconds = [epoch.seconds for epoch in mean.history]
    assert seconds == sorted(seconds)


def test_a_mean_that_does_not_help_leaves_the_heads_untrained(small, monkeypatch):
    """Runs that gain, and a mean that does not: what counts is the mean."""
    encoder, dataset = small
    monkeypatch.setattr(entry, "_score", lambda *_: 0.0)
    config = replace(LINEAR, epochs=60, learning_rate=0.1, anchor=0.0, average=2)
    result = finetune(encoder, dataset, dataset, config)
    assert max(epoch.score for epoch in result.history) > result.baseline_score
    assert result.score == result.baseline_score
    assert result.encoder.query_head.is_identity


def test_an_old_document_head_is_kept_or_replaced(small):
    """Training the query kind keeps a document head, and trains against what it maps."""
    encoder, dataset = small
    head = replace(DendriticHead.untrained(2), weight=np.array([[0.0, 2.0], [-2.0, 0.0]]))
    headed = encoder.with_heads(query_head=head, document_head=head)
    kept = finetune(headed, dataset, dataset, LINEAR)
    assert kept.encoder.document_head is head
    replaced = finetune(headed, dataset, dataset, replace(LINEAR, heads="shared"))
    assert replaced.encoder.document_head is not head
    # Training starts anew: the baseline is that without a head on the trained kind.
    assert replaced.baseline_score == finetune(encoder, dataset, dataset, LINEAR).baseline_score
    assert kept.baseline_score != replaced.baseline_score


def make_pairs(n=40, seed=0) -> tuple[dict, SimilarityDataset]:
    """Pairs in four dimensions whose score is the cosine of the first two alone."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(2 * n, 4))
    plane = vectors[:, :2] / np.linalg.norm(vectors[:, :2], axis=1, keepdims=True)
    scores = ((plane[:n] * plane[n:]).sum(1) + 1) / 2
    names = [f"{seed} sentence {row}" for row in range(2 * n)]
    return dict(zip(names, vectors, strict=True)), SimilarityDataset(
        sentences1=names[:n], sentences2=names[n:], scores=scores.astype(np.float32)
    )


def test_sentence_pairs_train_one_head_for_both_roles(table_encoder):
    """Pairs share one head, and Spearman's ρ rises."""
    table, train = make_pairs()
    other, dev = make_pairs(seed=1)
    encoder = table_encoder({**table, **other})
    config = replace(LINEAR, epochs=20, learning_rate=0.02, anchor=0.0)
    result = finetune(encoder, train, dev, config)
    assert result.heads == "shared"
    assert result.score > result.baseline_score + 0.05
    assert result.encoder.query_head is result.encoder.document_head
    split = finetune(encoder, train, config=replace(config, epochs=1))
    assert "split off" in split.dev_source


def test_datasets_of_two_kinds_are_refused(small):
    """Pairs cannot judge retrieval."""
    encoder, dataset = small
    _, pairs = make_pairs()
    with pytest.raises(TypeError, match="train is a RetrievalDataset, dev a SimilarityDataset"):
        finetune(encoder, dataset, pairs, LINEAR)


def global_state() -> dict[str, object]:
    """What a library must leave alone in its caller's process."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": repr(np.random.get_state()),
        "random": random.getstate(),
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "logging": (logging.root.level, list(logging.root.handlers)),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "modules": "perforatedai" in sys.modules,
    }


@pytest.mark.parametrize(
    "dendrites", [0, pytest.param(1, marks=pytest.mark.dendrites)], ids=["linear", "dendrites"]
)
def test_the_callers_process_is_left_alone(small, capfd, tmp_path, monkeypatch, request, dendrites):
    """Random states, working directory, signal handlers, output: all as before; no file is left."""
    if dendrites:
        request.getfixturevalue("perforatedai")
    encoder, dataset = small
    monkeypatch.chdir(tmp_path)
    before = global_state()
    capfd.readouterr()
    finetune(encoder, dataset, dataset, FinetuneConfig(dendrites=dendrites, epochs=2))
    assert capfd.readouterr() == ("", "")
    assert global_state() == before
    assert list(tmp_path.iterdir()) == []


def test_linear_heads_do_without_perforatedai(package_environment):
    """Where it cannot be imported dendrites=0 trains, and dendrites=1 says what to install."""
    program = """
import sys
sys.modules["perforatedai"] = None
import numpy as np
from nexus_integrations import DendriticEncoder, FinetuneConfig, RetrievalDataset, finetune
class Backbone:
    dimension, max_length, digest = 2, 9, "x"
    def encode(self, texts, role):
        rows = [[1, 0] if text == "a" else [0, 1] for text in texts]
        return np.array(rows, dtype=np.float32), 0
data = RetrievalDataset(
    queries={"q": "a", "r": "b"}, corpus={"d": "b", "e": "a"},
    relevant_docs={"q": ["d"], "r": ["e"]},
)
encoder = DendriticEncoder(Backbone())
print(len(finetune(encoder, data, data, FinetuneConfig(dendrites=0, epochs=2)).history))
try:
    finetune(encoder, data, data, FinetuneConfig(dendrites=1))
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=package_environment,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.strip().split("\n")
    assert first == "2"
    assert 'pip install "nexus-integrations[dendrites]"' in second
    assert "dendrites=0" in second


def test_the_trained_encoder_is_an_encoder(small, tmp_path):
    """It maps queries by its head over the same backbone."""
    encoder, dataset = small
    config = replace(LINEAR, epochs=60, learning_rate=0.1, anchor=0.0, gamma=0.0)
    trained = finetune(encoder, dataset, dataset, config).encoder
    assert isinstance(trained, DendriticEncoder)
    assert trained.backbone is encoder.backbone
    queries = list(dataset.queries.values())
    np.testing.assert_array_equal(
        trained.encode_queries(queries),
        trained.query_head.transform(encoder.encode_queries(queries)),
    )
