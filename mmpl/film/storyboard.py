"""The story before it is rendered: the keyframes of a film's segments, and a still of each.

The keyframes of a segment are final as soon as its plan is, long before its other frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmpl.film.segment import Latents, stack
from mmpl.film.settings import Film
from mmpl.film.store import Store
from mmpl.layout.timeline import film_frame
from mmpl.layout.work import Task, Work, plan_work
from mmpl.media.pixels import to_uint8
from mmpl.wan import vae
from mmpl.wan.config import VAEConfig


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """The keyframes of a segment are final: latent frame -> z [1, C, H, W]."""

    segment: int
    latents: Latents


@dataclass(frozen=True, slots=True, eq=False)
class Still:
    """What a film shows at its frame `frame`: the last one of the latent frame `latent` of a
    segment, uint8 RGB."""

    segment: int
    latent: int
    frame: int
    pixels_HWC: NDArray[np.uint8]


class Plans:
    """Gathers what is made until the plan of a segment is whole."""

    def __init__(self, film: Film, work: Work) -> None:
        self._film = film
        self._latents: dict[int, dict[int, Tensor]] = {}
        self._open: dict[int, set[str]] = {}
        for task in work.planning:
            self._open.setdefault(task.segment, set()).add(task.group)

    def enter(self, task: Task, z_BCTHW: Tensor) -> Iterator[Planned]:
        """Notes the result of a task; yields the plan of its segment once all of it is there."""
        seeds = task.kind == "hand_over"
        segment = task.segment + seeds
        if not seeds and task.group not in self._open.get(segment, ()):
            return  # no keyframes
        frames = range(self._film.chain.seeds)
        if not seeds:
            frames = self._film.layout.group(task.group).frames
        self._latents.setdefault(segment, {}).update(zip(frames, z_BCTHW.unbind(2), strict=True))
        if task.group in self._open.get(segment, ()):
            self._open[segment].remove(task.group)
            if not self._open[segment]:
                yield Planned(segment, self._latents.pop(segment))


def read_plan(film: Film, store: Store) -> Iterator[Planned]:
    """The plan of a film from the store that holds it, segment after segment.

    Raises InputError where some of it is missing or damaged.
    """
    work = plan_work(film.work)
    plans = Plans(film, work)
    for task in work.tasks:
        yield from plans.enter(task, store.get(task))


def keyframes(film: Film) -> dict[int, list[tuple[int, int]]]:
    """The stills of a film, before any is made: (latent frame, film frame), by segment, without
    segments that have none."""
    planned: dict[int, set[int]] = {}
    for task in film.work.planning:
        planned.setdefault(task.segment, set()).update(film.layout.group(task.group).frames)
    found = {segment: _shown(film, segment, latents) for segment, latents in planned.items()}
    return {segment: stills for segment, stills in found.items() if stills}


def _shown(film: Film, segment: int, latents: Iterable[int]) -> list[tuple[int, int]]:
    """(latent frame, film frame) of those of a segment's latent frames that the film shows and no
    segment before it has."""
    chain, found = film.chain, []
    for latent in sorted(latents):
        frame = film_frame(chain, segment, chain.temporal_stride * latent) - film.lead
        repeats = latent < chain.seeds and (segment > 0 or film.lead > 0)
        if not repeats and frame < film.frames:
            found.append((latent, frame))
    return found


@torch.no_grad()
def stills_of(
    params: vae.VAEParams, config: VAEConfig, film: Film, planned: Planned
) -> Iterator[Still]:
    """A still of each keyframe of a segment that the film shows and no segment before it has: the
    last pixel frame of its latent.

    Keyframes beside each other are decoded as one clip. Before those that do not begin the segment
    the decoder sees its first latent frame and then their own first, in place of what is not made.
    """
    shown = dict(_shown(film, planned.segment, planned.latents))
    for run in _runs(planned.latents):
        last = max((latent for latent in run if latent in shown), default=-1)
        frames = [latent for latent in run if latent <= last]
        if not frames:
            continue
        before = [0, frames[0]] if frames[0] else []
        z_BCTHW = stack(planned.latents, [*before, *frames]).float()
        video_BCFHW, _ = vae.decode(params, config, z_BCTHW.to(params.conv1.weight.device))
        for place, latent in enumerate(frames, len(before)):
            if latent in shown:
                at = config.temporal_stride * place
                still = to_uint8(video_BCFHW[0, :, at : at + 1])[0]
                yield Still(planned.segment, latent, shown[latent], still)


def _runs(latents: Iterable[int]) -> Iterator[tuple[int, ...]]:
    """Latent frames that follow each other, ascending."""
    run: tuple[int, ...] = ()
    for latent in sorted(latents):
        if run and latent > run[-1] + 1:
            yield run
            run = ()
        run += (latent,)
    if run:
        yield run
