"""Teacher forcing against the released MMPL training code: flow, loss and gradients.

The recordings were made under a mask over [clean | noisy]. The same training step without a mask,
or group by group, must give the same numbers. Ablations record their masks alone
(test_visibility.py); here every layout's pieces are compared with its mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mmpl.layout.layout import Layout
from mmpl.layout.mask import Mask, released_i2v_mask, training_mask
from mmpl.layout.presets import PRESETS, by_name
from mmpl.train.teacher_forcing import Lesson, lesson, taught_flow
from mmpl.wan import flow
from mmpl.wan.attention import token_mask
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit import CrossKV, DiTParams, Positions, dit, dit_from_flat, encode_context
from tests.parity import dit_tiny, golden

FLOW, LOSS, GRADIENT, NORM = 3e-5, 1e-5, 1e-6, 1e-5  # LOSS and NORM are relative
SAME = 1e-5  # two of our own ways to the same flow
LAYOUTS = {"t2v": "mmpl_t2v", "i2v": "mmpl_i2v"}
FILES = sorted(path.stem for path in golden.FOLDER.glob("mmpl_training_mask*.safetensors"))
RUNS = [
    (file, key.removesuffix(".flow"))
    for file in FILES
    for key in golden.load(file)
    if key.endswith(".flow")
]
WITH_GRADIENT = [
    (file, run) for file, run in RUNS if golden.under(golden.load(file), f"{run}.grad")
]


@dataclass(frozen=True)
class World:
    recorded: dict[str, Tensor]
    meta: dict[str, Any]
    layout: Layout
    table: flow.FlowTable
    config: DiTConfig

    @property
    def clean(self) -> Tensor:
        return self.recorded["clean"].transpose(1, 2)

    @property
    def target(self) -> Tensor:
        return flow.flow_target(self.clean, self.recorded["noise"].transpose(1, 2))

    def timesteps(self, run: str) -> Tensor:
        """[B, T]; a run without timesteps of its own shares the first run's."""
        first = next(key for key in sorted(self.recorded) if key.endswith(".timestep"))
        return self.recorded.get(f"{run}.timestep", self.recorded[first])

    def noisy(self, run: str) -> Tensor:
        t = self.timesteps(run)[:, None, :, None, None]
        return flow.add_noise(self.clean, self.recorded["noise"].transpose(1, 2), t, self.table)

    def text(self, run: str, params: DiTParams) -> CrossKV:
        text = self.recorded["context_null" if "uncond" in run else "context"]
        return encode_context(params, self.config, [text] * len(self.clean))


@cache
def world(file: str) -> World:
    recorded, meta = golden.load(file), golden.metadata(file)
    sigmas = recorded["train_sigmas"]
    middle = sigmas[len(sigmas) // 2].item()  # s = 1/2, where sigma = shift / (shift + 1)
    table = flow.flow_table(round(middle / (1.0 - middle), 3), len(sigmas))
    return World(recorded, meta, by_name(LAYOUTS[meta["variant"]]), table, dit_tiny.config())


# A way to the flow of all noisy frames: parts of it, each with the frames that it holds.
Parts = Iterator[tuple[list[int], Tensor]]
Way = Callable[[World, str, DiTParams], Parts]


def by_mask(w: World, run: str, params: DiTParams, mask: Mask | None = None) -> Parts:
    """All of it under one mask over [clean | noisy], by default the layout's."""
    every, t_BT = list(range(w.layout.frames)), w.timesteps(run)
    mask_TT = torch.tensor(training_mask(w.layout) if mask is None else mask, dtype=torch.bool)
    x_BCTHW = torch.cat((w.clean, w.noisy(run)), dim=2)
    t_BT = torch.cat((torch.zeros_like(t_BT), t_BT), dim=1)
    frames = Positions((*every, *every), mask_LL=token_mask(mask_TT, w.meta["frame_tokens"]))
    flow_BCTHW = dit(params, w.config, x_BCTHW, t_BT, w.text(run, params), frames=frames)
    yield every, flow_BCTHW[:, :, len(every) :]


def by_released_mask(w: World, run: str, params: DiTParams) -> Parts:
    """As the released model was trained."""
    i2v = w.meta["variant"] == "i2v"
    yield from by_mask(w, run, params, released_i2v_mask() if i2v else None)


def by_pieces(w: World, run: str, params: DiTParams) -> Parts:
    """All of it without a mask."""
    yield taught(w, run, params, lesson(w.layout))


def by_pieces_of_groups(w: World, run: str, params: DiTParams) -> Parts:
    """One group at a time without a mask."""
    for group in w.layout.groups:
        yield taught(w, run, params, lesson(w.layout, [group]))


def taught(w: World, run: str, params: DiTParams, lesson: Lesson) -> tuple[list[int], Tensor]:
    clean, noisy = list(lesson.clean), list(lesson.noisy)
    z_BCTHW, x_BCTHW, t_BT = w.clean[:, :, clean], w.noisy(run)[:, :, noisy], w.timesteps(run)
    text = w.text(run, params)
    flow_BCTHW = taught_flow(
        params, w.config, z_BCTHW, x_BCTHW, t_BT[:, noisy], text, lesson=lesson
    )
    return noisy, flow_BCTHW


@dataclass(frozen=True)
class Trained:
    """One training step: numbers of all frames, and the gradients of what MMPL trains."""

    flow_BCTHW: Tensor
    errors_BT: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]


