"""Teacher forcing without a mask: clean context first, then the noisy frames to learn from.

The training mask of a layout falls apart into dense pieces, one per clean or noisy pass of a
group. Computing just these gives the same flow and the same gradient as the mask over
[clean | noisy], at 416 instead of 1764 frame pairs for MMPL text-to-video.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpl.layout.layout import Group, Layout, needed
from mmpl.layout.mask import Block, Mask, dense_blocks
from mmpl.wan.attention import Masked, Piece
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit import DEFAULT_ENGINE, CrossKV, DiTParams, Engine, Positions, dit


@dataclass(frozen=True, slots=True)
class Lesson:
    """One training pass: its `clean` frames, then its `noisy` frames, both in the order in which
    they stand in the sequence, and who sees whom in it. `masked` says the same as `pieces`, for
    frames of one size, and is used in their place."""

    clean: tuple[int, ...]
    noisy: tuple[int, ...]
    pieces: tuple[Piece, ...]
    masked: Masked | None = None

    @property
    def frames(self) -> int:
        """Latent frames of the whole sequence."""
        return len(self.clean) + len(self.noisy)

    def positions(self) -> Positions:
        """The pass as the network wants it."""
        pieces = () if self.masked else self.pieces
        return Positions((*self.clean, *self.noisy), pieces=pieces, masked=self.masked)


def lesson(layout: Layout, groups: Collection[Group] | None = None) -> Lesson:
    """The pass that trains `groups` of a layout together; by default all of them.

    It holds no more clean frames than reach them: those they see, and those that these see.
    """
    learned = layout.groups if groups is None else groups
    reached = needed(layout, {frame for group in learned for frame in group.sees})
    names = {True: {g.name for g in reached}, False: {g.name for g in learned}}
    blocks = [block for block in dense_blocks(layout) if block.group in names[block.clean]]
    clean = tuple(frame for block in blocks if block.clean for frame in block.frames)
    noisy = tuple(frame for block in blocks if not block.clean for frame in block.frames)
    return Lesson(clean, noisy, _pieces(blocks, clean))


def masked_lesson(mask: Mask) -> Lesson:
    """The pass under any mask over [clean | noisy] of a segment, rows being queries, without the
    clean frames that reach no noisy one. For masks that follow from no layout."""
    size = len(mask) // 2
    kept = set(range(size, 2 * size))
    while reached := {k for row in kept for k, one in enumerate(mask[row]) if one} - kept:
        kept |= reached
    places = sorted(kept)
    seen = [tuple(i for i, key in enumerate(places) if mask[row][key]) for row in places]
    starts = [i for i in range(len(seen)) if i == 0 or seen[i] != seen[i - 1]]
    stops = (*starts[1:], len(seen))
    pieces = tuple(Piece((a, b), _spans(seen[a])) for a, b in zip(starts, stops, strict=True))
    clean = tuple(place for place in places if place < size)
    return Lesson(clean, tuple(range(size)), pieces)


def taught_flow(
    params: DiTParams,
    config: DiTConfig,
    clean_BCTHW: Tensor,
    noisy_BCTHW: Tensor,
    t_BT: Tensor,
    context: CrossKV,
    *,
    lesson: Lesson,
    engine: Engine = DEFAULT_ENGINE,
) -> Tensor:
    """The flow of the noisy frames, of the shape of `noisy_BCTHW`.

    Frames come in the order of `lesson.clean` and `lesson.noisy`; `t_BT` is the timestep of every
    noisy frame, on the 0..1000 scale. Clean frames are at timestep 0 and, like the noisy ones, at
    their own place in time. Differentiable, through the clean frames too: they are the context
    that inference will make with the same weights. ArgumentError for shapes that do not fit.
    """
    t_clean_BT = t_BT.new_zeros(len(t_BT), len(lesson.clean))
    flow_BCTHW = dit(
        params,
        config,
        torch.cat((clean_BCTHW, noisy_BCTHW), dim=2),
        torch.cat((t_clean_BT, t_BT), dim=1),
        context,
        frames=lesson.positions(),
        engine=engine,
    )
    return flow_BCTHW[:, :, clean_BCTHW.shape[2] :]


def _pieces(blocks: Iterable[Block], clean: tuple[int, ...]) -> tuple[Piece, ...]:
    """The blocks as ranges of the sequence, which they fill one after the other."""
    pieces, start = [], 0
    for block in blocks:
        own = range(start, start + len(block.frames))
        seen = sorted(clean.index(frame) for frame in block.context)
        pieces.append(Piece((own.start, own.stop), _spans((*seen, *own))))
        start = own.stop
    return tuple(pieces)


def _spans(places: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Ascending places as half-open ranges, as few as possible."""
    spans: list[tuple[int, int]] = []
    for place in places:
        if spans and spans[-1][1] == place:
            spans[-1] = (spans[-1][0], place + 1)
        else:
            spans.append((place, place + 1))
    return tuple(spans)
