"""The VAE against recorded runs of the reference: encode, decode, one frame, odd lengths."""

from __future__ import annotations

import pytest
from torch import Tensor

from mmpl.wan import vae
from mmpl.wan.config import VAEConfig
from tests.parity import golden

TOLERANCE = 2e-5
Setup = tuple[vae.VAEParams, VAEConfig, dict[str, Tensor]]


def config_of(recorded: dict) -> VAEConfig:
    mean, std = (golden.document("vae_latent_stats")[name] for name in ("mean", "std"))
    return VAEConfig(
        dim=recorded["dim"],
        z_dim=recorded["z_dim"],
        dim_mult=tuple(recorded["dim_mult"]),
        num_res_blocks=recorded["num_res_blocks"],
        temporal_downsample=tuple(recorded["temperal_downsample"]),
        latent_mean=tuple(mean),
        latent_std=tuple(std),
    )


@pytest.fixture(scope="module")
def setup() -> Setup:
    config = config_of(golden.metadata("vae_tiny.weights")["config"])
    params = vae.vae_from_flat(golden.load("vae_tiny.weights"), config)
    return params, config, golden.load("vae_tiny")


def test_encode_gives_the_recorded_features_moments_and_latents(setup: Setup) -> None:
    params, config, recorded = setup
    features, _ = vae.encode_features(params, config, recorded["video"])
    moments, _ = vae.encode_moments(params, config, recorded["video"])
    latent, _ = vae.encode(params, config, recorded["video"])
    assert golden.worst(features, recorded["encoder_raw"]) < TOLERANCE
    assert golden.worst(moments, recorded["moments"]) < TOLERANCE
    assert golden.worst(moments[:, : config.z_dim], recorded["latent_unscaled"]) < TOLERANCE
    assert golden.worst(latent, recorded["latent"]) < TOLERANCE


@pytest.mark.parametrize(
    ("pixels", "latents"), [("image", "image_latent"), ("video_odd", "latent_odd")]
)
def test_encode_of_an_image_and_of_an_odd_length(setup: Setup, pixels: str, latents: str) -> None:
    params, config, recorded = setup
    latent, _ = vae.encode(params, config, recorded[pixels])
    assert golden.worst(latent, recorded[latents]) < TOLERANCE


@pytest.mark.parametrize(("latents", "pixels"), [("latent", "decoded"), ("latent2", "decoded2")])
def test_decode_gives_the_recorded_pixels(setup: Setup, latents: str, pixels: str) -> None:
    params, config, recorded = setup
    video, _ = vae.decode(params, config, recorded[latents])
    assert golden.worst(video, recorded[pixels]) < TOLERANCE


def test_decode_of_the_first_latent_alone(setup: Setup) -> None:
    params, config, recorded = setup
    video, _ = vae.decode(params, config, recorded["latent"][:, :, :1])
    assert golden.worst(video, recorded["decoded_first"]) < TOLERANCE