@cache
def trained(way: Way, file: str, run: str) -> Trained:
    w, flat = world(file), golden.load(dit_tiny.WEIGHTS)
    leaves = {key: flat[key].requires_grad_() for key in w.meta["grad_norms"]}
    weight_BT = flow.loss_weight(w.timesteps(run), w.table)
    flow_BCTHW = torch.full_like(w.clean, torch.nan)
    for frames, part_BCTHW in way(w, run, dit_from_flat(flat, w.config)):
        errors_BT = (part_BCTHW - w.target[:, :, frames]).square().mean(dim=(1, 3, 4))
        ((errors_BT * weight_BT[:, frames]).sum() / weight_BT.numel()).backward()
        flow_BCTHW[:, :, frames] = part_BCTHW.detach()
    errors_BT = (flow_BCTHW - w.target).square().mean(dim=(1, 3, 4))
    gradients = {key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}
    return Trained(flow_BCTHW, errors_BT, (errors_BT * weight_BT).mean(), gradients)


def test_there_are_recordings() -> None:
    assert {golden.metadata(file)["variant"] for file, _ in WITH_GRADIENT} == set(LAYOUTS)


@pytest.mark.parametrize(("file", "run"), RUNS)
def test_input_and_weight_of_every_frame(file: str, run: str) -> None:
    w, wanted = world(file), golden.under(world(file).recorded, run)
    if "noisy" in wanted:
        assert golden.relative(w.noisy(run).transpose(1, 2), wanted["noisy"]) < LOSS
    if "frame_weight" in wanted:
        weight_BT = flow.loss_weight(w.timesteps(run), w.table)
        assert golden.relative(weight_BT, wanted["frame_weight"]) < LOSS


@pytest.mark.parametrize(("file", "run"), RUNS)
def test_flow_and_loss(file: str, run: str) -> None:
    got, wanted = trained(by_released_mask, file, run), golden.under(world(file).recorded, run)
    assert golden.worst(got.flow_BCTHW.transpose(1, 2), wanted["flow"]) < FLOW
    assert golden.relative(got.loss.reshape(wanted["loss"].shape), wanted["loss"]) < LOSS
    if "frame_mse" in wanted:
        assert golden.relative(got.errors_BT, wanted["frame_mse"]) < LOSS


@pytest.mark.parametrize(("file", "run"), WITH_GRADIENT)
def test_gradients(file: str, run: str) -> None:
    w, got = world(file), trained(by_released_mask, file, run).gradients
    for key, wanted in golden.under(w.recorded, f"{run}.grad").items():
        assert golden.worst(got[key], wanted) < GRADIENT
    norms = {key: gradient.norm().item() for key, gradient in got.items()}
    assert norms == pytest.approx(w.meta["grad_norms"], rel=NORM)


@pytest.mark.parametrize("way", [by_pieces, by_pieces_of_groups])
@pytest.mark.parametrize(("file", "run"), RUNS)
def test_other_ways_give_the_numbers_of_the_mask(file: str, run: str, way: Way) -> None:
    got, wanted = trained(way, file, run), trained(by_mask, file, run)
    assert golden.worst(got.flow_BCTHW, wanted.flow_BCTHW) < SAME
    assert got.gradients.keys() == wanted.gradients.keys()
    for key, gradient in got.gradients.items():
        assert golden.worst(gradient, wanted.gradients[key]) < GRADIENT


@pytest.mark.parametrize("name", PRESETS)
def test_pieces_are_the_mask(name: str) -> None:
    """Row by row: what a piece sees of the sequence is what the training mask shows."""
    layout = by_name(name)
    mask, size = training_mask(layout), layout.frames
    for groups in (None, *([group] for group in layout.groups)):
        part = lesson(layout, groups)
        places = [*part.clean, *(size + frame for frame in part.noisy)]
        for piece in part.pieces:
            keys = {places[i] for span in piece.keys for i in range(*span)}
            for query in places[slice(*piece.queries)]:
                assert keys == {key for key, one in enumerate(mask[query]) if one}
