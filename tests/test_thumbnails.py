"""Thumbnails are what the decoder shows, roughly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mmpl.film.thumbnails import palette_of, thumbnails
from mmpl.generate import load_model
from mmpl.media.pixels import to_uint8
from mmpl.train.clip_spec import draw_spec
from mmpl.train.clips import render
from mmpl.wan import vae


def test_a_linear_world_is_found_again() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(5, 3, generator=generator) * 10
    true[4] = 128
    examples = []
    for _ in range(3):
        z_BCHW = torch.randn(1, 4, 6, 5, generator=generator)
        colours_CHW = torch.einsum("chw,ck->khw", z_BCHW[0], true[:4]) + true[4][:, None, None]
        pixels_CHW = colours_CHW.repeat_interleave(8, 1).repeat_interleave(8, 2)
        pixels_HWC = pixels_CHW.permute(1, 2, 0).clamp(0, 255).round().byte().numpy()
        examples.append((z_BCHW, pixels_HWC))
    found = palette_of(examples)
    assert (found - true).abs().max() < 3
    shown = thumbnails(found, examples[0][0][:, :, None])
    assert shown.shape == (1, 6, 5, 3)
    assert np.abs(shown[0].astype(int) - examples[0][1][::8, ::8]).mean() < 3


def test_those_of_the_embedded_model_show_the_clip() -> None:
    """Measured on one half of the frames of clips, looked at on the other."""
    model = load_model(Path(__file__).parents[1] / "weights" / "tiny")
    for seed in (0, 1):
        video = render(draw_spec(seed), (0, 41))[None]
        z_BCTHW, _ = vae.encode(model.vae, model.vae_config, video)
        pixels = to_uint8(vae.decode(model.vae, model.vae_config, z_BCTHW)[0][0])
        palette = palette_of([(z_BCTHW[:, :, t], pixels[4 * t]) for t in (1, 3, 5)])
        shown = thumbnails(palette, z_BCTHW[:, :, 7:8])[0].astype(float)
        truth = pixels[28].reshape(8, 8, 8, 8, 3).mean((1, 3))
        assert np.abs(shown - truth).mean() < 12
