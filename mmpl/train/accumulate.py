"""A loss in parts, one graph in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def mean_of(parts: Sequence[Callable[[], Tensor]], weights: Sequence[Tensor]) -> Tensor:
    """The mean of the scalars that `parts` compute, to be differentiated once, by `weights`: one
    graph in memory at a time, unless weights are sharded. FSDP takes gradients where it gathers
    weights, not where they are given to it."""
    share = [lambda part=part: part() / len(parts) for part in parts]
    if len(parts) == 1 or any(isinstance(weight, DTensor) for weight in weights):
        return torch.stack([part() for part in share]).sum()
    return summed(share, weights)


def summed(parts: Iterable[Callable[[], Tensor]], weights: Sequence[Tensor]) -> Tensor:
    """The sum of the scalars that `parts` compute, to be differentiated once, by `weights` only.

    The gradient of each part is taken, and its graph let go, before the next part is computed.
    """
    total, gradients = torch.zeros((), device=weights[0].device), [None] * len(weights)
    for part in parts:
        with torch.enable_grad():
            value = part()
        found = torch.autograd.grad(value, weights, allow_unused=True)
        gradients = [_added(*pair) for pair in zip(gradients, found, strict=True)]
        total += value.detach()
    return _Known.apply(total, gradients, *weights)


def _added(sum_: Tensor | None, part: Tensor | None) -> Tensor | None:
    if sum_ is None or part is None:
        return part if sum_ is None else sum_
    return sum_.add_(part)


class _Known(torch.autograd.Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *_: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(None if g is None else g.mul_(outer[0]) for g in ctx.gradients))
