"""Rollouts with gradients: the groups of a segment made in order, each over what it made before.

Noisy passes read the cache and store nothing, so they may carry a gradient; the clean pass that
stores a group's keys and values never does. Source: Self-Forcing's rollout, with groups of a layout
in place of its chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmpl.layout.layout import Group, Layout, committed
from mmpl.layout.slots import SlotPlan, slot_plan
from mmpl.wan.cache import KVCache, SlotView, kv_allocate, kv_commit
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit import CrossKV, DiTParams, Engine, Positions, dit, encode_context
from mmpl.wan.flow import Schedule, renoise, x0_from_flow

Latents = Mapping[int, Tensor]  # latent frame of the segment -> z_BCHW
Noise = Callable[[Group, int], Tensor]  # group, step -> fresh noise: what it starts from, for 0


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A transformer that has read the texts of a batch."""

    params: DiTParams
    config: DiTConfig
    context: CrossKV
    engine: Engine


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """What a segment has committed so far, and whose memory it is."""

    reader: Reader
    slots: SlotPlan
    cache: KVCache


def read(params: DiTParams, config: DiTConfig, texts: Sequence[Tensor], engine: Engine) -> Reader:
    """A transformer and its keys and values of `texts` [J, text_dim], one per sample."""
    return Reader(params, config, encode_context(params, config, texts, engine=engine), engine)


def open_memory(reader: Reader, layout: Layout, latent_size: tuple[int, int]) -> Memory:
    """Nothing committed. `latent_size`: rows and columns of the latent."""
    slots, keys = slot_plan(layout), reader.context.k_IBJNK
    cache = kv_allocate(
        reader.config,
        batch=keys.shape[1],
        slots=slots.stored,
        frame_tokens=reader.config.frame_tokens(*latent_size),
        dtype=keys.dtype,
        device=keys.device,
    )
    return Memory(reader, slots, cache)


def velocity(memory: Memory, group: Group, x_BCTHW: Tensor, timestep: float) -> Tensor:
    """The flow of a group's frames, ascending, over what is committed. Stores nothing; carries a
    gradient where there is one to carry, but none to what is committed."""
    seen = sorted(memory.slots.slot(frame) for frame in group.sees)
    span = (seen[0], seen[-1] + 1) if seen else (0, 0)
    gather = None if span[1] - span[0] == len(seen) else tuple(seen)
    view = SlotView(write=None, read=span, gather=gather)
    return _pass(memory, group.frames, view, x_BCTHW, timestep)


@torch.no_grad()
def commit(memory: Memory, group: Group, z_BCTHW: Tensor) -> Memory:
    """The clean pass of a group's final latents, frames ascending: never with a gradient."""
    plan = memory.slots.pass_of(group.name)
    order = [group.frames.index(frame) for frame in plan.frames]
    view = SlotView(write=plan.write, read=plan.read, gather=plan.gather)
    _pass(memory, plan.frames, view, z_BCTHW[:, :, order], 0.0)
    return replace(memory, cache=kv_commit(memory.cache, range(*plan.write)))


def roll_out(
    memory: Memory,
    layout: Layout,
    groups: Collection[Group],
    given: Latents,
    make: Callable[[Memory, Group], Tensor],
) -> dict[int, Tensor]:
    """The latents of `groups` of a layout, those in `given` as they are.

    `make(memory, group)` makes a group over a memory of those before. What a later group sees of it
    is without gradient.
    """
    latents, stored = dict(given), committed(layout, groups)
    for group in groups:
        if not latents.keys() >= set(group.frames):
            made_BCTHW = make(memory, group)
            latents.update(zip(group.frames, made_BCTHW.unbind(2), strict=True))
        if group in stored:
            memory = commit(memory, group, stack(latents, group.frames).detach())
    return latents


def few_steps(
    memory: Memory, group: Group, schedule: Schedule, noise: Noise, exit_step: int
) -> Tensor:
    """The x0 that few-step sampling predicts at step `exit_step`, the only one with a gradient."""
    x_BCTHW = noise(group, 0)
    with torch.no_grad():
        for step in range(exit_step):
            x0_BCTHW = _x0(memory, group, x_BCTHW, schedule, step)
            x_BCTHW = renoise(x0_BCTHW, noise(group, step + 1), schedule.sigmas[step + 1])
    return _x0(memory, group, x_BCTHW, schedule, exit_step)


def stack(latents: Latents, frames: Collection[int]) -> Tensor:
    """The given latent frames as one z_BCTHW."""
    return torch.stack([latents[frame] for frame in frames], dim=2)


def _x0(memory: Memory, group: Group, x_BCTHW: Tensor, schedule: Schedule, step: int) -> Tensor:
    v_BCTHW = velocity(memory, group, x_BCTHW, schedule.timesteps[step])
    return x0_from_flow(v_BCTHW, x_BCTHW, schedule.sigmas[step])


def _pass(
    memory: Memory, frames: tuple[int, ...], view: SlotView, x_BCTHW: Tensor, timestep: float
) -> Tensor:
    reader = memory.reader
    return dit(
        reader.params,
        reader.config,
        x_BCTHW,
        x_BCTHW.new_full((len(x_BCTHW), len(frames)), timestep, dtype=torch.float32),
        reader.context,
        memory.cache,
        frames=Positions(frames, slots=view),
        engine=reader.engine,
    )
