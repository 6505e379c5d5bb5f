"""Every interleaving of small films, with teams dying anywhere: the film is always completed.

The state of a run is how far each team is in its list; what lies in the channels follows from
that, since between two teams messages keep their order and a send never waits. From every state
that can be reached, every team may take its next step, or die. What it finished is on disk, so
after a death only the set of finished tasks matters: the others start anew on what is left, and
every such set is looked at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from mmpl.layout import schedule_search
from mmpl.layout.schedule import Costs, Schedule, build_schedule
from mmpl.layout.schedule_check import check_schedule
from mmpl.layout.work import Task, Work
from tests.property.films import film

State = tuple[int, ...]  # how many operations of its list each team has finished


@dataclass(frozen=True)
class Machine:
    """Lists with all that can be known of them before they run: per team and place in its list,
    the messages sent to and received from each other team so far, and the tasks finished."""

    schedule: Schedule
    sent: list[list[tuple[int, ...]]]
    received: list[list[tuple[int, ...]]]
    finished: list[list[int]]  # sets of tasks, a bit each

    def steps(self, state: State) -> Iterator[State]:
        """The states after one more operation of some team."""
        for team, place in enumerate(state):
            operations = self.schedule.operations[team]
            if place == len(operations):
                continue
            peer = operations[place].peer
            if operations[place].kind == "receive" and not (
                self.received[team][place][peer] < self.sent[peer][state[peer]][team]
            ):
                continue
            yield (*state[:team], place + 1, *state[team + 1 :])

    def finished_in(self, state: State) -> int:
        tasks = 0
        for team, place in enumerate(state):
            tasks |= self.finished[team][place]
        return tasks


def costs_of(work: Work) -> Costs:
    """Unequal costs, so that the adaptive mode has something to weigh."""
    groups = work.layout.groups
    make = {group.name: 15.0 * len(group.frames) + len(group.sees) for group in groups}
    return Costs(make, {group.name: 2.0 for group in groups}, 3.0, 9.0, 0.5)


def machine_of(schedule: Schedule, bits: dict[Task, int]) -> Machine:
    """Checks on the way that nothing is read, or sent, before it is there."""
    lists, teams = schedule.operations, range(len(schedule.operations))
    sent, received, finished = [], [], []
    for operations in lists:
        counts = {"send": [0 for _ in teams], "receive": [0 for _ in teams]}
        there = {*schedule.done}
        tasks, rows = 0, ([tuple(counts["send"])], [tuple(counts["receive"])], [0])
        for op in operations:
            if op.kind in counts:
                counts[op.kind][op.peer] += 1
            if op.kind == "send":
                assert op.task in there
            elif op.kind != "receive":
                assert there.issuperset(schedule.work.needs[op.task])
                tasks |= bits[op.task]
            there.add(op.task)
            rows[0].append(tuple(counts["send"]))
            rows[1].append(tuple(counts["receive"]))
            rows[2].append(tasks)
        sent.append(rows[0])
        received.append(rows[1])
        finished.append(rows[2])
    for source in teams:
        for team in teams:
            goes = [op.task for op in lists[source] if (op.kind, op.peer) == ("send", team)]
            comes = [op.task for op in lists[team] if (op.kind, op.peer) == ("receive", source)]
            assert goes == comes
    return Machine(schedule, sent, received, finished)


def explore(machine: Machine) -> tuple[int, set[int]]:
    """The number of states that can be reached, and the sets of tasks finished in them. Fails
    if some state has no next one although lists are left."""
    start = tuple(0 for _ in machine.schedule.operations)
    end = tuple(len(operations) for operations in machine.schedule.operations)
    seen, todo = {start}, [start]
    while todo:
        state = todo.pop()
        after = list(machine.steps(state))
        assert after or state == end, f"deadlock at {state}"
        for new in after:
            if new not in seen:
                seen.add(new)
                todo.append(new)
    assert end in seen
    return len(seen), {machine.finished_in(state) for state in seen}


def survive(work: Work, teams: int, deaths: int, mode: str) -> tuple[int, int]:
    """All runs with up to `deaths` deaths; how many states and how many rebuilt schedules."""
    bits = {task: 1 << number for number, task in enumerate(work.tasks)}
    todo, seen = [(0, teams)], {(0, teams)}
    states, costs = 0, costs_of(work)
    while todo:
        done, left = todo.pop()
        on_disk = frozenset(task for task, bit in bits.items() if bit & done)
        schedule = build_schedule(work, left, costs, mode=mode, done=on_disk)
        if left == teams:  # of the others the machine checks what matters
            check_schedule(schedule)
        count, finished = explore(machine_of(schedule, bits))
        states += count
        assert done | max(finished, default=0) == 2 ** len(work.tasks) - 1, "the film is complete"
        if left > 1 and teams - left < deaths:
            new = {(done | tasks, left - 1) for tasks in finished} - seen
            seen |= new
            todo += new
    return states, len(seen)


@pytest.fixture(autouse=True)
def _no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules of thumb only: thousands of schedules are built."""
    monkeypatch.setattr(schedule_search, "EFFORT", 0)
    monkeypatch.setattr(schedule_search, "MANY_TASKS", 0)


@pytest.mark.parametrize("mode", ["round_robin", "adaptive"])
@pytest.mark.parametrize("seeding", ["terminal", "midpoint"])
@pytest.mark.parametrize("teams", [1, 2, 3])
@pytest.mark.parametrize("segments", [1, 2, 3, 4])
def test_the_film_survives_two_deaths(segments: int, teams: int, seeding: str, mode: str) -> None:
    states, schedules = survive(film(segments, seeding), teams, 2, mode)
    assert states > segments
    assert schedules > 1 or teams == 1


def test_the_exploration_is_not_empty() -> None:
    """Four segments on three teams, with no death, one, two."""
    (states, one), (_, few), (most_states, many) = (
        survive(film(4), 3, deaths, "round_robin") for deaths in (0, 1, 2)
    )
    assert one == 1
    assert states > 200
    assert few > 100
    assert many > few
    assert most_states > 5_000


@pytest.mark.parametrize("layout", ["mmpl_i2v", "without_midpoint", "chunked_2_3"])
def test_other_layouts_survive(layout: str) -> None:
    survive(film(2, layout=layout), 3, 2, "adaptive")


def test_a_deadlock_is_seen() -> None:
    work = film(3)
    schedule = build_schedule(work, 2, costs_of(work), mode="round_robin")
    first, second = (list(operations) for operations in schedule.operations)
    place = next(i for i, op in enumerate(first) if op.kind == "receive")
    first.insert(0, first.pop(place))
    bits = {task: 1 << number for number, task in enumerate(schedule.work.tasks)}
    machine = machine_of(replace(schedule, operations=(tuple(first), tuple(second))), bits)
    with pytest.raises(AssertionError, match="deadlock"):
        explore(machine)
