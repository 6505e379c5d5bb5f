"""Weights and caches that live in the host's memory and visit the device when it is their turn.

What is computed and in which order stays the same, and so do all bits. On a GPU the copies run on
a stream of their own, one block ahead of the arithmetic; elsewhere the same code copies in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import torch

from mmpl.errors import ArgumentError
from mmpl.wan.cache import KVCache, LayerKV, Rows
from mmpl.wan.choices import OFFLOADS
from mmpl.wan.dit import in_place
from mmpl.wan.dit_params import BlockParams, DiTParams
from mmpl.wan.params import to_flat, tree_map
from mmpl.wan.pinned import pinned
from mmpl.wan.text import TextBlock, TextParams
from mmpl.wan.vae import VAEParams

T = TypeVar("T")
Tree = TypeVar("Tree")


class Offload:
    """Where a model's weights and caches live, for passes on `device`.

    `none`: all on the device, but the text encoder, which is used for a moment: on a GPU its layers
    come one after the other. `model`: the VAE and the blocks of the transformer live in the host's
    memory. The blocks come with the first pass and stay until `make_room`; the caches of all
    branches of guidance but the first come block by block. `block`: the transformer's blocks and
    all caches come block by block. Raises ArgumentError for other kinds.
    """

    def __init__(self, kind: str = "none", device: torch.device | str = "cpu") -> None:
        if kind not in OFFLOADS:
            raise ArgumentError("unknown offload", got=repr(kind), wanted=", ".join(OFFLOADS))
        self.kind, self.device = kind, torch.device(device)
        self._kept: tuple[object, Sequence[BlockParams]] | None = None

    def hosts(self, branch: int) -> bool:
        """Whether the cache of a branch of guidance, from 0, lives in the host's memory."""
        return self.kind == "block" or (self.kind == "model" and branch > 0)

    @property
    def hosts_text(self) -> bool:
        """Whether the text encoder does: on a CPU that is where it is anyway."""
        return self.device.type != "cpu"

    def place_dit(self, params: DiTParams) -> DiTParams:
        """The transformer with every part where it lives."""
        blocks = self._here(params.blocks) if self.kind == "none" else self._host(params.blocks)
        return replace(self._here(replace(params, blocks=())), blocks=blocks)

    def place_vae(self, params: VAEParams) -> VAEParams:
        """The VAE where it lives."""
        return self._here(params) if self.kind == "none" else self._host(params)

    def place_text(self, params: TextParams) -> TextParams:
        """The text encoder with every part where it lives; its last norm tells the device."""
        return replace(params, norm=self._here(params.norm)) if self.hosts_text else params

    def make_room(self) -> None:
        """Takes from the device what comes again with the next pass."""
        self._kept = None

    def brought_vae(self, params: VAEParams) -> VAEParams:
        """The VAE on the device, with room made for what it computes."""
        self.make_room()
        if self.kind == "none":
            return params
        copy = _empty(params, self.device)
        _copy(params, copy)
        return copy

    def text_walk(self, blocks: Sequence[TextBlock]) -> Iterator[TextBlock]:
        """The `walk` of `encode_text`."""
        if not self.hosts_text:
            return iter(blocks)
        room = _Room(blocks, self.device)
        return _in_turn(self.device, len(blocks), lambda index: room.copy(index, blocks[index]))

    def walk(
        self,
        blocks: Sequence[BlockParams],
        cache: KVCache | None,
        write: slice | None,
        read: Rows | None,
    ) -> Iterator[tuple[BlockParams, LayerKV | None]]:
        """The `walk` of an Engine."""
        if self.kind == "model":
            blocks = self._brought(blocks)
        swaps, hosts = self.kind == "block", cache is not None and cache.hosted
        if not swaps and not hosts:
            return in_place(blocks, cache, write, read)
        layers = [] if cache is None else [cache.layer(index) for index in range(len(blocks))]
        weights = _Room(blocks if swaps else (), self.device)
        keys = _Room(layers if hosts else (), self.device)
        past = _past(write, read)

        def fetch(index: int) -> tuple[BlockParams, LayerKV | None]:
            block = weights.copy(index, blocks[index]) if swaps else blocks[index]
            if not layers:
                return block, None
            return block, keys.copy(index, layers[index], past) if hosts else layers[index]

        def leave(index: int, left: tuple[BlockParams, LayerKV | None]) -> None:
            if hosts and write is not None and left[1] is not None:
                _copy(left[1], layers[index], [write])

        return _in_turn(self.device, len(blocks), fetch, leave)

    def _brought(self, blocks: Sequence[BlockParams]) -> Sequence[BlockParams]:
        """The blocks on the device, for as long as there is room."""
        if self._kept is None or self._kept[0] is not blocks:
            self.make_room()
            copies = [_empty(block, self.device) for block in blocks]
            for block, copy in zip(blocks, copies, strict=True):
                _copy(block, copy)
            self._kept = blocks, copies
        return self._kept[1]

    def _here(self, tree: Tree) -> Tree:
        """A tree on the device; itself if it is there."""
        return tree_map(lambda leaf: leaf.to(self.device), tree)

    def _host(self, tree: Tree) -> Tree:
        """A tree in the host's memory, pinned where a GPU copies from it."""
        if self.device.type != "cuda":
            return tree
        return tree_map(lambda leaf: pinned(leaf, self.device), tree)


