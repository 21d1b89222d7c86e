"""Losses of sentence pairs, by hand and against sentence-transformers."""

from math import exp, log

import pytest
import torch
from sentence_transformers import util

from nexus_integrations.training.losses import similarity_loss

FIRST = torch.tensor([[1.0, 0.0]] * 3)
SECOND = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
SCORES = torch.tensor([0.0, 1.0, 1.0])


def test_cosine_by_hand():
    """Cosines 1, 0, .6 against scores 0, 1, 1: (1 + 1 + .16)/3, whatever the scale."""
    for scale in (1.0, 20.0):
        loss = float(similarity_loss(FIRST, SECOND, SCORES, "cosine", scale))
        assert loss == pytest.approx((1 + 1 + 0.16) / 3, abs=1e-6)


def test_cosent_by_hand():
    """The first pair is less similar than both others, with cosine 1 against 0 and .6."""
    loss = float(similarity_loss(FIRST, SECOND, SCORES, "cosent", 2.0))
    assert loss == pytest.approx(log(1 + exp(2 * 1) + exp(2 * 0.4)), abs=1e-5)


def test_angle_by_hand():
    """(1, 0) is 1 + 0i; with (0, 1) = i: cosine 0, sine −1; with .6 + .8i: .6 − .8.

    The similarities are |1 + 0|, |0 − 1| and |.6 − .8|; equal scores are not compared.
    """
    loss = float(similarity_loss(FIRST, SECOND, SCORES, "angle", 2.0))
    assert loss == pytest.approx(log(1 + exp(2 * 0) + exp(2 * 0.8)), abs=1e-5)


@pytest.mark.parametrize("dimension", [6, 7])
def test_angle_is_that_of_sentence_transformers(dimension):
    """The loss that ranks by `pairwise_angle_sim`, also in an odd dimension."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.nn.functional.normalize(
        torch.randn(2, 9, dimension, generator=generator), dim=2
    )
    scores = torch.rand(9, generator=generator)
    similarities = util.pairwise_angle_sim(first, second)
    terms = [
        exp(20 * (similarities[i] - similarities[j]))
        for i in range(9)
        for j in range(9)
        if scores[i] < scores[j]
    ]
    loss = float(similarity_loss(first, second, scores, "angle", 20.0))
    assert loss == pytest.approx(log(1 + sum(terms)), rel=1e-5)


@pytest.mark.parametrize("loss", ["cosent", "angle"])
def test_equal_scores_ask_for_nothing(loss):
    """Where no pair is the more similar one, the loss is log 1 = 0."""
    assert float(similarity_loss(FIRST, SECOND, torch.ones(3), loss, 20.0)) == 0
