"""The paper's numbers, the bounds, and what holds of every schedule of every film."""

from __future__ import annotations

import math
import random
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmpl.errors import ArgumentError, SchedulingError
from mmpl.layout import schedule_search
from mmpl.layout.layout import Group, Layout
from mmpl.layout.schedule import Costs, Operation, Schedule, build_schedule
from mmpl.layout.schedule_check import check_schedule
from mmpl.layout.schedule_operations import operations_of
from mmpl.layout.schedule_place import problem_of
from mmpl.layout.schedule_search import best_board
from mmpl.layout.simulate import Timeline, makespan_bound, simulate, watch_from_s
from mmpl.layout.timeline import Chain
from mmpl.layout.work import SEEDS, Task, Work, film_work
from tests.property.films import PAPER, costs_of, done_sets, film, schedules, works

LITTLE = 1e-6
MOVES = ("send", "receive")


def run(
    work: Work, teams: int, costs: Costs = PAPER,
    *, mode: str = "adaptive", order: str = "film_first",
) -> Timeline:  # fmt: skip
    return simulate(build_schedule(work, teams, costs, mode=mode, order=order), costs)


@pytest.fixture
def little_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short search: what must hold of every schedule does not depend on how good it is."""
    monkeypatch.setattr(schedule_search, "EFFORT", 500)


def many(examples: int) -> settings:
    slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=examples, deadline=None, suppress_health_check=slow)


# ---------------------------------------------------------------- the paper's numbers


@pytest.mark.parametrize(
    ("segments", "seeding", "teams", "makespan"),
    [
        (12, "terminal", 1, 4465), (12, "terminal", 2, 2354), (12, "terminal", 3, 1723),
        (12, "terminal", 4, 1594), (2, "terminal", 2, 504), (4, "midpoint", 2, 578),
    ],
)  # fmt: skip
def test_round_robin_is_the_papers(segments: int, seeding: str, teams: int, makespan: int) -> None:
    timeline = run(film(segments, seeding), teams, mode="round_robin")
    assert timeline.makespan_s == makespan
    assert timeline.first_frame_s == 25
    assert timeline.utilisation == pytest.approx(sum(timeline.busy_s) / teams / makespan)


@pytest.mark.parametrize("order", ["film_first", "plan_first"])
@pytest.mark.parametrize(
    ("segments", "seeding", "teams", "bound", "known"),
    [
        (12, "terminal", 1, 4465, 4465), (12, "terminal", 2, 2232.5, 2300),
        (12, "terminal", 3, 1594, 1626), (12, "terminal", 4, 1594, 1594),
        (12, "terminal", 5, 1594, 1594), (12, "terminal", 16, 1594, 1594),
        (2, "terminal", 2, 504, 504), (4, "midpoint", 2, 574, 574),
    ],
)  # fmt: skip
def test_adaptive_reaches_what_is_known_to_be_reachable(
    segments: int, seeding: str, teams: int, bound: float, known: float, order: str
) -> None:
    work = film(segments, seeding)
    assert makespan_bound(work, teams, PAPER) == bound
    assert bound <= run(work, teams, order=order).makespan_s <= known


@pytest.mark.usefixtures("little_effort")
def test_the_storyboard_does_not_wait_for_fills() -> None:
    chain = 25 + 12 * 109
    for teams in (1, 2, 3, 4):
        assert run(film(12), teams, order="plan_first").storyboard_s == chain
    alone = run(film(12), 1, order="film_first")
    assert (alone.storyboard_s, alone.first_segment_s) == (4204, 395)


@pytest.mark.usefixtures("little_effort")
def test_who_waits_long_enough_never_waits_again() -> None:
    for seconds in (0.01, 1.0):  # faster and slower than it is watched
        costs = Costs({name: seconds * value / 25 for name, value in PAPER.make.items()}, {})
        for teams, order in ((1, "film_first"), (1, "plan_first"), (3, "film_first")):
            work = film(6)
            timeline = run(work, teams, costs, order=order)
            wait = watch_from_s(timeline, work, 16)
            ends = {
                span.operation.segment: span.stop_s
                for spans in timeline.spans
                for span in spans
                if span.operation.kind == "decode"
            }
            due = {0: 0.0} | {s: (81 + 76 * (s - 1)) / 16 for s in range(1, 6)}
            slack = [wait + due[segment] - ends[segment] for segment in ends]
            assert min(slack) >= -1e-9
            assert min(slack) < 1e-9 or wait == 0.0


def test_orders_on_one_team() -> None:
    made = {
        order: [op.segment for op in build_schedule(film(3), 1, PAPER, order=order).operations[0]]
        for order in ("film_first", "plan_first")
    }
    assert made["film_first"] == sorted(made["film_first"])
    plans, fills = made["plan_first"][:6], made["plan_first"][6:]
    assert plans == [0, 0, 0, 1, 1, 2]  # init, plan, hand-over; plan, hand-over; plan
    assert fills == sorted(fills)


@pytest.mark.usefixtures("little_effort")
def test_plan_first_is_worth_its_price() -> None:
    """With clean passes that cost something, planning ahead repeats those of the seeds."""
    costs = Costs(PAPER.make, {"init": 2.0, "plan": 2.0, "fill_head": 2.0})
    film_first, plan_first = (
        run(film(4), 1, costs, order=order) for order in ("film_first", "plan_first")
    )
    assert plan_first.storyboard_s < film_first.storyboard_s
    assert plan_first.makespan_s == film_first.makespan_s + 2.0 * 4


@pytest.mark.usefixtures("little_effort")
def test_unequal_teams_help() -> None:
    work, make = film(8), PAPER.make
    equal = run(work, 2, Costs(make, {}))
    faster = run(work, 2, Costs(make, {}, speeds=(1.0, 2.0)))
    slower = run(work, 2, Costs(make, {}, speeds=(1.0, 0.25)))
    assert faster.makespan_s < 0.8 * equal.makespan_s
    assert equal.makespan_s < slower.makespan_s < run(work, 1).makespan_s
    assert faster.busy_s[1] >= faster.busy_s[0] / 2


def test_what_runs_aside_costs_its_team_nothing() -> None:
    work = film(3)
    aside = Costs(PAPER.make, {}, hand_over=5, decode=40, aside=("hand_over", "decode"))
    timeline = run(work, 1, aside, mode="round_robin")
    assert timeline.makespan_s == 25 + 3 * 370 + 40
    assert timeline.first_segment_s == 395 + 40
    assert timeline.busy_s == (25 + 3 * 370,)
    blocking = run(work, 1, Costs(PAPER.make, {}, 5, 40), mode="round_robin")
    assert blocking.makespan_s == 25 + 3 * 370 + 2 * 5 + 3 * 40


def test_a_hand_over_and_a_transfer_lengthen_the_chain() -> None:
    """6 s between plans: the paper's 1660 s on four GPUs."""
    costs = Costs(PAPER.make, {}, transfer=6.0)
    assert run(film(12), 4, costs, mode="round_robin").makespan_s == 1594 + 11 * 6


