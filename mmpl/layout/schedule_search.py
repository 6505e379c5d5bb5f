"""Finds good priorities for `deal`: a few rules of thumb, then small changes to the best of them.

Simulated annealing with a fixed seed: the same problem gives the same schedule, everywhere.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mmpl.layout.schedule_deal import deal
from mmpl.layout.schedule_place import Board, Problem

Score = Callable[[Board], float]  # the smaller the better

EFFORT = 40_000  # tasks placed by the search: some tenths of a second
EFFORT_PER_S = 200  # and for every second of the film at most, some thousandths of it
FEW_TRIES = 20  # fewer than that are not worth the time
MANY_TASKS = 1_000  # from here on only the most useful rules are tried
HOT, COLD = 2e-3, 2e-4  # how much worse, relatively, a change may be, at first and at last
FAR = 1e6  # more segments than any film has


@dataclass(frozen=True, slots=True)
class Idea:
    """What `deal` needs besides the problem. `plans_first`: plans are the most urgent of all."""

    urgency: tuple[float, ...]
    plans_first: bool
    reserve: bool = False
    wait: bool = False

    def board(self, problem: Problem) -> Board:
        return deal(problem, self.urgency, reserve=self.reserve, wait=self.wait)


def best_board(
    problem: Problem, score: Score, *, plan_first: bool, enough: Callable[[Board], bool]
) -> Board:
    """The best schedule found; the search ends early with one that is `enough`, and is shorter
    where the film is made within minutes.

    `plan_first`: the plan is never put off for anything.
    """
    found = [(idea, idea.board(problem)) for idea in _ideas(problem, plan_first=plan_first)]
    found.sort(key=lambda pair: score(pair[1]))
    best = found[0][1]
    effort = min(EFFORT, int(EFFORT_PER_S * max(best.end, default=0.0)))
    tries = effort // max(1, len(problem.tasks))
    if len(problem.speeds) == 1 or tries < FEW_TRIES:
        return best
    unwavering = next(idea for idea, _ in found if idea.plans_first)
    others = [idea for idea, _ in found if not idea.plans_first]
    searches = [(unwavering, True, tries)]
    if not plan_first:
        searches.append((others[0], False, tries // 3))
    for idea, keep_plan, count in searches:
        if enough(best):
            break
        board = _improved(problem, idea, score, count, keep_plan=keep_plan, enough=enough)
        best = min(best, board, key=score)
    return best


def _ideas(problem: Problem, *, plan_first: bool) -> list[Idea]:
    """Rules of thumb: how far ahead to plan; whether fills go by age or by what is left."""
    tasks = range(len(problem.tasks))
    many = len(tasks) >= MANY_TASKS

    def by_age(ahead: float) -> tuple[float, ...]:
        return tuple(problem.segments[t] - (ahead + 0.5) * problem.planning[t] for t in tasks)

    distances = (FAR,) if plan_first else (0, 2, FAR) if many else (0, 1, 2, 3, FAR)
    orders = [(by_age(ahead), ahead == FAR) for ahead in distances]
    if not many:
        rest = _rest_of_segment(problem)
        orders.append((tuple(-FAR if problem.planning[t] else -rest[t] for t in tasks), True))
        newest = tuple(-FAR if problem.planning[t] else -problem.segments[t] for t in tasks)
        orders.append((newest, True))
    uneven = len({*problem.speeds}) > 1 or problem.transfer > 0 or any(problem.clean_s)
    choices = [(False, False)]
    if len(problem.speeds) > 1 and not many:
        choices = [(r, w) for w in ((False, True) if uneven else (False,)) for r in (False, True)]
    return [Idea(*order, reserve, wait) for order in orders for reserve, wait in choices]


def _rest_of_segment(problem: Problem) -> list[float]:
    """Per task: seconds of the longest chain from its start to the end of its segment."""
    rest = [0.0] * len(problem.tasks)
    for task in reversed(range(len(rest))):
        own = problem.segments[task]
        after = [rest[r] for r in problem.readers[task] if problem.segments[r] == own]
        rest[task] = problem.seconds[task] + max(after, default=0.0)
    return rest


def _improved(
    problem: Problem,
    idea: Idea,
    score: Score,
    tries: int,
    *,
    keep_plan: bool,
    enough: Callable[[Board], bool],
) -> Board:
    """The best of `tries` small changes, one after the other, to the urgencies of `idea`."""
    draw = random.Random(0).random
    movable = [
        task
        for task, follows in enumerate(problem.follows)
        if not follows and not (keep_plan and problem.planning[task])
    ]
    best = idea.board(problem)
    now = least = score(best)
    for number in range(tries if len(movable) > 1 else 0):
        changed = replace(idea, urgency=_changed(idea.urgency, movable, draw))
        board = changed.board(problem)
        value = score(board)
        heat = now * HOT * (COLD / HOT) ** (number / tries)
        if value <= now or draw() < math.exp((now - value) / heat):
            idea, now = changed, value
        if value < least:
            best, least = board, value
            if enough(best):
                break
    return best


def _changed(
    urgency: tuple[float, ...], movable: Sequence[int], draw: Callable[[], float]
) -> tuple[float, ...]:
    """Two tasks exchange their places, or one goes just before or after the other."""
    changed = list(urgency)
    one, other = (movable[int(draw() * len(movable))] for _ in range(2))
    if draw() < 0.5:
        changed[one], changed[other] = changed[other], changed[one]
    else:
        changed[one] = changed[other] + (draw() - 0.5) * 1e-3
    return tuple(changed)
