"""Training a backbone on questions: the loss by hand, and a tiny transformer end to end."""

from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
import torch

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.evaluation import evaluate
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.retrievers import DenseRetriever
from nexus_integrations.training.config import FinetuneConfig
from nexus_integrations.training.finetune import finetune
from nexus_integrations.training.heads import Heads
from nexus_integrations.training.text_objectives import TextRetrievalObjective
from nexus_integrations.training.tower import Tokens, Tower

CONFIG = FinetuneConfig(
    backbone="trainable",
    heads="shared",
    dendrites=0,
    epochs=4,
    batch_size=8,
    learning_rate=1e-3,
    backbone_learning_rate=1e-2,
)
# Token 0 and 1 are the questions, 2 to 5 the passages.
VECTORS = torch.tensor([[1.0, 0.0], [0.6, 0.8], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.8, 0.6]])


class TableTower(torch.nn.Module):
    """A tower whose texts are one token each, looked up in a table."""

    dimension = 2

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(VECTORS.clone())

    def forward(self, texts, rows):
        return self.table[texts.ids[texts.starts[rows]].long()]

    def embed(self, texts):
        with torch.no_grad():
            return self(texts, torch.arange(len(texts.lengths)))


def make_objective(**changes) -> TextRetrievalObjective:
    """Question 0 is answered by passages 0 and 3, question 1 and dev's by 1."""
    parts = {
        "tower": TableTower(),
        "queries": Tokens(torch.tensor([0, 1]), torch.arange(3)),
        "documents": Tokens(torch.tensor([2, 3, 4, 5]), torch.arange(5)),
        "vectors": VECTORS[2:].clone(),
        "answers": torch.tensor([[0, 0], [0, 3], [1, 1]]),
        "dev_queries": Tokens(torch.tensor([1]), torch.arange(2)),
        "dev_answers": torch.tensor([[0, 1]]),
        "scale": 2.0,
        **changes,
    }
    return TextRetrievalObjective(**parts)


def words(letters) -> list[str]:
    return [letter * size for letter in letters for size in range(1, 9)]


@pytest.fixture
def tiny(tiny_model) -> DendriticEncoder:
    """The tiny transformer in PyTorch, which alone can train it."""
    return DendriticEncoder.load(tiny_model, backend="torch")


@pytest.fixture
def letters() -> tuple[RetrievalDataset, RetrievalDataset]:
    """Passages of letters; a question's answer is the passage of the next letter."""
    corpus = {letter: f"{letter} {letter}{letter}" for letter in "bdfh"}
    queries = {f"{a}{n}": a * n for a in "aceg" for n in range(1, 13)}
    relevant = {id_: [chr(ord(id_[0]) + 1)] for id_ in queries}
    every = RetrievalDataset(queries=queries, corpus=corpus, relevant_docs=relevant)
    train, dev = every.split(0.7, 0.3, seed=0)
    return train, dev


