"""The arms of the claims, and what the report has to know of them besides how they make a film.

An arm is a method of `mmpl.eval.methods` on the weights that all share, or on a network of its own.
No torch.
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
    `method`: its name in `METHODS`, where it is another than the arm's. `weights`: how the network
    was trained that this arm has for itself; "" where it has the one that all share.
    """

    generations: float
    layout: str = ""
    seeding: str = "terminal"
    method: str = ""
    weights: str = ""


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
    "mmpl_guidance_1": _MMPL,
    "mmpl_guidance_2.5": _MMPL,
    "mmpl_populate_quarter": _MMPL,
    "rolling_kv": _CHUNKS,
    "rolling_kv_sink": _CHUNKS,
    "causvid_windows": _CHUNKS,
    "self_forcing_windows": Arm(7),  # chunks of three after the two seeds of each segment
    "bidirectional_window": Arm(1, "bidirectional_2"),
    "diffusion_forcing": Arm(19 / 4),  # blocks of four, each behind the one before
    "fifo": Arm(19),  # one latent frame after the other
    "staggered_chunks": _CHUNKS,
    "anti_drift": Arm(1),  # the end of a segment first, then back to its beginning
    "control_mmpl": Arm(
        1, "mmpl_t2v", method="mmpl_terminal", weights="trained for MMPL's layout alone"
    ),
    "control_chunks": Arm(7, method="self_forcing_windows", weights="trained for chunks alone"),
    **{
        name: Arm(1, "mmpl_t2v", method="mmpl_terminal", weights=f"a plain network, {how}")
        for name, how in (
            ("tuned_none", "not tuned to plan"),
            ("tuned_qk", "queries and keys tuned to plan"),
            ("tuned_self_attention", "self-attention tuned to plan"),
            ("tuned_all", "all of it tuned to plan"),
            ("tuned_block3", "self-attention tuned to plan, a timestep for three latent frames"),
        )
    },
}
METHOD_ARMS = tuple(name for name, arm in ARMS.items() if not arm.weights)
NETWORK_ARMS = tuple(name for name, arm in ARMS.items() if arm.weights)
PLAIN = "tuned_none"  # the model that the tuned transformers belong to


def method_of(name: str) -> str:
    """What makes the films of an arm, as `METHODS` calls it."""
    return ARMS[name].method or name


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
