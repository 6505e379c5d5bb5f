"""One segment: the groups to make, from given latents and noise, and the hand-over to the next.

Text-to-video, image-to-video and every later segment are the same code: they differ in which
latents are given and in the layout value.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpl.film.denoise import Context, Network, Sampler, commit, denoise
from mmpl.film.settings import Film
from mmpl.layout.layout import Group, Layout, committed, needed
from mmpl.layout.timeline import Chain
from mmpl.wan import vae
from mmpl.wan.config import VAEConfig
from mmpl.wan.noise import mix_anchor_noise, normal

Latents = Mapping[int, Tensor]  # latent frame of the segment -> z_BCHW


@dataclass(frozen=True, slots=True)
class Step:
    """Denoising steps done of a group."""

    group: str
    step: int
    steps: int


def make_groups(
    network: Network,
    layout: Layout,
    groups: Iterable[Group],
    context: Context,
    latents: Latents,
    sampler: Sampler,
    noise_of: Callable[[Group], Tensor],
) -> Generator[Step, None, dict[int, Tensor]]:
    """Makes `groups` of a segment in layout order; returns `latents` with theirs added.

    `context` must be empty: what the groups see is committed here from `latents`, group by group
    as it was made, so that a plan made elsewhere or earlier gives the same bits as one made in
    this call. Groups whose frames are all in `latents` are not made again. `noise_of(group)`:
    what the group starts from, [B, C, T, H, W], frames ascending. Raises NumericError.
    """
    wanted = tuple(groups)
    closure = needed(layout, (frame for group in wanted for frame in group.frames))
    done = dict(latents)
    todo = tuple(g for g in closure if any(frame not in done for frame in g.frames))
    kept = committed(layout, _readers(closure, todo))
    for group in closure:
        if group in todo:
            made_BCTHW = yield from _denoised(network, context, group, noise_of(group), sampler)
            done.update(zip(group.frames, made_BCTHW.unbind(2), strict=True))
        if group in kept:
            context = commit(network, context, group, stack(done, group.frames))
    return done


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


@torch.no_grad()
def hand_over(
    params: vae.VAEParams, config: VAEConfig, chain: Chain, latents: Latents
) -> dict[int, Tensor]:
    """The next segment's seeds from this one's keyframes: decode, keep the end, encode again.

    Of 21 latent frames [z0, z19, z19, z20] are decoded to 13 pixel frames, of which the last 5
    are encoded to 2 latents. In float32, always. Source: paper Figure 4, released inference code.
    """
    z_BCTHW = stack(latents, chain.handover).float()
    pixels_BCFHW, _ = vae.decode(params, config, z_BCTHW)
    start, stop = chain.handover_frames
    seeds_BCTHW, _ = vae.encode(params, config, pixels_BCFHW[:, :, start:stop].clamp(-1, 1))
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


def _denoised(
    network: Network, context: Context, group: Group, noise_BCTHW: Tensor, sampler: Sampler
) -> Generator[Step, None, Tensor]:
    made = denoise(network, context, group, noise_BCTHW, sampler)
    try:
        while True:
            yield Step(group.name, next(made), len(sampler.schedule.timesteps))
    except StopIteration as end:
        return end.value


def _readers(closure: tuple[Group, ...], todo: tuple[Group, ...]) -> tuple[Group, ...]:
    """Groups that will read a context: those to be made, and the clean passes these rest on."""
    reading: list[Group] = []
    seen: set[int] = set()
    for group in reversed(closure):
        if group in todo or seen.intersection(group.frames):
            reading.append(group)
            seen.update(group.sees)
    return tuple(reversed(reading))


def _frame_noise(
    film: Film, segment: int, frame: int, latent_shape: tuple[int, int, int]
) -> Tensor:
    return normal(latent_shape, seed=film.seed, segment=segment, frame=frame)
