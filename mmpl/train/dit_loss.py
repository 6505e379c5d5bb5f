"""Teacher forcing for the transformer and its text encoder, group by group of a layout.

A step draws a layout and teaches every group of it, each on clips of its own: the group's frames
are noised at one timestep, as at inference, and its context stands before them clean, seeing itself
as the layout says. Gradients flow through the clean context. Source: the released training code's
mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mmpl.layout.layout import Group, Layout
from mmpl.train.clips import caption
from mmpl.train.latents import LatentClips
from mmpl.train.loop import Loss, LossOf, Weights
from mmpl.train.teacher_forcing import Lesson, taught_flow
from mmpl.train.teacher_forcing import lesson as lesson_of
from mmpl.wan.config import DiTConfig, TextConfig
from mmpl.wan.dit import (
    DEFAULT_ENGINE,
    CrossKV,
    DiTParams,
    Engine,
    dit_from_flat,
    encode_context,
)
from mmpl.wan.flow import TRAIN_TIMESTEPS, shifted
from mmpl.wan.text import TextParams, encode_text, text_from_flat, zero_pads
from mmpl.wan.tokenizer import Tokenizer, clean_prompt

_OWN_STEPS = 3
_OWN_GUIDANCE = 2.5  # exaggerates as guidance along a chain does


@dataclass(frozen=True, slots=True)
class Task:
    """One group to learn. `share`: of the frames of a step, and of its loss. `fresh`: learned from
    the beginnings of films alone, for it is made without any context."""

    group: Group
    share: float
    fresh: bool


@dataclass(frozen=True, slots=True)
class Course:
    """The tasks of one layout, taught together; drawn for a step with these `odds`.

    `levels`: "group", one timestep for all frames of a group, as layouts are sampled; or "frame",
    one for each, for methods whose frames are at different noise levels at a time: half of the
    clips at levels that rise along time, half at any, and the first frames often clean.

    Together, because only the first frames must be read off the text: steps without them would
    move the text's weights at random, and Muon, which makes all updates equally large, far.
    """

    layout: Layout
    odds: float
    tasks: tuple[Task, ...]
    levels: Literal["group", "frame"] = "group"


@dataclass(frozen=True, slots=True)
class DiTTraining:
    """`frames`: latent frames a step, context included. `shift` moves the drawn timesteps towards
    noise, as the sampler's does. `prompt_dropout`: share of samples with an empty prompt.
    `backgrounds`: share of captions that name the background. Two things stand against drift along
    the chain: `context_noise`, the largest noise on the clean context, relative to the latents'
    spread, and `own_seeds`: a plan's seeds are noised as far as up to this quantile of the drawn
    timesteps and denoised again by the network itself, so that it learns to mend what it does.
    `clips`: how many of the whole clips are used, the first ones. `odds`: shapes and motions that
    are drawn more often than the others, and how many times as often."""

    courses: tuple[Course, ...]
    frames: int
    clips: int
    shift: float = 3.0
    prompt_dropout: float = 0.1
    context_noise: float = 0.1
    seed: int = 0
    backgrounds: float = 0.4
    own_seeds: float = 0.0
    odds: tuple[tuple[str, float], ...] = ()


def course(
    layout: Layout,
    odds: float,
    weights: Mapping[str, float] = MappingProxyType({}),
    *,
    levels: Literal["group", "frame"] = "group",
) -> Course:
    """All groups of a layout, with shares by group name, 1 where none is given, 0 to leave one out.

    A first group of a single frame is given, not learned (image-to-video).
    """
    learned = [
        group
        for group in layout.groups
        if weights.get(group.name, 1.0) > 0 and (group.sees or len(group.frames) > 1)
    ]
    total = sum(weights.get(group.name, 1.0) for group in learned)
    return Course(
        layout,
        odds,
        tuple(
            Task(group, weights.get(group.name, 1.0) / total, fresh=not group.sees)
            for group in learned
        ),
        levels,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Normalised latents: whole segments, and the first frames of many more films."""

    clips: LatentClips
    beginnings: LatentClips


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """Clips, and how likely each is to be drawn."""

    clips: LatentClips
    odds_N: NDArray[np.float64]

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        return rng.choice(len(self.odds_N), size=count, p=self.odds_N).tolist()


@dataclass(frozen=True, slots=True, eq=False)
class _Pools:
    """Whole clips, those of them that begin a film, and the first frames of many more films."""

    whole: _Pool
    beginning: _Pool
    beginnings: _Pool

    def of(self, task: Task) -> _Pool:
        """What a task is learned from: what is made from nothing, from beginnings of films alone,
        for only these can be read off their captions."""
        if not task.fresh:
            return self.whole
        short = task.group.frames[-1] < self.beginnings.clips.z_BCTHW.shape[2]
        return self.beginnings if short else self.beginning


