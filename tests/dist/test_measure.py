"""Stage times measured on real processes before the work is dealt: the same on all, and used."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch.distributed as dist

import mmpl.film.measure
import mmpl.generate
from mmpl.film.measure import costs_of
from mmpl.generate import Ranks, Request, film_of, generate
from mmpl.layout.schedule import Costs
from tests.dist.ranks import run_ranks
from tests.small import small_model

REQUEST = Request("a red circle moves right", seed=1, segments=4)
PAUSE_S = 0.1


def dealt_by(rank: int, slow: int) -> Costs:
    """The costs that this rank deals by; `slow` is a slow one."""
    if rank == slow:
        commit = mmpl.film.measure.commit

        def slowly(*args: Any) -> Any:
            time.sleep(PAUSE_S)
            return commit(*args)

        mmpl.film.measure.commit = slowly
    taken: list[Costs] = []
    build = mmpl.generate.build_schedule

    def note(work: Any, teams: int, costs: Costs, **options: Any) -> Any:
        taken.append(costs)
        return build(work, teams, costs, **options)

    mmpl.generate.build_schedule = note
    group = dist.group.WORLD
    assert group is not None
    for _ in generate(small_model(), REQUEST, ranks=Ranks(group)):
        pass
    return taken[0]


@pytest.mark.parametrize("slow", [0, 1])
def test_all_deal_by_the_same_times_and_a_slow_rank_is_known(slow: int) -> None:
    costs, others = run_ranks(2, dealt_by, slow)
    assert costs == others
    assert costs.speeds[0] == 1.0
    assert costs.speeds[1] < 0.5 if slow == 1 else costs.speeds[1] > 2.0
    film = film_of(small_model(), REQUEST)
    assert costs.make == pytest.approx({n: film.steps * s for n, s in costs.refresh.items()})
    assert 0 < costs.hand_over < costs.decode


def test_small_differences_are_noise_and_nobody_stands_still() -> None:
    film = film_of(small_model(), REQUEST)
    passes = [1.0] * len(film.layout.groups)
    even, slow = [1.2 * seconds for seconds in passes], [99.0 * seconds for seconds in passes]
    costs = costs_of(film, [[*passes, 9.0], [*even, 0.5], [*slow, 49.5]])
    assert costs.speeds == (1.0, 1.0, 0.1)
    assert costs.decode == 0.5 * film.chain.segment_frames, "what disturbed one team is left out"
    assert costs_of(film, [[*slow, 1.0], [*passes, 1.0]]).speeds == (1.0, 99.0)
