"""Whitened latents: a more even spread over the directions, the same pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmpl.train.latents import LatentClips
from mmpl.train.start import start_vae
from mmpl.train.whitening import EVENNESS, FLOOR, Whitening, fold, whitened, whitening_of
from mmpl.wan import vae
from tests.small import CONFIGS

CHANNELS = CONFIGS.vae.z_dim
VAE = replace(CONFIGS.vae, latent_mean=(0.0,) * CHANNELS, latent_std=(1.0,) * CHANNELS)


@pytest.fixture
def clips() -> LatentClips:
    """Latents whose channels are strongly correlated, with one direction almost empty."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator)).Q
    mix[:, 0] *= 3.0
    mix[:, -1] *= 1e-4
    z = torch.randn(6, CHANNELS, 5, 4, 4, generator=generator)
    mixed = torch.einsum("dc,bcthw->bdthw", mix, z) + 3.0
    return LatentClips(mixed, torch.arange(6))


def spread(clips: LatentClips) -> torch.Tensor:
    return torch.cov(clips.z_BCTHW.movedim(1, -1).flatten(0, -2).T)


def test_directions_count_more_evenly_and_empty_ones_stay_small(clips: LatentClips) -> None:
    before = torch.linalg.eigvalsh(spread(clips).double()).float()
    found = spread(whitened(whitening_of(clips), clips))
    torch.testing.assert_close(found, found.diagonal().diag(), atol=1e-3, rtol=0)
    after = found.diagonal()
    assert after.mean().item() == pytest.approx(1.0, abs=1e-3)
    kept = before > FLOOR * before.mean()
    assert kept.sum() == CHANNELS - 1
    wanted = before[kept] ** (1 - EVENNESS)
    torch.testing.assert_close(after[kept] / after.max(), wanted / wanted.max(), atol=1e-3, rtol=0)
    assert after[~kept].max() < 1e-4


def test_whitening_is_undone(clips: LatentClips) -> None:
    whitening = whitening_of(clips)
    white = whitened(whitening, clips).z_BCTHW
    back = torch.einsum("dc,bcthw->bdthw", whitening.backward_CC, white)
    back = back + whitening.mean_C.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(back, clips.z_BCTHW, atol=1e-4, rtol=1e-4)


def test_a_folded_vae_makes_whitened_latents_and_the_same_pictures(clips: LatentClips) -> None:
    whitening: Whitening = whitening_of(clips)
    flat = start_vae(VAE, 0)
    plain, folded = (vae.vae_from_flat(weights, VAE) for weights in (flat, fold(whitening, flat)))
    video = torch.rand(1, 3, 9, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        z, _ = vae.encode(plain, VAE, video)
        white, _ = vae.encode(folded, VAE, video)
        raw = LatentClips(z, torch.zeros(1))
        torch.testing.assert_close(white, whitened(whitening, raw).z_BCTHW, atol=1e-4, rtol=1e-3)
        pixels, again = (
            vae.decode(params, VAE, latents)[0] for params, latents in ((plain, z), (folded, white))
        )
    torch.testing.assert_close(pixels, again, atol=1e-4, rtol=1e-3)
