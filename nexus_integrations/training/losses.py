"""The losses of sentence pairs, on vectors and scores."""

import torch
from torch import Tensor

from nexus_integrations.training.config import Loss


def similarity_loss(
    first: Tensor, second: Tensor, scores: Tensor, loss: Loss, scale: float
) -> Tensor:
    """Return the loss of a batch of pairs: (n_batch, dimension) unit rows twice, (n_batch,) scores.

    "cosine" is the mean squared error of the cosine against the score, in 0..1 (Reimers and
    Gurevych, 2019, section 3). The other two only ask that a pair with a higher score is the more
    similar one: log(1 + Σ exp(λ(s of the less similar pair − s of the more similar one))), λ =
    `scale`, where s is the cosine for "cosent" (Su, 2022) and for "angle" the similarity of the
    angles between the vectors as complex numbers (Li and Li, 2023, equation 6).
    """
    cosines = (first * second).sum(1)  # (n_batch,)
    if loss == "cosine":
        return torch.nn.functional.mse_loss(cosines, scores)
    similarities = cosines if loss == "cosent" else _angle_similarity(first, second)
    wrong = scale * (similarities[:, None] - similarities[None, :])  # (n_batch, n_batch)
    less = scores[:, None] < scores[None, :]
    excess = torch.cat([wrong[less], wrong.new_zeros(1)])
    return excess.logsumexp(0)


def _angle_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return |cosine + sine|: halves of a vector are real and imaginary parts of complex numbers.

    For unit vectors z and w that is |Σ Re(z/w) + Σ Im(z/w)| of the authors' code.
    """
    if first.shape[1] % 2:
        first, second = (torch.nn.functional.pad(part, (0, 1)) for part in (first, second))
    real, imaginary = first.chunk(2, dim=1)  # (n_batch, dimension / 2) each
    other_real, other_imaginary = second.chunk(2, dim=1)
    sines = (imaginary * other_real - real * other_imaginary).sum(1)  # (n_batch,)
    return ((first * second).sum(1) + sines).abs()
