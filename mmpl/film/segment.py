"""One segment: a group made from its context and noise, and the hand-over to the next segment.

Text-to-video, image-to-video and every later segment are the same code: they differ in which
latents are given and in the layout value.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpl.errors import NumericError
from mmpl.film.denoise import Context, Network, Sampler, commit, denoise
from mmpl.film.settings import Film
from mmpl.layout.layout import Group, Layout, needed
from mmpl.layout.timeline import Chain
from mmpl.wan import vae
from mmpl.wan.config import VAEConfig
from mmpl.wan.flow import Renoise
from mmpl.wan.noise import mix_anchor_noise, normal

Latents = Mapping[int, Tensor]  # latent frame of the segment -> z_BCHW


@dataclass(frozen=True, slots=True)
class Step:
    """Denoising steps done of a group."""

    group: str
    step: int
    steps: int


def make_group(
    network: Network,
    layout: Layout,
    group: Group,
    refresh: Iterable[str],
    context: Context,
    latents: Latents,
    noise_BCTHW: Tensor,
    sampler: Sampler,
) -> Generator[Step, None, tuple[Tensor, Context]]:
    """Makes one group; returns its latents z_BCTHW, frames ascending, and the context it leaves.

    First the clean passes of the groups named in `refresh` are done, from `latents`: with what
    `context` holds, they are all that the group attends to. So a context made here, elsewhere or
    earlier gives the same bits. `noise_BCTHW`: what the group starts from. Raises NumericError.
    """
    context = refreshed(network, layout, refresh, context, latents)
    made = denoise(network, context, group, noise_BCTHW, sampler)
    try:
        while True:
            yield Step(group.name, next(made), len(sampler.schedule.timesteps))
    except StopIteration as end:
        return end.value, context


def refreshed(
    network: Network, layout: Layout, groups: Iterable[str], context: Context, latents: Latents
) -> Context:
    """`context` after the clean passes of `groups`, by name, from `latents`."""
    for name in groups:
        seen = layout.group(name)
        context = commit(network, context, seen, stack(latents, seen.frames))
    return context


def group_noise(
    film: Film,
    segment: int,
    group: Group,
    latent_shape: tuple[int, int, int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """The noise a group starts from, [1, C, T, H, W] float32, frames ascending.

    Keyed by (seed, segment, latent frame). In populated groups the first frame after a pair of
    keyframes mixes theirs in, as `film.noise` says (paper Eq. 14).
    """
    frames = [_frame_noise(film, segment, frame, latent_shape) for frame in group.frames]
    if film.noise != "off" and group not in needed(film.layout, film.chain.handover):
        for index, frame in enumerate(group.frames):
            near, far = frame - 1, frame - 2
            if near in group.frames or far not in group.sees:
                continue
            frames[index] = mix_anchor_noise(
                film.noise,  # type: ignore[arg-type]  checked by settings.resolve
                frames[index],
                _frame_noise(film, segment, near, latent_shape),
                _frame_noise(film, segment, far, latent_shape),
                film.alpha,
                film.beta,
            )
    return torch.stack(frames, dim=1)[None].to(device)


def group_renoise(
    film: Film,
    segment: int,
    group: Group,
    latent_shape: tuple[int, int, int],
    device: torch.device | str = "cpu",
) -> Renoise:
    """The fresh noise of a group for every further step, shaped as that of `group_noise`.

    Keyed by (seed, segment, latent frame, step).
    """

    def noise(step: int) -> Tensor:
        frames = [
            normal(
                latent_shape,
                seed=film.seed_of(segment),
                segment=segment,
                frame=frame,
                step=step,
                purpose="renoise",
            )
            for frame in group.frames
        ]
        return torch.stack(frames, dim=1)[None].to(device)

    return noise


@torch.no_grad()
def hand_over(
    params: vae.VAEParams, config: VAEConfig, chain: Chain, latents: Latents
) -> dict[int, Tensor]:
    """The next segment's seeds from this one's keyframes: decode, keep the end, encode again.

    Of 21 latent frames [z0, z19, z19, z20] are decoded to 13 pixel frames, of which the last 5
    are encoded to 2 latents. In float32 always, in whatever format frames are decoded: every
    segment starts from what the one before hands over, so rounding would add up along the chain.
    Raises NumericError. Source: paper Figure 4, released inference code.
    """
    z_BCTHW = stack(latents, chain.handover).float()
    seeds_BCTHW = vae.encode_again(params, config, z_BCTHW, chain.handover_frames)
    if not bool(torch.isfinite(seeds_BCTHW).all()):
        raise NumericError(
            "the seeds of the next segment are not finite", todo="check the weights of the VAE"
        )
    return dict(enumerate(seeds_BCTHW.unbind(2)))


@torch.no_grad()
def hand_over_full_history(
    params: vae.VAEParams, config: VAEConfig, chain: Chain, latents: Latents
) -> dict[int, Tensor]:
    """Seeds from the decode of the whole segment with its true history, as the released one-GPU
    script makes them. Other bits than `hand_over`, and it waits for all groups: for comparison."""
    z_BCTHW = stack(latents, range(chain.latents)).float()
    pixels_BCFHW, _ = vae.decode(params, config, z_BCTHW)
    end_BCFHW = pixels_BCFHW[:, :, -chain.overlap :].clamp(-1, 1)
    seeds_BCTHW, _ = vae.encode(params, config, end_BCFHW)
    return dict(enumerate(seeds_BCTHW.unbind(2)))


def stack(latents: Latents, frames: Iterable[int]) -> Tensor:
    """The given latent frames as one z_BCTHW."""
    return torch.stack([latents[frame] for frame in frames], dim=2)


def _frame_noise(
    film: Film, segment: int, frame: int, latent_shape: tuple[int, int, int]
) -> Tensor:
    return normal(latent_shape, seed=film.seed_of(segment), segment=segment, frame=frame)
