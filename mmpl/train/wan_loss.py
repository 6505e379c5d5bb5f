"""Teacher forcing of a Wan-family transformer, over whole segments of encoded clips.

A step teaches every group of a layout on every segment of its batch. All that is random in it is a
`Draw`, which depends on (seed, step, number in the batch of all processes) alone, so that n
processes that share a batch train as one. Source: paper section 3.2 and Table 8; where the paper is
silent, the released training code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from mmpl.errors import ArgumentError, InputError
from mmpl.layout.mask import released_i2v_mask
from mmpl.train.accumulate import mean_of
from mmpl.train.loop import Loss, LossOf, Weights
from mmpl.train.teacher_forcing import Lesson, lesson, masked_lesson, taught_flow
from mmpl.train.tuning import RELEASED_I2V, Tuning
from mmpl.wan import flow
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit import DEFAULT_ENGINE, DiTParams, Engine, encode_context
from mmpl.wan.flex import flex_mask

Kind = Literal["dense", "short"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Clips(Protocol):
    """Encoded clips: latents of one segment each, and the embeddings of its captions, of as many
    tokens J as they have. `negative` is that of the negative prompt, `made` says of what and how
    all this was made."""

    @property
    def negative(self) -> Tensor: ...

    @property
    def made(self) -> Mapping[str, str | int]: ...

    def __len__(self) -> int: ...

    def latents(self, index: int, /) -> Tensor:
        """z_CTHW, normalised."""
        ...

    def text(self, index: int, kind: Kind, /) -> Tensor:
        """[J, text_dim] of one of its captions."""
        ...

    def name(self, index: int, /) -> str: ...


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """What is random in one segment of a step. `text` is a kind of caption, None the negative
    prompt; the clean frames are at noise level `sigma`."""

    clip: int
    text: Kind | None
    t_T: Tensor
    noise_CTHW: Tensor
    sigma: float
    clean_noise_CTHW: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Teaching:
    """What all steps have in common."""

    config: DiTConfig
    tuning: Tuning
    lesson: Lesson
    table: flow.FlowTable
    engine: Engine = DEFAULT_ENGINE


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Segments to learn together, latent frames in time order: clean latents, the `context` that
    the clean frames show (the same, or a little noised), noise and timesteps of the noisy frames,
    and text embeddings [J, text_dim]."""

    z_BCTHW: Tensor
    context_BCTHW: Tensor
    noise_BCTHW: Tensor
    t_BT: Tensor
    texts: Sequence[Tensor]


def teaching(config: DiTConfig, tuning: Tuning, *, engine: Engine = DEFAULT_ENGINE) -> Teaching:
    """All that follows from the settings."""
    released = tuning.layout == RELEASED_I2V
    taught = masked_lesson(released_i2v_mask()) if released else lesson(tuning.groups())
    return Teaching(config, tuning, taught, flow.flow_table(tuning.shift), engine)


def with_flex(shared: Teaching, size_HW: Sequence[int], device: torch.device) -> Teaching:
    """The same with FlexAttention in place of dense pieces, for latents of this height, width."""
    taught, tokens = shared.lesson, shared.config.frame_tokens(*size_HW)
    masked = flex_mask(taught.pieces, taught.frames, tokens, device)
    return replace(shared, lesson=replace(taught, masked=masked))


def frame_losses(params: DiTParams, shared: Teaching, batch: Batch) -> Tensor:
    """[B, T]: squared error of the flow of every latent frame, times its weight. The mean is the
    loss."""
    taught = shared.lesson
    clean, noisy = list(taught.clean), list(taught.noisy)
    t_B1T11 = batch.t_BT[:, None, :, None, None]
    x_BCTHW = flow.add_noise(batch.z_BCTHW, batch.noise_BCTHW, t_B1T11, shared.table)
    flow_BCTHW = taught_flow(
        params,
        shared.config,
        batch.context_BCTHW[:, :, clean],
        x_BCTHW[:, :, noisy],
        batch.t_BT[:, noisy],
        encode_context(params, shared.config, batch.texts, engine=shared.engine),
        lesson=taught,
        engine=shared.engine,
    )
    target_BCTHW = flow.flow_target(batch.z_BCTHW, batch.noise_BCTHW)[:, :, noisy]
    errors_BT = (flow_BCTHW - target_BCTHW).square().mean(dim=(1, 3, 4))
    errors_BT = errors_BT[:, np.argsort(noisy).tolist()]
    if shared.tuning.weighting == "none":
        return errors_BT
    return errors_BT * flow.loss_weight(batch.t_BT, shared.table)


def draw(shared: Teaching, step: int, number: int, clips: Clips) -> Draw:
    """What is random in segment `number` of a step's whole batch."""
    tuning, levels = shared.tuning, shared.table.timesteps
    rng = np.random.default_rng([tuning.seed, step, 1 + number])
    t_T = torch.empty(tuning.groups().frames)
    for frames in tuning.together():
        t_T[list(frames)] = levels[rng.integers(len(levels))]
    kind = KINDS[int(rng.random() >= tuning.dense_captions)]
    # The whole batch or nothing of it, as in the released code.
    dropped = np.random.default_rng([tuning.seed, step, 0]).random() < tuning.prompt_dropout
    sigma = tuning.clean_noise * rng.random()
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    clip = _clip(tuning, step, number, len(clips))
    shape = clips.latents(clip).shape
    noise_CTHW = torch.randn(shape, generator=generator)
    clean_noise_CTHW = torch.randn(shape, generator=generator) if sigma > 0 else None
    return Draw(clip, None if dropped else kind, t_T, noise_CTHW, sigma, clean_noise_CTHW)


