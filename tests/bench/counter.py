"""What a computation does, counted as the dispatcher of torch sees it: no clock, no machine.

A kernel is an operation of ATen that reads or writes data; views and bare allocations are none.
Its bytes are those of every tensor it reads and of every tensor it writes, each once, with
broadcast axes counted once. A kernel may call others of its own (the CPU casts operands of mixed
formats in temporaries, a GPU does not); those are not seen. The figures that depend on it are
CPU times, which `tests.bench.timing` takes.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

GEMM = frozenset({"mm", "addmm", "bmm", "baddbmm", "convolution", "mkldnn_convolution"})
ATTENTION = "_scaled_dot_product"
ALLOCATIONS = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})
SYNCS = frozenset({"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "_unique2"})
MOVES = frozenset(
    {"cat", "stack", "clone", "index", "index_select", "gather", "constant_pad_nd", "repeat"}
)
OVERWRITES = frozenset({"copy_", "fill_", "zero_"})  # do not read what they write


@dataclass(slots=True)
class Counts:
    """What happened. `moved` are bytes written by kernels that only move numbers about: copies in
    one format, joins, gathers; `copies` those of them that fill what was there before.
    `peak` is of storages allocated and alive at once."""

    kernels: Counter[str] = field(default_factory=Counter)
    gemm_bytes: int = 0
    other_bytes: int = 0
    moved_bytes: int = 0
    copies_bytes: int = 0
    largest_move: int = 0
    syncs: int = 0
    allocations: int = 0
    peak_bytes: int = 0

    @property
    def total(self) -> int:
        """All kernels."""
        return self.kernels.total()


class Counting(TorchDispatchMode):
    """Counts whatever runs inside it into `counts`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self._alive: dict[int, int] = {}
        self._now = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        out = func(*args, **given)
        name = func.overloadpacket.__name__
        made, had = list(_tensors(out)), list(_tensors((args, given)))
        self._allocated(made, had)
        if name in SYNCS:
            self.counts.syncs += 1
        elif name not in ALLOCATIONS and not _is_view(func, made, had):
            self._kernel(func, name, args, given, made)
        return out

    def _kernel(
        self, func: Any, name: str, args: tuple[Any, ...], given: Mapping[str, Any], made: list[Any]
    ) -> None:
        read, written = _touched(func, name, args, given)
        fresh = [x for x in made if all(x is not one for one in written)]
        stored = sum(map(_bytes, (*written, *fresh)))
        total = sum(map(_bytes, read)) + stored
        self.counts.kernels[name] += 1
        if name in GEMM or name.startswith(ATTENTION):
            self.counts.gemm_bytes += total
        else:
            self.counts.other_bytes += total
        same = name == "copy_" and read[0].dtype == written[0].dtype
        if name in MOVES or same:
            self.counts.moved_bytes += stored
            self.counts.copies_bytes += stored if same else 0
            self.counts.largest_move = max(self.counts.largest_move, stored)

    def _allocated(self, made: list[Tensor], had: list[Tensor]) -> None:
        known = {x.untyped_storage()._cdata for x in had}
        for x in made:
            storage = x.untyped_storage()
            address = storage._cdata
            if address in known or address in self._alive:
                continue
            self.counts.allocations += 1
            self._alive[address] = storage.nbytes()
            self._now += storage.nbytes()
            weakref.finalize(storage, self._freed, address)
        self.counts.peak_bytes = max(self.counts.peak_bytes, self._now)

    def _freed(self, address: int) -> None:
        self._now -= self._alive.pop(address)


def count(function: Callable[[], Any]) -> Counts:
    """What one call of `function` does."""
    mode, tolist = Counting(), Tensor.tolist

    def listed(x: Tensor) -> Any:
        mode.counts.syncs += 1
        return tolist(x)

    with mode, patch.object(Tensor, "tolist", listed):  # which no dispatcher sees
        function()
    return mode.counts


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (x for x in tree_iter(tree) if isinstance(x, Tensor))


def _bytes(x: Tensor) -> int:
    """Bytes of the numbers that `x` shows, one that is broadcast counted once."""
    numbers = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        numbers *= size if stride else min(size, 1)
    return numbers * x.itemsize


def _is_view(func: Any, made: list[Tensor], had: list[Tensor]) -> bool:
    """Whether all that comes out are other shapes of what went in."""
    if func._schema.is_mutable or not made:
        return not made and not func._schema.is_mutable
    storages = {x.untyped_storage()._cdata for x in had}
    return all(x.untyped_storage()._cdata in storages for x in made)


def _touched(
    func: Any, name: str, args: tuple[Any, ...], given: Mapping[str, Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors that a kernel reads, each once, and those of its arguments that it writes."""
    read: dict[tuple[Any, ...], Tensor] = {}
    written: list[Tensor] = []
    for index, argument in enumerate(func._schema.arguments):
        value = args[index] if index < len(args) else given.get(argument.name)
        writes = argument.alias_info is not None and argument.alias_info.is_write
        for x in _tensors(value):
            if writes:
                written.append(x)
            if not writes or not (argument.is_out or name in OVERWRITES):
                read[x.data_ptr(), x.shape, x.stride()] = x
    return list(read.values()), written
