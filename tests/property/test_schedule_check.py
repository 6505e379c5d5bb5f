"""`check_schedule` rejects every planted mistake, and says what it is.

Each mistake is made in a right schedule, as a slip in the code that builds schedules would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from mmpl.errors import SchedulingError
from mmpl.layout import schedule, schedule_operations
from mmpl.layout.schedule import Costs, Operation, Schedule, build_schedule
from mmpl.layout.schedule_check import check_schedule
from mmpl.layout.simulate import simulate
from mmpl.layout.work import SEEDS, Task, Work
from tests.property.films import PAPER, film

Lists = list[list[Operation]]
Bug = Callable[[Lists], None]


def right() -> Schedule:
    """Three segments on two teams, where the fill_tail of segment 0 runs away from its head."""
    work = film(3)
    placed = [
        (task, 1 if task.segment == 1 or task.group == "fill_tail" else 0) for task in work.tasks
    ]
    return Schedule(work, schedule_operations.operations_of(work, placed, 2))


def at(lists: Lists, team: int, kind: str, segment: int, group: str = "") -> int:
    for index, op in enumerate(lists[team]):
        if (op.kind, op.segment, op.group) == (kind, segment, group):
            return index
    raise LookupError(f"{kind} {segment} {group} on team {team}")


def drop(team: int, kind: str, segment: int, group: str = "") -> Bug:
    return lambda lists: lists[team].__delitem__(at(lists, team, kind, segment, group))


def change(team: int, what: tuple[str, int, str], **fields: object) -> Bug:
    def bug(lists: Lists) -> None:
        index = at(lists, team, *what)
        lists[team][index] = replace(lists[team][index], **fields)  # type: ignore[arg-type]

    return bug


def repeat(team: int, kind: str, segment: int, group: str = "") -> Bug:
    def bug(lists: Lists) -> None:
        index = at(lists, team, kind, segment, group)
        lists[team].insert(index, lists[team][index])

    return bug


def put_before(team: int, what: tuple[str, int, str], other: tuple[str, int, str]) -> Bug:
    """Moves one operation of a team to just before another."""

    def bug(lists: Lists) -> None:
        operation = lists[team].pop(at(lists, team, *what))
        lists[team].insert(at(lists, team, *other), operation)

    return bug


def append(team: int, operation: Operation) -> Bug:
    return lambda lists: lists[team].append(operation)


def to_the_other_team(kind: str, segment: int, group: str = "") -> Bug:
    return lambda lists: lists[1].insert(0, lists[0].pop(at(lists, 0, kind, segment, group)))


def circle(lists: Lists) -> None:
    """Both teams receive before they send what the other waits for."""
    seeds = lists[0].pop(at(lists, 0, "receive", 1, SEEDS))
    lists[0].insert(0, seeds)


PLANTED: dict[str, tuple[Bug, str]] = {
    "a send forgotten": (drop(0, "send", 0, SEEDS), "another message|wait for ever"),
    "the last send forgotten": (drop(1, "send", 1, SEEDS), "wait for ever|another message"),
    "a receive forgotten": (drop(0, "receive", 1, SEEDS), "another message|not there"),
    "a receive too many": (repeat(1, "receive", 0, SEEDS), "another message|wait for ever"),
    "a send too many": (repeat(0, "send", 0, SEEDS), "sent twice"),
    "a send of something else": (change(0, ("send", 0, SEEDS), group="plan"), "not just made"),
    "a send to oneself": (change(0, ("send", 0, SEEDS), peer=0), "no such peer"),
    "a send to nobody": (change(0, ("send", 0, SEEDS), peer=2), "no such peer"),
    "a send too late": (
        put_before(1, ("send", 1, SEEDS), ("decode", 1, "")),
        "not just made",
    ),
    "a receive from oneself": (change(1, ("receive", 0, SEEDS), peer=1), "no such peer"),
    "seeds of the wrong segment": (
        change(1, ("receive", 0, SEEDS), segment=1),
        "another message is first",
    ),
    "receives exchanged": (
        put_before(1, ("receive", 0, SEEDS), ("make", 0, "fill_tail")),
        "another message|not there|without keys",
    ),
    "a group made twice": (repeat(0, "make", 0, "fill_head"), "done twice|committed twice"),
    "a group never made": (drop(1, "make", 1, "fill_tail"), "not there"),
    "a group made by both teams": (
        append(0, Operation("make", 1, "plan", ("init",))),
        "done twice",
    ),
    "a refresh forgotten": (change(0, ("make", 0, "fill_head"), refresh=()), "without keys"),
    "a refresh in part": (
        change(1, ("make", 0, "fill_tail"), refresh=("init", "plan")),
        "without keys and values",
    ),
    "a refresh twice": (
        change(0, ("make", 0, "fill_head"), refresh=("plan", "plan")),
        "committed twice",
    ),
    "a refresh out of order": (
        change(1, ("make", 0, "fill_tail"), refresh=("plan", "init", "fill_head")),
        "without keys|out of order",
    ),
    "a refresh of itself": (
        change(0, ("make", 0, "plan"), refresh=("init", "plan")),
        "nobody reads",
    ),
    "a refresh by a hand-over": (
        change(0, ("hand_over", 0, ""), refresh=("plan",)),
        "only a make reads",
    ),
    "a decode before its fills": (
        put_before(1, ("decode", 1, ""), ("make", 1, "fill_tail")),
        "not there",
    ),
    "a decode on a team without the latents": (
        lambda lists: lists[0].append(lists[1].pop(at(lists, 1, "decode", 1))),
        "not there",
    ),
    "a decode never": (drop(1, "decode", 1), "never done; got .*kind='decode'"),
    "a hand-over before the plan": (
        put_before(0, ("hand_over", 0, ""), ("make", 0, "plan")),
        "not there",
    ),
    "a hand-over after the last segment": (append(0, Operation("hand_over", 2)), "not part"),
    "a hand-over elsewhere": (to_the_other_team("hand_over", 0), "not there|not just made"),
    "a plan before its seeds": (
        put_before(1, ("make", 1, "plan"), ("receive", 0, SEEDS)),
        "not there",
    ),
    "a fill before its plan": (
        put_before(1, ("make", 1, "fill_head"), ("make", 1, "plan")),
        "not there|without keys",
    ),
    "init in a later segment": (append(1, Operation("make", 1, "init")), "not part of the film"),
    "a segment that is not in the film": (append(1, Operation("decode", 3)), "not part"),
    "a group that is not in the layout": (append(0, Operation("make", 0, "middle")), "not part"),
    "an unknown kind": (append(0, Operation("rest", 0)), "unknown kind"),
    "a circle": (circle, "wait for ever"),
}  # fmt: skip


def test_the_schedule_itself_is_right() -> None:
    check_schedule(right())
    simulate(right(), PAPER)


def test_there_are_enough_mistakes() -> None:
    assert len(PLANTED) >= 30


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found(name: str) -> None:
    bug, words = PLANTED[name]
    schedule = right()
    lists = [list(operations) for operations in schedule.operations]
    bug(lists)
    broken = replace(schedule, operations=tuple(tuple(operations) for operations in lists))
    assert broken != schedule
    with pytest.raises(SchedulingError, match=words):
        check_schedule(broken)


# ------------------------------------------------ mistakes in the code that builds schedules


def build() -> Schedule:
    return build_schedule(film(4), 3, Costs(PAPER.make, {"plan": 1.0}))


def contexts_never_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    context = schedule_operations._Context

    def refresh(self: schedule_operations._Context, task: Task) -> tuple[str, ...]:
        missing = tuple(name for name in self._sees[task.group] if name not in self._held)
        self._held.update(missing)
        return missing

    monkeypatch.setattr(context, "refresh", refresh)


def no_team_is_sent_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_operations, "_readers", lambda *everything: {})


def every_team_is_sent_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    def readers(work: Work, *others: object) -> dict[Task, set[int]]:
        return {task: {0, 1, 2} for task in work.tasks}

    monkeypatch.setattr(schedule_operations, "_readers", readers)


def a_segment_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = schedule._schedule

    def forgetful(work: Work, placed: tuple[tuple[Task, int], ...], *others: object) -> Schedule:
        kept = tuple(pair for pair in placed if pair[0].segment != 3)
        return plain(work, kept, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(schedule, "_schedule", forgetful)


def the_order_is_reversed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = schedule._schedule

    def backwards(work: Work, placed: tuple[tuple[Task, int], ...], *others: object) -> Schedule:
        return plain(work, placed[::-1], *others)  # type: ignore[arg-type]

    monkeypatch.setattr(schedule, "_schedule", backwards)


@pytest.mark.parametrize(
    "slip",
    [
        contexts_never_emptied, no_team_is_sent_anything, every_team_is_sent_everything,
        a_segment_is_forgotten, the_order_is_reversed,
    ],
)  # fmt: skip
def test_a_slip_of_the_builder_is_found(
    slip: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_schedule(build())
    slip(monkeypatch)
    monkeypatch.setattr(schedule, "simulate", lambda *both: NO_TIME)
    with pytest.raises(SchedulingError):
        check_schedule(build())


NO_TIME = simulate(Schedule(film(1), ((),), frozenset(film(1).tasks)), PAPER)
