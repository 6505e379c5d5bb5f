"""What a training of the transformer takes of a device's memory, before anything is loaded.

Weights, gradients and optimizer follow from the shapes. What autograd keeps for the backward pass
is found by running the network itself on tensors without data, for two and for three blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from mmpl.train.recompute import checkpointed
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit import Engine, Positions, block, dit, dit_from_flat, dit_shapes, encode_context
from mmpl.wan.ops import BFLOAT16, Precision

_MASTER = torch.float32  # of trained weights, their gradients, averages and optimizer
_MOMENTS = 2  # of AdamW
_GATHERED = 2  # blocks that FSDP has whole: the one at work and the next


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes in one process. `gathered`: sharded weights and gradients while they are whole."""

    weights: int
    gradients: int
    optimizer: int
    ema: int
    gathered: int
    activations: int

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))

    def lines(self) -> list[str]:
        """One line per part, in GiB, and their sum."""
        parts = [(part.name, getattr(self, part.name)) for part in fields(self)]
        return [f"{name:<12}{n / 2**30:9.2f} GiB" for name, n in [*parts, ("total", self.total)]]


def memory_plan(
    config: DiTConfig,
    trained: Collection[str],
    frames: Positions,
    size_BHW: tuple[int, int, int],
    *,
    shards: int = 1,
    precision: Precision = BFLOAT16,
    frozen: torch.dtype = torch.bfloat16,
    checkpointing: bool = True,
) -> MemoryPlan:
    """The plan for one pass over `frames` of latents of `size_BHW` in every process.

    `trained`: official names of the weights that AdamW moves, float32; all others are stored as
    `frozen`. `shards`: processes that the weights are spread over, 1 if each has them whole.
    Attention is counted as a fused kernel. Not counted: what the allocator wastes and buffers of
    single operations, to be allowed for with about a tenth.
    """
    shapes, wanted = dit_shapes(config), set(trained)

    def numbers(names: Iterable[str], shards: int = 1) -> int:
        return sum(-(-shapes[n][0] // shards) * math.prod(shapes[n][1:]) for n in names)

    def stored(names: Collection[str], shards: int = 1) -> int:
        own = [name for name in names if name in wanted]
        rest = [name for name in names if name not in wanted]
        return numbers(own, shards) * _MASTER.itemsize + numbers(rest, shards) * frozen.itemsize

    moved = numbers((name for name in shapes if name in wanted), shards) * _MASTER.itemsize
    one = [name for name in shapes if name.startswith("blocks.0.")]
    root = [name for name in shapes if not name.startswith("blocks.")]
    gathered = 0
    if shards > 1:
        gradients = numbers(n for n in (*one, *root) if n in wanted) * _MASTER.itemsize
        gathered = stored(root) + _GATHERED * stored(one) + gradients
    kept = _kept_by(config, wanted, frames, size_BHW, precision=precision, frozen=frozen)
    return MemoryPlan(
        weights=stored(shapes, shards),
        gradients=moved,
        optimizer=_MOMENTS * moved,
        ema=moved,
        gathered=gathered,
        activations=_activations(kept, config.num_layers, checkpointing=checkpointing),
    )


@contextmanager
def counting_saved(leaves: Iterable[Tensor]) -> Iterator[Callable[[], int]]:
    """`with counting_saved(weights) as count:` afterwards `count()` says how many bytes autograd
    kept of what the block computed, `leaves` and repeated parts not counted."""
    known = {leaf.untyped_storage()._cdata for leaf in leaves}
    # Held, so that no address is used twice.
    found: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            found[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(storage.nbytes() for storage in found.values())


def _kept_by(
    config: DiTConfig,
    trained: set[str],
    frames: Positions,
    size_BHW: tuple[int, int, int],
    *,
    precision: Precision,
    frozen: torch.dtype,
) -> Callable[[int, bool], int]:
    """Bytes kept by a network of so many blocks, with or without gradient checkpointing."""
    B, H, W = size_BHW

    def kept(layers: int, checkpointing: bool) -> int:
        short = replace(config, num_layers=layers)
        flat = {
            name: torch.empty(shape, device="meta", dtype=_MASTER, requires_grad=True)
            if name in trained
            else torch.empty(shape, device="meta", dtype=frozen)
            for name, shape in dit_shapes(short).items()
        }
        params = dit_from_flat(flat, short)
        block_fn = checkpointed(block) if checkpointing else block
        engine = Engine(precision, attention=_fused, block_fn=block_fn)
        T = len(frames.positions)
        x_BCTHW = torch.empty(B, config.in_dim, T * config.patch_size[0], H, W, device="meta")
        text_JC = torch.empty(config.text_len, config.text_dim, device="meta")
        with counting_saved(flat.values()) as count:
            context = encode_context(params, short, [text_JC] * B, engine=engine)
            t_BT = torch.empty(B, T, device="meta")
            dit(params, short, x_BCTHW, t_BT, context, frames=frames, engine=engine)
        return count()

    return kept


def _activations(kept: Callable[[int, bool], int], layers: int, *, checkpointing: bool) -> int:
    """All blocks are alike but the first, so three say what many take."""

    def of(checkpointing: bool) -> tuple[int, int]:
        two, three = kept(2, checkpointing), kept(3, checkpointing)
        each = three - two
        return kept(1, checkpointing) if layers == 1 else two + (layers - 2) * each, each

    total, _ = of(checkpointing)
    return total + of(False)[1] if checkpointing else total


class _Fused(torch.autograd.Function):
    """What a fused attention kernel keeps: its inputs, its result, and a number for every row."""

    @staticmethod
    def forward(ctx: Any, q_BLNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor) -> Tensor:
        o_BLNK = torch.empty_like(q_BLNK)
        sums = torch.empty(q_BLNK.shape[:3], device=q_BLNK.device, dtype=torch.float32)
        ctx.save_for_backward(q_BLNK, k_BSNK, v_BSNK, o_BLNK, sums)
        return o_BLNK


def _fused(q_BLNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor, mask_LS: Tensor | None = None) -> Tensor:
    made = _Fused.apply(q_BLNK, k_BSNK, v_BSNK)
    assert isinstance(made, Tensor)
    return made
