"""Teacher forcing for the transformer and its text encoder, one group of a layout at a time.

A step draws a layout and one of its groups; the group's frames are noised at one timestep, as at
inference, and its context stands before them clean, seeing itself as the layout says. Gradients
flow through the clean context. Source: the released training code's mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmpl.layout.layout import Group, Layout
from mmpl.train.clips import caption
from mmpl.train.latents import LatentClips
from mmpl.train.loop import Loss, LossOf, Weights
from mmpl.train.teacher_forcing import lesson as lesson_of
from mmpl.train.teacher_forcing import taught_flow
from mmpl.wan.config import DiTConfig, TextConfig
from mmpl.wan.dit import DiTParams, dit_from_flat, encode_context
from mmpl.wan.flow import TRAIN_TIMESTEPS
from mmpl.wan.text import TextParams, encode_text, text_from_flat, zero_pads
from mmpl.wan.tokenizer import Tokenizer, clean_prompt


@dataclass(frozen=True, slots=True)
class Task:
    """One group of one layout to learn, drawn with a weight. `fresh`: only from clips that begin
    a film, for groups that are made without any context."""

    layout: Layout
    group: Group
    weight: float
    fresh: bool


@dataclass(frozen=True, slots=True)
class DiTTraining:
    """`frames`: latent frames a step, context included; a task with fewer of them takes more
    clips, up to `most_clips`. `shift` moves the drawn timesteps towards noise, as the sampler's
    does. `prompt_dropout`: share of samples with an empty prompt. `context_noise`: largest noise
    on the clean context, relative to the latents' spread, against drift along the chain."""

    tasks: tuple[Task, ...]
    frames: int
    most_clips: int = 64
    shift: float = 3.0
    prompt_dropout: float = 0.1
    context_noise: float = 0.1
    seed: int = 0


def tasks(layouts: Sequence[tuple[Layout, float]], weights: dict[str, float]) -> tuple[Task, ...]:
    """The tasks of some layouts, each with its share; `weights` by group name, default 1.

    A layout whose first group is a single frame is given that frame (image-to-video).
    """
    found = []
    for layout, share in layouts:
        for group in layout.groups:
            given = not group.sees and len(group.frames) == 1
            if not given:
                weight = share * weights.get(group.name, 1.0)
                found.append(Task(layout, group, weight, fresh=not group.sees))
    return tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class Networks:
    """What is trained: the transformer and the text encoder, over one tokenizer."""

    dit: DiTParams
    dit_config: DiTConfig
    text: TextParams
    text_config: TextConfig
    tokenizer: Tokenizer


def split(weights: Weights, prefix: str) -> Weights:
    """The weights below `prefix.`, with it removed."""
    return {n[len(prefix) + 1 :]: t for n, t in weights.items() if n.startswith(prefix + ".")}


def dit_loss(
    dit_config: DiTConfig,
    text_config: TextConfig,
    tokenizer: Tokenizer,
    clips: LatentClips,
    training: DiTTraining,
) -> LossOf:
    """The loss for `mmpl.train.loop.train` of weights `dit.*` and `text.*`, in official keys.

    `clips` hold normalised latents.
    """

    def loss_of(weights: Weights) -> Loss:
        networks = Networks(
            dit_from_flat(split(weights, "dit"), dit_config),
            dit_config,
            text_from_flat(split(weights, "text"), text_config),
            text_config,
            tokenizer,
        )
        return lambda step: _loss(networks, clips, training, step)

    return loss_of


def _loss(
    networks: Networks, clips: LatentClips, training: DiTTraining, step: int
) -> tuple[Tensor, dict[str, float]]:
    rng = np.random.default_rng([training.seed, step])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    odds = np.array([task.weight for task in training.tasks])
    task = training.tasks[rng.choice(len(odds), p=odds / odds.sum())]
    lesson = lesson_of(task.layout, [task.group])
    count = training.frames // (len(lesson.clean) + len(lesson.noisy))
    chosen = _draw_clips(clips, max(1, min(count, training.most_clips)), task.fresh, rng)
    z_BCTHW = clips.z_BCTHW[chosen]
    clean_BCTHW = _jittered(
        z_BCTHW[:, :, list(lesson.clean)], training.context_noise, rng, generator
    )
    target_BCTHW = z_BCTHW[:, :, list(lesson.noisy)]
    noise_BCTHW = torch.randn(target_BCTHW.shape, generator=generator)
    t_B = shifted(torch.rand(len(chosen), generator=generator), training.shift)
    captions = [
        "" if rng.random() < training.prompt_dropout else caption(clips.spec(i), int(variant))
        for i, variant in zip(chosen, rng.integers(2**31, size=len(chosen)))
    ]
    texts = encode_captions(networks, captions)
    flow_BCTHW = taught_flow(
        networks.dit,
        networks.dit_config,
        clean_BCTHW,
        torch.lerp(target_BCTHW, noise_BCTHW, t_B.view(-1, 1, 1, 1, 1)),
        (t_B * TRAIN_TIMESTEPS)[:, None].expand(-1, len(lesson.noisy)),
        encode_context(networks.dit, networks.dit_config, texts),
        lesson=lesson,
    )
    value = F.mse_loss(flow_BCTHW, noise_BCTHW - target_BCTHW)
    return value, {task.group.name: value.item()}


def shifted(t: Tensor, shift: float) -> Tensor:
    """Noise levels moved towards 1, as `mmpl.wan.flow` moves a schedule's."""
    return shift * t / (1 + (shift - 1) * t)


def encode_captions(networks: Networks, captions: list[str]) -> list[Tensor]:
    """Text embeddings [J, dim], pads zero, differentiable; one per caption."""
    length = networks.dit_config.text_len
    ids = [networks.tokenizer.encode(clean_prompt(text), length) for text in captions]
    longest = max(map(len, ids))
    ids_BJ = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    mask_BJ = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    encoded_BJD = encode_text(networks.text, networks.text_config, ids_BJ, mask_BJ)
    return list(zero_pads(encoded_BJD, mask_BJ))


def _draw_clips(clips: LatentClips, count: int, fresh: bool, rng: np.random.Generator) -> list[int]:
    """Indices of clips; even seeds begin a film, and stand at even places."""
    total = len(clips.seeds)
    if fresh:
        return [int(i) * 2 for i in rng.integers(total // 2, size=count)]
    return [int(i) for i in rng.integers(total, size=count)]


def _jittered(
    clean_BCTHW: Tensor, most: float, rng: np.random.Generator, generator: torch.Generator
) -> Tensor:
    amount = most * float(rng.random())
    return clean_BCTHW + amount * torch.randn(clean_BCTHW.shape, generator=generator)
