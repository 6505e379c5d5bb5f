"""Momentum orthogonalised (Jordan et al., "Muon", 2024): the optimizer of every weight matrix here.

Inputs of these convolutions share a large mean (a background's colour), so plain gradients are
nearly of rank one, and Adam, which fits step sizes to single entries, spends them on that one
direction. Equal singular values for the whole update learn outlines as fast as colours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Coefficients of the quintic iteration whose fixed points lie around 1 for every singular value.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


def is_matrix(name: str, weight: Tensor) -> bool:
    """True for weights of linear maps and convolutions; norms, biases, embeddings and
    modulations are left to AdamW."""
    return weight.dim() >= 2 and name.endswith(".weight") and "embedding.weight" not in name


@torch.no_grad()
def muon_step_(
    weights: Sequence[Tensor], momenta: Sequence[Tensor], *, rate: float, momentum: float
) -> None:
    """Updates weights and momenta in place from the weights' gradients. A convolution counts as
    the matrix [out, in * kernel]; `rate` is the step's spectral norm for wide matrices."""
    for weight, buffer in zip(weights, momenta, strict=True):
        if weight.grad is None:
            continue
        buffer.mul_(momentum).add_(weight.grad)
        update = weight.grad.add(buffer, alpha=momentum).flatten(1)
        scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
        weight.add_(orthogonalised(update).view_as(weight), alpha=-rate * scale)


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix with the same singular vectors and all singular values about 1."""
    a, b, c = _QUINTIC
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-12)
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T
