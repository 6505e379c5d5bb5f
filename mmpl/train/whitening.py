"""Latents turned and scaled so that directions count more evenly, without touching a pixel.

A VAE leaves its latents correlated: most of their variance is the colour of the background, and
outlines lie in directions of a hundredth of it. A diffusion model, which adds noise of one strength
to all, would see outlines only in its very last steps. Made equal altogether, outlines, which are
nothing but near an object, would stand out there before its colour does. So the latents are
whitened in part, and since the VAE's convolutions next to them reach one position only, the change
is folded into these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpl.train.latents import LatentClips

EVENNESS = 1 / 3  # 0 keeps the ratios of the deviations, 1 makes them all 1
FLOOR = 0.03  # of the mean variance: directions with less are nearly empty and stay small


@dataclass(frozen=True, slots=True, eq=False)
class Whitening:
    """white = forward_CC @ (z - mean_C), z = backward_CC @ white + mean_C, per position."""

    mean_C: Tensor
    forward_CC: Tensor
    backward_CC: Tensor


def whitening_of(clips: LatentClips) -> Whitening:
    """The partial whitening of raw latents by their principal components; the mean variance of
    the result is 1."""
    z_NC = clips.z_BCTHW.double().movedim(1, -1).flatten(0, -2)
    mean_C = z_NC.mean(0)
    variance_C, axes_CC = torch.linalg.eigh(torch.cov((z_NC - mean_C).T))
    scale_C = variance_C.clamp(min=FLOOR * variance_C.mean().item()) ** (EVENNESS / 2)
    scale_C *= (variance_C / scale_C**2).mean().sqrt()
    return Whitening(
        mean_C.float(),
        (axes_CC / scale_C).T.contiguous().float(),
        (axes_CC * scale_C).float(),
    )


def unchanged(channels: int) -> Whitening:
    """The whitening of latents that are white already."""
    same_CC = torch.eye(channels)
    return Whitening(torch.zeros(channels), same_CC, same_CC)


def whitened(whitening: Whitening, clips: LatentClips) -> LatentClips:
    """Raw latents as the transformer sees them, float32."""
    centred = clips.z_BCTHW.float() - whitening.mean_C.view(1, -1, 1, 1, 1)
    white = torch.einsum("dc,bcthw->bdthw", whitening.forward_CC, centred)
    return LatentClips(white.contiguous(), clips.seeds)


def fold(whitening: Whitening, vae: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The VAE's weights, in official keys, with whitened latents and the same pictures: for a
    config of mean 0 and deviation 1."""
    flat = dict(vae)
    channels = len(whitening.mean_C)
    weight, bias = flat["conv1.weight"].clone(), flat["conv1.bias"].clone()
    # The first half of conv1 makes the mean of a latent, which is what is used of it.
    weight[:channels] = torch.einsum("dc,ci...->di...", whitening.forward_CC, weight[:channels])
    bias[:channels] = whitening.forward_CC @ (bias[:channels] - whitening.mean_C)
    flat |= {"conv1.weight": weight, "conv1.bias": bias}
    weight, bias = flat["conv2.weight"], flat["conv2.bias"]
    flat["conv2.weight"] = torch.einsum("oc...,cd->od...", weight, whitening.backward_CC)
    flat["conv2.bias"] = bias + weight.flatten(1) @ whitening.mean_C
    return flat
