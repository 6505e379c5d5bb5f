"""Every method makes the promised film, at the promised cost, from its seed alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmpl.checkpoint.bundle import Model
from mmpl.errors import ArgumentError
from mmpl.eval import staggered, windows
from mmpl.eval.methods import METHODS, Evaluations, Shot, evaluations
from mmpl.eval.stage import film_of, open_stage
from mmpl.eval.windows import spans
from mmpl.film import denoise
from mmpl.film.segment import stack
from mmpl.generate import Frames, Request, generate
from mmpl.layout.presets import SEGMENT_LATENTS
from mmpl.layout.timeline import Chain, film_frames
from mmpl.wan import vae
from mmpl.wan.config import VAEConfig
from mmpl.wan.dit import Time, dit, time_of
from tests.small import CHANNELS, CONFIGS, DEFAULTS, small_model

Film = NDArray[np.uint8]

SHOT = Shot("red circle moves right", seed=3, segments=2)
SAME_WORK = [name for name in METHODS if name.startswith("mmpl_noise_")][2:]
NAMES = [name for name in METHODS if name not in SAME_WORK]
CLEAN_BELOW = 100.0  # a timestep that no first steps have


@cache
def model() -> Model:
    """With a VAE of two levels and half the frames of a latent: it takes most of the time."""
    config = VAEConfig(
        dim=8,
        z_dim=CHANNELS,
        dim_mult=(1, 1),
        num_res_blocks=1,
        temporal_downsample=(True,),
        patch_size=2,
        latent_mean=(0.1,) * CHANNELS,
        latent_std=(1.1,) * CHANNELS,
    )
    defaults = replace(DEFAULTS, width=16, height=16)
    return small_model(defaults, configs=replace(CONFIGS, vae=config))


def film(name: str, shot: Shot = SHOT) -> Film:
    return np.concatenate(list(METHODS[name].make(model(), shot)))


@pytest.fixture
def quick_vae(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels are latents made larger: nothing here depends on what the VAE computes."""

    def decode(
        params: object, config: VAEConfig, z_BCTHW: Tensor, state: vae.State | None = None
    ) -> tuple[Tensor, vae.State]:
        video_BCFHW = z_BCTHW[:, :3].repeat_interleave(config.temporal_stride, 2)
        for axis in (3, 4):
            video_BCFHW = video_BCFHW.repeat_interleave(config.spatial_stride, axis)
        first = config.temporal_stride - 1 if state is None else 0
        return video_BCFHW[:, :, first:], ()

    def encode(params: object, config: VAEConfig, video_BCFHW: Tensor) -> tuple[Tensor, vae.State]:
        time, space = config.temporal_stride, config.spatial_stride
        small_BCTHW = video_BCFHW[:, :, ::time, ::space, ::space]
        return torch.cat((small_BCTHW, small_BCTHW[:, : CHANNELS - 3]), dim=1), ()

    monkeypatch.setattr(vae, "decode", decode)
    monkeypatch.setattr(vae, "encode", encode)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the latent frames of every pass of the network, by what they are for."""
    seen: Counter[str] = Counter()
    timesteps: dict[Time, Tensor] = {}

    def timed(params: Any, config: Any, t_BT: Tensor, **more: Any) -> Time:
        time = time_of(params, config, t_BT, **more)
        timesteps[time] = t_BT
        return time

    def counts(
        params: Any, config: Any, x_BCTHW: Tensor, time: Tensor | Time, *rest: Any, **more: Any
    ) -> Tensor:
        t_BT = timesteps[time] if isinstance(time, Time) else time
        seen["all"] += x_BCTHW.shape[2]
        seen["clean"] += int((t_BT < CLEAN_BELOW).expand(-1, x_BCTHW.shape[2]).sum())
        return dit(params, config, x_BCTHW, time, *rest, **more)

    for module in (denoise, staggered):
        monkeypatch.setattr(module, "dit", counts)
    monkeypatch.setattr(denoise, "time_of", timed)
    return seen


@pytest.mark.usefixtures("quick_vae")
@pytest.mark.parametrize("name", NAMES)
def test_a_film_of_the_promised_length_and_cost(name: str, counted: Counter[str]) -> None:
    wanted = evaluations(name, model(), SHOT)
    made = film(name)
    chain = Chain(SEGMENT_LATENTS, model().vae_config.temporal_stride)
    assert made.shape == (film_frames(chain, SHOT.segments), 16, 16, 3)
    assert made.dtype == np.uint8
    assert made.std() > 0
    clean = counted["clean"] // wanted.branches
    found = Evaluations(counted["all"] // wanted.branches - clean, clean, wanted.branches)
    assert found == wanted
    assert counted["all"] == wanted.total


def test_the_noisy_work_is_the_same_for_all() -> None:
    """Per latent frame, but for what is cut off at the end and MMPL's keyframes not shown."""
    shot = replace(SHOT, segments=6, steps=16)
    latents = 21 + 5 * 19
    noisy = {name: evaluations(name, model(), shot).noisy / 16 / latents for name in METHODS}
    assert 13 / 11 <= noisy.pop("mmpl_midpoint") < 1.3
    assert 0.5 < noisy.pop("mmpl_populate_quarter") < 0.6
    for name, share in noisy.items():
        assert 1.0 <= share < 1.09, name


