"""Self-MMPL: a few-step generator distilled by distribution matching on its own rollouts.

A rollout makes the groups of a segment in order, each over the generator's own clean context, with
a gradient at one step that all groups share. Two score networks look at the clip it gives, noised
again: the real one is the teacher, guided; the fake one, the critic, learns what the generator
makes. Their difference says where the clip should go.
Sources: paper K.2 and Table 8, DMD2, Self-Forcing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.layout.layout import Group, Layout, needed
from mmpl.layout.presets import bidirectional_window, by_name
from mmpl.layout.timeline import chain_of
from mmpl.train.accumulate import mean_of
from mmpl.train.distil import Metrics, Turn, TurnsOf
from mmpl.train.parallel import Network, Within, plainly
from mmpl.train.rollout import Latents, Noise, Reader, few_steps, open_memory, read, roll_out, stack
from mmpl.train.state import Weights
from mmpl.train.teacher_forcing import Lesson, taught_flow
from mmpl.train.teacher_forcing import lesson as lesson_of
from mmpl.wan import vae
from mmpl.wan.config import DiTConfig, VAEConfig
from mmpl.wan.dit import DEFAULT_ENGINE, DiTParams, Engine, dit_from_flat
from mmpl.wan.flow import TRAIN_TIMESTEPS, guided, schedule, shifted, x0_from_flow

ScoresOf = Literal["bidirectional", "layout"]
SCORES: tuple[str, ...] = get_args(ScoresOf)
ROLLOUT, CRITIC, GENERATOR = range(3)  # what a generator of random numbers is for


@dataclass(frozen=True, slots=True)
class Matching:
    """What is distilled, but for the rates. Values given here are Self-Forcing's.

    `layouts`: names, and how often each is rolled out. `batch`: clips a step. `steps`, `shift`: of
    the sampling. `guidance`: of the real score. `scores`: what the score networks were trained for:
    whole clips ("bidirectional"), or groups over a clean context, which is then the rollout's own
    ("layout"). `own_seeds`: share of the steps whose segment begins with the generator's own
    keyframes, handed over up to `hand_overs` times. `fresh`: every update of the critic sees a
    rollout of its own, not the generator's. `least_t`, `most_t`: bounds of the scores' timesteps.
    """

    layouts: tuple[tuple[str, float], ...]
    batch: int
    scores: ScoresOf
    steps: int = 4
    shift: float = 5.0
    guidance: float = 3.0
    own_seeds: float = 0.5
    hand_overs: int = 1
    fresh: bool = True
    least_t: float = 20.0
    most_t: float = 980.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scores not in SCORES:
            raise ArgumentError("unknown scores", got=self.scores, wanted=" or ".join(SCORES))
        counts = min(self.batch, self.steps, self.hand_overs) > 0 and bool(self.layouts)
        if not (counts and 0 <= self.own_seeds <= 1 and 0 < self.least_t < self.most_t <= 1000):
            raise ArgumentError("the distillation is out of range", got=self)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a rollout is asked for: `texts` [J, text_dim], one per clip, and the given latents, of
    z_BCHW: none, or those of layout's first group if that is an image."""

    texts: list[Tensor]
    given: Latents


class Draw(Protocol):
    """Draws the texts of `count` clips and, for layouts that begin with one, their images."""

    def __call__(self, rng: np.random.Generator, count: int, layout: Layout) -> Batch: ...


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """The real score network, and what goes with it: the text to lead away from, and the VAE, in
    whose latents [C, H, W] all of it happens. Its parameters are used `within` something."""

    params: DiTParams
    config: DiTConfig
    negative: Tensor
    vae: vae.VAEParams
    vae_config: VAEConfig
    latent_shape: tuple[int, int, int]
    within: Within = plainly


def scores_of(layout: str) -> ScoresOf:
    """The form of score of a network that was trained for the layout of this name."""
    return "bidirectional" if layout.startswith("bidirectional") else "layout"


def begins_with_image(layout: Layout) -> bool:
    """Whether its first group is one frame, a given picture (image-to-video)."""
    return len(layout.groups[0].frames) == 1


