"""A segment some of whose latent frames are given and not made: pictures pinned in a film."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from mmpl.errors import ArgumentError
from mmpl.layout.layout import Group, Layout

GIVEN = "given"  # the group of pinned frames


def with_given(layout: Layout, frames: Collection[int]) -> Layout:
    """`layout` for a segment in which the latent `frames` are given.

    They are a first group, which sees nothing but itself, and every other group sees them: what is
    known counts from the start. Groups that are given as a whole stay as they are, for they need
    no denoising anyway; so an image-to-video layout whose first frame is given is itself.
    """
    whole = {group.name for group in layout.groups if set(group.frames) <= set(frames)}
    parts = set(frames).difference(*(g.frames for g in layout.groups if g.name in whole))
    if not parts:
        return layout
    groups = [Group(GIVEN, tuple(sorted(parts)))]
    for group in layout.groups:
        own = tuple(frame for frame in group.frames if frame not in parts)
        groups.append(replace(group, frames=own, sees=tuple(sorted(parts.union(group.sees)))))
    return replace(layout, groups=tuple(groups))


def require_whole(layout: Layout, frames: Collection[int]) -> None:
    """Raises ArgumentError unless `frames` can be given without a change of the layout: they are
    groups of their own."""
    if with_given(layout, frames) is not layout:
        raise ArgumentError(
            "segments of this layout cannot begin with given frames",
            got=layout.name,
            wanted=f"one with latent frames {', '.join(map(str, frames))} in groups of their own",
        )
