"""What teams do, step by step, and what it costs them.

The rest of `schedule` decides which team does which task, and in which order; here that becomes
one list of operations per team, which an interpreter only has to follow.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mmpl.layout.layout import Layout, needed
from mmpl.layout.work import SEEDS, Task, Work

Placed = tuple[Task, int]  # a task and the team that does it
Channel = tuple[int, int]  # from one team to another


@dataclass(frozen=True, slots=True)
class Operation:
    """What a team does next.

    `kind` is that of a task ("make", "hand_over", "decode") or "send" or "receive". `group`: the
    group that is made; of a send or receive the group whose final latents travel, "seeds" for
    the result of a hand-over. `segment` is always that of the task, so ("send", 3, "seeds") is
    what the hand-over of segment 3 made, with which segment 4 starts. `peer`: the other team.

    `refresh`, of a make: the groups whose clean pass this team has to do before it, in layout
    order, from their final latents. A team's context holds one segment: it is emptied before a
    make whose segment differs from that of the team's make before. A make ends with its last
    denoising step; its own clean pass belongs to the first later make, on each team, that reads
    it. Hand-overs and decodes do not touch the context.
    """

    kind: str
    segment: int
    group: str = ""
    refresh: tuple[str, ...] = ()
    peer: int = -1

    @property
    def task(self) -> Task:
        """The task that it does, or whose result it moves."""
        if self.group == SEEDS:
            return Task(self.segment, "hand_over")
        kind = "make" if self.kind in ("send", "receive") else self.kind
        return Task(self.segment, kind, self.group)


@dataclass(frozen=True, slots=True)
class Costs:
    """What the tasks cost, in seconds on a team of speed 1.

    `make`: denoising of each group. `refresh`: its clean pass (0 where absent), which precedes
    the first make that reads it. `decode`: of a whole segment. `transfer`: from the end of an
    operation until its result is at another team; the teams do other things meanwhile.
    `speeds`: per team (2 = twice as fast), empty if all are 1. `aside`: kinds of operation, of
    "hand_over" and "decode", that run beside the denoising of their team, on a stream of their
    own: the team goes on, only their readers wait.
    """

    make: Mapping[str, float]
    refresh: Mapping[str, float]
    hand_over: float = 0.0
    decode: float = 0.0
    transfer: float = 0.0
    speeds: tuple[float, ...] = ()
    aside: tuple[str, ...] = ()

    def of(self, task: Task) -> float:
        """Seconds of a task on a team of speed 1, without clean passes."""
        if task.kind == "make":
            return self.make[task.group]
        return self.hand_over if task.kind == "hand_over" else self.decode

    def seconds(self, operation: Operation, team: int) -> float:
        """How long the operation takes on `team`, clean passes included; 0 to send or receive."""
        if operation.kind in ("send", "receive"):
            return 0.0
        clean = math.fsum(self.refresh.get(name, 0.0) for name in operation.refresh)
        return (self.of(operation.task) + clean) / (self.speeds[team] if self.speeds else 1.0)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The operations of each team, in the order in which it executes them. Tasks in `done` were
    finished before and are on disk, where every team finds them."""

    work: Work
    operations: tuple[tuple[Operation, ...], ...]
    done: frozenset[Task] = frozenset()


def operations_of(
    work: Work, placed: Sequence[Placed], teams: int, done: Collection[Task] = frozenset()
) -> tuple[tuple[Operation, ...], ...]:
    """The operations of each team, for tasks `placed` in an order in which none comes before
    what it needs.

    A send stands right after the operation whose result it carries. A receive stands before the
    first operation that reads it, after those of what was sent earlier over the same channel: so
    the k-th send from one team to another is the k-th receive there. A result travels at most
    once to a team. The order of `placed` is one in which all lists can be executed to the end.
    """
    team_of = dict(placed)
    readers = _readers(work, placed, team_of, done)
    contexts = [_Context(work.layout) for _ in range(teams)]
    lists: list[list[Operation]] = [[] for _ in range(teams)]
    waiting: dict[Channel, list[Task]] = {}  # sent, not yet received
    for task, team in placed:
        for need in work.needs[task]:
            channel = team_of.get(need, team), team
            queue = waiting.get(channel, [])
            if need in queue:
                arriving = queue.index(need) + 1
                lists[team] += [_transfer("receive", sent, channel[0]) for sent in queue[:arriving]]
                del queue[:arriving]
        refresh = contexts[team].refresh(task) if task.kind == "make" else ()
        lists[team].append(Operation(task.kind, task.segment, task.group, refresh))
        for peer in sorted(readers.get(task, ())):
            lists[team].append(_transfer("send", task, peer))
            waiting.setdefault((team, peer), []).append(task)
    return tuple(tuple(operations) for operations in lists)


def _readers(
    work: Work, placed: Sequence[Placed], team_of: Mapping[Task, int], done: Collection[Task]
) -> dict[Task, set[int]]:
    """For each task, the other teams that read its result."""
    readers: dict[Task, set[int]] = {}
    for task, team in placed:
        for need in work.needs[task]:
            if need not in done and team_of[need] != team:
                readers.setdefault(need, set()).add(team)
    return readers


def _transfer(kind: str, task: Task, peer: int) -> Operation:
    return Operation(
        kind, task.segment, SEEDS if task.kind == "hand_over" else task.group, (), peer
    )


class _Context:
    """Which groups of which segment have keys and values on a team."""

    def __init__(self, layout: Layout) -> None:
        self._sees = {
            group.name: tuple(g.name for g in needed(layout, group.frames) if g is not group)
            for group in layout.groups
        }
        self._segment = -1
        self._held: set[str] = set()

    def refresh(self, task: Task) -> tuple[str, ...]:
        """The clean passes to do before the make `task`; they count as done afterwards."""
        if task.segment != self._segment:
            self._segment, self._held = task.segment, set()
        missing = tuple(name for name in self._sees[task.group] if name not in self._held)
        self._held.update(missing)
        return missing