def self_mmpl(
    teacher: Teacher,
    config: DiTConfig,
    draw: Draw,
    matching: Matching,
    *,
    engine: Engine = DEFAULT_ENGINE,
    networks: tuple[Network, Network] | None = None,
    share: Sequence[int] | None = None,
) -> TurnsOf:
    """The turns for `mmpl.train.distil.distil` of two transformers in official keys: a generator of
    this config and a critic of the teacher's. `networks` hold both where they are not whole.

    By default all clips of a step are made together. With `share` this process makes those of
    these numbers, one after the other, each from randomness of its own, so that several processes
    make what one would; only layout, exit step and way to begin are then common to a step. Raises
    ArgumentError if such clips are to be kept from the critic to the generator.
    """
    if share is not None and not matching.fresh:
        raise ArgumentError("clips that are made one by one cannot be kept", wanted="fresh")

    def turns_of(generator: Weights, critic: Weights) -> Callable[[int], Turn]:
        student, fake = networks or (
            Network(generator, partial(dit_from_flat, config=config), engine),
            Network(critic, partial(dit_from_flat, config=teacher.config), engine),
        )
        game = _Game(
            teacher,
            _Player(generator, student.params_of(generator), config, student.within),
            _Player(critic, fake.params_of(critic), teacher.config, fake.within),
            draw,
            matching,
            engine,
            (None,) if share is None else tuple(share),
        )
        return lambda step: _turn(game, step)

    return turns_of


def matching_loss(x: Tensor, real_x0: Tensor, fake_x0: Tensor) -> Tensor:
    """A loss whose gradient at samples `x` [B, ...] leads from what the critic predicts to what the
    teacher does, each clip in units of its own mean distance from the teacher's prediction."""
    with torch.no_grad():
        distance = (x - real_x0).abs().mean(dim=tuple(range(1, x.dim())), keepdim=True)
        target = x - (fake_x0 - real_x0) / distance
    return 0.5 * F.mse_loss(x, target)


@dataclass(frozen=True, slots=True, eq=False)
class _Player:
    """A network that learns."""

    weights: Weights
    params: DiTParams
    config: DiTConfig
    within: Within


@dataclass(frozen=True, slots=True, eq=False)
class _Game:
    """Who plays, and by which rules. `numbers` of the clips to make one by one; None: all."""

    teacher: Teacher
    student: _Player
    fake: _Player
    draw: Draw
    matching: Matching
    engine: Engine
    numbers: tuple[int | None, ...]

    def score(self, params: DiTParams, texts: Sequence[Tensor]) -> Reader:
        """One of the score networks, having read the texts."""
        return read(params, self.teacher.config, texts, self.engine)

    def mean(self, player: _Player, loss: Callable[[int | None], Tensor]) -> Tensor:
        """Of a player's losses of all clips, one by one."""
        parts = [partial(loss, number) for number in self.numbers]
        return player.within(lambda: mean_of(parts, list(player.weights.values())))


@dataclass(frozen=True, slots=True, eq=False)
class _Clips:
    """A rollout: its texts, the frames that are scored, over which clean ones, and all latents."""

    texts: list[Tensor]
    lesson: Lesson
    z_BCTHW: Tensor

    @property
    def scored_BCTHW(self) -> Tensor:
        return self.z_BCTHW[:, :, list(self.lesson.noisy)]

    @property
    def clean_BCTHW(self) -> Tensor:
        return self.z_BCTHW[:, :, list(self.lesson.clean)].detach()


