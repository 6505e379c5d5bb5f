"""From a prompt to a film: the page to read first, and the interface for other programs.

    model = load_model("weights/tiny")
    for event in generate(model, Request(prompt="a red circle moves right", seed=1)):
        match event:
            case Frames(first_frame=first, pixels_FHWC=pixels): ...

A film is planned first, segment after segment: a few keyframes each, whose last two become the
seeds of the next (paper 3.1). Then each segment is populated and decoded, in order (paper 3.2).
Nothing here prints, touches global state, or needs files.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmpl.checkpoint.bundle import Model
from mmpl.checkpoint.bundle import load_model as load_model
from mmpl.checkpoint.bundle import model_from_state_dicts as model_from_state_dicts
from mmpl.errors import NumericError
from mmpl.film.denoise import Context, Network, Sampler, open_context, reset
from mmpl.film.segment import Latents, Step, group_noise, hand_over, make_groups, stack
from mmpl.film.settings import Film, Request, resolve
from mmpl.layout.layout import Group
from mmpl.media.video import to_uint8
from mmpl.wan import vae
from mmpl.wan.attention import resolve_attention
from mmpl.wan.dit import Engine, encode_context
from mmpl.wan.flow import schedule
from mmpl.wan.ops import natural_precision
from mmpl.wan.text import encode_prompts

__all__ = [
    "Film",
    "Frames",
    "Model",
    "Planned",
    "Request",
    "Started",
    "Stepped",
    "film_of",
    "generate",
    "load_model",
    "model_from_state_dicts",
]


@dataclass(frozen=True, slots=True)
class Started:
    """The film that will be made, and the attention backend that was taken."""

    film: Film
    attention: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """One denoising step done. `phase` is "plan" or "populate", `segment` counts from 0, and
    `work_done` of `work` frame-steps of the whole film are behind us."""

    phase: str
    segment: int
    group: str
    step: int
    steps: int
    work_done: int
    work: int


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """The keyframes of a segment are final: latent frame -> z [1, C, H, W]."""

    segment: int
    latents: Latents


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Final pixels of the film, uint8 RGB, from film frame `first_frame` on; they come in order."""

    segment: int
    first_frame: int
    pixels_FHWC: NDArray[np.uint8]


Event = Started | Stepped | Planned | Frames


def film_of(model: Model, request: Request) -> Film:
    """The film a request means for this model. Raises ArgumentError."""
    return resolve(
        request,
        model.defaults,
        temporal_stride=model.vae_config.temporal_stride,
        pixel_step=model.vae_config.spatial_stride * model.dit_config.patch_size[1],
    )


def generate(
    model: Model, request: Request, *, attention: str = "auto"
) -> Generator[Event, None, None]:
    """Makes the film of `request`; yields progress, and frames as they become final, in order.

    Works on the device of the model's weights. `attention` names a backend, see
    `mmpl.wan.attention`. Raises ArgumentError for a request that cannot be and NumericError for
    latents that are not finite; the caller may stop between any two events.
    """
    film = film_of(model, request)
    device = model.dit.head.head.weight.device
    attention, backend = resolve_attention(attention, device, _compute(model))
    network = Network(model.dit, model.dit_config, Engine(attention=backend))
    yield Started(film, attention)

    context = _open(model, film, network)
    sampler = Sampler(
        film.solver, schedule(film.solver, film.steps, film.shift), film.guidance_scale
    )
    progress = _Progress(film)
    plans: list[Latents] = []
    seeds: Latents = {}
    for segment in range(film.segments):
        groups = film.planning(segment)
        latents = yield from progress.follow(
            "plan", segment, _make(model, film, segment, groups, network, context, seeds, sampler)
        )
        yield Planned(segment, latents)
        plans.append(latents)
        if segment + 1 < film.segments:
            seeds = hand_over(model.vae, model.vae_config, film.chain, latents)
    for segment, plan in enumerate(plans):
        groups = film.populating(segment)
        latents = yield from progress.follow(
            "populate",
            segment,
            _make(model, film, segment, groups, network, context, plan, sampler),
        )
        yield from _decode(model, film, segment, latents)


def _compute(model: Model) -> torch.dtype:
    return natural_precision(model.dit.blocks[0].ffn_in.weight.dtype).compute


def _open(model: Model, film: Film, network: Network) -> Context:
    """Texts and empty caches; one branch without guidance, two with it."""
    prompts = [film.prompt]
    if film.guidance_scale != 1.0:
        prompts.append(film.negative_prompt)
    with torch.no_grad():
        embeddings = encode_prompts(
            model.text, model.text_config, model.tokenizer, prompts, model.dit_config.text_len
        )
        texts = tuple(
            encode_context(model.dit, model.dit_config, [text], engine=network.engine)
            for text in embeddings
        )
    device = model.dit.head.head.weight.device
    _, height, width = _latent_shape(model, film)
    return open_context(network, film.layout, texts, latent_size=(height, width), device=device)


def _make(
    model: Model,
    film: Film,
    segment: int,
    groups: tuple[Group, ...],
    network: Network,
    context: Context,
    latents: Latents,
    sampler: Sampler,
) -> Generator[Step, None, dict[int, Tensor]]:
    device = model.dit.head.head.weight.device
    shape = _latent_shape(model, film)
    return make_groups(
        network,
        film.layout,
        groups,
        reset(context),
        latents,
        sampler,
        lambda group: group_noise(film, segment, group, shape, device),
    )


def _latent_shape(model: Model, film: Film) -> tuple[int, int, int]:
    stride = model.vae_config.spatial_stride
    return model.vae_config.z_dim, film.height // stride, film.width // stride


class _Progress:
    """Counts frame-steps over the whole film, for an ETA that knows what is still to come."""

    def __init__(self, film: Film) -> None:
        groups = [g for s in range(film.segments) for g in film.groups(s) if _denoised(film, s, g)]
        self._work = film.steps * sum(len(group.frames) for group in groups)
        self._frames = {group.name: len(group.frames) for group in film.layout.groups}
        self._done = 0

    def follow(
        self, phase: str, segment: int, making: Generator[Step, None, dict[int, Tensor]]
    ) -> Generator[Stepped, None, dict[int, Tensor]]:
        """Passes on the steps of one segment, with their place in the whole."""
        try:
            while True:
                step = next(making)
                self._done += self._frames[step.group]
                yield Stepped(
                    phase, segment, step.group, step.step, step.steps, self._done, self._work
                )
        except StopIteration as end:
            return end.value
        except NumericError as error:
            raise NumericError(
                error.what, where=f"segment {segment + 1}, {error.where}", todo=error.todo
            ) from error


def _denoised(film: Film, segment: int, group: Group) -> bool:
    return segment == 0 or any(frame >= film.chain.seeds for frame in group.frames)


def _decode(model: Model, film: Film, segment: int, latents: Latents) -> Iterator[Frames]:
    """The frames the film shows of a segment, latent frame by latent frame in constant memory."""
    start, stop = film.kept(segment)
    state, frame = None, 0
    for latent in sorted(latents):
        if frame >= stop:
            return
        with torch.no_grad():
            z_BCTHW = stack(latents, [latent]).float()
            video_BCFHW, state = vae.decode(model.vae, model.vae_config, z_BCTHW, state)
        kept_CFHW = video_BCFHW[0, :, max(0, start - frame) : stop - frame]
        if kept_CFHW.shape[1]:
            first = film.chain.step * segment + max(start, frame)
            yield Frames(segment, first, to_uint8(kept_CFHW))
        frame += video_BCFHW.shape[2]
