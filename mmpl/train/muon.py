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
    alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
    for weight, buffer in zip(weights, momenta, strict=True):
        if weight.grad is None:
            continue
        buffer.mul_(momentum).add_(weight.grad)
        update = weight.grad.add(buffer, alpha=momentum).flatten(1)
        alike.setdefault(tuple(update.shape), []).append((weight, update))
    for (outputs, inputs), members in alike.items():
        scale = max(1.0, outputs / inputs) ** 0.5
        # Matrices of one shape go together: many small products cost more than a few large ones.
        updates = orthogonalised(torch.stack([update for _, update in members]))
        for (weight, _), update in zip(members, updates, strict=True):
            weight.add_(update.view_as(weight), alpha=-rate * scale)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices [..., out, in] with the same singular vectors and all singular values about 1."""
    a, b, c = _QUINTIC
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-12)
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT
