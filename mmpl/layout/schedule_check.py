"""Is a schedule right? A second opinion that shares no reasoning with the code that made it.

It executes the lists latent frame by latent frame, from the layout and the frame accounting
alone: what each team holds, what its context has committed, what is under way between teams.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from mmpl.errors import MmplError, SchedulingError
from mmpl.layout.layout import Group, needed
from mmpl.layout.schedule_operations import Operation, Schedule
from mmpl.layout.timeline import needed_latents
from mmpl.layout.work import SEEDS, Task, Work

Latent = tuple[int, int]  # segment, latent frame


def check_schedule(schedule: Schedule) -> None:
    """Raises SchedulingError unless the operations of all teams, executed in any order that the
    lists and the messages allow, make the film.

    That is: every task that is not done happens once and none else; nothing is read that the
    team does not hold; every context holds exactly what is read, committed in layout order; every
    result leaves right after it was made, at most once for each team, and is received in the
    order in which it was sent; all lists come to their end.

    One order of execution speaks for all: what a team has done at a place of its list does not
    depend on when the others got to theirs.
    """
    stage = _Stage(schedule)
    teams = range(len(schedule.operations))
    moving = True
    while moving:
        moving = any([stage.run(team) for team in teams])
    stage.check_end()


class _Stage:
    """All teams at some place of their lists, and what they hold."""

    def __init__(self, schedule: Schedule) -> None:
        work = self._work = schedule.work
        self._wanted = set(_wanted(work))
        self._happened: set[Task] = set()
        self._lists = [deque(operations) for operations in schedule.operations]
        self._done = schedule.done
        disk = {latent for task in schedule.done for latent in self._results(task)}
        self._held = [set(disk) for _ in self._lists]
        self._context: list[tuple[int, list[str]]] = [(-1, []) for _ in self._lists]
        self._sent: dict[tuple[int, int], deque[tuple[int, str]]] = {}
        self._ever_sent: set[tuple[int, str, int]] = set()
        self._fresh: list[Task | None] = [None for _ in self._lists]  # what a send may carry
        if not self._lists:
            raise SchedulingError("a schedule without teams")
        for team, operations in enumerate(schedule.operations):
            for operation in operations:
                self._must_be_known(team, operation)

    def run(self, team: int) -> bool:
        """Executes the list of one team as far as it gets; whether it got anywhere."""
        operations, start = self._lists[team], len(self._lists[team])
        while operations:
            operation = operations[0]
            if operation.kind == "receive" and not self._sent.get((operation.peer, team)):
                break
            try:
                self._execute(team, operation)
            except MmplError as error:
                raise SchedulingError(str(error), where=f"team {team}, {operation}") from error
            operations.popleft()
        return len(operations) < start

    def check_end(self) -> None:
        stuck = [f"team {team} at {left[0]}" for team, left in enumerate(self._lists) if left]
        if stuck:
            raise SchedulingError("the teams wait for ever", got=", ".join(stuck))
        lost = [f"{sent[0]} for team {channel[1]}" for channel, sent in self._sent.items() if sent]
        if lost:
            raise SchedulingError("sent and never received", got=", ".join(lost))
        missing = self._wanted - self._happened - self._done
        if missing:
            raise SchedulingError("never done", got=min(missing))

    def _execute(self, team: int, operation: Operation) -> None:
        if operation.kind in ("send", "receive"):
            (self._send if operation.kind == "send" else self._receive)(team, operation)
            return
        task = Task(operation.segment, operation.kind, operation.group)
        if task not in self._wanted:
            raise SchedulingError("not part of the film", got=task)
        if task in self._happened or task in self._done:
            raise SchedulingError("done twice", got=task)
        if operation.kind == "make":
            self._attend(team, operation)
        elif operation.refresh:
            raise SchedulingError("only a make reads a context", got=operation.refresh)
        self._must_hold(team, self._reads(task))
        self._happened.add(task)
        self._held[team].update(self._results(task))
        self._fresh[team] = task

    def _must_be_known(self, team: int, operation: Operation) -> None:
        if operation.kind in ("send", "receive"):
            if operation.peer == team or not 0 <= operation.peer < len(self._lists):
                raise SchedulingError("no such peer", where=f"team {team}", got=operation)
        elif operation.kind not in ("make", "hand_over", "decode"):
            raise SchedulingError("unknown kind of operation", where=f"team {team}", got=operation)

    def _attend(self, team: int, operation: Operation) -> None:
        """The clean passes before a make, and whether its context is then complete."""
        layout, segment = self._work.layout, operation.segment
        group = layout.group(operation.group)
        held_segment, committed = self._context[team]
        if held_segment != segment:
            committed = []
        for name in operation.refresh:
            clean = layout.group(name)
            if name in committed:
                raise SchedulingError("committed twice", got=name)
            if clean not in needed(layout, group.sees):
                raise SchedulingError("a clean pass that nobody reads", got=name)
            self._must_see(clean, committed)
            self._must_hold(team, {(segment, frame) for frame in clean.frames})
            committed = [*committed, name]
        self._must_see(group, committed)
        if group.name in committed:
            raise SchedulingError("its slots are committed already", got=group.name)
        names = [one.name for one in layout.groups]
        if [n for n in names if n in operation.refresh] != list(operation.refresh):
            raise SchedulingError("clean passes out of order", got=operation.refresh)
        self._context[team] = segment, committed

    def _must_see(self, group: Group, committed: list[str]) -> None:
        layout = self._work.layout
        there = {frame for name in committed for frame in layout.group(name).frames}
        if not there.issuperset(group.sees):
            raise SchedulingError(
                f"{group.name} sees frames without keys and values",
                got=sorted(set(group.sees) - there),
            )

    def _must_hold(self, team: int, latents: set[Latent]) -> None:
        missing = latents - self._held[team]
        if missing:
            raise SchedulingError("reads latents that are not there", got=sorted(missing))

    def _send(self, team: int, operation: Operation) -> None:
        task, label = self._fresh[team], (operation.segment, operation.group)
        if task is None or task.kind == "decode" or _label(task) != label:
            raise SchedulingError("sends what it has not just made", got=label)
        if (*label, operation.peer) in self._ever_sent:
            raise SchedulingError("sent twice to the same team", got=label)
        self._ever_sent.add((*label, operation.peer))
        self._sent.setdefault((team, operation.peer), deque()).append(label)

    def _receive(self, team: int, operation: Operation) -> None:
        self._fresh[team] = None
        label = self._sent[operation.peer, team].popleft()
        if label != (operation.segment, operation.group):
            raise SchedulingError("another message is first on the channel", got=label)
        segment, name = label
        kind = Task(segment, "hand_over") if name == SEEDS else Task(segment, "make", name)
        self._held[team].update(self._results(kind))

    def _reads(self, task: Task) -> set[Latent]:
        """The latents a task takes in itself (a make, by way of its context)."""
        work = self._work
        if task.kind == "make":
            frames: tuple[int, ...] = ()
        elif task.kind == "hand_over":
            frames = work.chain.handover
        else:
            frames = needed_latents(work.chain, task.segment, work.frames)
        return {(task.segment, frame) for frame in frames}

    def _results(self, task: Task) -> set[Latent]:
        work = self._work
        if task.kind == "make":
            frames = work.layout.group(task.group).frames
            return {(task.segment, frame) for frame in frames}
        if task.kind == "hand_over":
            return {(task.segment + 1, frame) for frame in range(work.chain.seeds)}
        return set()


def _wanted(work: Work) -> Iterator[Task]:
    """Every task of the film, from the count of its frames."""
    for segment in range(work.segments):
        for group in needed(work.layout, needed_latents(work.chain, segment, work.frames)):
            seeded = segment > 0 and segment not in work.cuts
            if not seeded or max(group.frames) >= work.chain.seeds:
                yield Task(segment, "make", group.name)
        yield Task(segment, "decode")
        if segment + 1 < work.segments and segment + 1 not in work.cuts:
            yield Task(segment, "hand_over")


def _label(task: Task) -> tuple[int, str]:
    return task.segment, SEEDS if task.kind == "hand_over" else task.group
