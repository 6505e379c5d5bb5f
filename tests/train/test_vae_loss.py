"""The VAE's starting weights and its loss."""

from __future__ import annotations

from dataclasses import replace

import torch

from mmpl.train import tiny
from mmpl.train.start import start_vae
from mmpl.train.vae_loss import VAETraining, View, vae_loss
from mmpl.wan import vae

CONFIG = replace(tiny.CONFIGS.vae, dim_mult=(1, 1, 1))  # narrower at the bottom
TRAINING = VAETraining(32, (View(2, 1, 16), View(1, 5, 16)), latent_noise=0.1, handover_every=2)


def test_it_starts_as_a_smoothing_codec() -> None:
    params = vae.vae_from_flat(start_vae(CONFIG, seed=0), CONFIG)
    colours = torch.rand(4, 3, 1, 1, 1, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
    video = colours.expand(4, 3, 9, 16, 16)
    with torch.no_grad():
        z, _ = vae.encode(params, CONFIG, video)
        decoded, _ = vae.decode(params, CONFIG, z)
    kept = decoded.mean(dim=(2, 3, 4)).flatten()
    assert torch.corrcoef(torch.stack([kept, colours.flatten()]))[0, 1] > 0.75


def test_the_loss_depends_on_seed_and_step_and_reaches_every_weight() -> None:
    weights = {n: t.requires_grad_() for n, t in start_vae(CONFIG, seed=0).items()}
    loss = vae_loss(CONFIG, TRAINING)(weights)
    values = [loss(step)[0].item() for step in range(4)]
    assert values == [loss(step)[0].item() for step in range(4)]
    other = vae_loss(CONFIG, replace(TRAINING, seed=1))(weights)
    assert values != [other(step)[0].item() for step in range(4)]
    (loss(0)[0] + loss(1)[0]).backward()
    assert [name for name, weight in weights.items() if weight.grad is None] == []


def test_twenty_steps_lower_the_error() -> None:
    weights = {n: t.requires_grad_() for n, t in start_vae(CONFIG, seed=0).items()}
    loss = vae_loss(CONFIG, TRAINING)(weights)
    optimizer = torch.optim.AdamW(weights.values(), lr=3e-4)
    before = sum(loss(step)[1]["mse"] for step in range(6))
    for step in range(100, 120):
        optimizer.zero_grad()
        loss(step)[0].backward()
        optimizer.step()
    assert sum(loss(step)[1]["mse"] for step in range(6)) < 0.9 * before
