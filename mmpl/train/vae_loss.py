"""What the small VAE learns from: procedural clips, first as single frames, then in motion.

Single frames teach colour and outline by squared error.
Clips, at full temporal length on spatial crops, teach time; now and then they also go through the
anchor-only decode of the hand-over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmpl.train.clips import CANVAS, ClipSpec, draw_spec, render_batch, track
from mmpl.train.loop import Loss, LossOf, Weights
from mmpl.wan import vae
from mmpl.wan.config import VAEConfig

_FOCUS = 0.7  # share of crops that follow the object


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at the data: `clips` crops of `crop` pixels a side, `latents` long."""

    clips: int
    latents: int
    crop: int


@dataclass(frozen=True, slots=True)
class VAETraining:
    """`views` take turns. `latent_noise` is noise on the latents relative to their spread: it
    keeps the decoder tolerant of a denoiser's and of the re-encoding's small errors. Every
    `handover_every`-th step adds the error of the hand-over, where clips are long enough (0:
    never). The error is squared, with `absolute` also absolute, which sharpens outlines once
    colours are right."""

    size: int
    views: tuple[View, ...]
    absolute: bool = True
    latent_noise: float = 0.0
    handover_every: int = 0
    seed: int = 0


def stills(size: int) -> VAETraining:
    """The first stage: many single frames, for many colours a step."""
    return VAETraining(size, (View(clips=32, latents=1, crop=size // 2),), absolute=False)


def motion(size: int) -> VAETraining:
    """The second stage: many short clips."""
    return VAETraining(size, (View(clips=16, latents=3, crop=size // 2),), seed=1)


def detail(size: int) -> VAETraining:
    """The third and longest stage: outlines, which single frames teach cheapest; now and then a
    whole segment, without which the codec forgets to stay true over time."""
    still, short, long = (View(n, t, size // 2) for n, t in ((16, 1), (8, 3), (2, 21)))
    views = (still, still, short, still, still, long)
    return VAETraining(size, views, latent_noise=0.03, seed=2)


def segments(size: int) -> VAETraining:
    """The last stage: whole segments and whole pictures, and the hand-over."""
    half = size // 2
    views = (View(4, 21, half), View(16, 3, half), View(4, 21, half), View(8, 1, size))
    return VAETraining(size, views, latent_noise=0.05, handover_every=2, seed=3)


def vae_loss(config: VAEConfig, training: VAETraining) -> LossOf:
    """The loss for `mmpl.train.loop.train` of a VAE of this config, whose keys are official."""

    def loss_of(weights: Weights) -> Loss:
        params = vae.vae_from_flat(weights, config)
        return lambda step: _loss(params, config, training, step)

    return loss_of


def _loss(
    params: vae.VAEParams, config: VAEConfig, training: VAETraining, step: int
) -> tuple[Tensor, dict[str, float]]:
    rng = np.random.default_rng([training.seed, step])
    view = training.views[step % len(training.views)]
    device = params.conv1.weight.device
    video_BCFHW = _draw(view, training.size, config, rng, device)
    z_BCTHW, _ = vae.encode(params, config, video_BCFHW)
    if training.latent_noise:
        z_BCTHW = _noised(z_BCTHW, training.latent_noise, int(rng.integers(2**62)))
    decoded, _ = vae.decode(params, config, z_BCTHW)
    absolute, squared = _errors(decoded, video_BCFHW)
    metrics = {"l1": absolute.item(), "mse": squared.item()}
    value = squared + absolute if training.absolute else squared
    due = training.handover_every and step % training.handover_every == 0
    if due and view.latents > 2:
        value = value + 0.25 * _handover_error(params, config, z_BCTHW, video_BCFHW, rng)
    return value, metrics


def _errors(got: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    return (got - wanted).abs().mean(), F.mse_loss(got, wanted)


def _handover_error(
    params: vae.VAEParams,
    config: VAEConfig,
    z_BCTHW: Tensor,
    video_BCFHW: Tensor,
    rng: np.random.Generator,
) -> Tensor:
    """Error of decoding [z0, zk, zk, zk+1] against the five frames that end at latent k+1."""
    k = int(rng.integers(1, z_BCTHW.shape[2] - 1))
    decoded, _ = vae.decode(params, config, z_BCTHW[:, :, [0, k, k, k + 1]])
    wanted = config.temporal_stride + 1
    end = config.pixel_frames(k + 2)
    absolute, squared = _errors(decoded[:, :, -wanted:], video_BCFHW[:, :, end - wanted : end])
    return absolute + squared


def _draw(
    view: View, size: int, config: VAEConfig, rng: np.random.Generator, device: torch.device
) -> Tensor:
    specs = [
        draw_spec(int(seed), continuation=True) for seed in rng.integers(2**62, size=view.clips)
    ]
    frames = config.pixel_frames(view.latents)
    crops = [_crop(spec, frames, view.crop, size, config, rng) for spec in specs]
    return render_batch(specs, [(0, frames)] * view.clips, size=size, crops=crops, device=device)


def _crop(
    spec: ClipSpec, frames: int, crop: int, size: int, config: VAEConfig, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A window on the latent grid, mostly around the object as it is half-way through."""
    stride = config.spatial_stride
    places = (size - crop) // stride
    corner = rng.integers(places + 1, size=2)
    if rng.random() < _FOCUS:
        path = track(spec, (frames // 2, frames // 2 + 1))
        centre = np.array([path.y[0], path.x[0]]) * size / CANVAS + rng.normal(0, stride, 2)
        corner = np.clip(np.round((centre - crop / 2) / stride), 0, places).astype(int)
    return int(corner[0]) * stride, int(corner[1]) * stride, crop, crop


def _noised(z_BCTHW: Tensor, amount: float, seed: int) -> Tensor:
    noise = torch.randn(z_BCTHW.shape, generator=torch.Generator().manual_seed(seed))
    spread = z_BCTHW.detach().std(dim=(0, 2, 3, 4), keepdim=True)
    return z_BCTHW + amount * spread * noise.to(z_BCTHW.device)
