"""Latent frames on different noise levels at once: FIFO, chunk pipelines, diffusion forcing.

All follow one timetable: a block of frames begins `lag` ticks after the block before it and takes
a step in every tick, so that noise never falls along time. They differ in what a block is, in what
sees what, and in what is behind the oldest noisy block. Each block has a solver state of its own
and goes down the model's own schedule with the model's own solver, the very step of
`mmpl.wan.flow`: SkyReels-V2 does so too, and nothing but the order is compared then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpl.checkpoint.bundle import Model
from mmpl.eval.rolling import Window, entered
from mmpl.eval.stage import (
    Evaluations,
    Pixels,
    Shot,
    Stage,
    branches_of,
    film_of,
    latents_of,
    open_stage,
)
from mmpl.eval.windows import joined, spans
from mmpl.film.denoise import Sampler, commit, velocities
from mmpl.film.segment import Latents, hand_over_full_history
from mmpl.layout.presets import SEGMENT_LATENTS
from mmpl.layout.timeline import Chain
from mmpl.wan.dit import Positions, dit
from mmpl.wan.flow import TRAIN_TIMESTEPS, SolverState, renoise, step
from mmpl.wan.noise import normal

Tick = tuple[tuple[int, int], ...]  # (block, its step), the oldest block first


def timetable(blocks: int, steps: int, lag: int) -> Iterator[Tick]:
    """What is done in each tick. Every block takes each of its steps once, in order, and one that
    came before is never behind. With `lag` 0 all go together, with `steps` one after the other."""
    for tick in range((blocks - 1) * lag + steps):
        at = ((block, tick - block * lag) for block in range(blocks))
        yield tuple((block, index) for block, index in at if 0 <= index < steps)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Latent frames on one noise level, and what the solver remembers of their way there."""

    x_BCTHW: Tensor
    state: SolverState

    def after(self, sampler: Sampler, index: int, v_BCTHW: Tensor) -> Block:
        """The block one step on: step `index`, with the velocity found for it."""
        made = step(sampler.solver, sampler.schedule, index, v_BCTHW, self.x_BCTHW, self.state)
        return Block(*made)


@torch.no_grad()
def joint(stage: Stage, parts: Sequence[tuple[Tensor, float]]) -> list[Tensor]:
    """The velocities of latents that all see each other in one pass, each part x_BCTHW on a
    timestep of its own. The parts follow each other in time."""
    network, sizes = stage.network, [x_BCTHW.shape[2] for x_BCTHW, _ in parts]
    x_BCTHW = torch.cat([x_BCTHW for x_BCTHW, _ in parts], dim=2)
    levels = [level for (_, level), size in zip(parts, sizes) for _ in range(size)]
    t_BT = torch.tensor([levels], dtype=torch.float32, device=x_BCTHW.device)
    frames = Positions(tuple(range(len(levels))))
    of_branches = [
        dit(
            network.params,
            network.config,
            x_BCTHW,
            t_BT,
            text,
            frames=frames,
            engine=network.engine,
        )
        for text in stage.texts
    ]
    return list(stage.guided(of_branches).split(sizes, dim=2))


# --------------------------------------------------------------------------------------- FIFO