def samples_of(clips: Clips, tuning: Tuning) -> Callable[[int], tuple[str, ...]]:
    """The names of the clips of a step, of all processes."""
    numbers = range(tuning.batch)
    return lambda step: tuple(
        clips.name(_clip(tuning, step, number, len(clips))) for number in numbers
    )


def tuning_loss(
    config: DiTConfig,
    params_of: Callable[[Weights], DiTParams],
    clips: Clips,
    tuning: Tuning,
    *,
    engine: Engine = DEFAULT_ENGINE,
    share: tuple[int, int] = (0, 1),
    flex: bool = False,
) -> LossOf:
    """The loss for `mmpl.train.loop.train` of the trained weights, which `params_of` completes.

    Process `share[0]` of `share[1]` takes every so manieth segment of the batch. Its loss is the
    mean over these, so that the mean of all processes is the loss of the whole batch. One segment
    is computed at a time, and its gradient kept. `flex` hides by FlexAttention, not by pieces; the
    clips must then be of one size. Raises ArgumentError for a batch that cannot be shared equally
    and InputError for clips that do not belong to the network.
    """
    rank, world = share
    if tuning.batch % world:
        raise ArgumentError(
            "the batch cannot be shared equally",
            got=f"{tuning.batch} segments for {world} processes",
            wanted=f"a multiple of {world}",
        )
    check_clips(clips, config, tuning.groups().frames)
    own = range(rank, tuning.batch, world)

    def loss_of(weights: Weights) -> Loss:
        params, leaves = params_of(weights), list(weights.values())
        device = leaves[0].device
        shared = teaching(config, tuning, engine=engine)
        if flex:
            shared = with_flex(shared, clips.latents(0).shape[2:], device)

        def loss(step: int) -> tuple[Tensor, dict[str, float]]:
            seen: list[Tensor] = []

            def part(number: int) -> Tensor:
                batch = _batch([draw(shared, step, number, clips)], clips, device)
                losses_BT = frame_losses(params, shared, batch)
                seen.append(losses_BT.detach())
                return losses_BT.mean()

            value = mean_of([partial(part, number) for number in own], leaves)
            return value, _by_group(tuning, torch.cat(seen))

        return loss

    return loss_of


def check_clips(clips: Clips, config: DiTConfig, frames: int) -> None:
    """Raises InputError unless there are clips, and the first one fits the network and has so many
    latent frames."""
    check_captions(clips, config)
    z_CTHW = clips.latents(0)
    patch = config.patch_size[1:]
    wanted = f"{config.in_dim} x {frames} x multiples of {patch[0]} and {patch[1]}"
    sides = [side % step for side, step in zip(z_CTHW.shape[2:], patch)]
    if tuple(z_CTHW.shape[:2]) != (config.in_dim, frames) or z_CTHW.dim() != 4 or any(sides):
        got = " x ".join(map(str, z_CTHW.shape))
        raise InputError(
            "the clips were encoded for another model", where=clips.name(0), got=f"latents {got}",
            wanted=wanted, todo="encode them with the VAE of this model",
        )  # fmt: skip


def captions_alone(clips: Clips) -> bool:
    """Whether there are no latents, as of prompts."""
    return clips.made.get("frames") == 0


def latent_size(clips: Clips, stride: int) -> tuple[int, int]:
    """Height and width of the clips' latents, each so many pixels; of captions alone, of the size
    that they are for."""
    if captions_alone(clips):
        return int(clips.made["height"]) // stride, int(clips.made["width"]) // stride
    height, width = clips.latents(0).shape[2:]
    return height, width


def check_captions(clips: Clips, config: DiTConfig) -> None:
    """Raises InputError unless there are clips, and the texts of the first one fit the network."""
    if not len(clips):
        raise InputError("there are no clips to learn from")
    for text_JD in (clips.negative, *(clips.text(0, kind) for kind in KINDS)):
        if text_JD.shape[1:] != (config.text_dim,) or len(text_JD) > config.text_len:
            raise InputError(
                "the captions were encoded for another model",
                where=clips.name(0),
                got=f"text {' x '.join(map(str, text_JD.shape))}",
                wanted=f"at most {config.text_len} x {config.text_dim}",
                todo="encode them with the text encoder of this model",
            )


def _clip(tuning: Tuning, step: int, number: int, clips: int) -> int:
    """Every clip once, in an order of its own, before any comes again."""
    turn, place = divmod(step * tuning.batch + number, clips)
    order = np.random.default_rng([tuning.seed, turn, 0, 1]).permutation(clips)
    return int(order[place])


def _batch(draws: Sequence[Draw], clips: Clips, device: torch.device) -> Batch:
    z_BCTHW = torch.stack([clips.latents(one.clip).float() for one in draws])
    context_BCTHW = torch.stack(
        [
            z_CTHW
            if one.clean_noise_CTHW is None
            else flow.renoise(z_CTHW, one.clean_noise_CTHW, one.sigma)
            for z_CTHW, one in zip(z_BCTHW, draws, strict=True)
        ]
    )
    texts = [
        clips.negative if one.text is None else clips.text(one.clip, one.text) for one in draws
    ]
    return Batch(
        z_BCTHW.to(device),
        context_BCTHW.to(device),
        torch.stack([one.noise_CTHW for one in draws]).to(device),
        torch.stack([one.t_T for one in draws]).to(device),
        [text_JD.to(device) for text_JD in texts],
    )


def _by_group(tuning: Tuning, losses_BT: Tensor) -> dict[str, float]:
    groups = tuning.groups().groups
    return {group.name: losses_BT[:, list(group.frames)].mean().item() for group in groups}
