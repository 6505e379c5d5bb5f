"""The step that tunes Wan networks against the released training code: loss and gradients.

The recorded draws go through the very function that trains, with either form of the mask.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from mmpl.layout.mask import released_i2v_mask, training_mask
from mmpl.layout.presets import PRESETS, by_name
from mmpl.train.teacher_forcing import Lesson, lesson, masked_lesson
from mmpl.train.tuning import RELEASED_I2V, Tuning
from mmpl.train.wan_loss import Batch, Teaching, frame_losses, teaching, with_flex
from mmpl.wan.dit import dit_from_flat
from mmpl.wan.flex import Kernel, flex_mask
from tests.parity import dit_tiny, golden
from tests.parity.test_training import GRADIENT, LOSS, NORM, RUNS, WITH_GRADIENT, World, world

LAYOUTS = {"t2v": "mmpl_t2v", "i2v": RELEASED_I2V}
FORMS = ("pieces", "flex")
SAME = 2e-6  # two of our own ways to the same number, relative


def shared_of(w: World, form: str, **settings: Any) -> Teaching:
    shared = teaching(w.config, Tuning(LAYOUTS[w.meta["variant"]], **settings))
    if form == "pieces":
        return shared
    return with_flex(shared, w.meta["latent_hw"], torch.device("cpu"))


def batch_of(w: World, run: str) -> Batch:
    text = w.recorded["context_null" if "uncond" in run else "context"]
    noise = w.recorded["noise"].transpose(1, 2)
    return Batch(w.clean, w.clean, noise, w.timesteps(run), [text] * len(w.clean))


@cache
def trained(form: str, file: str, run: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses of the frames, and the gradients of what MMPL trains."""
    w, flat = world(file), golden.load(dit_tiny.WEIGHTS)
    leaves = {key: flat[key].requires_grad_() for key in w.meta["grad_norms"]}
    losses_BT = frame_losses(dit_from_flat(flat, w.config), shared_of(w, form), batch_of(w, run))
    losses_BT.mean().backward()
    return losses_BT.detach(), {k: leaf.grad for k, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("file", "run"), RUNS)
def test_loss(file: str, run: str, form: str) -> None:
    losses_BT, wanted = trained(form, file, run)[0], golden.under(world(file).recorded, run)
    assert golden.relative(losses_BT.mean().reshape(wanted["loss"].shape), wanted["loss"]) < LOSS
    if "frame_mse" in wanted:
        assert golden.relative(losses_BT, wanted["frame_mse"] * wanted["frame_weight"]) < LOSS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("file", "run"), WITH_GRADIENT)
def test_gradients(file: str, run: str, form: str) -> None:
    w, got = world(file), trained(form, file, run)[1]
    for key, wanted in golden.under(w.recorded, f"{run}.grad").items():
        assert golden.worst(got[key], wanted) < GRADIENT
    norms = {key: gradient.norm().item() for key, gradient in got.items()}
    assert norms == pytest.approx(w.meta["grad_norms"], rel=NORM)


@pytest.mark.parametrize(("file", "run"), WITH_GRADIENT)
def test_both_forms_are_the_same(file: str, run: str) -> None:
    (losses, gradients), (others, other) = (trained(form, file, run) for form in FORMS)
    assert golden.relative(losses, others) < SAME
    assert gradients.keys() == other.keys()
    for key, gradient in gradients.items():
        assert golden.worst(gradient, other[key]) < GRADIENT / 10


def test_errors_without_weights() -> None:
    file, run = WITH_GRADIENT[0]
    w = world(file)
    with torch.no_grad():
        errors_BT = frame_losses(
            dit_tiny.params(), shared_of(w, "pieces", weighting="none"), batch_of(w, run)
        )
    assert golden.relative(errors_BT, w.recorded[f"{run}.frame_mse"]) < LOSS


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_torchs_own_kernel() -> None:
    """Not compiled, and without a gradient, which it has on GPUs only."""
    file, run = WITH_GRADIENT[0]
    w, shared = world(file), shared_of(world(file), "pieces")
    taught = shared.lesson
    masked = flex_mask(
        taught.pieces,
        taught.frames,
        w.meta["frame_tokens"],
        "cpu",
        kernel=cast("Kernel", flex_attention),
    )
    with torch.no_grad():
        losses_BT = frame_losses(
            dit_tiny.params(),
            replace(shared, lesson=replace(taught, masked=masked)),
            batch_of(w, run),
        )
    assert golden.relative(losses_BT, trained("pieces", file, run)[0]) < SAME


def seen_in(part: Lesson, size: int) -> dict[int, set[int]]:
    """Row of the mask over [clean | noisy] -> what it sees."""
    places = [*part.clean, *(size + frame for frame in part.noisy)]
    return {
        row: {places[i] for span in piece.keys for i in range(*span)}
        for piece in part.pieces
        for row in places[slice(*piece.queries)]
    }


@pytest.mark.parametrize("name", PRESETS)
def test_a_lesson_of_a_mask_is_that_of_its_layout(name: str) -> None:
    layout = by_name(name)
    plain, masked = lesson(layout), masked_lesson(training_mask(layout))
    assert seen_in(masked, layout.frames) == seen_in(plain, layout.frames)


def test_the_released_mask_loses_nothing_that_counts() -> None:
    mask = released_i2v_mask()
    part = masked_lesson(mask)
    assert part.clean == tuple(range(13)) + (19, 20)
    assert part.noisy == tuple(range(21))
    for row, seen in seen_in(part, 21).items():
        assert seen == {key for key, one in enumerate(mask[row]) if one}