def test_time_of_the_search() -> None:
    started = time.process_time()
    for teams in (2, 4):
        costs = Costs(PAPER.make, {"plan": 2.0}, 1.0, 9.0, 0.1)
        build_schedule(film(12), teams, costs)
    assert time.process_time() - started < 4  # well under a second each on an idle machine
    started = time.process_time()
    run(film(750), 4)
    assert time.process_time() - started < 4


# ---------------------------------------------------------------- who does what


def test_one_segment_in_full() -> None:
    listed = build_schedule(film(1), 1, PAPER, mode="round_robin").operations
    assert listed == (
        (
            Operation("make", 0, "init"),
            Operation("make", 0, "plan", ("init",)),
            Operation("make", 0, "fill_head", ("plan",)),
            Operation("make", 0, "fill_tail", ("fill_head",)),
            Operation("decode", 0),
        ),
    )


def test_two_segments_on_two_teams() -> None:
    _, second = build_schedule(film(2), 2, PAPER, mode="round_robin").operations
    assert second[:2] == (
        Operation("receive", 0, SEEDS, peer=0),
        Operation("make", 1, "plan", ("init",)),
    )


def test_a_fill_elsewhere_rebuilds_its_context() -> None:
    done = frozenset(task for task in film(1).tasks if task.group in ("init", "plan", "fill_head"))
    (listed,) = build_schedule(film(1), 1, PAPER, done=done).operations
    assert listed[0] == Operation("make", 0, "fill_tail", ("init", "plan", "fill_head"))


