"""Films as a chain of windows: each starts from what the one before hands over.

MMPL and everything that differs from it in the order of groups or in the hand-over alone: the
paper's ablations, autoregression inside a window, the plain model's sliding window, CausVid.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmpl.checkpoint.bundle import Model
from mmpl.eval.stage import (
    Evaluations,
    Pixels,
    Shot,
    Stage,
    branches_of,
    film_of,
    open_stage,
    run,
)
from mmpl.film.segment import Latents, group_noise, group_renoise, hand_over, make_group, stack
from mmpl.film.settings import Film
from mmpl.film.studio import sampler_of
from mmpl.layout.layout import Group, Layout, needed
from mmpl.layout.presets import by_name
from mmpl.layout.timeline import (
    SEED_LATENTS,
    Chain,
    chain_of,
    kept_frames,
    latent_of,
    segments_for,
)
from mmpl.wan import vae
from mmpl.wan.config import VAEConfig

# From the latents of a window to the first ones of the next.
HandOver = Callable[[vae.VAEParams, VAEConfig, Chain, Latents], dict[int, Tensor]]
# Window, its given latents, how many it needs from 0 on -> all of these.
Fill = Callable[[int, Latents, int], Latents]


@dataclass(frozen=True, slots=True)
class Span:
    """The pixel frames of a window that the film shows, half-open, and the latents it needs."""

    start: int
    stop: int
    latents: int


def spans(chain: Chain, frames: int, *, drops_end: bool = False) -> list[Span]:
    """What a film of `frames` pixel frames takes of each window, the last one cut to length.

    In an overlap the earlier window's frames are shown, or, with `drops_end`, the later one's, and
    then no window's end is shown.
    """
    count = -(-frames // chain.step) if drops_end else segments_for(chain, frames)
    found = []
    for window in range(count):
        start, stop = 0, min(chain.step, frames - window * chain.step)
        if not drops_end:
            start, stop = kept_frames(chain, window, frames)
        last = window == count - 1
        found.append(Span(start, stop, latent_of(chain, stop - 1) + 1 if last else chain.latents))
    return found


def joined(
    stage: Stage, chain: Chain, hand: HandOver, fill: Fill, *, drops_end: bool = False
) -> Iterator[Pixels]:
    """The frames of a film of windows made by `fill` and joined by `hand`, in film order."""
    given: Latents = {}
    windows = spans(chain, stage.film.frames, drops_end=drops_end)
    for window, span in enumerate(windows):
        latents = fill(window, given, span.latents)
        if window + 1 < len(windows):
            given = hand(stage.vae, stage.vae_config, chain, latents)
        shown = (latents[frame] for frame in range(span.latents))
        yield from stage.pixels(shown, span.start, span.stop)


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows made group by group in the order of a layout.

    `layout`: a name of `mmpl.layout.presets`. `seeds`: latent frames that are handed over.
    `drops_end`: see `spans`. `noise`, `alpha`: how fills start; None is as the shot says, and so
    it is of `guidance_scale`. `populate_share`: of the shot's steps, for what is not planned.
    """

    layout: str
    hand: HandOver = hand_over
    seeding: str = "terminal"
    seeds: int = SEED_LATENTS
    drops_end: bool = False
    noise: str | None = "off"
    alpha: float | None = None
    guidance_scale: float | None = None
    populate_share: float = 1.0

    def make(self, model: Model, shot: Shot) -> Iterator[Pixels]:
        """See `Way`."""
        film = self._film(model, shot)
        stage = open_stage(model, film)

        def fill(window: int, given: Latents, wanted: int) -> Latents:
            return made(stage, window, given, wanted)

        yield from joined(stage, film.chain, self.hand, fill, drops_end=self.drops_end)

    def count(self, model: Model, shot: Shot) -> Evaluations:
        """See `Way`."""
        film = self._film(model, shot)
        noisy = clean = 0
        for window, span in enumerate(spans(film.chain, film.frames, drops_end=self.drops_end)):
            given = range(self.seeds if window else 0)
            for group, seen in order(film.layout, given, span.latents):
                noisy += film.steps_of[group.name] * len(group.frames)
                clean += sum(len(film.layout.group(name).frames) for name in seen)
        return Evaluations(noisy, clean, branches_of(film))

    def _film(self, model: Model, shot: Shot) -> Film:
        film, layout = film_of(model, shot), by_name(self.layout)
        stride = model.vae_config.temporal_stride
        chain = chain_of(layout, seeding=self.seeding, temporal_stride=stride)
        return replace(
            film,
            layout=layout,
            chain=replace(chain, seeds=self.seeds),
            seeding=self.seeding,
            noise=film.noise if self.noise is None else self.noise,
            alpha=film.alpha if self.alpha is None else self.alpha,
            guidance_scale=film.guidance_scale
            if self.guidance_scale is None
            else self.guidance_scale,
            populate_steps=max(1, round(self.populate_share * film.steps)),
        )


def made(stage: Stage, window: int, given: Latents, wanted: int) -> dict[int, Tensor]:
    """The given latents of a window and those of all groups that its first `wanted` need."""
    film, latents = stage.film, dict(given)
    context = stage.context(film.layout)
    for group, seen in order(film.layout, given.keys(), wanted):
        noise_BCTHW = group_noise(film, window, group, stage.latent_shape, stage.device)
        renoise = group_renoise(film, window, group, stage.latent_shape, stage.device)
        sampler = sampler_of(film, film.steps_of[group.name], renoise)
        making = make_group(
            stage.network, film.layout, group, seen, context, latents, noise_BCTHW, sampler
        )
        z_BCTHW, context = run(making)
        latents.update(zip(group.frames, z_BCTHW.unbind(2), strict=True))
    return latents


def order(
    layout: Layout, given: Collection[int], wanted: int
) -> Iterator[tuple[Group, tuple[str, ...]]]:
    """The groups to make for the first `wanted` latent frames, each with the groups whose clean
    pass comes before it: those that it attends to and that no group before it did."""
    seen: set[str] = set()
    for group in needed(layout, range(wanted)):
        if all(frame in given for frame in group.frames):
            continue
        new = [g.name for g in needed(layout, group.sees) if g.name not in seen]
        seen.update(new)
        yield group, tuple(new)


def raw_latents(
    params: vae.VAEParams, config: VAEConfig, chain: Chain, latents: Latents
) -> dict[int, Tensor]:
    """The last latents of a window as they are, with the statistics of its end: the ablation of
    the re-encode (paper Table 13)."""
    return dict(enumerate(latents[frame] for frame in chain.handover[-chain.seeds :]))


@torch.no_grad()
def image_and_raw_latents(
    params: vae.VAEParams, config: VAEConfig, chain: Chain, latents: Latents
) -> dict[int, Tensor]:
    """CausVid's overlap: the pixel frame at which it begins, encoded again as an image, then the
    raw latents after it. Source: CausVid's minimal_inference for long videos."""
    z_BCTHW = stack(latents, range(chain.latents)).float()
    pixels_BCFHW, _ = vae.decode(params, config, z_BCTHW)
    frame_BCFHW = pixels_BCFHW[:, :, chain.step : chain.step + 1].clamp(-1, 1)
    first_BCTHW, _ = vae.encode(params, config, frame_BCFHW)
    rest = [latents[frame] for frame in range(chain.latents - chain.seeds + 1, chain.latents)]
    return dict(enumerate([first_BCTHW[:, :, 0], *rest]))
