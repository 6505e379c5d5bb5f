"""Where each latent frame lives in the key/value cache.

Keys are stored after RoPE with their true frame index, so the order of slots is free. Chosen
well, everything a group writes, and everything it reads, is one contiguous range of slots: no
mask, no gather, no copy. This file finds such an order; the cache and the denoising code only
follow it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mmpl.errors import ArgumentError
from mmpl.layout.contiguous import any_order, first_order, narrow
from mmpl.layout.layout import Group, Layout, committed


@dataclass(frozen=True, slots=True)
class Pass:
    """What one group's forward passes do to the cache, in slots.

    `frames`: the group's latent frames in slot order, which is the order of its query tokens.
    `write`: the half-open range of its own slots. `read`: the half-open range it attends to, own
    slots included; where no order makes that one range, `gather` lists the slots to read and
    `read` is the range that spans them; otherwise `gather` is None.
    """

    group: str
    frames: tuple[int, ...]
    write: tuple[int, int]
    read: tuple[int, int]
    gather: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """`order[slot]` is the latent frame in that slot; one pass per group, in layout order. Only
    the first `stored` slots need memory: those behind are of groups that nobody looks back at and
    that read themselves last, so they can do with their own keys and values as they have them."""

    order: tuple[int, ...]
    passes: tuple[Pass, ...]
    stored: int

    @property
    def slots(self) -> int:
        """The number of slots, one latent frame each."""
        return len(self.order)

    def slot(self, frame: int) -> int:
        """The slot of latent frame `frame`."""
        return self.order.index(frame)

    def pass_of(self, group: str) -> Pass:
        """The pass of the group with that name; ArgumentError lists the names."""
        for step in self.passes:
            if step.group == group:
                return step
        names = ", ".join(step.group for step in self.passes)
        raise ArgumentError("no such group", where="slot plan", got=group, wanted=names)


def slot_plan(layout: Layout) -> SlotPlan:
    """An order of slots in which every write, and every read if possible, is contiguous.

    Deterministic. Writes always can be. Where the reads cannot all be, they are granted one by
    one in layout order, and the others gather. For MMPL text-to-video the order is
    `19,20 | 2,3,10,11,12 | 0,1 | 4..9 | 13..18`: fill_head reads one range that leaves 19,20 out.
    """
    atoms = _atoms(layout)
    orders = any_order(len(atoms))
    wishes = [group.frames for group in layout.groups] + [group.reads for group in layout.groups]
    for frames in wishes:
        members = frozenset(index for index, atom in enumerate(atoms) if atom[0] in frames)
        narrower = narrow(orders, members)
        if narrower is not None:
            orders = narrower
    order = tuple(frame for index in first_order(orders) for frame in atoms[index])
    slot = {frame: index for index, frame in enumerate(order)}
    passes = tuple(_pass(group, slot) for group in layout.groups)
    return SlotPlan(order, passes, _stored(layout, passes))


def stored_slots(layout: Layout, made: Collection[str]) -> int:
    """The first slots that need memory where of all groups only those called `made` are made."""
    return _stored(layout, slot_plan(layout).passes, made)


def _stored(layout: Layout, passes: tuple[Pass, ...], made: Collection[str] | None = None) -> int:
    """The slots of groups that some other reads, and of those that do not read themselves last."""
    running = [group for group in layout.groups if made is None or group.name in made]
    kept = {group.name for group in committed(layout, running)}
    names, stored = {group.name for group in running}, 0
    for step in passes:
        last = step.gather is None and step.read[1] == step.write[1]
        if step.group in kept or (step.group in names and not last):
            stored = max(stored, step.write[1], step.read[1])
        elif step.group in names and step.read[0] < step.write[0]:
            stored = max(stored, step.write[0])
    return stored


def _atoms(layout: Layout) -> list[tuple[int, ...]]:
    """Frames of one group that the same groups see: no order ever needs to part them.

    Sorted by preference for the low slots: frames that stay in the cache, then earlier groups.
    """
    kept = {group.name for group in committed(layout)}
    atoms: list[tuple[int, ...]] = []
    for group in sorted(layout.groups, key=lambda group: group.name not in kept):
        alike: dict[tuple[str, ...], list[int]] = {}
        for frame in group.frames:
            readers = tuple(other.name for other in layout.groups if frame in other.sees)
            alike.setdefault(readers, []).append(frame)
        atoms.extend(tuple(frames) for frames in alike.values())
    return atoms


def _pass(group: Group, slot: dict[int, int]) -> Pass:
    own = sorted(slot[frame] for frame in group.frames)
    seen = sorted(slot[frame] for frame in group.reads)
    read = (seen[0], seen[-1] + 1)
    return Pass(
        group=group.name,
        frames=tuple(sorted(group.frames, key=slot.__getitem__)),
        write=(own[0], own[-1] + 1),
        read=read,
        gather=None if read[1] - read[0] == len(seen) else tuple(seen),
    )
