"""Layouts: which latent frames of a segment are made together, and what each may look at.

A layout is the single source of the training mask, the cache slots, the order of work and its
cost. It is integers only: no tensors, no torch. It knows nothing of pixels or films.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from mmpl.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class Group:
    """Latent frames that are denoised together, all at the same noise level.

    `frames`: their indices in the segment, ascending. `sees`: frames of EARLIER groups that the
    group attends to, ascending, in its noisy passes and in its clean pass alike. A group always
    attends to all of its own frames besides.
    """

    name: str
    frames: tuple[int, ...]
    sees: tuple[int, ...] = ()

    @property
    def reads(self) -> tuple[int, ...]:
        """Every frame the group attends to, its own included, ascending."""
        return tuple(sorted((*self.frames, *self.sees)))


@dataclass(frozen=True, slots=True)
class Layout:
    """A segment of `frames` latent frames as an ordered tuple of groups.

    `midpoint` is the last latent frame of the middle keyframes, where a midpoint-seeded segment
    ends; None for a layout that cannot be cut there. Raises ArgumentError unless every latent
    frame is in exactly one group and every group sees only frames of earlier groups.
    """

    name: str
    frames: int
    groups: tuple[Group, ...]
    midpoint: int | None = None

    def __post_init__(self) -> None:
        _check_segment(self)
        done: set[int] = set()
        for group in self.groups:
            _check_group(self, group, done)
            done.update(group.frames)
        missing = sorted(set(range(self.frames)) - done)
        if missing:
            raise ArgumentError(
                "latent frames in no group",
                where=f"layout {self.name}",
                got=missing,
                wanted=f"each of 0..{self.frames - 1} in one group",
            )

    def group(self, name: str) -> Group:
        """The group called `name`; ArgumentError lists the names there are."""
        for group in self.groups:
            if group.name == name:
                return group
        raise ArgumentError(
            "no such group",
            where=f"layout {self.name}",
            got=name,
            wanted=", ".join(group.name for group in self.groups),
        )

    def group_of(self, frame: int) -> Group:
        """The group that makes latent frame `frame`."""
        for group in self.groups:
            if frame in group.frames:
                return group
        raise ArgumentError(
            "no such latent frame",
            where=f"layout {self.name}",
            got=frame,
            wanted=f"0..{self.frames - 1}",
        )


def needed(layout: Layout, frames: Iterable[int]) -> tuple[Group, ...]:
    """The groups that must run to obtain latent `frames`, in layout order.

    A group runs as a whole and needs every group it sees, and so on backwards. Frames that no
    kept picture shows are thus never made: the last segment of a film cut to length, and
    fill_tail of a midpoint-seeded segment.
    """
    wanted = set(frames)
    for frame in sorted(wanted):
        layout.group_of(frame)  # refuses a frame outside the segment
    chosen: list[Group] = []
    for group in reversed(layout.groups):
        if wanted.intersection(group.frames):
            chosen.append(group)
            wanted.update(group.sees)
    return tuple(reversed(chosen))


def committed(layout: Layout, running: Collection[Group] | None = None) -> tuple[Group, ...]:
    """The groups that need a clean pass and cache slots: those that somebody later sees.

    `running` restricts "somebody" to the groups that will run (see `needed`); default all.
    """
    readers = layout.groups if running is None else running
    seen = {frame for group in readers for frame in group.sees}
    return tuple(group for group in layout.groups if seen.intersection(group.frames))


def _check_segment(layout: Layout) -> None:
    where = f"layout {layout.name}"
    if layout.frames < 1:
        raise ArgumentError("no latent frames", where=where, got=layout.frames, wanted=">= 1")
    if layout.midpoint is not None and layout.midpoint not in range(layout.frames):
        raise ArgumentError(
            "midpoint outside the segment",
            where=where,
            got=layout.midpoint,
            wanted=f"0..{layout.frames - 1}",
        )
    names = [group.name for group in layout.groups]
    if len(set(names)) != len(names):
        raise ArgumentError("two groups have the same name", where=where, got=", ".join(names))


def _check_group(layout: Layout, group: Group, done: set[int]) -> None:
    where = f"layout {layout.name}, group {group.name}"
    if not group.frames:
        raise ArgumentError("a group without frames", where=where)
    for field, values in (("frames", group.frames), ("sees", group.sees)):
        if list(values) != sorted(set(values)):
            raise ArgumentError(
                f"{field} must ascend without repeats", where=where, got=list(values)
            )
    outside = [frame for frame in group.frames if frame not in range(layout.frames)]
    if outside:
        raise ArgumentError(
            "frames outside the segment",
            where=where,
            got=outside,
            wanted=f"0..{layout.frames - 1}",
        )
    twice = sorted(done.intersection(group.frames))
    if twice:
        raise ArgumentError("frames already in an earlier group", where=where, got=twice)
    early = sorted(set(group.sees) - done)
    if early:
        raise ArgumentError(
            "sees frames that no earlier group makes",
            where=where,
            got=early,
            wanted=f"some of {sorted(done)}",
        )