class _Room(Generic[Tree]):
    """Room on the device for two of many trees: the one in use and the next."""

    def __init__(self, trees: Sequence[Tree], device: torch.device) -> None:
        kinds = {_kind(tree): tree for tree in trees}  # one, where all are alike
        self._pairs = {k: [_empty(tree, device) for _ in range(2)] for k, tree in kinds.items()}

    def copy(self, index: int, tree: Tree, rows: Sequence[slice] | None = None) -> Tree:
        """`tree`, which is the one of this index, in place of the one two before."""
        here = self._pairs[_kind(tree)][index % 2]
        _copy(tree, here, rows)
        return here


def _in_turn(
    device: torch.device,
    count: int,
    fetch: Callable[[int], T],
    leave: Callable[[int, T], None] = lambda index, left: None,
) -> Iterator[T]:
    """What `fetch` brings of each index, the next one while one is in use; then `leave` it.

    On a GPU both only order copies, on a stream that waits for what was ordered before them.
    """
    gpu = device.type == "cuda"
    main = torch.cuda.current_stream(device) if gpu else None
    aside = torch.cuda.Stream(device) if gpu else None

    def ordered(index: int) -> tuple[T, torch.cuda.Event | None]:
        if aside is None or main is None:
            return fetch(index), None
        aside.wait_stream(main)
        ready = torch.cuda.Event()
        with torch.cuda.stream(aside):
            fetched = fetch(index)
        ready.record(aside)
        return fetched, ready

    coming = ordered(0) if count else None
    try:
        for index in range(count):
            assert coming is not None
            here, ready = coming
            if main is not None and ready is not None:
                main.wait_event(ready)
            coming = ordered(index + 1) if index + 1 < count else None
            yield here
            if aside is not None and main is not None:
                aside.wait_stream(main)
            with torch.cuda.stream(aside):
                leave(index, here)
    finally:
        if main is not None and aside is not None:
            main.wait_stream(aside)  # before the room is given to others


def _past(write: slice | None, read: Rows | None) -> list[slice]:
    """The rows of a cache that a pass reads and does not write first; all, where it gathers."""
    if read is None:
        return []
    if not isinstance(read, slice):
        return [slice(None)]
    if write is None:
        return [read]
    return [slice(read.start, write.start), slice(write.stop, read.stop)]


def _kind(tree: object) -> tuple[object, ...]:
    return tuple((name, x.shape, x.dtype) for name, x in to_flat(tree).items())


def _empty(tree: Tree, device: torch.device) -> Tree:
    return tree_map(lambda leaf: torch.empty_like(leaf, device=device), tree)


def _copy(source: object, target: object, rows: Sequence[slice] | None = None) -> None:
    """Copies tensors into those of an equal tree, or only these `rows` of keys and values."""
    for x, into in zip(to_flat(source).values(), to_flat(target).values(), strict=True):
        if into.is_meta:
            return  # there is nothing in them
        if rows is None:
            into.copy_(x, non_blocking=True)
            continue
        for span in rows:
            into[:, span].copy_(x[:, span], non_blocking=True)
