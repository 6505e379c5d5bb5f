"""The claims as data, and how one is decided: by a rule on an interval, the same for all.

Every measure is an error, the smaller the better. The difference of two methods is taken program by
program and seed by seed, and its 95 % interval over programs decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmpl.eval.claims import Record
from mmpl.eval.statistics import Interval, Key, paired

LEAST_PROGRAMS = 6  # five of five on one side are no rarity: 2 in 32
RULE = (
    "Difference: error of the second method less that of the first, paired by program and seed; "
    "95 % bootstrap interval over programs. A claim that the first has the smaller error "
    "reproduces if the whole interval is above 0, and does not if it is all below the margin, "
    "within which a difference would not matter. A claim that both are alike reproduces if the "
    "whole interval is within the margin on both sides, and does not if it excludes 0; one that "
    "the first is no worse asks this of its own side alone. All else, "
    f"and fewer than {LEAST_PROGRAMS} programs, is inconclusive. The first measure of a claim "
    "decides it; the others are shown. There is no correction for the number of claims."
)
REPRODUCES, DOES_NOT = "reproduces", "does not"
INCONCLUSIVE, NOT_MEASURED = "inconclusive", "not measured"


@dataclass(frozen=True, slots=True)
class Measure:
    """`words`: what it is, with its unit. `margin`: a difference that does not matter. `of`:
    "segment" (at the end of the film: its last segment), "joint" or "film"."""

    words: str
    margin: float
    of: str = "segment"


MEASURES: Mapping[str, Measure] = {
    "object_lost": Measure("share of films in which not one recognisable object is left", 0.1),
    "shape_wrong": Measure("share of films whose object has not the prompt's shape", 0.1),
    "caption_hue_error_deg": Measure("object's hue outside the prompt's hue bin, degrees", 3.0),
    "object_hue_drift_deg": Measure("object's hue from that in the first segment, degrees", 5.0),
    "background_drift": Measure(
        "background's mean colour from that in the first segment, distance in RGB of 0..1", 0.03
    ),
    "background_hue_drift_deg": Measure(
        "background's hue from that in the first segment, degrees", 5.0
    ),
    "size_drift": Measure("object's area against the first segment, |ln ratio|", 0.1),
    "brightness_drift": Measure("mean luma from that of the first segment, 0..1", 0.02),
    "contrast_drift": Measure("standard deviation of luma from the first segment's", 0.02),
    "hue_l1_18": Measure("hue histogram of 18 bins against the first frame, L1 0..2", 0.05),
    "hue_l1_180": Measure("hue histogram of 180 bins against the first frame, L1 0..2", 0.05),
    "hue_decorrelation": Measure("1 - correlation of the histograms of 180 bins", 0.05),
    "segment_jump_ratio": Measure("jump at segment joints over steps beside them", 0.1, "joint"),
    "segment_hue_l1": Measure("hue L1 (180 bins) across segment joints, 0..2", 0.02, "joint"),
    "segment_hue_decorrelation": Measure("1 - hue correlation at segment joints", 0.02, "joint"),
    "group_jump_ratio": Measure("jump at group joints over steps beside them", 0.1, "joint"),
    "group_hue_l1": Measure("hue L1 (180 bins) across group joints, 0..2", 0.02, "joint"),
    "group_hue_decorrelation": Measure("1 - hue correlation at group joints", 0.02, "joint"),
    "background_drift_by_generation": Measure(
        "background's mean colour from that of the first generation, distance in RGB of 0..1, mean "
        "over as many later generations as the film has later segments",
        0.03,
        "film",
    ),
}


@dataclass(frozen=True, slots=True)
class Claim:
    """`left` has the smaller error than `right` ("less"), as good as the same ("same"), or no
    larger one that matters ("no more")."""

    name: str
    says: str
    left: str
    right: str
    expect: str
    measures: tuple[str, ...]


_LOOK = (
    *("background_drift", "background_hue_drift_deg", "object_hue_drift_deg", "hue_l1_180"),
    *("hue_l1_18", "hue_decorrelation"),
)
_DRIFT = (*_LOOK, "object_lost", "shape_wrong")
_AT_GROUPS = ("group_jump_ratio", "group_hue_l1", "group_hue_decorrelation")
_AT_SEGMENTS = ("segment_hue_l1", "segment_hue_decorrelation", "segment_jump_ratio")
_MMPL = "mmpl_terminal"
_PAPER_NOISE, _UNIT_NOISE = "mmpl_noise_paper_0.5", "mmpl_noise_unit_0.5"
_NO_NOISE = "mmpl_noise_off"
_KEPT = ("shape_wrong", "object_lost", "caption_hue_error_deg")
_TUNED = "tuned_self_attention"

CLAIMS = (
    Claim(
        "planning_against_chunks", "planning drifts less than chunk-wise autoregression from the "
        "same seeds (Table 5)", _MMPL, "self_forcing_windows", "less", _DRIFT,
    ),
    Claim(
        "planning_against_rolling_kv", "planning drifts less than chunks over a rolling cache "
        "(Table 5)", _MMPL, "rolling_kv", "less", _DRIFT,
    ),
    Claim(
        "planning_against_causvid", "planning drifts less than CausVid's windows (Table 5)",
        _MMPL, "causvid_windows", "less", _DRIFT,
    ),
    Claim(
        "one_curve", "error follows the number of chained generations: segments of MMPL and chunks "
        "of autoregression are on one curve", _MMPL, "rolling_kv", "same",
        ("background_drift_by_generation",),
    ),
    Claim(
        "planning_against_bidirectional", "a bidirectional sliding window, whose chain is as "
        "short, drifts as MMPL does (the paper never compared them)", _MMPL,
        "bidirectional_window", "same", _DRIFT,
    ),
    Claim(
        "early_keyframes", "early keyframes help (Table 2)", _MMPL, "mmpl_without_early", "less",
        (*_AT_GROUPS, *_DRIFT),
    ),
    Claim(
        "middle_keyframes", "middle keyframes help (Table 2)", _MMPL, "mmpl_without_midpoint",
        "less", (*_AT_GROUPS, *_DRIFT),
    ),
    Claim(
        "re_encode", "re-encoding keeps the colours across segments (Table 13)", _MMPL,
        "mmpl_no_reencode", "less", (*_AT_SEGMENTS, *_DRIFT),
    ),
    Claim(
        "noise_as_in_the_paper", "noise interpolation (Eq. 14 as it stands, alpha 0.5) smooths "
        "the joints of groups (Table 14)", _PAPER_NOISE, _NO_NOISE, "less", (*_AT_GROUPS, *_DRIFT),
    ),
    Claim(
        "noise_of_unit_variance", "noise interpolation with its variance kept (alpha 0.5) smooths "
        "the joints of groups (Table 14)", _UNIT_NOISE, _NO_NOISE, "less", (*_AT_GROUPS, *_DRIFT),
    ),
    Claim(
        "midpoint_seeding", "seeding from the middle, a cheaper way with a longer chain, drifts as "
        "terminal seeding does (3.3)", _MMPL, "mmpl_midpoint", "same", _DRIFT,
    ),
    Claim(
        "terminals_hidden", "it makes no difference whether fill_head sees the terminal keyframes "
        "(Eq. 3 hides them)", _MMPL, "mmpl_head_sees_terminal", "same", (*_AT_GROUPS, *_DRIFT),
    ),
    Claim(
        "guidance_against_none", "the model's own guidance keeps the prompt's object better than "
        "none (a default of the sampler; the paper compares none)", _MMPL, "mmpl_guidance_1",
        "less", (*_KEPT, *_LOOK),
    ),
    Claim(
        "guidance_against_more", "and better than guidance 2.5", _MMPL, "mmpl_guidance_2.5", "less",
        (*_KEPT, *_LOOK),
    ),
    Claim(
        "fewer_steps_to_populate", "what lies between keyframes needs a quarter of their steps (a "
        "default of the sampler; the paper compares none)", "mmpl_populate_quarter", _MMPL,
        "no more", (*_AT_GROUPS, *_AT_SEGMENTS, *_DRIFT),
    ),
    Claim(
        "own_networks", "planning drifts less than chunks from the same seeds, each on a network "
        "trained for it alone (Table 5)", "control_mmpl", "control_chunks", "less", _DRIFT,
    ),
    Claim(
        "tuning_against_none", "a plain network whose self-attention is tuned to plan keeps the "
        "prompt's object better than one that is not tuned (Table 3)", _TUNED, "tuned_none", "less",
        _KEPT,
    ),
    Claim(
        "tuning_drift_against_none", "and it drifts less (Table 3)", _TUNED, "tuned_none", "less",
        _DRIFT,
    ),
    Claim(
        "tuning_against_qk", "tuning all of self-attention keeps the prompt's object better than "
        "tuning its queries and keys alone (Table 3)", _TUNED, "tuned_qk", "less", _KEPT,
    ),
    Claim(
        "tuning_drift_against_qk", "and it drifts less (Table 3)", _TUNED, "tuned_qk", "less",
        _DRIFT,
    ),
    Claim(
        "tuning_against_all", "tuning self-attention alone is enough: tuning all weights drifts as "
        "much (the paper never compared them)", _TUNED, "tuned_all", "same", _DRIFT,
    ),
    Claim(
        "timesteps_of_groups", "timesteps drawn for each group in training, as they are at "
        "inference, drift less than for every three latent frames, as of the released model",
        _TUNED, "tuned_block3", "less", (*_DRIFT, *_AT_GROUPS),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A claim by one of its measures; the first of each decides."""

    claim: Claim
    measure: str
    difference: Interval | None
    verdict: str


