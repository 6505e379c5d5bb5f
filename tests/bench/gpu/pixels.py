"""Rows of the VAE: a segment decoded in pieces of several sizes, and the hand-over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast
from unittest.mock import patch

import torch

from mmpl.film import runtime
from mmpl.film.segment import hand_over
from mmpl.film.studio import furnished
from mmpl.layout.presets import SEGMENT_LATENTS, mmpl_t2v
from mmpl.layout.timeline import chain_of
from mmpl.wan import vae
from mmpl.wan.offload import Offload
from tests.bench.gpu.films import film_of
from tests.bench.gpu.flops import decode_flops
from tests.bench.gpu.lab import Call, Lab, Size
from tests.bench.gpu.record import Figure, Wanted

DECODE = Wanted(most=1.2, best=0.9)
HAND_OVER = Wanted(most=0.35, best=0.2)
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
PIECES = (2, 4)  # latents at once; by itself it takes one of these frames


def decode(lab: Lab, size: str) -> Iterator[Figure]:
    """A segment's decode as a film does it, to bytes in the host's memory, in both formats."""
    one = lab.sizes[size]
    flops = decode_flops(one.vae, SEGMENT_LATENTS, one.latent_size)
    first: dict[str, torch.Tensor] = {}
    for name, dtype in FORMATS.items():
        taken_s = lab.seconds(film_call(lab, one, dtype))
        rate = {"TFLOP/s": flops / taken_s / 1e12}
        yield Figure(f"decode of {_clip(one)}, {name}", taken_s, "s", rate, DECODE)
        z_BCTHW = torch.ones(1, one.vae.z_dim, 2, *one.latent_size, dtype=dtype, device=lab.device)
        with torch.no_grad():
            first[name] = vae.decode(lab.vae(one.vae, dtype), one.vae, z_BCTHW)[0].float()
    error = (first["bf16"] - first["fp32"]).square().mean().sqrt()
    span = first["fp32"].max() - first["fp32"].min()
    yield Figure("bf16 beside fp32, PSNR", 20 * (span / error).log10().item(), "dB")


def pieces(lab: Lab, size: str) -> Iterator[Figure]:
    """The same decode in larger pieces, after one warm-up."""
    one = lab.sizes[size]
    for at_once in PIECES:
        for name, dtype in FORMATS.items():
            call = decode_call(lab, one, dtype, at_once)
            with lab.peak_of() as peak:
                taken_s = lab.seconds(call, warm_ups=1, repeats=3)
            yield Figure(
                f"decode, {at_once} latents at once, {name}",
                taken_s,
                "s",
                {"peak GB": peak() / 1e9},
                DECODE,
            )


def film_call(lab: Lab, size: Size, dtype: torch.dtype) -> Call:
    """All that a film does for the frames of its one segment, which `dtype` decodes."""
    film = film_of(size, segments=1, steps=1, solver="euler", guidance=1.0)
    network, offload = cast(Any, None), Offload("none", lab.device)  # no pass is made
    studio = furnished(film, network, (), {}, (lab.vae(size.vae), size.vae), offload, dtype)
    shape = 1, size.vae.z_dim, *size.latent_size
    latents = {frame: lab.noise(*shape) for frame in range(SEGMENT_LATENTS)}

    def call() -> None:
        for _ in runtime.decode(studio, 0, latents):
            pass

    return call


def decode_call(lab: Lab, size: Size, dtype: torch.dtype, at_once: int | None = None) -> Call:
    """A decode of a segment, whose pixels are dropped as they come."""
    config, params = size.vae, lab.vae(size.vae, dtype)
    z_BCTHW = lab.noise(1, config.z_dim, SEGMENT_LATENTS, *size.latent_size, dtype=dtype)
    at_once = at_once or vae.latents_at_once(config, 1, size.height, size.width, dtype)
    pixels = config.temporal_stride * size.width * size.height // config.patch_size**2
    numbers = dtype.itemsize * at_once * config.dim * pixels

    @torch.no_grad()
    def call() -> None:
        with patch.object(vae, "_PIECE_BYTES", numbers):
            for _ in vae.decode_each(params, config, z_BCTHW.split(at_once, 2)):
                pass

    return call


def hand_overs(lab: Lab, size: str) -> Iterator[Figure]:
    """The seeds of the next segment: 4 latents decoded, 5 frames encoded, in float32."""
    one = lab.sizes[size]
    chain = chain_of(mmpl_t2v(), seeding="terminal", temporal_stride=one.vae.temporal_stride)
    params, shape = lab.vae(one.vae), (1, one.vae.z_dim, *one.latent_size)
    latents = {frame: lab.noise(*shape) for frame in range(SEGMENT_LATENTS)}
    taken_s = lab.seconds(lambda: hand_over(params, one.vae, chain, latents))
    yield Figure("hand-over", taken_s, "s", {}, HAND_OVER)


def _clip(size: Size) -> str:
    return f"{size.vae.pixel_frames(SEGMENT_LATENTS)} x {size.width}x{size.height}"
