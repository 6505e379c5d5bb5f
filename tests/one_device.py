"""A watch over devices, for machines that have one: the meta device stands for the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_MOVES = ("copy_", "_to_copy")  # what may have operands on two devices


class OneDevice(TorchDispatchMode):
    """`with OneDevice():` an operation on tensors of two devices raises, as it would on a GPU.
    Single numbers may lie elsewhere. The meta device itself lets much pass."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        name = getattr(func, "overloadpacket", func).__name__
        leaves = tree_leaves((args, given))
        found = {x.device for x in leaves if isinstance(x, Tensor) and x.ndim > 0}
        if len(found) > 1 and name not in _MOVES:
            raise RuntimeError(f"{name} of tensors on {' and '.join(map(str, found))}")
        return func(*args, **given)


def truth(x: Tensor) -> Tensor:
    """For `torch.isfinite`, as nothing can be asked of a tensor without data."""
    return torch.ones(1, dtype=torch.bool)