def value_of(record: Record, name: str, segments: int) -> float | None:
    """A measure of a film of `segments` segments; None where it failed, stopped short or has
    nothing to measure."""
    if "failed" in record:
        return None
    if name == "background_drift_by_generation":
        chained = [v for v in record["by_generation"][1:segments] if v is not None]
        return sum(chained) / len(chained) if chained else None
    if MEASURES[name].of == "joint":
        return record["joints"].get(name)
    parts = record["segments"]
    return parts[segments - 1][name] if len(parts) >= segments else None


def values_of(records: Mapping[Key, Record], name: str, segments: int) -> dict[Key, float]:
    """A measure of all films of a method that have it."""
    found = {key: value_of(record, name, segments) for key, record in records.items()}
    return {key: value for key, value in found.items() if value is not None}


def judge(methods: Mapping[str, Mapping[Key, Record]], segments: int) -> list[Row]:
    """All claims by all their measures, of the records of each method."""
    rows = []
    for claim in CLAIMS:
        left, right = (methods.get(name, {}) for name in (claim.left, claim.right))
        for name in claim.measures:
            difference = paired(values_of(left, name, segments), values_of(right, name, segments))
            verdict = decide(claim.expect, difference, MEASURES[name].margin)
            rows.append(Row(claim, name, difference, verdict))
    return rows


def decide(expect: str, difference: Interval | None, margin: float) -> str:
    """What an interval of a difference says; see `RULE`."""
    if difference is None:
        return NOT_MEASURED
    if difference.programs < LEAST_PROGRAMS:
        return INCONCLUSIVE
    low, high = difference.low, difference.high
    if expect in ("same", "no more"):
        if -margin < low and (high < margin or expect == "no more"):
            return REPRODUCES
        return DOES_NOT if low > 0 or high < 0 else INCONCLUSIVE
    if low > 0:
        return REPRODUCES
    return DOES_NOT if high < margin else INCONCLUSIVE
