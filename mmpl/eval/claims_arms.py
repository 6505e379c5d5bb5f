"""What the report of the claims has to know of each method besides how it makes a film.

Names are those of `mmpl.eval.methods`. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmpl.layout.presets import by_name
from mmpl.layout.timeline import Chain, chain_of, joints, segments_for


@dataclass(frozen=True, slots=True)
class Arm:
    """`generations`: how many steps the chain of errors makes while a film goes on by one terminal
    segment (19 latent frames of Wan): how often something is made from what was itself made.
    `layout` and `seeding` tell where the groups of a segment meet; "" where they are no segments.
    """

    generations: float
    layout: str = ""
    seeding: str = "terminal"


_MMPL = Arm(1, "mmpl_t2v")
_CHUNKS = Arm(19 / 3)  # chunks of three latent frames
ARMS: Mapping[str, Arm] = {
    "mmpl_terminal": _MMPL,
    "mmpl_midpoint": Arm(19 / 11, "mmpl_t2v", "midpoint"),
    "mmpl_without_early": Arm(1, "without_early"),
    "mmpl_without_midpoint": Arm(1, "without_midpoint"),
    "mmpl_head_sees_terminal": Arm(1, "mmpl_t2v_head_sees_terminal"),
    "mmpl_no_reencode": _MMPL,
    "mmpl_full_history": _MMPL,
    "mmpl_noise_off": _MMPL,
    "mmpl_noise_paper_0.5": _MMPL,
    "mmpl_noise_paper_0.7": _MMPL,
    "mmpl_noise_paper_0.9": _MMPL,
    "mmpl_noise_unit_0.5": _MMPL,
    "mmpl_noise_unit_0.7": _MMPL,
    "mmpl_noise_unit_0.9": _MMPL,
    "rolling_kv": _CHUNKS,
    "rolling_kv_sink": _CHUNKS,
    "causvid_windows": _CHUNKS,
    "self_forcing_windows": Arm(7),  # chunks of three after the two seeds of each segment
    "bidirectional_window": Arm(1, "bidirectional_2"),
    "diffusion_forcing": Arm(19 / 4),  # blocks of four, each behind the one before
    "fifo": Arm(19),  # one latent frame after the other
    "staggered_chunks": _CHUNKS,
    "anti_drift": Arm(1),  # the end of a segment first, then back to its beginning
}


def joints_of(arm: Arm, chain: Chain, frames: int) -> dict[str, list[int]]:
    """The film frames where segments and groups meet: "segment" for every method where those of
    MMPL do, so that what has no joints shows what a jump is without one; "group" by its layout."""
    if arm.layout:
        layout = by_name(arm.layout)
        own = chain_of(layout, seeding=arm.seeding, temporal_stride=chain.temporal_stride)
        return joints(layout, own, frames)
    segments = segments_for(chain, frames)
    return {"segment": [chain.overlap + chain.step * s for s in range(1, segments)], "group": []}


def generation_starts(arm: Arm, chain: Chain, frames: int) -> list[int]:
    """The frame from which on each generation is shown; the first, which is chained to none, from
    frame 0 on."""
    each = chain.step / arm.generations
    count = int((frames - chain.overlap) / each + 1e-9)
    return [0, *(round(chain.overlap + each * number) for number in range(1, count))]