def test_what_a_film_needs() -> None:
    work = film(2)
    plan, seeds = Task(1, "make", "plan"), Task(0, "hand_over")
    assert work.needs[seeds] == (Task(0, "make", "init"), Task(0, "make", "plan"))
    assert work.needs[plan] == (seeds,)
    assert work.needs[Task(1, "make", "fill_head")] == (seeds, plan)
    assert Task(1, "make", "init") not in work.needs
    assert Task(1, "hand_over") not in work.needs
    assert work.planning == (Task(0, "make", "init"), Task(0, "make", "plan"), plan)
    groups = {task.group for task in film(2, "midpoint").tasks}
    assert "fill_tail" not in groups
    assert "fill_head" in groups


@many(60)
@given(works())
def test_tasks_come_after_what_they_need(work: Work) -> None:
    for index, task in enumerate(work.tasks):
        assert all(work.tasks.index(need) < index for need in work.needs[task])
    assert len(set(work.tasks)) == len(work.tasks)


# ---------------------------------------------------------------- what holds of all schedules


@pytest.mark.usefixtures("little_effort")
@many(150)
@given(schedules())
def test_schedules_are_right(drawn: tuple[Schedule, Costs]) -> None:
    schedule, costs = drawn
    check_schedule(schedule)
    timeline = simulate(schedule, costs)
    left = [task for task in schedule.work.tasks if task not in schedule.done]
    done = [op.task for ops in schedule.operations for op in ops if op.kind not in MOVES]
    assert sorted(done) == sorted(left)
    bound = makespan_bound(schedule.work, len(schedule.operations), costs, schedule.done)
    assert timeline.makespan_s >= bound * (1 - LITTLE)
    assert 0 <= timeline.utilisation <= 1


@pytest.mark.usefixtures("little_effort")
@many(60)
@given(schedules())
def test_the_simulator_agrees_with_the_longest_path(drawn: tuple[Schedule, Costs]) -> None:
    schedule, costs = drawn
    timeline, ends = simulate(schedule, costs), longest_paths(schedule, costs)
    for team, spans in enumerate(timeline.spans):
        for index, span in enumerate(spans):
            if span.operation.kind not in MOVES:
                assert span.stop_s == pytest.approx(ends[team, index], abs=LITTLE)
    assert timeline.makespan_s == pytest.approx(max(ends.values(), default=0.0), abs=LITTLE)


