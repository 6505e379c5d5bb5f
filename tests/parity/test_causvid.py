"""Long video the way CausVid makes it: few-step rollouts joined by an overlap that is encoded
again, from this library's layouts, cache, sampler and VAE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mmpl.eval.windows import image_and_raw_latents
from mmpl.film.denoise import Network, commit, open_context, velocities
from mmpl.film.segment import stack
from mmpl.layout.layout import committed
from mmpl.layout.presets import chunked
from mmpl.layout.timeline import Chain
from mmpl.wan import flow, vae
from mmpl.wan.dit import Engine, encode_context
from tests.parity import dit_tiny, golden
from tests.parity.test_vae import config_of

TOLERANCE = 1e-3
FILES = sorted(path.stem for path in golden.FOLDER.glob("causvid_long*.safetensors"))


def rollouts(file: str) -> list[str]:
    """r0, r1, ..., in their order."""
    return sorted(golden.cases(golden.load(file), "r"), key=lambda run: int(run[1:]))


RUNS = [(file, run) for file in FILES for run in rollouts(file)]


@dataclass(frozen=True)
class Rollout:
    """What a rollout makes, and what it hands to the next one."""

    latents_BCTHW: Tensor
    overlap_BCFHW: Tensor
    start_BCTHW: Tensor
    kept: int


@cache
def film(file: str) -> dict[str, Rollout]:
    """All rollouts, each but the first from what the one before it handed over."""
    recorded, meta = golden.load(file), golden.metadata(file)
    made: dict[str, Rollout] = {}
    start_BCTHW = None
    for run in rollouts(file):
        part = golden.under(recorded, run)
        latents_BCTHW = roll_out(meta, part, recorded["context"], start_BCTHW)
        made[run] = hand_over(latents_BCTHW, meta["overlap"])
        start_BCTHW = made[run].start_BCTHW
    return made


@torch.no_grad()
def roll_out(
    meta: dict[str, Any], part: dict[str, Tensor], text: Tensor, start_BCTHW: Tensor | None
) -> Tensor:
    """One rollout from recorded noise, after the latents it starts with."""
    noise_BCTHW = part["noise"].transpose(1, 2)
    draws: Iterator[Tensor] = iter(part["renoise"].transpose(1, 2).split(len(noise_BCTHW)))
    layout = chunked(meta["frames_per_rollout"], meta["frames_per_chunk"])
    network = Network(dit_tiny.params(), dit_tiny.config(), Engine())
    texts = (encode_context(network.params, network.config, [text] * len(noise_BCTHW)),)
    rows, columns = noise_BCTHW.shape[3:]
    context = open_context(network, layout, texts, latent_size=(rows, columns))
    table = flow.flow_table(meta["shift"])
    # The list ends in a 0 that stands for the clean pass; `commit` makes that.
    steps = meta["step_list"][:-1]
    steps = flow.warp(steps, table) if meta["warp"] else steps
    done = {} if start_BCTHW is None else dict(enumerate(start_BCTHW.unbind(2)))
    for group in layout.groups:
        if group.frames[0] not in done:
            x_BCTHW = flow.few_step(
                lambda x, t, _, c=context, g=group: velocities(network, c, g, x, t)[0],
                noise_BCTHW[:, :, list(group.frames)],
                steps,
                table,
                lambda _: next(draws),
            )
            done.update(zip(group.frames, x_BCTHW.unbind(2), strict=True))
        if group in committed(layout):
            context = commit(network, context, group, stack(done, group.frames))
    assert next(draws, None) is None
    return stack(done, range(layout.frames))


def hand_over(latents_BCTHW: Tensor, overlap: int) -> Rollout:
    """The frame at which the overlap begins, and the next rollout's first latents."""
    config = config_of(golden.metadata("vae_tiny.weights")["config"])
    params = vae.vae_from_flat(golden.load("vae_tiny.weights"), config)
    chain = Chain(latents_BCTHW.shape[2], config.temporal_stride, seeds=overlap)
    latents = dict(enumerate(latents_BCTHW.unbind(2)))
    pixels_BCFHW, _ = vae.decode(params, config, latents_BCTHW)
    frame_BCFHW = pixels_BCFHW[:, :, chain.step : chain.step + 1].clamp(-1, 1)
    start = image_and_raw_latents(params, config, chain, latents)
    return Rollout(latents_BCTHW, frame_BCFHW, stack(start, range(overlap)), chain.step)


def test_there_are_recordings() -> None:
    assert FILES
    assert all(len(rollouts(file)) > 1 for file in FILES)


@pytest.mark.parametrize("file", FILES)
def test_steps(file: str) -> None:
    meta = golden.metadata(file)
    steps = meta["step_list"][:-1]
    if meta["warp"]:
        steps = flow.warp(steps, flow.flow_table(meta["shift"]))
    assert golden.worst(torch.tensor(steps), golden.load(file)["steps"]) < TOLERANCE


@pytest.mark.parametrize(("file", "run"), RUNS)
def test_latents_of_a_rollout(file: str, run: str) -> None:
    got, wanted = film(file)[run], golden.under(golden.load(file), run)
    assert golden.worst(got.latents_BCTHW.transpose(1, 2), wanted["latents"]) < TOLERANCE


@pytest.mark.parametrize(("file", "run"), RUNS)
def test_what_a_rollout_hands_over(file: str, run: str) -> None:
    got, wanted = film(file)[run], golden.under(golden.load(file), run)
    assert got.kept == int(wanted["kept_pixel_frames"])
    assert golden.worst(got.overlap_BCFHW.transpose(1, 2), wanted["overlap_frame"]) < TOLERANCE
    assert golden.worst(got.start_BCTHW.transpose(1, 2), wanted["next_start_latents"]) < TOLERANCE


@pytest.mark.parametrize(("file", "run"), RUNS)
def test_what_a_rollout_starts_from(file: str, run: str) -> None:
    wanted = golden.load(file).get(f"{run}.start_latents")
    before = rollouts(file).index(run) - 1
    assert (wanted is None) == (before < 0)
    if wanted is not None:
        start_BCTHW = film(file)[rollouts(file)[before]].start_BCTHW
        assert golden.worst(start_BCTHW.transpose(1, 2), wanted) < TOLERANCE
