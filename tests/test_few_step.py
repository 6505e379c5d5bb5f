"""Few-step films: the prediction of a group, noised again by numbers keyed to seed and step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.film.denoise import Context, Network, Sampler, denoise, open_context, velocities
from mmpl.film.segment import group_noise, group_renoise
from mmpl.generate import Film, Frames, Model, Request, film_of, generate
from mmpl.wan.dit import Engine, encode_context
from mmpl.wan.flow import schedule
from mmpl.wan.noise import normal
from mmpl.wan.text import encode_prompts
from tests.small import CHANNELS, small_model

SHAPE = (CHANNELS, 4, 4)
REQUEST = Request("red circle", 3, frames=90, solver="few_step", steps=2, guidance_scale=1.0)


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model()


def film(model: Model, request: Request) -> NDArray[np.uint8]:
    return np.concatenate(
        [e.pixels_FHWC for e in generate(model, request) if isinstance(e, Frames)]
    )


def opened(model: Model, film: Film) -> tuple[Network, Context]:
    network = Network(model.dit, model.dit_config, Engine())
    text = encode_prompts(model.text, model.text_config, model.tokenizer, [film.prompt], 8)
    texts = (encode_context(model.dit, model.dit_config, text),)
    return network, open_context(network, film.layout, texts, latent_size=SHAPE[1:])


def init_of(model: Model, request: Request) -> Tensor:
    """The first group of a film, made as films make it."""
    wanted = film_of(model, request)
    network, context = opened(model, wanted)
    group = wanted.layout.groups[0]
    sampler = Sampler(
        "few_step",
        schedule("few_step", wanted.steps, wanted.shift),
        1.0,
        group_renoise(wanted, 0, group, SHAPE),
    )
    making = denoise(network, context, group, group_noise(wanted, 0, group, SHAPE), sampler)
    while True:
        try:
            next(making)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_group_is_made_as_by_hand(model: Model, steps: int) -> None:
    """With one step it is the prediction of x0."""
    request = replace(REQUEST, steps=steps)
    wanted = film_of(model, request)
    network, context = opened(model, wanted)
    group, grid = wanted.layout.groups[0], schedule("few_step", steps, wanted.shift)
    x = group_noise(wanted, 0, group, SHAPE)
    for step, (timestep, sigma) in enumerate(zip(grid.timesteps, grid.sigmas, strict=False)):
        if step:
            fresh = [
                normal(SHAPE, seed=3, segment=0, frame=frame, step=step, purpose="renoise")
                for frame in group.frames
            ]
            x = (1 - sigma) * x + sigma * torch.stack(fresh, dim=1)[None]
        x = x - sigma * velocities(network, context, group, x, timestep)[0]
    assert torch.allclose(init_of(model, request), x, rtol=0.0, atol=1e-6)


def test_a_group_made_twice_has_the_same_bits(model: Model) -> None:
    made = init_of(model, REQUEST)
    assert torch.equal(init_of(model, REQUEST), made)
    assert not torch.equal(init_of(model, replace(REQUEST, seed=4)), made)


@pytest.mark.parametrize("change", [{"layout": "mmpl_i2v"}, {"guidance_scale": 3.0}, {}])
def test_films_of_few_steps(model: Model, change: dict) -> None:
    request = replace(REQUEST, **change)
    made = film(model, request)
    assert np.array_equal(film(model, request), made)
    assert not np.array_equal(film(model, replace(request, seed=4)), made)
    assert not np.array_equal(film(model, replace(request, solver="euler")), made)


def test_segments_draw_other_noise(model: Model) -> None:
    wanted = film_of(model, REQUEST)
    group = wanted.layout.group("plan")
    noise, other = (group_renoise(wanted, segment, group, SHAPE) for segment in (0, 1))
    assert noise(1).shape == group_noise(wanted, 0, group, SHAPE).shape
    assert torch.equal(noise(1), noise(1))
    drawn = [noise(1), noise(2), other(1), group_noise(wanted, 0, group, SHAPE)]
    assert all(not torch.equal(a, b) for n, a in enumerate(drawn) for b in drawn[:n])


def test_without_noise_it_is_refused(model: Model) -> None:
    wanted = film_of(model, REQUEST)
    network, context = opened(model, wanted)
    group, grid = wanted.layout.groups[0], schedule("few_step", 2, 3.0)
    making = denoise(
        network, context, group, torch.zeros(1, *SHAPE[:1], 2, 4, 4), Sampler("few_step", grid, 1.0)
    )
    with pytest.raises(ArgumentError, match="needs noise for its next step"):
        list(making)
