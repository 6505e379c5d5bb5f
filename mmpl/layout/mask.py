"""Attention masks that follow from a layout, for training and as the oracle of the cache.

Teacher forcing puts the clean latents and the noisy latents of one clip side by side,
`[clean | noisy]`, both halves at the same positions. A clean query stands for the clean pass of
its group, a noisy query for a denoising pass: each sees exactly what that pass sees in the cache.

For MMPL text-to-video, by groups (keys = plan without its terminal frames, term = 19,20):

                     clean                        noisy
    query        init keys term head tail    init keys term head tail
    clean init     1    0    0    0    0       0    0    0    0    0
    clean keys     1    1    1    0    0       0    0    0    0    0
    clean term     1    1    1    0    0       0    0    0    0    0
    clean head     1    1    0    1    0       0    0    0    0    0
    clean tail     1    1    1    1    1       0    0    0    0    0
    noisy init     0    0    0    0    0       1    0    0    0    0
    noisy keys     1    0    0    0    0       0    1    1    0    0
    noisy term     1    0    0    0    0       0    1    1    0    0
    noisy head     1    1    0    0    0       0    0    0    1    0
    noisy tail     1    1    1    1    0       0    0    0    0    1

which is 542 of the 42 x 42 frame pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmpl.layout.layout import Layout, committed
from mmpl.layout.presets import mmpl_i2v

Mask = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A dense piece of the training mask: `frames` (queries, clean or noisy) attend to all of
    the clean `context` frames and to all of themselves, and to nothing else."""

    group: str
    clean: bool
    context: tuple[int, ...]
    frames: tuple[int, ...]

    @property
    def pairs(self) -> int:
        """Frame pairs that are computed."""
        return len(self.frames) * (len(self.context) + len(self.frames))


def training_mask(layout: Layout) -> Mask:
    """The teacher-forcing mask, 2F x 2F of 0/1 for F latent frames: rows are queries, columns
    keys, clean half first in both. 542 ones for MMPL text-to-video, 564 for image-to-video."""
    return _mask(layout, range(layout.frames), range(layout.frames))


def causal_mask(layout: Layout) -> Mask:
    """Who sees whom in one plain sequence of F latent frames, F x F of 0/1: the clean quarter of
    `training_mask`. A pass over the sequence under it equals the cached passes group by group."""
    return _mask(layout, range(layout.frames), ())


def released_i2v_mask() -> Mask:
    """The mask the released image-to-video model was trained with: 550 ones, for parity only.

    It is `training_mask(mmpl_i2v())` but for one slip: the rule that hides 19,20 from fill_head
    falls on the clean plan queries, which then miss 19,20 (19 and 20 even themselves), although
    at inference they see them.
    """
    layout = mmpl_i2v()
    plan = layout.group("plan").frames
    terminal = (layout.frames - 2, layout.frames - 1)
    return tuple(
        tuple(int(one and not (query in plan and key in terminal)) for key, one in enumerate(row))
        for query, row in enumerate(training_mask(layout))
    )


def dense_blocks(layout: Layout) -> tuple[Block, ...]:
    """The training mask without a mask: clean passes of the committed groups, then the noisy
    passes of all groups. What the mask allows besides feeds no noisy frame, hence no loss.

    416 frame pairs for MMPL text-to-video.
    """
    clean = tuple(Block(g.name, True, g.sees, g.frames) for g in committed(layout))
    return clean + tuple(Block(g.name, False, g.sees, g.frames) for g in layout.groups)


def _mask(layout: Layout, clean: Sequence[int], noisy: Sequence[int]) -> Mask:
    """The rows and columns of the training mask for these clean and noisy frames."""
    rows = []
    for query in clean:
        reads = layout.group_of(query).reads
        rows.append(tuple(int(key in reads) for key in clean) + (0,) * len(noisy))
    for query in noisy:
        group = layout.group_of(query)
        seen = tuple(int(key in group.sees) for key in clean)
        rows.append(seen + tuple(int(key in group.frames) for key in noisy))
    return tuple(rows)