@dataclass(frozen=True, slots=True, eq=False)
class Networks:
    """What is trained: the transformer and the text encoder, over one tokenizer."""

    dit: DiTParams
    dit_config: DiTConfig
    text: TextParams
    text_config: TextConfig
    tokenizer: Tokenizer
    engine: Engine


@dataclass(frozen=True, slots=True, eq=False)
class _Dice:
    """Where all that is drawn for a step comes from: choices, and noise."""

    rng: np.random.Generator
    generator: torch.Generator


def split(weights: Weights, prefix: str) -> Weights:
    """The weights below `prefix.`, with it removed."""
    return {n[len(prefix) + 1 :]: t for n, t in weights.items() if n.startswith(prefix + ".")}


def dit_loss(
    dit_config: DiTConfig,
    text_config: TextConfig,
    tokenizer: Tokenizer,
    data: Data,
    training: DiTTraining,
    *,
    engine: Engine = DEFAULT_ENGINE,
) -> LossOf:
    """The loss for `mmpl.train.loop.train` of weights `dit.*` and `text.*`, in official keys."""
    clips = data.clips.first(training.clips)
    pools = _Pools(
        _pool(clips, training),
        _pool(clips, training, begin=True),
        _pool(data.beginnings, training),
    )

    def loss_of(weights: Weights) -> Loss:
        networks = Networks(
            dit_from_flat(split(weights, "dit"), dit_config),
            dit_config,
            text_from_flat(split(weights, "text"), text_config),
            text_config,
            tokenizer,
            engine,
        )
        return lambda step: _loss(networks, pools, training, step)

    return loss_of


def _pool(clips: LatentClips, training: DiTTraining, *, begin: bool = False) -> _Pool:
    times = dict(training.odds)
    specs = [clips.spec(i) for i in range(len(clips.seeds))]
    odds_N = np.array([times.get(s.shape, 1.0) * times.get(s.motion, 1.0) for s in specs])
    if begin:
        odds_N *= [s.start_frame == 0 for s in specs]
    return _Pool(clips, odds_N / odds_N.sum())


def _loss(
    networks: Networks, pools: _Pools, training: DiTTraining, step: int
) -> tuple[Tensor, dict[str, float]]:
    rng = np.random.default_rng([training.seed, step])
    dice = _Dice(rng, torch.Generator().manual_seed(int(rng.integers(2**62))))
    odds = np.array([course.odds for course in training.courses])
    drawn = training.courses[rng.choice(len(odds), p=odds / odds.sum())]
    values, losses = {}, []
    for task in drawn.tasks:
        lesson = lesson_of(drawn.layout, [task.group])
        frames = len(lesson.clean) + len(lesson.noisy)
        count = max(1, round(task.share * training.frames / frames))
        pool = pools.of(task)
        chosen = pool.draw(dice.rng, count)
        seeds = _first_group(drawn.layout, lesson) if training.own_seeds > 0 else None
        value = _task_loss(
            networks, pool.clips, training, lesson, seeds, drawn.levels, chosen, dice
        )
        losses.append(task.share * value)
        values[task.group.name] = value.item()
    return torch.stack(losses).sum(), values


def _task_loss(
    networks: Networks,
    clips: LatentClips,
    training: DiTTraining,
    lesson: Lesson,
    seeds: Lesson | None,
    levels: str,
    chosen: list[int],
    dice: _Dice,
) -> Tensor:
    """Mean squared error of the flow on the chosen clips, at timesteps of its own for each.

    With `seeds`, the pass that makes the context, the context is of the network's own making.
    """
    z_BCTHW = clips.z_BCTHW[chosen]
    rng, generator = dice.rng, dice.generator
    clean_BCTHW = _jittered(z_BCTHW[:, :, list(lesson.clean)], training.context_noise, dice)
    target_BCTHW = z_BCTHW[:, :, list(lesson.noisy)]
    device = target_BCTHW.device  # numbers are drawn on the CPU: the same on every device
    noise_BCTHW = torch.randn(target_BCTHW.shape, generator=generator).to(device)
    t_BT = _timesteps(target_BCTHW.shape, levels, training.shift, generator).to(device)
    captions = [
        ""
        if rng.random() < training.prompt_dropout
        else caption(clips.spec(i), int(variant), backgrounds=training.backgrounds)
        for i, variant in zip(chosen, rng.integers(2**31, size=len(chosen)))
    ]
    if seeds is not None:
        far_B = shifted(
            training.own_seeds * torch.rand(len(chosen), generator=generator), training.shift
        )
        noise = torch.randn(clean_BCTHW.shape, generator=generator).to(device)
        clean_BCTHW = _made_again(networks, seeds, clean_BCTHW, noise, far_B.to(device), captions)
    flow_BCTHW = taught_flow(
        networks.dit,
        networks.dit_config,
        clean_BCTHW,
        torch.lerp(target_BCTHW, noise_BCTHW, t_BT[:, None, :, None, None]),
        t_BT * TRAIN_TIMESTEPS,
        _context(networks, captions),
        lesson=lesson,
        engine=networks.engine,
    )
    return F.mse_loss(flow_BCTHW, noise_BCTHW - target_BCTHW)