def longest_paths(schedule: Schedule, costs: Costs) -> dict[tuple[int, int], float]:
    """When every operation's result is there, by asking again and again until nothing changes."""
    lists, speeds = schedule.operations, costs.speeds or (1.0,) * len(schedule.operations)
    ends = {(team, i): 0.0 for team, ops in enumerate(lists) for i in range(len(ops))}

    def nth(team: int, index: int) -> tuple[int, int]:
        """The send that answers a receive: as many sends come before it on its channel."""
        peer = lists[team][index].peer
        before = sum(op.kind == "receive" and op.peer == peer for op in lists[team][:index])
        sends = [i for i, op in enumerate(lists[peer]) if op.kind == "send" and op.peer == team]
        return peer, sends[before]

    def source(team: int, task: Task) -> list[tuple[int, int]]:
        return [(team, i) for i, op in enumerate(lists[team]) if op.task == task and op.peer < 0]

    def end(team: int, index: int) -> float:
        op = lists[team][index]
        # The main work of a team ends in list order; what is aside, in a row of its own.
        mine = [i for i in range(index) if lists[team][i].kind not in costs.aside]
        begin = max((free[team, i] for i in mine), default=0.0)
        if op.kind == "receive":
            return max(begin, ends[nth(team, index)])
        if op.kind == "send":
            ready = max([begin, *(ends[place] for place in source(team, op.task))])
            earlier = (
                ends[team, i]
                for i in range(index)
                if lists[team][i].kind == "send" and lists[team][i].peer == op.peer
            )
            return max([ready + costs.transfer, *earlier])
        if op.kind in costs.aside:
            others = (i for i in range(index) if lists[team][i].kind in costs.aside)
            begin = max([begin, *(ends[team, i] for i in others)])
        for need in schedule.work.needs[op.task]:
            begin = max([begin, *(ends[place] for place in source(team, need))])
        cost = costs.of(op.task) + sum(costs.refresh.get(name, 0.0) for name in op.refresh)
        return begin + cost / speeds[team]

    free = dict(ends)  # when the main work of a team goes on after each operation
    changed = True
    while changed:
        changed = False
        for place in ends:
            new, op = end(*place), lists[place[0]][place[1]]
            if abs(new - ends[place]) > LITTLE / 100:
                ends[place], changed = new, True
            goes_on = 0.0 if op.kind == "send" or op.kind in costs.aside else ends[place]
            if goes_on > free[place]:
                free[place], changed = goes_on, True
    return {place: e for place, e in ends.items() if lists[place[0]][place[1]].kind != "send"}


@pytest.mark.usefixtures("little_effort")
@many(60)
@given(st.data())
def test_adaptive_is_never_behind_round_robin(data: st.DataObject) -> None:
    work, teams = data.draw(works()), data.draw(st.integers(1, 5))
    costs, done = data.draw(costs_of(work, teams)), data.draw(done_sets(work))
    plain = simulate(build_schedule(work, teams, costs, mode="round_robin", done=done), costs)
    best = simulate(build_schedule(work, teams, costs, done=done), costs)
    assert best.makespan_s <= plain.makespan_s
    early = simulate(build_schedule(work, teams, costs, order="plan_first", done=done), costs)
    assert early.storyboard_s <= plain.storyboard_s


@pytest.mark.usefixtures("little_effort")
@many(40)
@given(st.integers(3, 8), st.integers(2, 4), st.sampled_from(("round_robin", "adaptive")))
def test_planning_and_populating_overlap(segments: int, teams: int, mode: str) -> None:
    timeline = run(film(segments), teams, mode=mode)
    busy = [
        [(s.start_s, s.stop_s) for spans in timeline.spans for s in spans if s.operation.group == g]
        for g in ("plan", "fill_head")
    ]
    overlaps = [min(a[1], b[1]) - max(a[0], b[0]) for a in busy[0] for b in busy[1]]
    assert sum(overlap > 50 for overlap in overlaps) >= (segments - 1) // 2


@many(40)
@given(st.data())
def test_the_board_foresees_the_simulation(data: st.DataObject) -> None:
    """Exact where no message waits behind another, that is, with nothing aside."""
    work, teams = data.draw(works()), data.draw(st.integers(1, 4))
    drawn = data.draw(costs_of(work, teams))
    costs = Costs(
        drawn.make, drawn.refresh, drawn.hand_over, drawn.decode, drawn.transfer, drawn.speeds
    )
    problem = problem_of(work, teams, costs, ())
    board = best_board(problem, lambda b: max(b.end), plan_first=False, enough=lambda b: True)
    timeline = simulate(Schedule(work, operations_of(work, board.placed, teams)), costs)
    ends = {s.operation.task: s.stop_s for spans in timeline.spans for s in spans}
    for number, task in enumerate(problem.tasks):
        if task.kind == "decode":
            assert ends[task] == pytest.approx(board.end[number])
    assert timeline.makespan_s == pytest.approx(max(board.end))


