"""K/V of self-attention for every block, in slots of one latent frame each.

A pass overwrites the slots of its own frames as often as it likes (`kv_write_`); `kv_commit` makes
them final, once, after the clean pass. Which frame lives in which slot is the caller's business
(mmpl/layout/slots.py): keys carry their place in time already. Slots are Python ints, never
tensors.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.wan.config import DiTConfig
from mmpl.wan.pinned import pinned_zeros

Rows = slice | Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LayerKV:
    """Keys (after norm and RoPE) and values of one block."""

    k_BSNK: Tensor
    v_BSNK: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class KVCache:
    """Preallocated keys and values [layer, batch, slot * frame_tokens, head, head width].

    `committed` slots are final and read-only. `kv_commit` and `kv_reset` return a new value over
    the same storage; that sharing is the one aliasing allowed here. One that is `hosted` lies in
    the host's memory, and its blocks visit the device one after the other (mmpl/wan/offload.py).
    """

    k_IBSNK: Tensor
    v_IBSNK: Tensor
    frame_tokens: int
    committed: frozenset[int] = frozenset()
    hosted: bool = False

    @property
    def slots(self) -> int:
        """Latent frames that fit."""
        return self.k_IBSNK.shape[2] // self.frame_tokens

    def layer(self, index: int) -> LayerKV:
        """A view of one block's keys and values."""
        return LayerKV(self.k_IBSNK[index], self.v_IBSNK[index])


@dataclass(frozen=True, slots=True)
class SlotView:
    """The slots a pass writes and reads; the fields of `mmpl.layout.slots.Pass` of these names.

    `write` and `read` are half-open ranges. Where the slots to read are scattered, `gather` lists
    them and `read` is not looked at. What is read includes what is written, if the frames are to
    see themselves. With `write=None` nothing is stored: the frames attend to what is read and then
    to their own keys and values. That suits a group nobody looks back at when memory is short (the
    cache then needs no slots for it), and passes that need gradients.
    """

    write: tuple[int, int] | None
    read: tuple[int, int]
    gather: tuple[int, ...] | None = None

    @property
    def written(self) -> Collection[int]:
        """Slots written."""
        return range(*self.write) if self.write else ()

    @property
    def seen(self) -> Collection[int]:
        """Slots read."""
        return range(*self.read) if self.gather is None else self.gather


def kv_allocate(
    config: DiTConfig,
    *,
    batch: int,
    slots: int,
    frame_tokens: int,
    ranks: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    hosted: bool = False,
) -> KVCache:
    """An empty cache for `slots` latent frames of `frame_tokens` tokens each.

    `dtype` is the compute format of the passes that will use it (`Precision.compute`). Of
    `ranks` that share the passes each keeps its own heads. A `hosted` one for passes on a GPU lies
    in pinned memory of the host.
    """
    heads = config.num_heads // ranks
    shape = (config.num_layers, batch, slots * frame_tokens, heads, config.head_dim)
    place = torch.device(device or "cpu")
    if hosted and place.type == "cuda":
        k, v = (pinned_zeros(shape, dtype, place) for _ in range(2))
    else:
        k, v = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
    return KVCache(k, v, frame_tokens, hosted=hosted)


def kv_write_(layer: LayerKV, k_BLNK: Tensor, v_BLNK: Tensor, rows: Rows) -> None:
    """Stores the keys and values of a pass. Idempotent: overwrites whatever was there."""
    layer.k_BSNK[:, rows] = k_BLNK
    layer.v_BSNK[:, rows] = v_BLNK


def kv_read(layer: LayerKV, rows: Rows) -> tuple[Tensor, Tensor]:
    """Keys and values in some rows of a block: views where the rows follow each other, else
    copies."""
    return layer.k_BSNK[:, rows], layer.v_BSNK[:, rows]


def kv_commit(cache: KVCache, slots: Collection[int]) -> KVCache:
    """The same storage with `slots` declared final. ArgumentError if one already is."""
    _check_slots(cache, slots, "kv_commit")
    again = sorted(cache.committed.intersection(slots))
    if again:
        raise ArgumentError("slots committed twice", where="kv_commit", got=again)
    return replace(cache, committed=cache.committed.union(slots))


def kv_reset(cache: KVCache) -> KVCache:
    """The same storage with nothing committed, for the next segment or another prompt."""
    return replace(cache, committed=frozenset())


def check_view(cache: KVCache, view: SlotView, frames: int) -> None:
    """ArgumentError unless a pass over `frames` latent frames may use `view`.

    It writes one uncommitted slot for every frame, and reads slots that are committed or its own.
    """
    _check_slots(cache, view.written, "SlotView.write")
    _check_slots(cache, view.seen, "SlotView.read")
    if view.write is not None and len(view.written) != frames:
        raise ArgumentError(
            "SlotView.write needs one slot for every latent frame",
            got=len(view.written),
            wanted=frames,
        )
    final = sorted(cache.committed.intersection(view.written))
    if final:
        raise ArgumentError("SlotView.write has committed slots", got=final)
    unknown = sorted(set(view.seen).difference(view.written, cache.committed))
    if unknown:
        raise ArgumentError("SlotView.read has slots that were never committed", got=unknown)


def write_rows(view: SlotView, frame_tokens: int) -> slice | None:
    """The token rows that `view` writes."""
    return None if view.write is None else _span(view.write, frame_tokens)


def read_rows(view: SlotView, frame_tokens: int, device: torch.device) -> Rows:
    """The token rows that `view` reads: a slice, or an index tensor for a gather."""
    if view.gather is None:
        return _span(view.read, frame_tokens)
    first = torch.tensor(view.gather, device=device)[:, None] * frame_tokens
    return (first + torch.arange(frame_tokens, device=device)).flatten()


def _span(slots: tuple[int, int], frame_tokens: int) -> slice:
    return slice(slots[0] * frame_tokens, slots[1] * frame_tokens)


def _check_slots(cache: KVCache, slots: Collection[int], where: str) -> None:
    if len(set(slots)) != len(slots) or any(not 0 <= slot < cache.slots for slot in slots):
        raise ArgumentError(
            "slots must differ and lie in the cache",
            where=where,
            got=tuple(slots),
            wanted=f"0 to {cache.slots - 1}",
        )
