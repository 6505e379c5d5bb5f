"""What a training of the transformer takes of a device's memory, before anything is loaded.

Weights, gradients and optimizer follow from the shapes. What autograd keeps for the backward pass
is found by running the network itself on tensors without data, for two and for three blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from mmpl.train.recompute import checkpointed
from mmpl.train.rollout import Reader, read
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit import Engine, Positions, block, dit, dit_from_flat, dit_shapes
from mmpl.wan.ops import BFLOAT16, Precision

_MASTER = torch.float32  # of trained weights, their gradients, averages and optimizer
_MOMENTS = 2  # of AdamW
_GATHERED = 2  # blocks that FSDP has whole: the one at work and the next

Passes = Callable[[Reader], None]  # those of a step, by a network on tensors without data


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
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return in_gib(parts | {"total": self.total})


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of one network in one of `shards` processes. `moved`: of its trained weights; of them
    come as many in gradients, averages and each moment. While it computes FSDP has whole: `root`,
    what no block holds; `blocks`, some at a time; and `gradients` of one."""

    weights: int
    moved: int
    root: int = 0
    blocks: int = 0
    gradients: int = 0

    @property
    def optimizer(self) -> int:
        return _MOMENTS * self.moved


def footprint(
    config: DiTConfig, trained: Collection[str], *, shards: int = 1, frozen: torch.dtype
) -> Footprint:
    """Of a transformer whose weights `trained` AdamW moves; all others are stored as `frozen`."""
    shapes, wanted = dit_shapes(config), set(trained)

    def numbers(names: Iterable[str], shards: int = 1) -> int:
        return sum(-(-shapes[n][0] // shards) * math.prod(shapes[n][1:]) for n in names)

    def stored(names: Collection[str], shards: int = 1) -> int:
        own = [name for name in names if name in wanted]
        rest = [name for name in names if name not in wanted]
        return numbers(own, shards) * _MASTER.itemsize + numbers(rest, shards) * frozen.itemsize

    weights = stored(shapes, shards)
    moved = numbers((name for name in shapes if name in wanted), shards) * _MASTER.itemsize
    if shards == 1:
        return Footprint(weights, moved)
    one = [name for name in shapes if name.startswith("blocks.0.")]
    root = [name for name in shapes if not name.startswith("blocks.")]
    gradients = numbers(n for n in (*one, *root) if n in wanted) * _MASTER.itemsize
    return Footprint(weights, moved, stored(root), _GATHERED * stored(one), gradients)


def in_gib(parts: Mapping[str, int]) -> list[str]:
    """A line for each number of bytes."""
    return [f"{name:<12}{size / 2**30:9.2f} GiB" for name, size in parts.items()]


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
    own = footprint(config, trained, shards=shards, frozen=frozen)
    return MemoryPlan(
        weights=own.weights,
        gradients=own.moved,
        optimizer=own.optimizer,
        ema=own.moved,
        gathered=own.root + own.blocks + own.gradients,
        activations=activations(
            config,
            trained,
            one_pass(frames, size_BHW),
            batch=size_BHW[0],
            precision=precision,
            frozen=frozen,
            checkpointing=checkpointing,
        ),
    )


def one_pass(frames: Positions, size_BHW: tuple[int, int, int]) -> Passes:
    """One pass over `frames` of latents of this size."""
    B, H, W = size_BHW

    def passes(reader: Reader) -> None:
        config, T = reader.config, len(frames.positions)
        x_BCTHW = torch.empty(B, config.in_dim, T * config.patch_size[0], H, W, device="meta")
        t_BT = torch.empty(B, T, device="meta")
        dit(
            reader.params,
            config,
            x_BCTHW,
            t_BT,
            reader.context,
            frames=frames,
            engine=reader.engine,
        )

    return passes


def activations(
    config: DiTConfig,
    trained: Collection[str],
    passes: Passes,
    *,
    batch: int = 1,
    precision: Precision,
    frozen: torch.dtype,
    checkpointing: bool,
) -> int:
    """Bytes that autograd keeps of `passes` over a batch, and with gradient checkpointing those of
    one block that is computed again. All blocks are alike but the first, so three say what many
    take."""
    kept = _kept_by(config, set(trained), passes, batch, precision=precision, frozen=frozen)

    def of(checkpointing: bool) -> tuple[int, int]:
        two, three = kept(2, checkpointing), kept(3, checkpointing)
        each, layers = three - two, config.num_layers
        return kept(1, checkpointing) if layers == 1 else two + (layers - 2) * each, each

    total, _ = of(checkpointing)
    return total + of(False)[1] if checkpointing else total


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
    passes: Passes,
    batch: int,
    *,
    precision: Precision,
    frozen: torch.dtype,
) -> Callable[[int, bool], int]:
    """Bytes kept by a network of so many blocks, with or without gradient checkpointing."""

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
        text_JC = torch.empty(config.text_len, config.text_dim, device="meta")
        with counting_saved(flat.values()) as count:
            passes(read(params, short, [text_JC] * batch, engine))
        return count()

    return kept


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
