"""The operations of a schedule against the clock: when each starts and stops, and what that means.

The same lists that the runtime executes. A team works through its list in order; a receive waits
for its message, a send costs its team nothing, an operation that runs aside (see `Costs.aside`)
lets its team go on and only its readers wait.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from mmpl.errors import SchedulingError
from mmpl.layout.layout import needed
from mmpl.layout.schedule_operations import Costs, Operation, Schedule
from mmpl.layout.timeline import film_frame, kept_frames
from mmpl.layout.work import Task, Work


@dataclass(frozen=True, slots=True)
class Span:
    """When an operation ran. Of a receive: how long the team waited for it."""

    operation: Operation
    start_s: float
    stop_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """A schedule against the clock, in seconds from its start; `spans` per team, in list order.

    `storyboard_s`: all keyframes are there. `first_frame_s`: so are the latents that the first
    picture is decoded from. `first_segment_s`: the first segment is watchable to its end. What
    was done before the schedule began counts as 0. `busy_s`, per team: time spent on operations,
    without waiting and without what runs aside.
    """

    spans: tuple[tuple[Span, ...], ...]
    makespan_s: float
    storyboard_s: float
    first_frame_s: float
    first_segment_s: float
    busy_s: tuple[float, ...]

    @property
    def utilisation(self) -> float:
        """Busy time over teams times makespan: 0 to 1."""
        total = len(self.spans) * self.makespan_s
        return min(1.0, math.fsum(self.busy_s) / total) if total else 0.0


def watch_from_s(timeline: Timeline, work: Work, fps: float) -> float:
    """When to begin to watch a film that is still being made, so that it never has to wait: from
    then on each segment is decoded before its first frame is due."""
    waits = [0.0]
    for span in (span for spans in timeline.spans for span in spans):
        if span.operation.kind == "decode":
            segment = span.operation.segment
            start, _ = kept_frames(work.chain, segment, work.frames)
            waits.append(span.stop_s - film_frame(work.chain, segment, start) / fps)
    return max(waits)


def simulate(schedule: Schedule, costs: Costs) -> Timeline:
    """When every operation starts and stops. Raises SchedulingError if the teams wait for each
    other in a circle, or if an operation reads what its team does not have."""
    clock = _Clock(schedule, costs)
    clock.run()
    ends = clock.ends
    work = schedule.work
    first = Task(0, "make", work.layout.group_of(0).name)
    return Timeline(
        spans=tuple(tuple(spans) for spans in clock.spans),
        makespan_s=max((span.stop_s for spans in clock.spans for span in spans), default=0.0),
        storyboard_s=max((ends.get(task, 0.0) for task in work.planning), default=0.0),
        first_frame_s=ends.get(first, 0.0),
        first_segment_s=ends.get(Task(0, "decode"), 0.0),
        busy_s=tuple(clock.busy),
    )


def makespan_bound(
    work: Work, teams: int, costs: Costs, done: Collection[Task] = frozenset()
) -> float:
    """What no schedule can undercut: max(work / total speed, longest chain / fastest team).

    Clean passes count once each, however many teams repeat them; what runs aside is no work of
    the teams but takes its time in the chain.
    """
    groups = {group.name: group for group in work.layout.groups}
    todo = [task for task in work.tasks if task not in done]
    loads: list[float] = []
    ends: dict[Task, float] = {}
    refreshed: set[tuple[int, str]] = set()
    for task in todo:
        if task.kind not in costs.aside:
            loads.append(costs.of(task))
        begin = max((ends[need] for need in work.needs[task] if need in ends), default=0.0)
        if task.kind == "make":
            group = groups[task.group]
            for seen in needed(work.layout, group.frames):
                if seen is group:
                    continue
                clean = costs.refresh.get(seen.name, 0.0)
                maker = Task(task.segment, "make", seen.name)
                if maker not in work.needs:
                    maker = Task(task.segment - 1, "hand_over")
                begin = max(begin, ends.get(maker, 0.0) + clean)
                if (task.segment, seen.name) not in refreshed:
                    refreshed.add((task.segment, seen.name))
                    loads.append(clean)
        ends[task] = begin + costs.of(task)
    speeds = costs.speeds or (1.0,) * teams
    return max(math.fsum(loads) / math.fsum(speeds), max(ends.values(), default=0.0) / max(speeds))


class _Clock:
    """The state of all teams while a schedule runs.

    When an operation starts depends only on the lists, not on the order in which teams are looked
    at: a message is there at one certain time, whoever asks first. So each team runs as far as
    the messages sent so far allow, until none can go on.
    """

    def __init__(self, schedule: Schedule, costs: Costs) -> None:
        teams = range(len(schedule.operations))
        self._schedule, self._costs = schedule, costs
        self._left = [deque(operations) for operations in schedule.operations]
        self._free = [0.0 for _ in teams]
        self._aside_free = [0.0 for _ in teams]
        self._there: list[dict[Task, float]] = [{} for _ in teams]
        self._messages: dict[tuple[int, int], deque[tuple[Task, float]]] = {}
        self._arrived: dict[tuple[int, int], float] = {}
        self.spans: list[list[Span]] = [[] for _ in teams]
        self.busy = [0.0 for _ in teams]
        self.ends: dict[Task, float] = {}

    def run(self) -> None:
        moving = True
        while moving:
            moving = False
            for team, operations in enumerate(self._left):
                while operations and self._step(team, operations[0]):
                    operations.popleft()
                    moving = True
        if any(self._left):
            raise SchedulingError("the teams wait for each other", got=self._circle())

    def _step(self, team: int, operation: Operation) -> bool:
        """Executes the next operation of `team`; False if its message was not sent yet."""
        free = self._free[team]
        if operation.kind == "receive":
            queue = self._messages.get((operation.peer, team))
            if not queue:
                return False
            task, arrival = queue.popleft()
            if task != operation.task:
                raise self._wrong(team, operation, f"the next message is of {task}")
            self._free[team] = max(free, arrival)
            self._there[team].setdefault(task, arrival)
            self.spans[team].append(Span(operation, free, self._free[team]))
        elif operation.kind == "send":
            self._send(team, operation)
        else:
            self._work(team, operation)
        return True

    def _send(self, team: int, operation: Operation) -> None:
        task, channel = operation.task, (team, operation.peer)
        if task not in self._there[team]:
            raise self._wrong(team, operation, "the team does not have what it sends")
        sent = max(self._free[team], self._there[team][task])
        arrival = max(sent + self._costs.transfer, self._arrived.get(channel, 0.0))
        self._arrived[channel] = arrival
        self._messages.setdefault(channel, deque()).append((task, arrival))
        self.spans[team].append(Span(operation, self._free[team], self._free[team]))

    def _work(self, team: int, operation: Operation) -> None:
        task, there = operation.task, self._there[team]
        start = self._free[team]
        for need in self._schedule.work.needs[task]:
            if need in self._schedule.done:
                continue
            if need not in there:
                raise self._wrong(team, operation, f"{need} is not there")
            start = max(start, there[need])
        aside = operation.kind in self._costs.aside
        if aside:
            start = max(start, self._aside_free[team])
        seconds = self._costs.seconds(operation, team)
        stop = start + seconds
        if aside:
            self._aside_free[team] = stop
        else:
            self._free[team] = stop
            self.busy[team] += seconds
        there[task] = self.ends[task] = stop
        self.spans[team].append(Span(operation, start, stop))

    def _circle(self) -> str:
        """Which team waits for which, from one stuck team back to itself, or to one that ended."""
        team = next(team for team, operations in enumerate(self._left) if operations)
        seen: list[int] = []
        while team not in seen and self._left[team]:
            seen.append(team)
            team = self._left[team][0].peer
        waits = [
            f"team {waiting} waits for {op.group} of segment {op.segment} from team {op.peer}"
            for waiting, op in ((one, self._left[one][0]) for one in seen)
        ]
        return ", ".join(waits) + ("" if team in seen else f", which has ended (team {team})")

    def _wrong(self, team: int, operation: Operation, what: str) -> SchedulingError:
        where = f"team {team}, {operation.kind} {operation.group} of segment {operation.segment}"
        return SchedulingError(what, where=where)
