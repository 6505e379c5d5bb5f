"""Who does what in a film, and in which order: the schedule.

A schedule is data: one list of operations per team. A team is the ranks that plan or populate one
segment together. `simulate` runs the lists against a clock, the runtime runs them for good.
"""

from __future__ import annotations

import math

from mmpl.errors import ArgumentError
from mmpl.layout.schedule_operations import Costs as Costs
from mmpl.layout.schedule_operations import Operation as Operation
from mmpl.layout.schedule_operations import Placed, operations_of
from mmpl.layout.schedule_operations import Schedule as Schedule
from mmpl.layout.schedule_place import Board, Problem, problem_of
from mmpl.layout.schedule_search import Score, best_board
from mmpl.layout.simulate import Timeline, makespan_bound, simulate
from mmpl.layout.timeline import MODES as MODES
from mmpl.layout.timeline import ORDERS as ORDERS
from mmpl.layout.work import Task as Task
from mmpl.layout.work import Work

ASIDE = ("hand_over", "decode")
EARLY = 0.02  # seconds of makespan that a second less to the first segment is worth
SLACK = 1e-3  # and a second less, on average, to all segments


def build_schedule(
    work: Work,
    teams: int,
    costs: Costs,
    *,
    mode: str = "adaptive",
    order: str = "film_first",
    done: frozenset[Task] = frozenset(),
) -> Schedule:
    """The operations of `teams` teams that together do all of `work` but what is `done`.

    `mode` "round_robin" is the paper's, see `round_robin`; it has no use for `order`. "adaptive"
    looks for the best by simulated times. By "film_first" that is the shortest makespan, where a
    first segment earlier by 50 s is worth 1 s of it, and all segments earlier by 1000 s as much;
    by "plan_first" the earliest storyboard, then as before. Round robin is among the
    candidates, so adaptive is never behind it in makespan, or by "plan_first" in storyboard.
    Raises ArgumentError.
    """
    check_costs(work, teams, costs)
    if mode not in MODES:
        raise ArgumentError("unknown mode of schedule", got=mode, wanted=" or ".join(MODES))
    if order not in ORDERS:
        raise ArgumentError("unknown order", got=order, wanted=" or ".join(ORDERS))
    plain = _schedule(work, round_robin(work, teams, done), teams, done)
    if mode == "round_robin":
        return plain
    problem = problem_of(work, teams, costs, done)
    if not problem.tasks:
        return plain
    bound = makespan_bound(work, teams, costs, done) * (1 + 1e-9)
    board = best_board(
        problem,
        _score(problem, order),
        plan_first=order == "plan_first",
        enough=lambda board: max(board.end) <= bound,
    )
    found = _schedule(work, board.placed, teams, done)
    return min((found, plain), key=lambda one: _merit(simulate(one, costs), order))


def _schedule(
    work: Work, placed: tuple[Placed, ...], teams: int, done: frozenset[Task]
) -> Schedule:
    return Schedule(work, operations_of(work, placed, teams, done), frozenset(done))


def _merit(timeline: Timeline, order: str) -> tuple[float, ...]:
    """The smaller the better, for the last choice between what was found and round robin."""
    decoded = math.fsum(
        span.stop_s for spans in timeline.spans for span in spans if span.operation.kind == "decode"
    )
    merit = timeline.makespan_s, timeline.first_segment_s, decoded
    return (timeline.storyboard_s, *merit) if order == "plan_first" else merit


def _score(problem: Problem, order: str) -> Score:
    """What the search minimises; see `build_schedule`."""
    tasks = range(len(problem.tasks))
    decodes = [t for t in tasks if problem.tasks[t].kind == "decode"]
    first = [t for t in decodes if problem.segments[t] == 0]
    plans = [t for t in tasks if problem.planning[t] and problem.tasks[t].kind == "make"]

    def score(board: Board) -> float:
        end = board.end
        value = max(end) + SLACK * sum([end[t] for t in decodes]) / max(1, len(decodes))
        for task in first:
            value += EARLY * end[task]
        if order == "plan_first" and plans:
            value += max([end[t] for t in plans]) / SLACK
        return value

    return score


def round_robin(work: Work, teams: int, done: frozenset[Task] = frozenset()) -> tuple[Placed, ...]:
    """The paper's schedule: segment s on team s mod `teams`, each from its first group to its
    decode. Returns the tasks that are not done, with their teams."""
    return tuple((task, task.segment % teams) for task in work.tasks if task not in done)


def check_costs(work: Work, teams: int, costs: Costs) -> None:
    """Raises ArgumentError unless `costs` are good for `work` on `teams` teams."""
    if teams < 1:
        raise ArgumentError("a schedule needs a team", got=teams, wanted=">= 1")
    _check_groups(work, costs)
    named = [*costs.make.items(), *costs.refresh.items()]
    named += [("hand_over", costs.hand_over), ("decode", costs.decode)]
    for name, seconds in [*named, ("transfer", costs.transfer)]:
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ArgumentError("a cost is no duration", where=name, got=seconds, wanted=">= 0 s")
    if costs.speeds and len(costs.speeds) != teams:
        raise ArgumentError(
            "one speed per team", got=f"{len(costs.speeds)} speeds", wanted=f"{teams}"
        )
    for speed in costs.speeds:
        if not (math.isfinite(speed) and speed > 0):
            raise ArgumentError("a speed out of range", got=speed, wanted="> 0")


def _check_groups(work: Work, costs: Costs) -> None:
    known = [group.name for group in work.layout.groups]
    where = f"layout {work.layout.name}"
    for name in (*costs.make, *costs.refresh):
        if name not in known:
            raise ArgumentError(
                "a cost for a group that the layout does not have",
                where=where,
                got=name,
                wanted=", ".join(known),
            )
    for task in work.tasks:
        if task.kind == "make" and task.group not in costs.make:
            raise ArgumentError("no cost for a group", where=where, wanted=task.group)
    for name in costs.aside:
        if name not in ASIDE:
            raise ArgumentError(
                "this kind of operation cannot run aside", got=name, wanted=" or ".join(ASIDE)
            )