def _turn(game: _Game, step: int) -> Turn:
    """A shared rollout is kept with its graph, which the critic's updates do not touch."""
    kept = None if game.matching.fresh else _rolled_out(game, step, 0, None)

    def critic(update: int) -> Tensor:
        def loss(number: int | None) -> Tensor:
            clips = kept
            if clips is None:
                with torch.no_grad():
                    clips = game.student.within(lambda: _rolled_out(game, step, update + 1, number))
            return _critic_loss(game, clips, [step, CRITIC, update, *_key(number)])

        return game.mean(game.fake, loss)

    def generator() -> tuple[Tensor, Metrics]:
        apart: list[float] = []

        def loss(number: int | None) -> Tensor:
            clips = kept or _rolled_out(game, step, 0, number)
            value, distance = _generator_loss(game, clips, [step, GENERATOR, *_key(number)])
            apart.append(distance)
            return value

        return game.mean(game.student, loss), {"apart": sum(apart) / len(apart)}

    return Turn(critic, generator)


def _key(number: int | None) -> tuple[int, ...]:
    return () if number is None else (1 + number,)


def _rolled_out(game: _Game, step: int, part: int, number: int | None) -> _Clips:
    """Clips of the student, all or that of this number; layout, exit step and way to begin are
    drawn once for all of them, so that all processes pass through the same blocks."""
    matching = game.matching
    rng = np.random.default_rng([matching.seed, step, ROLLOUT, part])
    odds = np.array([share for _, share in matching.layouts])
    layout = by_name(matching.layouts[rng.choice(len(odds), p=odds / odds.sum())][0])
    exit_step = int(rng.integers(matching.steps))
    handed_over = rng.random() < matching.own_seeds
    own, count = rng, matching.batch
    if number is not None:
        own = np.random.default_rng([matching.seed, step, ROLLOUT, part, *_key(number)])
        count = 1
    batch = game.draw(own, count, layout)
    student = game.student
    reader = read(student.params, student.config, batch.texts, game.engine)
    noise = _noise(game, own, len(batch.texts))
    given = batch.given
    if handed_over:
        for _ in range(int(rng.integers(1, matching.hand_overs + 1))):
            given = _own_seeds(game, reader, layout, given, noise)
    latents = _roll_out(game, reader, layout, layout.groups, given, noise, exit_step)
    made = [group for group in layout.groups if not given.keys() >= set(group.frames)]
    lesson = lesson_of(layout, made)
    if matching.scores == "bidirectional":
        lesson = lesson_of(bidirectional_window(layout.frames, 0))
    return _Clips(batch.texts, lesson, stack(latents, range(layout.frames)))


def _roll_out(
    game: _Game,
    reader: Reader,
    layout: Layout,
    groups: Sequence[Group],
    given: Latents,
    noise: Noise,
    exit_step: int,
) -> dict[int, Tensor]:
    grid = schedule("few_step", game.matching.steps, game.matching.shift)
    memory = open_memory(reader, layout, game.teacher.latent_shape[1:])
    return roll_out(
        memory,
        layout,
        groups,
        given,
        lambda memory, group: few_steps(memory, group, grid, noise, exit_step),
    )


@torch.no_grad()
def _own_seeds(
    game: _Game, reader: Reader, layout: Layout, given: Latents, noise: Noise
) -> dict[int, Tensor]:
    """The seeds of the segment after one that the student plans from `given`."""
    teacher, last = game.teacher, game.matching.steps - 1
    config = teacher.vae_config
    chain = chain_of(layout, seeding="terminal", temporal_stride=config.temporal_stride)
    groups = needed(layout, chain.handover)
    latents = _roll_out(game, reader, layout, groups, given, noise, last)
    z_BCTHW = stack(latents, chain.handover)
    seeds_BCTHW = vae.encode_again(teacher.vae, config, z_BCTHW, chain.handover_frames)
    return dict(enumerate(seeds_BCTHW.unbind(2)))