@pytest.mark.parametrize("name", SAME_WORK)
def test_noise_modes_cost_nothing(name: str) -> None:
    assert evaluations(name, model(), SHOT) == evaluations("mmpl_terminal", model(), SHOT)


@pytest.mark.usefixtures("quick_vae")
def test_without_guidance_there_is_one_branch(counted: Counter[str]) -> None:
    shot = replace(SHOT, segments=1, guidance_scale=1.0)
    film("fifo", shot)
    wanted = evaluations("fifo", model(), shot)
    assert wanted.branches == 1
    assert counted["all"] == wanted.total


@pytest.mark.parametrize("seeding", ["terminal", "midpoint"])
def test_mmpl_is_what_generate_makes(seeding: str) -> None:
    request = Request(SHOT.prompt, SHOT.seed, frames=79, seeding=seeding)
    events = generate(model(), request)
    wanted = np.concatenate([e.pixels_FHWC for e in events if isinstance(e, Frames)])
    made = film(f"mmpl_{seeding}")
    assert len(made) == 79
    assert np.array_equal(made, wanted)


def test_mmpl_of_a_distilled_model_is_what_generate_makes() -> None:
    few = replace(model(), defaults=replace(model().defaults, solver="few_step"))
    events = generate(few, Request(SHOT.prompt, SHOT.seed, frames=79))
    wanted = np.concatenate([e.pixels_FHWC for e in events if isinstance(e, Frames)])
    made = np.concatenate(list(METHODS["mmpl_terminal"].make(few, SHOT)))
    assert np.array_equal(made, wanted)


@pytest.mark.usefixtures("quick_vae")
@pytest.mark.parametrize(
    ("name", "mode"), [("mmpl_noise_unit_0.5", None), ("mmpl_noise_off", "off")]
)
def test_noise_arms_are_settings_of_the_film(name: str, mode: str | None) -> None:
    one = replace(SHOT, segments=1)
    assert np.array_equal(film(name, one), film("mmpl_terminal", replace(one, noise=mode)))
    assert not np.array_equal(film(name, one), film("mmpl_noise_paper_0.9", one))


@pytest.mark.usefixtures("quick_vae")
@pytest.mark.parametrize("name", ["causvid_windows", "rolling_kv", "diffusion_forcing", "fifo"])
def test_same_seed_same_bits(name: str) -> None:
    one = replace(SHOT, segments=1)
    made = film(name, one)
    assert np.array_equal(made, film(name, one))
    for other in (replace(one, seed=4), replace(one, prompt="blue square")):
        piece = next(METHODS[name].make(model(), other))
        assert not np.array_equal(made[: len(piece)], piece)


def test_what_is_shown_of_windows() -> None:
    """CausVid: 72 frames of each; MMPL: 81, then 76; each frame of the film once."""
    causvid = spans(Chain(21, 4, seeds=3), 200, drops_end=True)
    assert [(s.start, s.stop, s.latents) for s in causvid] == [
        (0, 72, 21),
        (0, 72, 21),
        (0, 56, 15),
    ]
    mmpl = spans(Chain(21, 4), 200)
    assert [(s.start, s.stop, s.latents) for s in mmpl] == [(0, 81, 21), (5, 81, 21), (5, 48, 13)]


def test_seeds_handed_over_raw() -> None:
    chain = Chain(SEGMENT_LATENTS, 4)
    latents = {frame: torch.full((1, 2, 1, 1), float(frame)) for frame in range(SEGMENT_LATENTS)}
    stage = open_stage(model(), film_of(model(), SHOT))
    seeds = windows.raw_latents(stage.vae, stage.vae_config, chain, latents)
    assert stack(seeds, range(2))[0, 0, :, 0, 0].tolist() == [19.0, 20.0]


@pytest.mark.usefixtures("quick_vae")
def test_frames_come_as_they_are_made(counted: Counter[str]) -> None:
    """The first piece is there long before the film is."""
    pieces: Iterator[Film] = METHODS["rolling_kv"].make(model(), SHOT)
    next(pieces)
    assert counted["all"] < evaluations("rolling_kv", model(), SHOT).total / 10


@pytest.mark.parametrize(
    "shot",
    [replace(SHOT, steps=0), replace(SHOT, segments=0), replace(SHOT, prompt="#1: a\n#2: b")],
)
def test_shots_that_cannot_be(shot: Shot) -> None:
    with pytest.raises(ArgumentError):
        film("fifo", shot)
    with pytest.raises(ArgumentError):
        evaluations("fifo", model(), shot)


def test_an_unknown_method() -> None:
    with pytest.raises(ArgumentError, match="unknown method"):
        evaluations("walk", model(), SHOT)


@pytest.mark.usefixtures("quick_vae")
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_guidance_is_the_arms_own(scale: float) -> None:
    shot = replace(SHOT, segments=1)
    own = film(f"mmpl_guidance_{scale:g}", shot)
    assert np.array_equal(own, film("mmpl_terminal", replace(shot, guidance_scale=scale)))
    assert not np.array_equal(own, film("mmpl_terminal", shot))
    branches = evaluations(f"mmpl_guidance_{scale:g}", model(), shot).branches
    assert branches == (1 if scale == 1.0 else 2)
