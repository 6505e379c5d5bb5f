"""Layouts against what the reference really attended to, wrote and trained with."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmpl.layout.layout import Layout, committed
from mmpl.layout.mask import Mask, causal_mask, released_i2v_mask, training_mask
from mmpl.layout.presets import by_name, chunked
from mmpl.layout.slots import slot_plan
from tests.parity import golden

LAYOUTS = {"t2v": "mmpl_t2v", "i2v": "mmpl_i2v"}
ABLATIONS = {"ablation_without_early": "without_early", "ablation_without_mid": "without_midpoint"}
RUNS = [key for key, value in golden.document("mmpl_visibility").items() if "_segment" in key]
MASKS = [
    (file, key)
    for file in sorted(path.stem for path in golden.FOLDER.glob("mmpl_training_mask*.safetensors"))
    for key in golden.load(file)
    if key.endswith("frame_mask")
]


def passes(layout: Layout, given: set[int]) -> list[dict[str, Any]]:
    """The forwards that the layout calls for, in the recording's terms."""
    plan = slot_plan(layout)
    keep = committed(layout)
    result: list[dict[str, Any]] = []
    for group, step in zip(layout.groups, plan.passes, strict=True):
        slots = range(*step.read) if step.gather is None else step.gather
        entry = {
            "frames": sorted(plan.order[slice(*step.write)]),
            "attends_to": sorted(plan.order[slot] for slot in slots),
            "kv_written": group in keep,
        }
        if not set(group.frames) <= given:
            result.append({"kind": "denoise", **entry})
        if group in keep:
            result.append({"kind": "clean_pass", **entry})
    return result


@pytest.mark.parametrize("run", RUNS)
def test_every_forward_of_a_segment(run: str) -> None:
    recorded = golden.document("mmpl_visibility")[run]
    layout = by_name(LAYOUTS[run.split("_")[0]])
    denoised = {f for entry in recorded if entry["kind"] == "denoise" for f in entry["frames"]}
    given = set(range(layout.frames)) - denoised
    # The reference also runs a clean pass of the last group, which stores nothing.
    useful = [e for e in recorded if e["kind"] == "denoise" or e["kv_written"]]
    idle = [e["frames"] for e in recorded if e not in useful]
    assert idle == [list(g.frames) for g in layout.groups if g not in committed(layout)]
    keys = ("kind", "frames", "attends_to", "kv_written")
    assert passes(layout, given) == [{key: entry[key] for key in keys} for entry in useful]
    assert all(entry["rope_positions"] == entry["frames"] for entry in recorded)


def test_the_cache_holds_the_committed_groups() -> None:
    recorded = golden.document("mmpl_visibility")
    for name in LAYOUTS.values():
        frames = sorted(f for group in committed(by_name(name)) for f in group.frames)
        assert frames == sorted(recorded["slot_order"])
        assert len(frames) == recorded["cache_slots"]


@pytest.mark.parametrize(("file", "key"), MASKS)
def test_training_masks(file: str, key: str) -> None:
    meta, tensors = golden.metadata(file), golden.load(file)
    ablation = key.removesuffix("frame_mask").rstrip(".")
    layout = by_name(ABLATIONS[ablation] if ablation else LAYOUTS[meta["variant"]])
    steps = tensors[key.replace("frame_mask", "frame_step")].tolist()
    made_in = [layout.groups.index(layout.group_of(frame)) for frame in range(layout.frames)]
    assert made_in == steps
    mask = released_i2v_mask() if layout.name == "mmpl_i2v" else training_mask(layout)
    assert torch.equal(torch.tensor(mask, dtype=torch.uint8), tensors[key])
    if not ablation:
        assert sum(map(sum, mask)) == int(meta["allowed_pairs"])


@pytest.mark.parametrize("file", sorted({file for file, _ in MASKS}))
def test_training_masks_as_lists(file: str) -> None:
    recorded = golden.document(file)
    layout = by_name(LAYOUTS[recorded["variant"]])
    mask = released_i2v_mask() if recorded["variant"] == "i2v" else training_mask(layout)
    size = layout.frames
    assert recorded["frames"] == size
    for half, offset in (("clean_queries", 0), ("noisy_queries", size)):
        for query, keys in recorded[half].items():
            row = mask[offset + int(query)]
            assert keys["clean"] == [key for key in range(size) if row[key]]
            assert keys["noisy"] == [key for key in range(size) if row[size + key]]


def test_teacher_forcing_mask_of_the_chunked_model() -> None:
    meta = golden.metadata("dit_causal_tiny")["teacher_forcing"]
    layout = chunked(meta["frames"], meta["frames_per_block"])
    recorded = golden.load("dit_causal_tiny")["teacher_forcing.mask"]
    assert torch.equal(_tokens(training_mask(layout), meta["frame_tokens"]), recorded)


def test_causal_mask_is_the_clean_quarter() -> None:
    for name in LAYOUTS.values():
        layout = by_name(name)
        rows = training_mask(layout)[: layout.frames]
        assert causal_mask(layout) == tuple(row[: layout.frames] for row in rows)


def _tokens(mask: Mask, frame_tokens: int) -> torch.Tensor:
    frames = torch.tensor(mask, dtype=torch.uint8)
    return frames.repeat_interleave(frame_tokens, 0).repeat_interleave(frame_tokens, 1)
