"""Real processes whose stages are sleeps, at a thousandth of the paper's times, against the
simulator: what the runtime itself costs."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mmpl.film import runtime
from mmpl.film.exchange import GroupExchange
from mmpl.film.runtime import Alone, Frames, Studio, carry_out
from mmpl.film.segment import Step
from mmpl.film.settings import Film, Request, resolve
from mmpl.film.team import form_team
from mmpl.layout.mesh import Mesh, meshes
from mmpl.layout.schedule import Costs, build_schedule
from mmpl.layout.simulate import simulate
from mmpl.layout.work import film_work
from tests.dist.ranks import run_ranks
from tests.small import small_model

SECONDS = {"init": 0.025, "plan": 0.109, "fill_head": 0.113, "fill_tail": 0.148}
COSTS = Costs(make=SECONDS, refresh={})
HEADS, BRANCHES = 12, 2
SHAPE = (2, 4, 4)


def asleep(studio: Studio, operation: Any, context: Any, latents: Any) -> Generator[Any, None, Any]:
    """Takes a group's time and makes nothing."""
    time.sleep(SECONDS[operation.group])
    yield runtime.Progress(operation.segment, Step(operation.group, 1, 1))
    frames = len(studio.film.layout.group(operation.group).frames)
    return torch.zeros(1, SHAPE[0], frames, *SHAPE[1:]), context


def black(studio: Studio, segment: int, latents: Any) -> Iterator[Frames]:
    """The frames of a segment, in no time."""
    film = studio.film
    start, stop = film.kept(segment)
    pixels = np.zeros((stop - start, film.height, film.width, 3), np.uint8)
    yield Frames(segment, film.chain.step * segment + start, pixels)


def film_of(segments: int) -> Film:
    defaults = small_model().defaults
    return resolve(Request("any", 1, segments=segments), defaults, temporal_stride=4, pixel_step=16)


def makespan(rank: int, segments: int, mesh: Mesh, mode: str) -> float:
    """Seconds from a common start until all ranks are done."""
    film = film_of(segments)
    work = film.work
    plan = build_schedule(work, mesh.teams, COSTS, mode=mode)
    studio: Any = SimpleNamespace(
        film=film, latent_shape=SHAPE, device=torch.device("cpu"), gives_way=False
    )
    group = dist.group.WORLD
    assert group is not None
    team = form_team(group, mesh, heads=HEADS, branches=BRANCHES)
    exchange = Alone()
    if mesh.teams > 1:
        exchange = GroupExchange(group, team, film, plan, SHAPE)
    seeds = torch.zeros(1, SHAPE[0], film.chain.seeds, *SHAPE[1:])
    frames = torch.zeros(1)
    with (
        mock.patch.object(runtime, "_make", asleep),
        mock.patch.object(runtime, "_hand_over", return_value=seeds),
        mock.patch.object(runtime, "decode", black),
        mock.patch.object(runtime, "_open_segment"),
    ):
        dist.all_reduce(frames)  # a common start
        start = time.monotonic()
        events = carry_out(studio, plan, team.index, exchange, decodes=team.leads)
        for _ in exchange.gather(events) if isinstance(exchange, GroupExchange) else events:
            pass
        end = torch.tensor(time.monotonic() - start)
    dist.all_reduce(end, op=dist.ReduceOp.MAX)
    return end.item()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["round_robin", "adaptive"])
@pytest.mark.parametrize("mesh", [Mesh(1), Mesh(2), Mesh(3), *meshes(4, HEADS, BRANCHES)], ids=str)
def test_the_runtime_keeps_the_simulators_time(mesh: Mesh, mode: str) -> None:
    segments = 12
    film = film_of(segments)
    work = film.work
    plan = build_schedule(work, mesh.teams, COSTS, mode=mode)
    predicted = simulate(plan, COSTS).makespan_s
    measured = min(run_ranks(mesh.ranks, makespan, segments, mesh, mode)[0] for _ in range(2))
    print(f"\n{mesh} {mode}: predicted {predicted:.3f} s, measured {measured:.3f} s")
    assert predicted <= measured <= 1.02 * predicted