def _noise(game: _Game, rng: np.random.Generator, count: int) -> Noise:
    """Noise of groups in the order of a rollout, drawn on the CPU: the same on every device."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    channels, rows, columns = game.teacher.latent_shape
    device = game.student.params.head.head.weight.device

    def noise(group: Group, step: int) -> Tensor:
        shape = (count, channels, len(group.frames), rows, columns)
        return torch.randn(shape, generator=generator).to(device)

    return noise


def _critic_loss(game: _Game, clips: _Clips, purpose: list[int]) -> Tensor:
    """Flow matching on what the generator made."""
    x_BCTHW = clips.scored_BCTHW.detach()
    sigma_B, noise_BCTHW = _noised(game, x_BCTHW, purpose)
    fake = game.score(game.fake.params, clips.texts)
    flow_BCTHW = _flow(game, fake, clips, sigma_B, noise_BCTHW)
    return F.mse_loss(flow_BCTHW, noise_BCTHW - x_BCTHW)


def _generator_loss(game: _Game, clips: _Clips, purpose: list[int]) -> tuple[Tensor, float]:
    """The loss, and how far the scores' predictions are apart, in units of the clips' distance."""
    x_BCTHW = clips.scored_BCTHW
    sigma_B, noise_BCTHW = _noised(game, x_BCTHW, purpose)

    def fake_flow() -> Tensor:
        fake = game.score(game.fake.params, clips.texts)
        return _flow(game, fake, clips, sigma_B, noise_BCTHW)

    with torch.no_grad():
        level = sigma_B.view(-1, 1, 1, 1, 1)
        noisy_BCTHW = torch.lerp(x_BCTHW, noise_BCTHW, level)
        v_BCTHW = game.fake.within(fake_flow)
        fake_BCTHW = x0_from_flow(v_BCTHW, noisy_BCTHW, level)
        v_BCTHW = game.teacher.within(lambda: _guided_flow(game, clips, sigma_B, noise_BCTHW))
        real_BCTHW = x0_from_flow(v_BCTHW, noisy_BCTHW, level)
        apart = (fake_BCTHW - real_BCTHW).abs().mean() / (x_BCTHW - real_BCTHW).abs().mean()
    return matching_loss(x_BCTHW, real_BCTHW, fake_BCTHW), apart.item()


def _guided_flow(game: _Game, clips: _Clips, sigma_B: Tensor, noise_BCTHW: Tensor) -> Tensor:
    """The teacher's flow, both branches of guidance in one pass."""
    teacher, scale = game.teacher, game.matching.guidance
    if scale == 1.0:
        return _flow(game, game.score(teacher.params, clips.texts), clips, sigma_B, noise_BCTHW)
    texts = [*clips.texts, *[teacher.negative] * len(clips.texts)]
    both = _Clips(texts, clips.lesson, clips.z_BCTHW.repeat(2, 1, 1, 1, 1))
    flow_BCTHW = _flow(
        game,
        game.score(teacher.params, texts),
        both,
        sigma_B.repeat(2),
        noise_BCTHW.repeat(2, 1, 1, 1, 1),
    )
    v_cond, v_uncond = flow_BCTHW.chunk(2)
    return guided(v_cond, v_uncond, scale)


def _flow(
    game: _Game, reader: Reader, clips: _Clips, sigma_B: Tensor, noise_BCTHW: Tensor
) -> Tensor:
    """The flow of the scored frames, noised to `sigma_B`."""
    x_BCTHW = clips.scored_BCTHW.detach()
    return taught_flow(
        reader.params,
        reader.config,
        clips.clean_BCTHW,
        torch.lerp(x_BCTHW, noise_BCTHW, sigma_B.view(-1, 1, 1, 1, 1)),
        (sigma_B * TRAIN_TIMESTEPS)[:, None].expand(-1, x_BCTHW.shape[2]),
        reader.context,
        lesson=clips.lesson,
        engine=game.engine,
    )


def _noised(game: _Game, x_BCTHW: Tensor, purpose: list[int]) -> tuple[Tensor, Tensor]:
    """One noise level for all frames of a clip, and the noise."""
    matching = game.matching
    rng = np.random.default_rng([matching.seed, *purpose])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    drawn_B = shifted(torch.rand(len(x_BCTHW), generator=generator), matching.shift)
    low, high = matching.least_t / TRAIN_TIMESTEPS, matching.most_t / TRAIN_TIMESTEPS
    noise_BCTHW = torch.randn(x_BCTHW.shape, generator=generator)
    return drawn_B.clamp(low, high).to(x_BCTHW.device), noise_BCTHW.to(x_BCTHW.device)