@pytest.mark.usefixtures("little_effort")
def test_the_same_question_has_the_same_answer() -> None:
    work, costs = film(6), Costs(PAPER.make, {"plan": 3.0}, 2.0, 9.0, 0.5)
    first = build_schedule(work, 3, costs)
    random.seed(5)
    assert build_schedule(work, 3, costs) == first


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("teams", "costs", "options", "words"),
    [
        (0, PAPER, {}, "needs a team; got 0"),
        (2, PAPER, {"mode": "greedy"}, "got greedy; wanted round_robin or adaptive"),
        (2, PAPER, {"order": "any"}, "got any; wanted film_first or plan_first"),
        (2, Costs({**PAPER.make, "tail": 1}, {}), {}, "got tail; wanted init, plan, fill_head"),
        (2, Costs({"init": 1, "plan": 1}, {}), {}, "no cost for a group; wanted fill_head"),
        (2, Costs(PAPER.make, {"end": 1}), {}, "got end"),
        (2, Costs({**PAPER.make, "plan": -1}, {}), {}, "plan: a cost is no duration; got -1"),
        (2, Costs({**PAPER.make, "plan": math.nan}, {}), {}, "got nan"),
        (2, Costs(PAPER.make, {}, decode=math.inf), {}, "decode: .* got inf"),
        (2, Costs(PAPER.make, {}, transfer=-2.0), {}, "transfer: .* got -2"),
        (2, Costs(PAPER.make, {}, speeds=(1.0,)), {}, "got 1 speeds; wanted 2"),
        (2, Costs(PAPER.make, {}, speeds=(1.0, 0.0)), {}, "speed out of range; got 0"),
        (2, Costs(PAPER.make, {}, aside=("make",)), {}, "cannot run aside; got make"),
    ],
)
def test_nonsense_is_refused(teams: int, costs: Costs, options: dict[str, str], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        run(film(2), teams, costs, **options)


def test_layouts_that_cannot_be_chained_are_refused() -> None:
    mixed = Layout("mixed", 4, (Group("a", (0,)), Group("b", (1, 2, 3), (0,))))
    with pytest.raises(ArgumentError, match="mixed, group b: segments cannot be chained"):
        film_work(mixed, Chain(4, 4), 25)
    assert len(film_work(mixed, Chain(4, 4), 13).tasks) == 3
    taken = Layout("taken", 4, (Group("a", (0, 1)), Group(SEEDS, (2, 3), (0,))))
    with pytest.raises(ArgumentError, match="kept for the seeds"):
        film_work(taken, Chain(4, 4), 25)


def test_a_circle_is_named() -> None:
    work = film(2)
    wait = Operation("receive", 0, SEEDS, peer=1), Operation("receive", 0, SEEDS, peer=0)
    with pytest.raises(SchedulingError, match=r"team 0 waits for seeds .* from team 1, team 1 wa"):
        simulate(Schedule(work, tuple((op,) for op in wait)), PAPER)
    with pytest.raises(SchedulingError, match="team 0 waits .* team 1, which has ended"):
        simulate(Schedule(work, (wait[:1], ())), PAPER)


def test_an_empty_schedule_takes_no_time() -> None:
    work = film(2)
    schedule = build_schedule(work, 2, PAPER, done=frozenset(work.tasks))
    timeline = simulate(schedule, PAPER)
    assert schedule.operations == ((), ())
    assert (timeline.makespan_s, timeline.utilisation, timeline.storyboard_s) == (0, 0, 0)
