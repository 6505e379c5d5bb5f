"""A model made ready for one shot: what all ways of making it long share.

A shot is one prompt and one length for every method, so that films are compared and not requests.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmpl.checkpoint.bundle import Model
from mmpl.errors import ArgumentError
from mmpl.film.denoise import Context, Network, Sampler, open_context
from mmpl.film.settings import Film, Request, resolve
from mmpl.film.studio import furnished, readied, sampler_of
from mmpl.layout.layout import Layout
from mmpl.layout.timeline import latent_of
from mmpl.media.pixels import to_uint8
from mmpl.wan import vae
from mmpl.wan.config import VAEConfig
from mmpl.wan.dit import CrossKV
from mmpl.wan.flow import guided
from mmpl.wan.noise import normal

Pixels = NDArray[np.uint8]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shot:
    """What every method is asked for: one prompt, and the length of `segments` MMPL segments with
    terminal seeding. None means: as the model's defaults say."""

    prompt: str
    seed: int
    segments: int
    steps: int | None = None
    shift: float | None = None
    guidance_scale: float | None = None
    solver: str | None = None
    noise: str | None = None


@dataclass(frozen=True, slots=True)
class Evaluations:
    """Network evaluations of a film: latent frames times passes, of each branch of guidance.

    `noisy`: those that take a latent frame one denoising step further. `clean`: all others, of
    frames that are there already and that others are to see. `branches`: how often each is done.
    """

    noisy: int
    clean: int
    branches: int

    @property
    def total(self) -> int:
        """All there are, over the branches."""
        return (self.noisy + self.clean) * self.branches


class Way(Protocol):
    """A way of making a shot, and what that costs."""

    def make(self, model: Model, shot: Shot) -> Iterator[Pixels]:
        """The frames of the film in order, in pieces [F, H, W, 3]."""
        ...

    def count(self, model: Model, shot: Shot) -> Evaluations:
        """What `make` will take, by arithmetic."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """All that is needed to make a shot. `latent_shape` is (channels, rows, columns)."""

    film: Film
    network: Network
    sampler: Sampler
    texts: tuple[CrossKV, ...]
    vae: vae.VAEParams
    vae_to_show: vae.VAEParams
    vae_config: VAEConfig
    latent_shape: tuple[int, int, int]
    device: torch.device

    @property
    def steps(self) -> int:
        """Denoising steps of every latent frame."""
        return len(self.sampler.schedule.timesteps)

    def context(self, layout: Layout, stored: int | None = None) -> Context:
        """An empty cache for the frames of `layout`, for each branch of guidance, with memory for
        `stored` of them where the layout does not say."""
        return open_context(
            self.network,
            layout,
            self.texts,
            latent_size=self.latent_shape[1:],
            device=self.device,
            stored=stored,
        )

    def noise(self, frames: Iterable[int], segment: int = 0) -> Tensor:
        """What latent `frames` are denoised from, z_BCTHW."""
        drawn = [
            normal(self.latent_shape, seed=self.film.seed, segment=segment, frame=frame)
            for frame in frames
        ]
        return torch.stack(drawn, dim=1)[None].to(self.device)

    def guided(self, of_branches: Sequence[Tensor]) -> Tensor:
        """The velocity to follow, from that of each branch."""
        v_BCTHW, *others = of_branches
        for other_BCTHW in others:
            v_BCTHW = guided(v_BCTHW, other_BCTHW, self.sampler.guidance_scale)
        return v_BCTHW

    def pixels(self, latents: Iterable[Tensor], start: int, stop: int) -> Iterator[Pixels]:
        """Frames `start` to `stop` of the clip that `latents` [B, C, H, W] are, decoded one by one
        as they come. The same bits as the frames of `mmpl.generate`."""
        state, frame = None, 0
        for z_BCHW in latents:
            with torch.no_grad():
                z_BCTHW = z_BCHW[:, :, None].float()
                video_BCFHW, state = vae.decode(self.vae_to_show, self.vae_config, z_BCTHW, state)
            kept_CFHW = video_BCFHW[0, :, max(0, start - frame) : stop - frame]
            if kept_CFHW.shape[1]:
                yield to_uint8(kept_CFHW)
            frame += video_BCFHW.shape[2]
            if frame >= stop:
                return


def film_of(model: Model, shot: Shot) -> Film:
    """The film that a shot means as the paper makes it: its length is that of all methods, and
    all its frames take as many steps.

    Raises ArgumentError for settings that cannot be.
    """
    request = Request(
        shot.prompt,
        shot.seed,
        segments=shot.segments,
        steps=shot.steps,
        shift=shot.shift,
        guidance_scale=shot.guidance_scale,
        solver=shot.solver,
        noise=shot.noise,
        layout="mmpl_t2v",
    )
    film = resolve(
        request,
        model.defaults,
        temporal_stride=model.vae_config.temporal_stride,
        pixel_step=model.vae_config.spatial_stride * model.dit_config.patch_size[1],
    )
    if len(film.script) > 1:
        raise ArgumentError("a shot has one prompt", got=f"{len(film.script)} in its script")
    return replace(film, populate_steps=film.steps)


def latents_of(film: Film) -> int:
    """Latent frames of the film as one clip without joints."""
    return latent_of(film.chain, film.frames - 1) + 1


def branches_of(film: Film) -> int:
    """Passes of the network for one velocity."""
    return 1 if film.guidance_scale == 1.0 else 2


def open_stage(model: Model, film: Film) -> Stage:
    """The model made ready for `film`, on the device of its weights. Raises OutputError where its
    text cache cannot be written."""
    ready = readied(model, film, compiled="no")  # of some methods every pass is of another kind
    vae_of = model.vae, model.vae_config
    shows = vae.shown_dtype(model.vae_dtype, model.device)
    studio = furnished(film, ready.network, ready.texts, {}, vae_of, model.offload, shows)
    return Stage(
        film,
        studio.network,
        sampler_of(film, film.steps),
        studio.texts[0],
        studio.vae_here(),
        studio.vae_to_show(),
        studio.vae_config,
        studio.latent_shape,
        studio.device,
    )


def run(making: Generator[object, None, T]) -> T:
    """What a generator returns, its steps passed over."""
    while True:
        try:
            next(making)
        except StopIteration as end:
            return end.value
