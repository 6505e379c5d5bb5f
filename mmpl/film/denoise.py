"""Denoising one group of latent frames over the cache of its segment.

A group is denoised against what earlier groups committed, then a clean pass at timestep 0 stores
its keys and values for later groups. Guidance takes two branches, each with its own text and
cache. Source: paper 3.1-3.2 and the order of the released inference code.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from mmpl.errors import NumericError
from mmpl.layout.layout import Group, Layout
from mmpl.layout.slots import Pass, SlotPlan, slot_plan
from mmpl.wan.cache import KVCache, SlotView, kv_allocate, kv_commit, kv_reset
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit import CrossKV, DiTParams, Engine, Positions, dit, time_of
from mmpl.wan.flow import Renoise, Schedule, SolverState, guided, step
from mmpl.wan.rope import rope_table


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """The transformer and how its arithmetic is done. With `guidance_pair` this rank and another
    take one branch of guidance each."""

    params: DiTParams
    config: DiTConfig
    engine: Engine
    guidance_pair: dist.ProcessGroup | None = None

    @property
    def branch(self) -> int | None:
        """The one branch of guidance that this rank takes; None if it takes all."""
        return None if self.guidance_pair is None else dist.get_rank(self.guidance_pair)

    def of_all_branches(self, own: list[Tensor]) -> list[Tensor]:
        """The velocities of all branches, from those of the ones taken here."""
        if self.guidance_pair is None:
            return own
        both = [torch.empty_like(own[0]) for _ in range(dist.get_world_size(self.guidance_pair))]
        dist.all_gather(both, own[0].contiguous(), group=self.guidance_pair)
        return both


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One side of classifier-free guidance, or all of them as one batch: texts, and the cache of
    passes that saw them."""

    context: CrossKV
    cache: KVCache


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What a segment has committed so far. `branches` is (with prompt,) or (with prompt, with
    negative prompt), or that of the two which is taken here, or (both,); all passes of a segment
    go through all of them."""

    slots: SlotPlan
    branches: tuple[Branch, ...]

    def stores(self, step: Pass) -> bool:
        """Whether the slots that `step` writes have memory."""
        return step.write[1] <= self.branches[0].cache.slots


@dataclass(frozen=True, slots=True)
class Sampler:
    """How noise becomes a picture: a solver, its schedule, and the guidance scale. `renoise`: the
    fresh noise of a group for every further step, for few_step."""

    solver: str
    schedule: Schedule
    guidance_scale: float
    renoise: Renoise | None = None


def open_context(
    network: Network,
    layout: Layout,
    texts: tuple[CrossKV, ...],
    *,
    latent_size: tuple[int, int],
    device: torch.device | str = "cpu",
    stored: int | None = None,
    hosts: Callable[[int], bool] = lambda branch: False,
) -> Context:
    """An empty context with one branch per text, for as many clips as the text is for.
    `latent_size`: rows and columns of the latent.
    `stored`: how many slots have memory, by default as many as the layout needs. `hosts`: whether
    the cache of a branch, from 0, is in the host's memory."""
    slots = slot_plan(layout)
    branches = []
    for index, text in enumerate(texts):
        cache = kv_allocate(
            network.config,
            batch=text.clips,
            slots=slots.stored if stored is None else stored,
            frame_tokens=network.config.frame_tokens(*latent_size),
            ranks=network.engine.ranks,
            dtype=text.k_IBJNK.dtype,
            device=device,
            hosted=hosts(index),
        )
        branches.append(Branch(text, cache))
    return Context(slots, tuple(branches))


def reset(
    context: Context, texts: tuple[CrossKV, ...] | None = None, layout: Layout | None = None
) -> Context:
    """The same storage with nothing committed: the context of the next segment. Its branches read
    `texts` and its frames are those of `layout`, where these are given, in place of their own."""
    texts = texts or tuple(branch.context for branch in context.branches)
    return replace(
        context,
        slots=context.slots if layout is None else slot_plan(layout),
        branches=tuple(
            Branch(text, kv_reset(branch.cache))
            for text, branch in zip(texts, context.branches, strict=True)
        ),
    )


def commit(network: Network, context: Context, group: Group, z_BCTHW: Tensor) -> Context:
    """Runs the clean pass of `group` with its final latents (frames ascending) and commits it.

    Whoever needs a group's context gets the same bits from this pass, wherever it runs.
    """
    velocities(network, context, group, z_BCTHW, 0.0)
    step = context.slots.pass_of(group.name)
    written = range(*step.write) if context.stores(step) else ()
    return replace(
        context,
        branches=tuple(replace(b, cache=kv_commit(b.cache, written)) for b in context.branches),
    )