@dataclass(frozen=True, slots=True)
class Fifo:
    """FIFO-Diffusion's diagonal denoising: a queue with one block on every noise level.

    In each tick the oldest block leaves clean and a new one enters as noise. The queue fills the
    trained window of `frames`: with fewer steps a block has several frames, with more the queue is
    parted into passes that each hold whole blocks (its latent partitioning). Without lookahead
    denoising, which doubles the evaluations, and without a finished clip to begin with: the queue
    fills up and runs empty.
    """

    frames: int = SEGMENT_LATENTS

    def make(self, model: Model, shot: Shot) -> Iterator[Pixels]:
        """See `Way`."""
        film = film_of(model, shot)
        stage = open_stage(model, film)
        return stage.pixels(self.queue(stage, latents_of(film)), 0, film.frames)

    def count(self, model: Model, shot: Shot) -> Evaluations:
        """See `Way`."""
        film = film_of(model, shot)
        size = self.block(film.steps)
        blocks = -(-latents_of(film) // size)
        return Evaluations(film.steps * blocks * size, 0, branches_of(film))

    def block(self, steps: int) -> int:
        """Latent frames on one noise level."""
        return max(1, self.frames // steps)

    def queue(self, stage: Stage, latents: int) -> Iterator[Tensor]:
        """At least `latents` latent frames [B, C, H, W] in order, in whole blocks."""
        size, times = self.block(stage.steps), stage.sampler.schedule.timesteps
        queue: dict[int, Block] = {}
        for tick in timetable(-(-latents // size), stage.steps, lag=1):
            for number, index in tick:
                if index == 0:
                    queue[number] = _started(stage, range(number * size, (number + 1) * size))
            for part in partitions(tick, self.frames // size):
                found = joint(stage, [(queue[n].x_BCTHW, times[index]) for n, index in part])
                for (number, index), v_BCTHW in zip(part, found, strict=True):
                    queue[number] = queue[number].after(stage.sampler, index, v_BCTHW)
            oldest, index = tick[0]
            if index == stage.steps - 1:
                yield from queue.pop(oldest).x_BCTHW.unbind(2)


def partitions(tick: Tick, most: int) -> list[Tick]:
    """The blocks of a tick in as few parts of at most `most` as will do, as even as can be."""
    count = -(-len(tick) // most)
    ends = [len(tick) * part // count for part in range(count + 1)]
    return [tick[start:stop] for start, stop in zip(ends, ends[1:])]


# --------------------------------------------------------------------------- pipeline of chunks


@dataclass(frozen=True, slots=True)
class Pipeline:
    """MAGI-1's pipeline: up to `at_once` chunks on staggered noise levels, block-causal.

    A chunk begins when the one before it has 1 / `at_once` of its steps behind it. It sees itself
    and all chunks before it in the rolling window, each as it is now: clean, or less noisy than
    itself. The passes of a tick run from the oldest chunk on over the cache, which gives what one
    pass under a block-causal mask would; then what is finished has its clean pass. With `at_once`
    1 this is `Rolling`.
    """

    window: Window
    at_once: int = 4

    def make(self, model: Model, shot: Shot) -> Iterator[Pixels]:
        """See `Way`."""
        film = film_of(model, shot)
        stage = open_stage(model, film)
        return stage.pixels(self.chunks(stage, latents_of(film)), 0, film.frames)

    def count(self, model: Model, shot: Shot) -> Evaluations:
        """See `Way`."""
        film, chunk = film_of(model, shot), self.window.chunk
        frames = chunk * self.window.chunks(latents_of(film))
        return Evaluations(film.steps * frames, frames - chunk, branches_of(film))

    def chunks(self, stage: Stage, latents: int) -> Iterator[Tensor]:
        """At least `latents` latent frames [B, C, H, W] in order, in whole chunks."""
        window, network = self.window, stage.network
        times, count = stage.sampler.schedule.timesteps, window.chunks(latents)
        context = stage.context(window.layout, window.frames)
        begun: dict[int, Block] = {}
        for tick in timetable(count, stage.steps, -(-stage.steps // self.at_once)):
            newest = tick[-1][0]
            for number, index in tick:
                group = window.group(number)
                if index == 0:
                    begun[number] = _started(stage, group.frames)
                context = entered(context, window, number, newest)
                x_BCTHW = begun[number].x_BCTHW
                v_BCTHW = stage.guided(velocities(network, context, group, x_BCTHW, times[index]))
                begun[number] = begun[number].after(stage.sampler, index, v_BCTHW)
            oldest, index = tick[0]
            if index == stage.steps - 1:
                z_BCTHW = begun.pop(oldest).x_BCTHW
                if oldest + 1 < count:
                    context = entered(context, window, oldest, newest)
                    context = commit(network, context, window.group(oldest), z_BCTHW)
                yield from z_BCTHW.unbind(2)


# --------------------------------------------------------------------------- diffusion forcing


@dataclass(frozen=True, slots=True)
class Forcing:
    """SkyReels-V2's diffusion forcing: asynchronous steps within a window, bidirectional.

    A window begins with `history` latents, the end of the window before, decoded and encoded
    again, and has blocks of `block` frames after it. Each block is `lag` of the steps behind the
    one before, a share of all. What is finished stays in the passes at timestep 0; the history
    does with the noise of level `condition`, which hides its small faults. Blocks that have not
    begun are left out, where SkyReels carries their noise along.
    """

    frames: int = SEGMENT_LATENTS
    history: int = 5
    block: int = 4
    lag: float = 5 / 30
    condition: float = 0.02

    def make(self, model: Model, shot: Shot) -> Iterator[Pixels]:
        """See `Way`."""
        film = film_of(model, shot)
        stage, chain = open_stage(model, film), self._chain(model)

        def fill(window: int, given: Latents, wanted: int) -> Latents:
            return self.filled(stage, window, given, wanted)

        yield from joined(stage, chain, hand_over_full_history, fill)

    def count(self, model: Model, shot: Shot) -> Evaluations:
        """See `Way`."""
        film, noisy, clean = film_of(model, shot), 0, 0
        for window, span in enumerate(spans(self._chain(model), film.frames)):
            blocks = self.blocks(window > 0, span.latents)
            for tick in timetable(len(blocks), film.steps, self.steps_behind(film.steps)):
                noisy += sum(len(blocks[number]) for number, _ in tick)
                clean += blocks[tick[0][0]].start
        return Evaluations(noisy, clean, branches_of(film))

    def steps_behind(self, steps: int) -> int:
        """How many steps a block is behind the one before it."""
        return max(1, round(self.lag * steps))

    def blocks(self, continues: bool, latents: int) -> list[range]:
        """The blocks of a window that are made, as far as its first `latents` need them. In a
        window that continues none, the history is the first block."""
        first = [] if continues else [range(self.history)]
        starts = range(self.history, latents, self.block)
        return [*first, *(range(start, start + self.block) for start in starts)]

    def filled(self, stage: Stage, window: int, given: Latents, wanted: int) -> dict[int, Tensor]:
        """The given latents of a window and those of its blocks."""
        times, sampler = stage.sampler.schedule.timesteps, stage.sampler
        blocks = self.blocks(bool(given), wanted)
        history = self._history(stage, window, given)
        begun: dict[int, Block] = {}
        for tick in timetable(len(blocks), stage.steps, self.steps_behind(stage.steps)):
            for number, index in tick:
                if index == 0:
                    begun[number] = _started(stage, blocks[number], window)
            behind = [*history, *((begun[n].x_BCTHW, 0.0) for n in range(tick[0][0]))]
            ahead = [(begun[number].x_BCTHW, times[index]) for number, index in tick]
            found = joint(stage, [*behind, *ahead])[len(behind) :]
            for (number, index), v_BCTHW in zip(tick, found, strict=True):
                begun[number] = begun[number].after(sampler, index, v_BCTHW)
        latents = dict(given)
        for number, frames in enumerate(blocks):
            latents.update(zip(frames, begun[number].x_BCTHW.unbind(2), strict=True))
        return latents

    def _history(self, stage: Stage, window: int, given: Latents) -> Sequence[tuple[Tensor, float]]:
        """The given latents as the passes see them, and at which timestep."""
        parts = []
        for frame, z_BCHW in given.items():
            drawn_CHW = normal(
                stage.latent_shape,
                seed=stage.film.seed,
                segment=window,
                frame=frame,
                purpose="renoise",
            )
            noised_BCHW = renoise(z_BCHW, drawn_CHW[None].to(stage.device), self.condition)
            parts.append((noised_BCHW[:, :, None], TRAIN_TIMESTEPS * self.condition))
        return parts

    def _chain(self, model: Model) -> Chain:
        return Chain(self.frames, model.vae_config.temporal_stride, seeds=self.history)


def _started(stage: Stage, frames: Sequence[int], segment: int = 0) -> Block:
    return Block(stage.noise(frames, segment), SolverState())
