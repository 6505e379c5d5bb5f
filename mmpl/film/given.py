"""Latents of the pictures that are pinned in a film."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.film.pictures import Pictures
from mmpl.film.pins import landing
from mmpl.film.segment import Latents
from mmpl.film.settings import Film
from mmpl.wan import vae
from mmpl.wan.config import VAEConfig

Given = Mapping[int, Latents]  # segment -> latent frame -> z_BCHW
_HISTORY = 2  # latent frames of the same still before one that covers several pixel frames


@torch.no_grad()
def encode_pictures(
    params: vae.VAEParams, config: VAEConfig, film: Film, pictures: Pictures
) -> dict[int, dict[int, Tensor]]:
    """The latents of `pictures` in `film`, float32: segment -> latent frame -> z [1, C, H, W].

    The first latent frame of a segment is one pixel frame, and a still there is encoded alone. A
    later one covers `temporal_stride` frames: there the still is repeated, after as many of the
    same as the encoder needs to come to rest. The end of a clip is encoded as a hand-over is.
    Raises ArgumentError for a moment outside the film.
    """
    given: dict[int, dict[int, Tensor]] = {}
    if pictures.clip_FHWC is not None:
        z_BCTHW = _encode(params, config, torch.from_numpy(pictures.clip_FHWC))
        given[0] = dict(enumerate(z_BCTHW.unbind(2)))
    for frame, pixels_HWC in pictures.stills:
        segment, latent = landing(film.chain, film.frames, film.lead, frame)
        frames = config.pixel_frames(1 + min(latent, _HISTORY))
        still_FHWC = torch.from_numpy(pixels_HWC).expand(frames, -1, -1, -1)
        z_BCTHW = _encode(params, config, still_FHWC)
        given.setdefault(segment, {})[latent] = z_BCTHW[:, :, -1]
    return given


def check_given(film: Film, given: Given) -> None:
    """Raises ArgumentError unless `given` are the latents of the film's pins."""
    there = sorted((segment, latent) for segment in given for latent in given[segment])
    wanted = sorted((pin.segment, pin.latent) for pin in film.pins)
    if there != wanted:
        raise ArgumentError(
            "the given latents are not those that the request names",
            got=there,
            wanted=wanted,
            todo="make both with `pinned`",
        )


def _encode(params: vae.VAEParams, config: VAEConfig, pixels_FHWC: Tensor) -> Tensor:
    device = params.conv1.weight.device
    video_BCFHW = pixels_FHWC.permute(3, 0, 1, 2)[None].to(device).float() / 127.5 - 1
    return vae.encode(params, config, video_BCFHW)[0]
