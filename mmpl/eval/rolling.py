"""One clip without joints, chunk after chunk over a cache that forgets: Self-Forcing's rollout.

The cache holds a window of latent frames; a new chunk takes the slots of the oldest. With a sink
the first frames of the film are never forgotten. Positions keep counting: RoPE is relative, so
what matters is how far apart frames are, and inside the window that is never farther than in
training. The sink would be; so its keys are turned, chunk by chunk, to stay at the far end of the
window. (Self-Forcing's own sink is not turned: `rerotate=False`.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from mmpl.checkpoint.bundle import Model
from mmpl.errors import ArgumentError
from mmpl.eval.stage import (
    Evaluations,
    Pixels,
    Shot,
    Stage,
    branches_of,
    film_of,
    latents_of,
    open_stage,
    run,
)
from mmpl.film.denoise import Context, Network, commit, denoise
from mmpl.layout.layout import Group, Layout
from mmpl.layout.presets import SEGMENT_LATENTS, chunked
from mmpl.layout.slots import Pass, SlotPlan
from mmpl.wan.rope import rope, rope_table


@dataclass(frozen=True, slots=True)
class Window:
    """A cache of `frames` latent frames for an endless row of chunks, which count from 0.

    The first `sink` frames keep their slots, the others share the rest in turn. Raises
    ArgumentError unless both parts hold whole chunks.
    """

    frames: int = SEGMENT_LATENTS
    chunk: int = 3
    sink: int = 0

    def __post_init__(self) -> None:
        ring = self.frames - self.sink
        whole = self.chunk >= 1 and not (self.sink % self.chunk or ring % self.chunk)
        if not whole or self.sink < 0 or ring < 1:
            raise ArgumentError(
                "a rolling window holds whole chunks",
                got=f"{self.frames} frames, chunk {self.chunk}, sink {self.sink}",
                wanted="a sink and a rest that are multiples of the chunk, the rest not empty",
            )

    @property
    def layout(self) -> Layout:
        """The window as a segment of its own: what the cache is allocated for."""
        return chunked(self.frames, self.chunk)

    def chunks(self, latents: int) -> int:
        """How many chunks hold `latents` frames."""
        return -(-latents // self.chunk)

    def group(self, number: int) -> Group:
        """A chunk, its frames numbered from the start of the film."""
        first = number * self.chunk
        return Group(f"chunk_{number + 1}", tuple(range(first, first + self.chunk)))

    def slot(self, number: int) -> int:
        """The first slot of a chunk; its others follow."""
        first = number * self.chunk
        ring = self.frames - self.sink
        return first if first < self.sink else self.sink + (first - self.sink) % ring

    def seen(self, number: int, newest: int) -> tuple[int, ...]:
        """The chunks before `number` that are in the cache when those up to `newest` have begun."""
        held = (self.frames - self.sink) // self.chunk
        return tuple(n for n in range(number) if n < self.sink // self.chunk or n > newest - held)

    def passes(self, number: int, newest: int) -> Pass:
        """What the passes of a chunk write and read."""
        group, start = self.group(number), self.slot(number)
        starts = [start, *map(self.slot, self.seen(number, newest))]
        slots = sorted(first + k for first in starts for k in range(self.chunk))
        read = (slots[0], slots[-1] + 1)
        gather = None if read[1] - read[0] == len(slots) else tuple(slots)
        return Pass(group.name, group.frames, (start, start + self.chunk), read, gather)


def entered(context: Context, window: Window, number: int, newest: int | None = None) -> Context:
    """The same storage ready for the passes of chunk `number`: what it takes the place of is
    forgotten. `newest`: the newest chunk that has begun, by default this one."""
    step = window.passes(number, number if newest is None else newest)
    read = range(*step.read) if step.gather is None else step.gather
    final = frozenset(read).difference(range(*step.write))
    return replace(
        context,
        slots=SlotPlan(tuple(range(window.frames)), (step,), window.frames),
        branches=tuple(
            replace(branch, cache=replace(branch.cache, committed=final))
            for branch in context.branches
        ),
    )


def rolled(
    stage: Stage, window: Window, latents: int, *, rerotate: bool = True
) -> Iterator[Tensor]:
    """At least `latents` latent frames [B, C, H, W] in order, in whole chunks.

    `rerotate`: whether the sink's keys move along with the window.
    """
    context, network = stage.context(window.layout, window.frames), stage.network
    last, sink = window.chunks(latents) - 1, ()
    for number in range(last + 1):
        group = window.group(number)
        if rerotate and group.frames[0] == window.sink:
            sink = sink_keys(context, window)
        beyond = group.frames[-1] + 1 - window.frames
        if rerotate and window.sink and beyond > 0:
            turn_sink_(network, context, sink, beyond)
        context = entered(context, window, number)
        noise_BCTHW = stage.noise(group.frames)
        z_BCTHW = run(denoise(network, context, group, noise_BCTHW, stage.sampler))
        if number < last:
            context = commit(network, context, group, z_BCTHW)
        yield from z_BCTHW.unbind(2)


def sink_keys(context: Context, window: Window) -> tuple[Tensor, ...]:
    """A copy of the keys k_IBSNK of the sink, for each branch, as they were committed."""
    rows = [window.sink * branch.cache.frame_tokens for branch in context.branches]
    return tuple(b.cache.k_IBSNK[:, :, :n].clone() for b, n in zip(context.branches, rows))


def turn_sink_(network: Network, context: Context, sink: tuple[Tensor, ...], by: int) -> None:
    """Stores the `sink` keys in the cache as if their frames stood `by` places later.

    RoPE turns by an angle proportional to the place, so a further turn moves a key that has one;
    always from the committed keys, so that rounding does not pile up.
    """
    table_L1C2 = rope_table(network.config, (by,), 1, 1, device=sink[0].device)
    for branch, k_IBSNK in zip(context.branches, sink, strict=True):
        turned = rope(k_IBSNK, table_L1C2).to(k_IBSNK.dtype)
        branch.cache.k_IBSNK[:, :, : k_IBSNK.shape[2]] = turned


@dataclass(frozen=True, slots=True)
class Rolling:
    """Chunk-wise autoregression over a rolling window."""

    window: Window
    rerotate: bool = True

    def make(self, model: Model, shot: Shot) -> Iterator[Pixels]:
        """See `Way`."""
        film = film_of(model, shot)
        stage = open_stage(model, film)
        made = rolled(stage, self.window, latents_of(film), rerotate=self.rerotate)
        return stage.pixels(made, 0, film.frames)

    def count(self, model: Model, shot: Shot) -> Evaluations:
        """See `Way`."""
        film = film_of(model, shot)
        frames = self.window.chunk * self.window.chunks(latents_of(film))
        return Evaluations(film.steps * frames, frames - self.window.chunk, branches_of(film))
