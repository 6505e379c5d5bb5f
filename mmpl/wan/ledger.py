"""Bytes of tensors that live at once, counted while code runs: on any device, or on none.

On the meta device tensors have sizes and no data, so what a pass over a large network would take
is found by running it. Counted is what tensors hold; not what the allocator of a device rounds up
to, nor what single kernels use inside.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmpl.wan.params import to_flat


class Ledger(TorchDispatchMode):
    """`with ledger:` every tensor made within counts for as long as it lives; so do those told to
    `hold`. `bytes` is what lives now, `peak` the most that has lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._live: dict[int, int] = {}

    def hold(self, tree: object) -> None:
        """Counts the tensors of a parameter tree, made elsewhere, until they are gone."""
        for leaf in to_flat(tree).values():
            self._enter(leaf.untyped_storage())

    @contextmanager
    def peak_of(self) -> Iterator[Callable[[], int]]:
        """`with ledger.peak_of() as peak:` then `peak()` is the most that lived at once within."""
        before, self.peak = self.peak, self.bytes
        try:
            with self:
                yield lambda: found
        finally:
            found = self.peak
            self.peak = max(before, found)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        # What is a view of something given was there before, or does not count.
        given = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and _key(leaf) not in given:
                self._enter(leaf.untyped_storage())
        return made

    def _enter(self, storage: UntypedStorage) -> None:
        key = storage._cdata
        if key in self._live:
            return
        self._live[key] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self.bytes -= self._live.pop(key)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
