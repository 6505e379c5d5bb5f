"""Frames decoded in bfloat16: near those in float32, and no latent knows of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmpl.eval.stage import Shot, film_of, open_stage
from mmpl.film import runtime
from mmpl.generate import Frames, Made, Model, Planned, Request, generate, load_model, stills
from mmpl.layout.work import Task
from mmpl.wan import vae
from mmpl.wan.params import to_flat
from tests.small import CONFIGS, small_model

TINY = Path(__file__).parents[1] / "weights" / "tiny"
LEAST_DB = 50.0  # of frames of weights/tiny in bfloat16 beside float32; measured 56
BFLOAT16 = torch.bfloat16


def psnr(found: Tensor, wanted: Tensor, span: float) -> float:
    return float(20 * (span / (found - wanted).square().mean().sqrt()).log10())


@torch.no_grad()
def test_the_included_vae_in_bfloat16() -> None:
    model = load_model(TINY)
    frames = torch.linspace(-1, 1, 64)[:, None] * torch.linspace(-1, 1, 64)
    clip_BCFHW = torch.stack([frames.roll(4 * i, 0) for i in range(9)]).expand(1, 3, 9, 64, 64)
    z_BCTHW, _ = vae.encode(model.vae, model.vae_config, clip_BCFHW)
    wanted, _ = vae.decode(model.vae, model.vae_config, z_BCTHW)
    found, _ = vae.decode(vae.vae_cast(model.vae, BFLOAT16), model.vae_config, z_BCTHW)
    assert LEAST_DB < psnr(found.float(), wanted, 2.0) < 100


def made(model: Model) -> tuple[dict[Task, Tensor], np.ndarray]:
    latents, frames = {}, []
    for event in generate(model, Request("red", 1, frames=100, steps=1)):
        if isinstance(event, Made) and event.z_BCTHW is not None:
            latents[event.task] = event.z_BCTHW
        elif isinstance(event, Frames):
            frames.append(event.pixels_FHWC)
    return latents, np.concatenate(frames)


def test_a_film_has_the_same_latents_and_nearly_the_same_frames() -> None:
    """Two segments: the second starts from what the first hands over."""
    model = small_model()
    (wanted, plain), (found, frames) = made(model), made(replace(model, vae_dtype=BFLOAT16))
    assert {task.kind for task in wanted} == {"make", "hand_over"}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[task], wanted[task]) for task in wanted)
    near, true = (torch.from_numpy(pixels).float() for pixels in (frames, plain))
    assert 30 < psnr(near, true, 255) < 100


def test_stills_and_other_methods_show_what_films_show(monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(small_model(), vae_dtype=BFLOAT16)
    formats: set[torch.dtype] = set()
    decode = vae.decode

    def watched(params: vae.VAEParams, *given: object) -> object:
        formats.update(leaf.dtype for leaf in to_flat(params.decoder).values())
        return decode(params, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(vae, "decode", watched)
    planned = None
    for event in generate(model, Request("red", 1, frames=9, steps=1), only_plan=True):
        planned = event if isinstance(event, Planned) else planned
    assert planned is not None
    film = film_of(model, Shot("red", 1, 1))
    assert len(list(stills(model, film, planned))) > 0
    assert formats == {BFLOAT16}
    formats.clear()
    z_BCHW = torch.zeros(1, model.vae_config.z_dim, 4, 4)
    assert len(list(open_stage(model, film).pixels([z_BCHW], 0, 1))) == 1
    assert formats == {BFLOAT16}


def test_frames_are_decoded_by_weights_that_go_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And piece by piece in as many latents at once as the format allows."""
    given: list[vae.VAEParams] = []
    decode_each = vae.decode_each

    def watched(params: vae.VAEParams, *rest: object) -> object:
        given.append(params)
        return decode_each(params, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(runtime.vae, "decode_each", watched)
    model = small_model()
    made(model)
    assert all(params is model.vae for params in given)
    given.clear()
    made(replace(model, vae_dtype=BFLOAT16))
    assert len({id(params) for params in given}) == len(given) == 2


def test_pieces_are_of_as_many_bytes_in_every_format() -> None:
    config = replace(CONFIGS.vae, dim=64, patch_size=1)
    float32, bfloat16 = (
        vae.latents_at_once(config, 1, 64, 64, dtype) for dtype in (torch.float32, BFLOAT16)
    )
    assert (float32, bfloat16) == (4, 8)
    assert vae.latents_at_once(config, 1, 4096, 4096, BFLOAT16) == 1


@pytest.mark.parametrize(
    ("wanted", "device", "capability", "taken"),
    [
        (None, "cpu", (9, 0), torch.float32),
        (None, "cuda", (9, 0), BFLOAT16),
        (None, "cuda:1", (7, 5), torch.float32),
        (BFLOAT16, "cpu", (9, 0), BFLOAT16),
        (torch.float32, "cuda", (9, 0), torch.float32),
    ],
)
def test_the_format(
    monkeypatch: pytest.MonkeyPatch,
    wanted: torch.dtype | None,
    device: str,
    capability: tuple[int, int],
    taken: torch.dtype,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert vae.shown_dtype(wanted, torch.device(device)) is taken


def test_convolutions_of_a_cast_vae_lie_as_clips_do() -> None:
    model = small_model()
    assert vae.vae_cast(model.vae, torch.float32) is model.vae
    for name, leaf in to_flat(vae.vae_cast(model.vae, BFLOAT16)).items():
        assert leaf.dtype is BFLOAT16
        assert leaf.ndim < 5 or leaf.is_contiguous(memory_format=torch.channels_last_3d), name
