"""The claims on films whose drift is planted, so that it is known what each has to come out as."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmpl.errors import ArgumentError, InputError, NumericError, ResumeError
from mmpl.eval.claims import (
    BASE,
    BUDGETS,
    Budget,
    Unit,
    add_networks,
    check_methods,
    open_folder,
    read_record,
    run,
    units_of,
)
from mmpl.eval.claims_arms import ARMS, generation_starts, joints_of
from mmpl.eval.claims_costs import cost_tables
from mmpl.eval.claims_film import Program, by_generation, measure_film, outside
from mmpl.eval.claims_verdict import CLAIMS, MEASURES, decide, judge
from mmpl.eval.statistics import Interval
from mmpl.layout.presets import mmpl_t2v
from mmpl.layout.timeline import chain_of
from tests.eval.planted import FIRST, SEGMENT_JOINT, STEP, Planted, Shot, film

CHAIN = chain_of(mmpl_t2v(), seeding="terminal", temporal_stride=4)
PROGRAM = Program("a red square moves right", "square", "red", "right")
Record = dict[str, Any]


def measured(planted: Planted, *, method: str = BASE, segments: int = 3) -> Record:
    shot = Shot(PROGRAM.prompt, 3, segments)
    record = measure_film(
        film(planted, shot), PROGRAM, ARMS[method], chain=CHAIN, segments=segments, fps=16
    )
    json.dumps(record, allow_nan=False)
    return record


# ------------------------------------------------------------------------------ what is measured


def test_planted_drift_is_measured() -> None:
    record = measured(Planted(background_deg=12, object_deg=-5))
    own = 1 + 0.25 * np.random.default_rng(3).uniform(-1, 1)
    assert record["frames"] == FIRST + 2 * STEP
    assert [s["object_lost"] for s in record["segments"]] == [0.0, 0.0, 0.0]
    assert [s["shape_wrong"] for s in record["segments"]] == [0.0, 0.0, 0.0]
    wanted = [12 * own * n for n in range(3)]
    assert [s["background_hue_drift_deg"] for s in record["segments"]] == pytest.approx(
        wanted, abs=1.0
    )
    turned = [s["object_hue_drift_deg"] for s in record["segments"]]
    assert turned == pytest.approx([5 * own * n for n in range(3)], abs=1.0)
    moved = record["by_generation"]
    assert moved == pytest.approx([s["background_drift"] for s in record["segments"]], abs=0.005)
    assert 0 <= moved[0] < 0.003 < moved[1] < moved[2] < 0.2
    last = record["segments"][-1]
    assert last["caption_hue_error_deg"] == 0.0  # the middle of red is 15 degrees from its end
    assert last["size_ratio"] == pytest.approx(1.0, abs=0.05)
    assert last["hue_l1_180"] > record["segments"][1]["hue_l1_180"] * 0.8 > 0.5
    assert last["hue_l1_180"] >= last["hue_l1_18"] > 0
    assert record["joints"]["segment_hue_l1"] > 5 * record["joints"]["group_hue_l1"]


def test_chunks_chain_faster() -> None:
    """Of the same turn at each generation: after so many of them the same, in less time."""
    chunks = measured(Planted(background_deg=3, every=12), method="rolling_kv")
    segments = measured(Planted(background_deg=3))
    assert len(chunks["by_generation"]) == 3 * STEP // 12
    assert chunks["by_generation"][1:3] == pytest.approx(segments["by_generation"][1:3], abs=0.004)
    drifts = [r["segments"][-1]["background_hue_drift_deg"] for r in (chunks, segments)]
    assert drifts[0] > 5 * drifts[1]


def test_jumps_and_losses() -> None:
    calm, loud = measured(Planted()), measured(Planted(jump=20))
    assert loud["joints"]["segment_jump_ratio"] > 3 * calm["joints"]["segment_jump_ratio"]
    assert loud["joints"]["group_jump_ratio"] == pytest.approx(
        calm["joints"]["group_jump_ratio"], rel=0.2
    )
    assert loud["segments"][2]["brightness_drift"] == pytest.approx(40 / 255, abs=0.02)
    lost = measured(Planted(lost=True))["segments"]
    assert [s["object_lost"] for s in lost] == [0.0, 1.0, 1.0]
    assert lost[2]["object_hue_drift_deg"] is None
    assert lost[2]["size_ratio"] is None


def test_a_film_is_followed_no_farther_than_asked() -> None:
    """Frames beyond the last segment are not asked for; what stops short has fewer segments."""
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 20
            yield np.full((20, 16, 16, 3), 90, np.uint8)

    now = iter(range(1000))
    found = measure_film(
        endless(), PROGRAM, ARMS["fifo"], chain=CHAIN, segments=2, fps=16, clock=lambda: next(now)
    )
    assert (found["frames"], taken) == (SEGMENT_JOINT, 160)
    assert found["seconds"] == 8  # one tick for each piece
    assert found["by_generation"] == pytest.approx([0.0] * 38)
    assert found["segments"][1]["background_hue_drift_deg"] is None
    short = measured(Planted(frames=100))
    assert len(short["segments"]) == 2
    with pytest.raises(InputError, match="without frames"):
        measure_film(iter(()), PROGRAM, ARMS[BASE], chain=CHAIN, segments=2, fps=16)


@pytest.mark.parametrize(
    ("hue", "word", "wanted"),
    [(350, "red", 0), (14, "red", 0), (20, "red", 5), (340, "red", 5), (180, "red", 165),
     (100, "blue", 100), (255, "blue", 0)],
)  # fmt: skip
def test_outside_a_hue_bin(hue: float, word: str, wanted: float) -> None:
    assert outside(hue, word) == wanted


def test_generations_and_joints_of_the_methods() -> None:
    frames = FIRST + 2 * STEP
    assert generation_starts(ARMS[BASE], CHAIN, frames) == [0, 81, 157]
    assert generation_starts(ARMS["rolling_kv"], CHAIN, frames)[:4] == [0, 17, 29, 41]
    assert len(generation_starts(ARMS["self_forcing_windows"], CHAIN, frames)) == 21
    assert generation_starts(ARMS["mmpl_midpoint"], CHAIN, frames) == [0, 49, 93, 137, 181]
    for arm in ARMS.values():
        at = joints_of(arm, CHAIN, frames)
        assert at["segment"] == (
            [81, 157] if arm.seeding == "terminal" else list(range(49, 233, 44))
        )
        assert all(0 < frame < frames for frame in at["group"])
    grey, red = (0.5, 0.5, 0.5), (0.8, 0.5, 0.1)
    found = by_generation([(0, grey), (4, grey), (81, red), (85, grey)], [0, 81, 157])
    assert found == pytest.approx([0.0, 0.25, None])


# ------------------------------------------------------------------------------ the grid


GRID = Budget(programs=2, segments=3, seeds=2, arms=("mmpl_terminal", "fifo"), minutes=None)
SETTINGS = {"segments": 3, "weights": {"dit": "a"}}


def counting(made: list[Unit], stop_at: int | None = None) -> Callable[[Unit], Record]:
    def measure(unit: Unit) -> Record:
        if len(made) == stop_at:
            raise KeyboardInterrupt
        made.append(unit)
        return {"seconds": 1.0}

    return measure


def test_a_stopped_grid_is_balanced() -> None:
    units = units_of(GRID)
    assert len(set(units)) == len(units) == 8
    assert units[:4] == [
        Unit("mmpl_terminal", 0, 0), Unit("fifo", 0, 0), Unit("mmpl_terminal", 1, 0),
        Unit("fifo", 1, 0),
    ]  # fmt: skip
    assert len({unit.film_seed for unit in units}) == 4, "all methods from the same noise"
    for budget in BUDGETS.values():
        assert budget.arms[0] == BASE
        assert set(budget.arms) <= set(ARMS)


def test_a_killed_grid_goes_on(tmp_path: Path) -> None:
    made: list[Unit] = []
    units = units_of(GRID)
    open_folder(tmp_path, SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        list(run(tmp_path, units, counting(made, stop_at=3)))
    assert made == units[:3]
    (tmp_path / ".program_001.seed_0.fifo.json.00000000.0123456789abcdef.part").touch()
    open_folder(tmp_path, SETTINGS)
    done = list(run(tmp_path, units, counting(made)))
    assert made == units, "none twice"
    assert [one.left for one in done] == [4, 3, 2, 1, 0]
    assert list(run(tmp_path, units, counting(made))) == []
    assert all(read_record(tmp_path, unit) == {"seconds": 1.0} for unit in units)


def test_records_of_other_settings_are_refused(tmp_path: Path) -> None:
    open_folder(tmp_path, SETTINGS)
    for other, words in (
        ({**SETTINGS, "segments": 6}, "other segments"),
        ({**SETTINGS, "weights": {"dit": "b"}}, "other weights"),
        ({"segments": 3}, "other weights"),
    ):
        with pytest.raises(ResumeError, match=words):
            open_folder(tmp_path, other)
    unit = units_of(GRID)[0]
    list(run(tmp_path, [unit], counting([])))
    (file,) = tmp_path.glob("program_*.json")
    (tmp_path / "claims.json").unlink()
    with pytest.raises(ResumeError, match="nothing says how"):
        open_folder(tmp_path, SETTINGS)
    file.write_text("{")
    with pytest.raises(ResumeError, match="remove this file"):
        read_record(tmp_path, unit)


def test_networks_come_beside_what_is_there_and_are_not_replaced(tmp_path: Path) -> None:
    open_folder(tmp_path, SETTINGS)
    one, other = {"dit": "a"}, {"dit": "b"}
    assert add_networks(tmp_path, {}) == {}
    assert add_networks(tmp_path, {"tuned_qk": one}) == {"tuned_qk": one}
    assert add_networks(tmp_path, {"tuned_qk": other}) == {"tuned_qk": other}, "no films of it yet"
    list(run(tmp_path, [Unit("tuned_qk", 0, 0)], counting([])))
    both = {"tuned_qk": other, "tuned_all": one}
    assert add_networks(tmp_path, {"tuned_all": one}) == both
    with pytest.raises(ResumeError, match=r"films of tuned_qk .* remove program_\*.tuned_qk.json"):
        add_networks(tmp_path, {"tuned_qk": one})
    assert add_networks(tmp_path, {}) == both
    open_folder(tmp_path, SETTINGS)


def test_no_film_is_begun_after_the_time(tmp_path: Path) -> None:
    made: list[Unit] = []
    now = 0.0

    def measure(unit: Unit) -> Record:
        nonlocal now
        made.append(unit)
        now += 50.0
        return {}

    done = list(run(tmp_path, units_of(GRID), measure, minutes=2, clock=lambda: now))
    assert len(made) == 3
    assert [one.left_s for one in done] == [350.0, 300.0, 250.0]
    assert list(run(tmp_path, units_of(GRID), measure, minutes=0, clock=lambda: now)) == []


def test_a_film_of_not_a_numbers_is_a_result(tmp_path: Path) -> None:
    def measure(unit: Unit) -> Record:
        raise NumericError("not-a-number in the latents", where=unit.arm)

    list(run(tmp_path, units_of(GRID), measure))
    record = read_record(tmp_path, units_of(GRID)[1])
    assert record == {"failed": "fifo: not-a-number in the latents"}


def test_names_of_methods() -> None:
    assert check_methods(["fifo", "fifo"]) == (BASE, "fifo")
    with pytest.raises(ArgumentError, match="unknown method; got 'magic'"):
        check_methods(["magic"])
    with pytest.raises(ArgumentError, match="tuned_qk is a network of its own; give the folder"):
        check_methods(["tuned_qk"])


# ------------------------------------------------------------------------------ the verdicts


@pytest.mark.parametrize(
    ("expect", "low", "high", "programs", "verdict"),
    [
        ("less", 0.1, 9.0, 6, "reproduces"), ("less", -0.1, 9.0, 64, "inconclusive"),
        ("less", -9.0, 0.9, 6, "does not"), ("less", -9.0, 1.1, 6, "inconclusive"),
        ("less", 0.1, 9.0, 5, "inconclusive"), ("same", -0.9, 0.9, 6, "reproduces"),
        ("same", 0.1, 0.9, 6, "reproduces"), ("same", 0.1, 1.1, 6, "does not"),
        ("same", -1.1, -0.1, 6, "does not"), ("same", -1.1, 0.9, 6, "inconclusive"),
        ("no more", -0.9, 9.0, 6, "reproduces"), ("no more", -1.1, -0.1, 6, "does not"),
        ("no more", -1.1, 9.0, 6, "inconclusive"), ("no more", 0.1, 9.0, 5, "inconclusive"),
        ("same", -0.5, 0.5, 2, "inconclusive"), ("less", -math.inf, math.inf, 1, "inconclusive"),
    ],
)  # fmt: skip
def test_the_rule(expect: str, low: float, high: float, programs: int, verdict: str) -> None:
    found = Interval((low + high) / 2, low, high, programs)
    assert decide(expect, found, margin=1.0) == verdict
    assert decide(expect, None, margin=1.0) == "not measured"


def test_claims_are_about_methods_and_measures_there_are() -> None:
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert {claim.left, claim.right} <= set(ARMS)
        assert set(claim.measures) <= set(MEASURES)
        assert claim.expect in ("less", "same", "no more")
    assert {claim.right for claim in CLAIMS} | {BASE, "mmpl_noise_unit_0.5"} >= set(
        BUDGETS["10m"].arms
    )


def test_films_that_failed_or_stopped_short_do_not_count() -> None:
    good = measured(Planted(), segments=2)
    short = measured(Planted(frames=40), segments=2)
    records = {(0, 0): good, (1, 0): {"failed": "nan"}, (2, 0): short}
    rows = judge({BASE: records, "bidirectional_window": records}, 2)
    found = {row.measure: row.difference for row in rows if row.claim.right.startswith("bidirect")}
    at_the_end = found["background_drift"]
    assert at_the_end is not None
    assert (at_the_end.mean, at_the_end.programs) == (0.0, 1)


def test_costs_by_arithmetic() -> None:
    tables = cost_tables()
    costs = {(cost.table, cost.what): cost.ours for cost in tables}
    assert costs["10", "60 s of film on 1 GPU, the paper's schedule"] == 4465
    assert costs["10", "60 s of film on 2 GPUs, the paper's schedule"] == 2354
    assert costs["10", "60 s of film on 4 GPUs, the paper's schedule"] == 1594
    assert costs["11", "10 s on 2 GPUs, terminal seeding"] == 504
    assert costs["11", "10 s on 2 GPUs, midpoint seeding"] == 578
    assert costs["11", "memory, midpoint"] < costs["11", "memory, terminal"]
    for cost in tables:
        assert cost.ours == pytest.approx(cost.paper, rel=0.18), cost