def _timesteps(shape: torch.Size, levels: str, shift: float, generator: torch.Generator) -> Tensor:
    """Timesteps t_BT in [0, 1] for clips of `shape` BCTHW, as `Course` says of its `levels`."""
    clips, _, frames = shape[:3]
    if levels == "group":
        return shifted(torch.rand(clips, generator=generator), shift)[:, None].expand(-1, frames)
    t_BT = shifted(torch.rand(clips, frames, generator=generator), shift)
    rising_B1, clean_B1 = torch.rand(2, clips, 1, generator=generator)
    t_BT = torch.where(rising_B1 < 0.5, t_BT.sort(dim=1).values, t_BT)
    # None clean in half of the clips, else any number but all of the frames.
    known_B1 = ((2 * clean_B1 - 1) * frames).floor()
    return torch.where(torch.arange(frames) < known_B1, 0.0, t_BT)


def _first_group(layout: Layout, lesson: Lesson) -> Lesson | None:
    """The pass that makes the context of `lesson`, if that is one group made from nothing."""
    for group in layout.groups:
        if not group.sees and len(group.frames) > 1 and group.frames == lesson.clean:
            return lesson_of(layout, [group])
    return None


@torch.no_grad()
def _made_again(
    networks: Networks,
    lesson: Lesson,
    z_BCTHW: Tensor,
    noise_BCTHW: Tensor,
    t_B: Tensor,
    captions: list[str],
) -> Tensor:
    """Frames noised to the timesteps `t_B` in [0, 1] and denoised by the network, guided, in a few
    steps: with errors of the kind that sampling leaves."""
    made_BCTHW = torch.lerp(z_BCTHW, noise_BCTHW, t_B.view(-1, 1, 1, 1, 1))
    context = _context(networks, [*captions, *[""] * len(captions)])
    for step in range(_OWN_STEPS):
        t_now_B = t_B * (1 - step / _OWN_STEPS)
        both_BCTHW = made_BCTHW.repeat(2, 1, 1, 1, 1)
        flow_BCTHW, unconditional_BCTHW = taught_flow(
            networks.dit,
            networks.dit_config,
            both_BCTHW[:, :, :0],
            both_BCTHW,
            (t_now_B * TRAIN_TIMESTEPS).repeat(2)[:, None].expand(-1, len(lesson.noisy)),
            context,
            lesson=lesson,
            engine=networks.engine,
        ).chunk(2)
        flow_BCTHW = torch.lerp(unconditional_BCTHW, flow_BCTHW, _OWN_GUIDANCE)
        made_BCTHW = made_BCTHW - (t_B / _OWN_STEPS).view(-1, 1, 1, 1, 1) * flow_BCTHW
    return made_BCTHW


def _context(networks: Networks, captions: list[str]) -> CrossKV:
    texts = encode_captions(networks, captions)
    return encode_context(networks.dit, networks.dit_config, texts, engine=networks.engine)


def encode_captions(networks: Networks, captions: list[str]) -> list[Tensor]:
    """Text embeddings [J, dim], pads zero, differentiable; one per caption."""
    length = networks.dit_config.text_len
    ids = [networks.tokenizer.encode(clean_prompt(text), length) for text in captions]
    longest = max(map(len, ids))
    device = networks.text.norm.weight.device
    ids_BJ = torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=device)
    marks = [[1] * len(row) + [0] * (longest - len(row)) for row in ids]
    mask_BJ = torch.tensor(marks, device=device)
    encoded_BJD = encode_text(networks.text, networks.text_config, ids_BJ, mask_BJ)
    return list(zero_pads(encoded_BJD, mask_BJ))


def _jittered(clean_BCTHW: Tensor, most: float, dice: _Dice) -> Tensor:
    amount = most * float(dice.rng.random())
    noise = torch.randn(clean_BCTHW.shape, generator=dice.generator)
    return clean_BCTHW + amount * noise.to(clean_BCTHW.device)