def test_the_softmax_over_the_batch_by_hand():
    """Question 0 drew passage 0 and its rival is 1; passage 3, question 1's rival, answers it too.

    Scores at scale 2 are (2, 0, 1.6) and (1.2, 1.6, 1.92) with the passages 0, 1 and 3.
    """
    objective, heads = make_objective(), Heads(2, "shared")
    objective._drawn, objective._rival = torch.tensor([0, 2]), torch.tensor([1, 3])
    first = log(1 + exp(0) / exp(2))
    second = log(1 + (exp(1.2) + exp(1.92)) / exp(1.6))
    loss = objective.loss(heads, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_a_question_order_of_its_own_keeps_the_masks():
    """The batch (1, 0) has the loss of the batch (0, 1)."""
    objective, heads = make_objective(), Heads(2, "shared")
    objective._drawn, objective._rival = torch.tensor([1, 2]), torch.tensor([2, 0])
    one, other = (objective.loss(heads, torch.tensor(items)) for items in ([0, 1], [1, 0]))
    assert one.item() == pytest.approx(other.item(), abs=1e-6)


def test_all_passages_of_a_batch_are_learnt_from_and_no_others():
    """Question 0, its passage 3 and the rival 2: tokens 0, 5 and 4."""
    objective, heads = make_objective(), Heads(2, "shared")
    objective._drawn, objective._rival = torch.tensor([1, 2]), torch.tensor([2, 0])
    with torch.no_grad():
        objective.tower.table[4] = torch.tensor([0.0, -1.0])  # or a turn would not change its score
    objective.loss(heads, torch.tensor([0])).backward()
    table = objective.tower.table.grad
    assert (table[[0, 5, 4]].abs().sum(1) > 0).all()
    assert table[[1, 2, 3]].abs().sum() == 0


def test_rivals_are_near_but_not_as_near_as_an_answer():
    """Question 0 (1, 0): its answers 0 and 3 are none, 1 and 2 are. Question 1 (.6, .8), answered
    by 1 at .8: passage 3 at .96 is too near, 0 at .6 and 2 at −.6 are not.
    """
    rivals = make_objective()._rivals
    assert rivals[0, :2].tolist() == [1, 2]
    assert rivals[1, :2].tolist() == [0, 2]
    assert set(rivals[0, 2:].tolist()) == {0}  # its answer: masked, as if there were none
    assert set(rivals[1, 2:].tolist()) == {1}


def test_passages_are_embedded_by_length_and_keep_their_places(tiny, letters):
    """Twenty passages of all lengths, in two parts: each row is its own."""
    tower = Tower.copy_of(tiny.backbone).eval()
    texts = [chr(97 + n) * (1 + (7 * n) % 20) for n in range(20)]
    tokens = tower.tokens(texts, "document")
    objective = make_objective()
    objective.tower = tower
    objective.documents = tokens
    rows = torch.arange(20)
    with torch.no_grad():
        found = objective._embedded(rows)
    np.testing.assert_allclose(found, tower.embed(tokens), atol=1e-6)


def test_every_relevant_passage_is_drawn_in_its_turn():
    """Over many epochs question 0 gets both of its passages, question 1 its only one."""
    objective = make_objective()
    generator = torch.Generator().manual_seed(0)
    drawn = set()
    for _ in range(40):
        assert sorted(torch.cat(list(objective.batches(1, generator))).tolist()) == [0, 1]
        drawn |= {(0, int(objective._drawn[0])), (1, int(objective._drawn[1]))}
    assert drawn == {(0, 0), (0, 1), (1, 2)}


def test_the_dev_score_by_hand():
    """(.6, .8) ranks passage 3 (.96) before its answer, passage 1 (.8): nDCG 1/log₂3."""
    objective, heads = make_objective(), Heads(2, "shared")
    assert objective.score(heads) == pytest.approx(1 / np.log2(3))
    with torch.no_grad():
        objective.tower.table[5] = torch.tensor([-1.0, 0.0])
    assert objective.score(heads) < 1  # nothing is embedded before training begins
    objective.begin_epoch(heads)
    assert objective.score(heads) == 1.0  # embedded anew


def test_a_score_is_of_the_tower_as_it_is():
    """Passage 1, turned to dev's question, ranks first; as it was stored it ranks second: .63."""
    objective = make_objective()
    with torch.no_grad():
        objective.tower.table[3] = VECTORS[1]
    objective.begin_epoch(Heads(2, "shared"))
    assert objective.score(Heads(2, "shared")) == pytest.approx(1)


def test_dev_questions_join_the_training_ones():
    """Their answers follow, with numbers behind those of the training questions."""
    joined = make_objective().with_dev_in_train()
    assert joined.queries.ids.tolist() == [0, 1, 1]
    assert joined.answers.tolist() == [[0, 0], [0, 3], [1, 1], [2, 1]]
    assert joined.size == 3


def test_a_backbone_learns_from_questions(tiny, letters):
    """Dev's nDCG rises, an index embedded anew shows it, and the encoder given stays as it was."""
    train, dev = letters
    before = {name: t.clone() for name, t in tiny.backbone.model.state_dict().items()}
    result = finetune(tiny, train, dev, CONFIG)
    assert result.score > result.baseline_score + 0.1
    assert result.gamma is None
    for name, tensor in tiny.backbone.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    corpus = list(train.corpus.values())
    index = MemoryIndex(list(train.corpus), result.encoder.encode_documents(corpus))
    found = evaluate(DenseRetriever(index, result.encoder), dev).metrics["ndcg@10"]
    assert found == pytest.approx(result.score, abs=1e-6)


def test_stored_vectors_are_not_embedded_again(tiny, letters, monkeypatch):
    """With the index the cached vectors are its own, at any length."""
    train, dev = letters
    vectors = tiny.encode_documents(list(train.corpus.values()))
    index = MemoryIndex(list(train.corpus), 2 * vectors)
    seen = []
    original = TextRetrievalObjective.__post_init__
    monkeypatch.setattr(
        TextRetrievalObjective,
        "__post_init__",
        lambda self: (seen.append(self.vectors), original(self)),
    )
    finetune(tiny, train, dev, replace(CONFIG, epochs=1), index=index)
    np.testing.assert_allclose(seen[0].numpy(), vectors, atol=1e-6)


def test_dendrites_grow_on_a_backbone_trained_on_questions(tiny, letters, perforatedai):
    """The child gets texts and tower, and its head and weights come back."""
    train, dev = letters
    config = replace(CONFIG, dendrites=1, epochs=2)
    result = finetune(tiny, train, dev, config)
    assert max(epoch.dendrites for epoch in result.history) == 1
    assert result.score > result.baseline_score


def test_a_run_that_was_stopped_is_resumed(tiny, letters, tmp_path):
    """Stopped after two epochs, it trains the other two and ends with the weights of one run."""
    train, dev = letters
    whole = finetune(tiny, train, dev, CONFIG)

    def stop(epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(tiny, train, dev, CONFIG, checkpoint_dir=tmp_path, on_epoch=stop)
    told = []
    resumed = finetune(tiny, train, dev, CONFIG, checkpoint_dir=tmp_path, on_epoch=told.append)
    assert [epoch.score for epoch in told] == [epoch.score for epoch in whole.history]
    assert resumed.encoder.fingerprint == whole.encoder.fingerprint


def test_refit_trains_on_both_from_the_start(tiny, letters, monkeypatch):
    """The weights are others than without, no γ is promised, and dev, now learnt, is not scored."""
    train, dev = letters
    scored, score = [], TextRetrievalObjective.score
    monkeypatch.setattr(
        TextRetrievalObjective, "score", lambda self, heads: scored.append(1) or score(self, heads)
    )
    plain, refit = (finetune(tiny, train, dev, replace(CONFIG, refit=r)) for r in (False, True))
    assert plain.encoder.fingerprint != refit.encoder.fingerprint
    assert refit.gamma is None
    assert len(scored) == 2 * (1 + CONFIG.epochs)


def test_a_query_head_alone_is_refused(tiny, letters):
    """The documents change with the backbone."""
    with pytest.raises(ValueError, match="changes documents as well: use heads='shared'"):
        finetune(tiny, *letters, replace(CONFIG, heads="query"))


def test_tokens_of_chosen_texts(tiny):
    """Texts taken out by number embed as they did."""
    tower = Tower.copy_of(tiny.backbone)
    tokens = tower.tokens(["a", "bcd efg", "hello there 7", "ab"], "document")
    rows = torch.tensor([3, 1])
    np.testing.assert_allclose(
        tower.embed(tokens.chosen(rows)), tower.embed(tokens)[rows], atol=1e-6
    )
