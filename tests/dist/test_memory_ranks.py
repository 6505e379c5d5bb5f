"""The memory plan of processes that share passes says what each of them takes."""

from __future__ import annotations

import torch
import torch.distributed as dist

from mmpl.film.memory import Held, memory_plan
from mmpl.generate import Mesh, Ranks, film_of
from tests.dist.ranks import run_ranks
from tests.small import CHANNELS, DEFAULTS, small_model
from tests.test_film_memory import REQUEST, WIDE, measured

HELD = Held(torch.float32)


def most(rank: int, mesh: Mesh) -> int:
    """The most bytes in the passes of this rank."""
    group = dist.group.WORLD
    assert group is not None
    return measured(small_model(DEFAULTS, configs=WIDE), HELD, Ranks(group, mesh))["passes"]


def test_the_plan_is_what_each_process_of_a_team_takes() -> None:
    mesh = Mesh(1, ulysses=2)
    film = film_of(small_model(DEFAULTS, configs=WIDE), REQUEST)
    alone, plan = (memory_plan(WIDE, film, HELD, one).passes for one in (Mesh(1), mesh))
    latents = 21 * CHANNELS * (film.height // 8) * (film.width // 8) * torch.float32.itemsize
    for found in run_ranks(mesh.ranks, most, mesh):
        assert 0 <= found - plan <= 4 * latents
    assert plan < 0.9 * alone
