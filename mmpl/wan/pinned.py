"""Host memory that a GPU copies from and to by itself, beside whatever else is done.

torch pins memory in powers of two: of 9.6 GB of keys it takes 17.2. Large tensors are therefore
locked where they are, to the page.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

_LARGE = 2**25  # bytes above which every tensor has pages of its own


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """A copy of `x` in pinned memory of the host, contiguous, for copies to and from a GPU."""
    here = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.nbytes <= _LARGE)
    return locked(here.copy_(x), device)


def pinned_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros in pinned memory of the host, for copies to and from a GPU."""
    large = torch.Size(shape).numel() * dtype.itemsize > _LARGE
    return locked(torch.zeros(shape, dtype=dtype, pin_memory=not large), device)


def locked(x: Tensor, device: torch.device) -> Tensor:
    """`x`, if it is large with its pages locked for as long as its memory lives; torch's own copy
    of it where the system does not let us."""
    if x.nbytes <= _LARGE:
        return x
    cuda: Any = torch.cuda.cudart()
    with torch.cuda.device(device):  # else the first GPU would serve every process
        if int(cuda.cudaHostRegister(x.data_ptr(), x.nbytes, 0)):
            with suppress(RuntimeError):  # the next launch of a kernel is told of it
                torch.zeros(1, device=device)
            return x.pin_memory()
    release = weakref.finalize(x.untyped_storage(), _release, x.data_ptr(), device)
    release.atexit = False  # when all memory goes
    return x


def _release(address: int, device: torch.device) -> None:
    cuda: Any = torch.cuda.cudart()
    with torch.cuda.device(device):
        torch.cuda.synchronize()  # copies may still be under way
        cuda.cudaHostUnregister(address)
