"""Text-to-video from noise to pixels: guidance, solver and decoder together, against a recorded run
of the reference, with the plain transformer and with the code that makes films."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mmpl.film.denoise import Network, Sampler, open_context
from mmpl.film.segment import stack
from mmpl.layout.presets import bidirectional_window
from mmpl.wan import flow, vae
from mmpl.wan.dit import CrossKV, Engine, Positions, dit, encode_context
from tests.parity import dit_tiny, golden
from tests.parity.test_vae import config_of
from tests.segments import make_segment

TOLERANCE = 1e-3
RELATIVE = 1e-5
FILES = sorted(path.stem for path in golden.FOLDER.glob("t2v_e2e*.safetensors"))


@dataclass(frozen=True)
class World:
    recorded: dict[str, Tensor]
    meta: dict[str, Any]
    network: Network
    texts: tuple[CrossKV, CrossKV]

    @property
    def schedule(self) -> flow.Schedule:
        return flow.schedule(self.meta["solver"], self.meta["steps"], self.meta["shift"])

    @property
    def noise_BCTHW(self) -> Tensor:
        return self.recorded["noise"][None]


@cache
def world(file: str) -> World:
    recorded = golden.load(file)
    network = Network(dit_tiny.params(), dit_tiny.config(), Engine())
    cond, uncond = (
        encode_context(network.params, network.config, [recorded[key]])
        for key in ("context", "context_null")
    )
    return World(recorded, golden.metadata(file), network, (cond, uncond))


@cache
@torch.no_grad()
def trajectory(file: str) -> list[Tensor]:
    """The noise and the sample after every step."""
    w = world(file)
    frames = Positions(tuple(range(w.noise_BCTHW.shape[2])))

    def velocity(x_BCTHW: Tensor, timestep: float, _: int) -> Tensor:
        t_BT = torch.full((len(x_BCTHW), x_BCTHW.shape[2]), timestep)
        params, config = w.network.params, w.network.config
        cond, uncond = (dit(params, config, x_BCTHW, t_BT, text, frames=frames) for text in w.texts)
        return flow.guided(cond, uncond, w.meta["guide_scale"])

    xs = [w.noise_BCTHW]
    flow.sample(
        velocity, xs[0], w.meta["solver"], w.schedule, on_step=lambda _, x_BCTHW: xs.append(x_BCTHW)
    )
    return xs


def test_there_are_recordings() -> None:
    assert FILES


@pytest.mark.parametrize("file", FILES)
def test_schedule(file: str) -> None:
    w = world(file)
    assert list(w.schedule.timesteps) == w.recorded["timesteps"].tolist()
    assert golden.relative(torch.tensor(w.schedule.sigmas), w.recorded["sigmas"]) < RELATIVE


@pytest.mark.parametrize("file", FILES)
def test_every_step(file: str) -> None:
    recorded, made = world(file).recorded["trajectory"], trajectory(file)
    assert torch.equal(recorded[0], world(file).recorded["noise"])
    assert golden.worst(torch.cat(made), recorded) < TOLERANCE


@pytest.mark.parametrize("file", FILES)
def test_video(file: str) -> None:
    w, config = world(file), config_of(golden.metadata("vae_tiny.weights")["config"])
    params = vae.vae_from_flat(golden.load("vae_tiny.weights"), config)
    pixels_BCFHW, _ = vae.decode(params, config, trajectory(file)[-1])
    assert pixels_BCFHW.shape[2] == w.meta["frames"]
    assert golden.worst(pixels_BCFHW[0].clamp(-1, 1), w.recorded["video"]) < TOLERANCE


@pytest.mark.parametrize("file", FILES)
def test_a_film_of_one_group_is_the_same_run(file: str) -> None:
    w = world(file)
    latents, rows, columns = w.noise_BCTHW.shape[2:]
    layout = bidirectional_window(latents, 0)
    context = open_context(w.network, layout, w.texts, latent_size=(rows, columns))
    sampler = Sampler(w.meta["solver"], w.schedule, w.meta["guide_scale"])
    made = make_segment(w.network, layout, context, {}, sampler, lambda _: w.noise_BCTHW)
    made_BCTHW = stack(made, range(latents))
    assert golden.worst(made_BCTHW[0], w.recorded["trajectory"][-1]) < TOLERANCE
