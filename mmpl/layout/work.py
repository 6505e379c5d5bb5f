"""What there is to do for a film: tasks, each done once, and what each waits for.

Integers only. It knows nothing of teams or seconds: `schedule` deals the tasks to teams, and
`film/settings` asks here which groups a segment plans and populates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from mmpl.errors import ArgumentError
from mmpl.layout.layout import Group, Layout, needed
from mmpl.layout.timeline import Chain, needed_latents, segments_for

SEEDS = "seeds"  # how the latents that a hand-over makes are called among the groups


def groups_of(layout: Layout, chain: Chain, frames: int, segment: int) -> tuple[Group, ...]:
    """Every group that `segment` of a film of `frames` pixel frames needs, in layout order.

    In later segments it includes the groups that are given as seeds.
    """
    return needed(layout, needed_latents(chain, segment, frames))


def planning_of(layout: Layout, chain: Chain, frames: int, segment: int) -> tuple[Group, ...]:
    """The groups whose frames the next segment's seeds are made from, in layout order.

    The last segment plans the same groups, as far as its kept frames need them.
    """
    handed = needed(layout, chain.handover)
    return tuple(g for g in groups_of(layout, chain, frames, segment) if g in handed)


def populating_of(layout: Layout, chain: Chain, frames: int, segment: int) -> tuple[Group, ...]:
    """The other groups that some kept frame of the segment needs, in layout order."""
    handed = needed(layout, chain.handover)
    return tuple(g for g in groups_of(layout, chain, frames, segment) if g not in handed)


@dataclass(frozen=True, slots=True, order=True)
class Task:
    """A unit of work that exists once in a film.

    `kind` "make" denoises `group` of the segment; "hand_over" makes the seeds of the next segment
    from this one's keyframes, unless that begins with a cut; "decode" turns the finished segment
    into pixels. Segments count from 0.
    """

    segment: int
    kind: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """All tasks of a film of `frames` pixel frames, and what each waits for. The segments `cuts`
    begin without seeds.

    `tasks` is topological, segment by segment: in each the groups in layout order, the hand-over
    as soon as its keyframes are there, the decode last. `needs`: the tasks whose latents a task
    reads, direct and by way of the context it attends to.
    """

    layout: Layout
    chain: Chain
    frames: int
    tasks: tuple[Task, ...]
    needs: Mapping[Task, tuple[Task, ...]]
    cuts: tuple[int, ...] = ()

    @property
    def segments(self) -> int:
        return segments_for(self.chain, self.frames)

    @property
    def planning(self) -> tuple[Task, ...]:
        """The makes whose keyframes are the storyboard, in order; with them the plan is done."""
        handed = {group.name for group in needed(self.layout, self.chain.handover)}
        return tuple(task for task in self.tasks if task.kind == "make" and task.group in handed)

    @property
    def made(self) -> frozenset[str]:
        """The groups that some segment makes."""
        return frozenset(task.group for task in self.tasks if task.kind == "make")

    @property
    def width(self) -> int:
        """How many groups of a segment can be made at once: the most at one depth of needs."""
        depths: dict[Task, int] = {}
        for task in self.tasks:
            depths[task] = 1 + max((depths[need] for need in self.needs[task]), default=0)
        at = Counter((t.segment, depths[t]) for t in self.tasks if t.kind == "make")
        return max(at.values())


def film_work(layout: Layout, chain: Chain, frames: int, cuts: tuple[int, ...] = ()) -> Work:
    """The tasks of a film of `frames` pixel frames, in which the segments `cuts` begin without
    seeds.

    Groups that no kept frame needs are no tasks, nor are the groups that a later segment is
    given as seeds. Raises ArgumentError for a film of several segments in a layout that makes the
    seeds together with other frames.
    """
    segments = segments_for(chain, frames)
    if segments > 1:
        check_chained(layout, chain)
    needs: dict[Task, tuple[Task, ...]] = {}
    usual: tuple[Group, ...] | None = None  # all segments but the last need the same groups
    for segment in range(segments):
        if usual is None or segment == segments - 1:
            usual = groups_of(layout, chain, frames, segment)
        follows = segment < segments - 1 and segment + 1 not in cuts
        seeded = segment > 0 and segment not in cuts
        own = _segment_work(layout, chain, segment, usual, seeded=seeded, follows=follows)
        needs.update(own)
    return Work(layout, chain, frames, tuple(needs), needs, cuts)


def plan_work(work: Work) -> Work:
    """The planning of `work` alone: the keyframes of all segments, and what hands them over."""
    plans = {*work.planning}
    tasks = tuple(task for task in work.tasks if task in plans or task.kind == "hand_over")
    return replace(work, tasks=tasks, needs={task: work.needs[task] for task in tasks})


def _segment_work(
    layout: Layout,
    chain: Chain,
    segment: int,
    groups: tuple[Group, ...],
    *,
    seeded: bool,
    follows: bool,
) -> Iterator[tuple[Task, tuple[Task, ...]]]:
    """The tasks of one segment with their needs; `seeded`: the segment before gives it its seeds;
    `follows`: it gives the next one's."""
    makers = {group.name: _maker(chain, segment, group, seeded=seeded) for group in groups}
    made: set[str] = set()
    handed = {group.name for group in needed(layout, chain.handover)} if follows else set()
    waits = follows
    for group in groups:
        task = makers[group.name]
        if task.segment == segment:
            closure = needed(layout, group.frames)
            yield task, tuple(dict.fromkeys(makers[g.name] for g in closure if g is not group))
        made.add(group.name)
        if waits and handed <= made:
            waits = False
            read = dict.fromkeys(layout.group_of(frame).name for frame in chain.handover)
            yield (
                Task(segment, "hand_over"),
                tuple(dict.fromkeys(makers[g.name] for g in groups if g.name in read)),
            )
    yield Task(segment, "decode"), tuple(dict.fromkeys(makers.values()))


def _maker(chain: Chain, segment: int, group: Group, *, seeded: bool) -> Task:
    """The task that provides a group's latents."""
    if seeded and all(frame < chain.seeds for frame in group.frames):
        return Task(segment - 1, "hand_over")
    return Task(segment, "make", group.name)


def check_chained(layout: Layout, chain: Chain) -> None:
    """Raises ArgumentError for a layout whose segments cannot be given their seeds: no group may
    hold these and other frames too."""
    for group in layout.groups:
        inside = [frame < chain.seeds for frame in group.frames]
        if any(inside) and not all(inside):
            raise ArgumentError(
                "segments cannot be chained in this layout, which makes the seeds together with "
                "other frames",
                where=f"layout {layout.name}, group {group.name}",
                got=f"latent frames {list(group.frames)}",
                wanted=f"the first {chain.seeds} in groups of their own",
                todo=f"make one segment, {chain.segment_frames} frames at most, or take a layout "
                "that starts from the seeds alone",
            )
        if group.name == SEEDS:
            raise ArgumentError(
                "a group has the name that is kept for the seeds of a segment",
                where=f"layout {layout.name}",
                got=SEEDS,
            )
