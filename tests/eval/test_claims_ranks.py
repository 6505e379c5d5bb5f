"""Speed-ups of films whose times are planted: those that the simulator gives."""

from __future__ import annotations

from typing import Any

import pytest

from mmpl.eval.claims_ranks import Bars, run_of, speed_up
from mmpl.layout import schedule_search
from mmpl.layout.presets import mmpl_t2v
from mmpl.layout.schedule import Costs, build_schedule
from mmpl.layout.simulate import simulate
from mmpl.layout.timeline import chain_of, film_frames
from mmpl.layout.work import film_work

CHAIN = chain_of(mmpl_t2v(), seeding="terminal", temporal_stride=4)
WORK = film_work(mmpl_t2v(), CHAIN, film_frames(CHAIN, 4))
STAGES_S = {"init": 1.0, "plan": 3.0, "fill_head": 4.0, "fill_tail": 5.0}
COSTS = Costs(STAGES_S, {}, hand_over=0.5, decode=2.0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_search, "EFFORT", 100)


def made(teams: int, slower: float = 1.0) -> list[Bars]:
    """What processes would do that keep to the simulated schedule, or are slower throughout."""
    timeline = simulate(build_schedule(WORK, teams, COSTS, mode="adaptive"), COSTS)
    kinds = {"make": "populate", "hand_over": "hand-over", "decode": "decode"}
    return [
        [
            {
                "kind": kinds[span.operation.kind],
                "part": span.operation.group,
                "segment": span.operation.segment + 1,
                "start_s": 7 + slower * span.start_s,
                "stop_s": 7 + slower * span.stop_s,
            }
            for span in spans
            if span.operation.kind in kinds
        ]
        for spans in timeline.spans
    ]


def test_a_run_is_timed_from_its_first_stage_to_its_last() -> None:
    run = run_of(made(1))
    assert run["seconds"] == pytest.approx(1 + 4 * (3 + 4 + 5 + 2) + 3 * 0.5)
    assert run["ranks"] == 1
    assert run["busy"] == pytest.approx(1.0)
    assert run["stages_s"] == pytest.approx(STAGES_S | {"hand-over": 0.5, "decode": 2.0})


@pytest.mark.parametrize(("ranks", "paper"), [(2, 4465 / 2354), (3, None), (4, 4465 / 1660)])
def test_the_speed_up_is_that_of_the_schedule(ranks: int, paper: float | None) -> None:
    one, many = run_of(made(1)), run_of(made(ranks))
    found: dict[str, Any] = speed_up([(one, many)], WORK)
    assert found["ranks"] == ranks
    assert 1 < found["speed_up"] <= ranks
    assert found["speed_up"] == pytest.approx(found["speed_up_simulated"], rel=1e-3)
    assert found["busy"] == pytest.approx(found["busy_simulated"], abs=1e-3)
    assert found["speed_up_paper"] == (None if paper is None else pytest.approx(paper))
    assert (found["busy_paper"] is None) == (paper is None)


def test_pairs_are_compared_with_each_other() -> None:
    pairs = [(run_of(made(1, s)), run_of(made(2, t))) for s, t in ((1, 1), (9, 9), (1, 2))]
    found = speed_up(pairs, WORK)
    assert found["pairs"] == 3
    assert (
        found["speed_up"]
        == found["speed_up_most"]
        == pytest.approx(found["speed_up_simulated"], rel=1e-3)
    )
    assert found["speed_up_least"] == pytest.approx(found["speed_up"] / 2, rel=1e-3)
