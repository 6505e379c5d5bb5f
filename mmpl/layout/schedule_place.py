"""Tasks as numbers, and when each ends if teams take them in a given order.

What the search for a good schedule tries its ideas on: quick, and exact but for one point (a
message that waits behind another on its channel). `simulate` has the last word.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from mmpl.layout.layout import needed
from mmpl.layout.schedule_operations import Costs, Placed
from mmpl.layout.work import Task, Work


@dataclass(frozen=True, slots=True)
class Problem:
    """The tasks that are left, numbered in the order of the work; all tuples go by that number.

    `needs`, `readers`: numbers of the tasks whose results a task reads, and which read its; tasks
    done before are in neither. `reads`: of a make, the set of groups it sees, a bit each;
    `clean_s` are the seconds of each bit's clean pass. `planning`: the task is on the planning
    chain, hand-overs included. `aside`: it runs beside the other work of its team. `follows`: it
    is not dealt but done at once where the last of its needs was met, because it is a hand-over,
    or takes no time of its team. `speeds`: per team.
    """

    tasks: tuple[Task, ...]
    segments: tuple[int, ...]
    needs: tuple[tuple[int, ...], ...]
    readers: tuple[tuple[int, ...], ...]
    seconds: tuple[float, ...]
    reads: tuple[int, ...]
    clean_s: tuple[float, ...]
    planning: tuple[bool, ...]
    aside: tuple[bool, ...]
    follows: tuple[bool, ...]
    speeds: tuple[float, ...]
    transfer: float
    clean_of: dict[int, float] = field(default_factory=dict)  # set of groups -> seconds, filled on

    @property
    def teams(self) -> range:
        return range(len(self.speeds))

    def clean(self, groups: int) -> float:
        """Seconds of the clean passes of a set of groups."""
        if groups not in self.clean_of:
            bits = (s for bit, s in enumerate(self.clean_s) if groups >> bit & 1)
            self.clean_of[groups] = math.fsum(bits)
        return self.clean_of[groups]


def problem_of(work: Work, teams: int, costs: Costs, done: Collection[Task]) -> Problem:
    """The tasks of `work` that are not `done`, for `teams` teams."""
    tasks = tuple(task for task in work.tasks if task not in done)
    number = {task: index for index, task in enumerate(tasks)}
    needs = tuple(tuple(number[n] for n in work.needs[task] if n in number) for task in tasks)
    readers: list[list[int]] = [[] for _ in tasks]
    for index, before in enumerate(needs):
        for need in before:
            readers[need].append(index)
    plans = {*work.planning}
    bits = {group.name: 1 << bit for bit, group in enumerate(work.layout.groups)}
    sees = {
        group.name: sum(bits[g.name] for g in needed(work.layout, group.frames) if g != group)
        for group in work.layout.groups
    }
    seconds = tuple(costs.of(task) for task in tasks)
    aside = tuple(task.kind in costs.aside for task in tasks)
    return Problem(
        tasks=tasks,
        segments=tuple(task.segment for task in tasks),
        needs=needs,
        readers=tuple(tuple(row) for row in readers),
        seconds=seconds,
        reads=tuple(sees.get(task.group, 0) for task in tasks),
        clean_s=tuple(costs.refresh.get(group.name, 0.0) for group in work.layout.groups),
        planning=tuple(task in plans or task.kind == "hand_over" for task in tasks),
        aside=aside,
        follows=tuple(
            task.kind == "hand_over" or (task.kind == "decode" and (not cost or beside))
            for task, cost, beside in zip(tasks, seconds, aside, strict=True)
        ),
        speeds=costs.speeds or (1.0,) * teams,
        transfer=costs.transfer,
    )


class Board:
    """When teams are free and results are there, while tasks are placed one by one.

    `order`: the tasks placed so far. `end`: seconds, per task. `team`: per task. `free`: per team,
    when it is done with what it has.
    """

    __slots__ = ("_aside", "_held", "_segment", "end", "free", "order", "problem", "team")

    def __init__(self, problem: Problem) -> None:
        teams, tasks = len(problem.speeds), len(problem.tasks)
        self.problem = problem
        self._segment = [-1] * teams  # whose context a team holds
        self._held = [0] * teams  # which of its groups have had their clean pass
        self._aside = [0.0] * teams
        self.free = [0.0] * teams
        self.end = [0.0] * tasks
        self.team = [-1] * tasks
        self.order: list[int] = []

    @property
    def placed(self) -> tuple[Placed, ...]:
        """The tasks with their teams, in the order in which they were placed."""
        return tuple((self.problem.tasks[task], self.team[task]) for task in self.order)

    def start(self, task: int, team: int) -> float:
        """When `team` could start on the task, after all it has."""
        begin, transfer = self.free[team], self.problem.transfer
        for need in self.problem.needs[task]:
            there = self.end[need]
            if self.team[need] != team:
                there += transfer
            if there > begin:
                begin = there
        return begin

    def stop(self, task: int, team: int) -> float:
        """When `team` would be done with the task, after all it has."""
        problem = self.problem
        seconds, missing = problem.seconds[task], problem.reads[task]
        if missing:
            if self._segment[team] == problem.segments[task]:
                missing &= ~self._held[team]
            seconds += problem.clean(missing)
        return self.start(task, team) + seconds / problem.speeds[team]

    def place(self, task: int, team: int) -> None:
        """Gives the task to `team`, after all it has."""
        problem = self.problem
        if problem.aside[task]:
            self._place_aside(task, team)
        else:
            self.end[task] = self.free[team] = self.stop(task, team)
            if problem.tasks[task].kind == "make":
                if self._segment[team] != problem.segments[task]:
                    self._segment[team], self._held[team] = problem.segments[task], 0
                self._held[team] |= problem.reads[task]
        self.team[task] = team
        self.order.append(task)

    def _place_aside(self, task: int, team: int) -> None:
        """The team itself only waits for what other teams send."""
        problem = self.problem
        start = max(self._aside[team], self.start(task, team))
        for need in problem.needs[task]:
            if self.team[need] != team:
                self.free[team] = max(self.free[team], self.end[need] + problem.transfer)
        self.end[task] = self._aside[team] = start + problem.seconds[task] / problem.speeds[team]

    def home(self, task: int) -> int:
        """The team on which the last need of a task ends; the first team if it has none."""
        needs = self.problem.needs[task]
        return self.team[max(needs, key=self.end.__getitem__)] if needs else 0