def denoise(
    network: Network, context: Context, group: Group, noise_BCTHW: Tensor, sampler: Sampler
) -> Generator[int, None, Tensor]:
    """Denoises `noise_BCTHW` (the group's frames, ascending); yields steps done, returns latents.

    The context is not changed but for the group's own uncommitted slots. Raises NumericError if
    the result is not finite.
    """
    x_BCTHW, state = noise_BCTHW, SolverState()
    placed = place(network, context, group, noise_BCTHW)
    for index, timestep in enumerate(sampler.schedule.timesteps):
        found = velocities(network, context, group, x_BCTHW, timestep, placed)
        v_BCTHW, *others = network.of_all_branches(found)
        for other_BCTHW in others:
            v_BCTHW = guided(v_BCTHW, other_BCTHW, sampler.guidance_scale)
        x_BCTHW, state = step(
            sampler.solver, sampler.schedule, index, v_BCTHW, x_BCTHW, state, sampler.renoise
        )
        yield index + 1
    if not bool(torch.isfinite(x_BCTHW).all()):
        raise NumericError(
            "the latents are not finite",
            where=f"group {group.name}",
            todo="try another dtype or check the weights",
        )
    return x_BCTHW


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """What all steps of a group have in common. `order` puts its frames into slot order and `back`
    out of it; None where the two orders are one."""

    frames: Positions
    order: Tensor | None
    back: Tensor | None


def place(network: Network, context: Context, group: Group, x_BCTHW: Tensor) -> Placed:
    """The place of `group` in `context`, for latents like `x_BCTHW`."""
    plan = context.slots.pass_of(group.name)
    device = x_BCTHW.device
    height, width = x_BCTHW.shape[3:]
    _, patch_height, patch_width = network.config.patch_size
    rows, columns = height // patch_height, width // patch_width
    table = rope_table(network.config, plan.frames, rows, columns, device=device)
    if context.stores(plan):
        view = SlotView(write=plan.write, read=plan.read, gather=plan.gather)
    else:  # of a group that has no memory of its own: the same keys in the same order
        view = SlotView(write=None, read=(plan.read[0], plan.write[0]))
    frames = Positions(plan.frames, slots=view, rope_L1C2=table)
    if plan.frames == group.frames:
        return Placed(frames, None, None)
    order = [group.frames.index(frame) for frame in plan.frames]
    back = [plan.frames.index(frame) for frame in group.frames]
    return Placed(frames, *(torch.tensor(one, device=device) for one in (order, back)))


@torch.no_grad()
def velocities(
    network: Network,
    context: Context,
    group: Group,
    x_BCTHW: Tensor,
    timestep: float,
    placed: Placed | None = None,
) -> list[Tensor]:
    """One velocity per branch of guidance, for the frames of `group` ascending, at one timestep.

    Each branch of `context` is a forward of its own: one fixed shape, one set of bits. Where it is
    for more clips than `x_BCTHW` has, it stands for several of guidance (mmpl/film/together.py).
    The tokens run in slot order, so that they are written as one range. `placed`: what `place` says
    of the group, for callers that take many steps.
    """
    placed = placed or place(network, context, group, x_BCTHW)
    t_11 = torch.full((1, 1), timestep, dtype=torch.float32, device=x_BCTHW.device)
    time = time_of(network.params, network.config, t_11, engine=network.engine)
    x_BCTHW = _in_order(x_BCTHW, placed.order)
    found: list[Tensor] = []
    for branch in context.branches:
        copies = branch.context.clips // len(x_BCTHW)
        v_BCTHW = dit(
            network.params,
            network.config,
            x_BCTHW.repeat(copies, 1, 1, 1, 1) if copies > 1 else x_BCTHW,
            time,
            branch.context,
            branch.cache,
            frames=placed.frames,
            engine=network.engine,
        )
        found += _in_order(v_BCTHW, placed.back).chunk(copies)
        del v_BCTHW  # not beside the next branch's pass
    return found


def _in_order(x_BCTHW: Tensor, order: Tensor | None) -> Tensor:
    return x_BCTHW if order is None else x_BCTHW.index_select(2, order)
