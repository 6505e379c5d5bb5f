"""Deals tasks to teams by priority, as soon as both are ready.

A schedule is thus a list of priorities, one number per task, and a better one is found by
changing the numbers. Teams do not stand idle for want of a good order: whatever the numbers, a
team that is free takes the most urgent of the tasks that can start.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from mmpl.layout.schedule_place import Board, Problem

PLANS, OTHERS = 0, 1


def deal(
    problem: Problem, urgency: Sequence[float], *, reserve: bool = False, wait: bool = False
) -> Board:
    """All tasks of the problem, placed. The smallest `urgency` goes first.

    `reserve`: the fastest team does nothing but plan until the plan is complete, so that the
    plan never waits for a fill to end. `wait`: a task goes to the team that would be done with
    it first, even if that team is busy while another is free.
    """
    dealer = _Dealer(problem, urgency, reserve=reserve and len(problem.speeds) > 1, wait=wait)
    while dealer.left:
        dealer.deal_next()
    return dealer.board


class _Dealer:
    """Tasks whose needs are met lie in `later` by the time when they are ready; those that are
    ready by the time of dealing, in `now` by urgency. With a reserved planner, two of each."""

    def __init__(
        self, problem: Problem, urgency: Sequence[float], *, reserve: bool, wait: bool
    ) -> None:
        self.board = Board(problem)
        self.left = len(problem.tasks)
        self._problem, self._urgency, self._wait = problem, urgency, wait
        self._later: tuple[list[tuple[float, int]], ...] = ([], [])
        self._now: tuple[list[tuple[float, int]], ...] = ([], [])
        everyone = list(problem.teams)
        planner = max(everyone, key=lambda team: problem.speeds[team])
        self._plans_left = sum(problem.planning) if reserve else 0
        self._teams = (everyone, everyone)
        if self._plans_left:
            self._teams = ([planner], [team for team in everyone if team != planner])
        self._missing = [len(needs) for needs in problem.needs]
        for task, needs in enumerate(problem.needs):
            if not needs:
                self._release(task)

    def deal_next(self) -> None:
        """Places the most urgent of the tasks that can start first."""
        plans = self._earliest(PLANS) if self._plans_left else math.inf
        others = self._earliest(OTHERS)
        queue, time = (PLANS, plans) if plans <= others else (OTHERS, others)
        later, now = self._later[queue], self._now[queue]
        while later and later[0][0] <= time:
            task = heapq.heappop(later)[1]
            heapq.heappush(now, (self._urgency[task], task))
        task = heapq.heappop(now)[1]
        teams = self._teams[queue]
        if not self._wait:
            free = self.board.free
            teams = [team for team in teams if free[team] <= time]
        self._give(task, self._quickest(task, teams))

    def _quickest(self, task: int, teams: list[int]) -> int:
        """The team that would be done with the task first."""
        if len(teams) == 1:
            return teams[0]
        stops = [self.board.stop(task, team) for team in teams]
        return teams[stops.index(min(stops))]

    def _earliest(self, queue: int) -> float:
        """When the first task of the queue can start; infinity if it is empty."""
        later, now = self._later[queue], self._now[queue]
        if not (now or later):
            return math.inf
        free = min([self.board.free[team] for team in self._teams[queue]])
        return free if now or later[0][0] <= free else later[0][0]

    def _give(self, task: int, team: int) -> None:
        self.board.place(task, team)
        self.left -= 1
        if self._plans_left and self._problem.planning[task]:
            self._plans_left -= 1
            if not self._plans_left:  # all hands to the others; no plan is left in the queue
                self._teams = (list(self._problem.teams),) * 2
        for reader in self._problem.readers[task]:
            self._missing[reader] -= 1
            if not self._missing[reader]:
                self._release(reader)

    def _release(self, task: int) -> None:
        """All needs of the task are met."""
        board, problem = self.board, self._problem
        if problem.follows[task]:
            self._give(task, board.home(task))
            return
        ready = max([board.end[need] for need in problem.needs[task]], default=0.0)
        queue = PLANS if self._plans_left and problem.planning[task] else OTHERS
        heapq.heappush(self._later[queue], (ready, task))
