"""The VAE against recorded runs of the reference: encode, decode, one frame, odd lengths.

A file holds pixels `video*` with latents `latent*` and `image*` with `image*_latent`; what they
decode to, `decoded*` and, of the first latent frame alone, `decoded_first*`; and steps on the way
to `latent`: `encoder_raw`, `moments`, `latent_unscaled`.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from mmpl.wan import vae
from mmpl.wan.config import VAEConfig
from tests.parity import golden

TOLERANCE = 2e-5
BFLOAT16 = 0.025  # of what was recorded in float32, root mean squares; 0.017 and 0.014 are seen
FILES = sorted(
    path.stem
    for path in golden.FOLDER.glob("vae_*.safetensors")
    if not path.stem.endswith(".weights")
)
NAMES = [(file, name) for file in FILES for name in sorted(golden.load(file))]


def latents_of(pixels: str) -> str:
    """The name of the latents of recorded pixels."""
    return f"{pixels}_latent" if pixels.startswith("image") else pixels.replace("video", "latent")


ENCODED = [
    (file, name)
    for file, name in NAMES
    if name.startswith(("video", "image")) and not name.endswith("_latent")
]
STEPS = [(file, name) for file, name in NAMES if name in ("encoder_raw", "moments")]
FIRST = [(file, name) for file, name in NAMES if name.startswith("decoded_first")]
DECODED = [
    (file, name) for file, name in NAMES if name.startswith("decoded") and (file, name) not in FIRST
]


@cache
def network(file: str) -> tuple[vae.VAEParams, VAEConfig]:
    weights = golden.metadata(file)["weights"].removesuffix(".safetensors")
    config = config_of(golden.metadata(weights)["config"])
    return vae.vae_from_flat(golden.load(weights), config), config


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


@cache
def recorded(file: str) -> dict[str, Tensor]:
    return golden.load(file)


def test_there_are_recordings() -> None:
    assert all((ENCODED, STEPS, DECODED, FIRST))


@pytest.mark.parametrize(("file", "name"), ENCODED)
def test_encode(file: str, name: str) -> None:
    latent, _ = vae.encode(*network(file), recorded(file)[name])
    assert golden.worst(latent, recorded(file)[latents_of(name)]) < TOLERANCE


@pytest.mark.parametrize(("file", "name"), STEPS)
def test_steps_of_encoding(file: str, name: str) -> None:
    params, config = network(file)
    tensors = recorded(file)
    step = {"encoder_raw": vae.encode_features, "moments": vae.encode_moments}[name]
    got, _ = step(params, config, tensors["video"])
    assert golden.worst(got, tensors[name]) < TOLERANCE
    if name == "moments":
        assert golden.worst(got[:, : config.z_dim], tensors["latent_unscaled"]) < TOLERANCE


@pytest.mark.parametrize(("file", "name"), DECODED)
def test_decode(file: str, name: str) -> None:
    video, _ = vae.decode(*network(file), recorded(file)[name.replace("decoded", "latent")])
    assert golden.worst(video, recorded(file)[name]) < TOLERANCE


@pytest.mark.parametrize(("file", "name"), DECODED)
@torch.no_grad()
def test_decode_in_bfloat16(file: str, name: str) -> None:
    params, config = network(file)
    latent = recorded(file)[name.replace("decoded", "latent")]
    video, _ = vae.decode(vae.vae_cast(params, torch.bfloat16), config, latent)
    assert video.dtype is torch.bfloat16
    wanted = recorded(file)[name]
    assert (video.float() - wanted).norm() < BFLOAT16 * wanted.norm()


@pytest.mark.parametrize(("file", "name"), FIRST)
def test_decode_of_the_first_latent_frame_alone(file: str, name: str) -> None:
    latent = recorded(file)[name.replace("decoded_first", "latent")]
    video, _ = vae.decode(*network(file), latent[:, :, :1])
    assert golden.worst(video, recorded(file)[name]) < TOLERANCE
