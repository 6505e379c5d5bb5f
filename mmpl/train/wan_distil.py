"""The distillation of a Wan-family transformer in a run folder, from encoded clips or prompts.

Of a clip only its captions are used, and its first latent frame where a layout begins with an
image. Three networks play (see `self_mmpl`): the student, in the end a checkpoint in official keys
(`wan_run.export`), and two that may be of another size, the teacher and a critic begun as it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mmpl.checkpoint.bundle import Transformer
from mmpl.errors import InputError
from mmpl.layout.given import require_whole
from mmpl.layout.layout import Layout
from mmpl.layout.presets import by_name
from mmpl.train.distil import DistilRecipe, distil
from mmpl.train.distil_memory import DistilMemory, distil_memory
from mmpl.train.loop import Progress
from mmpl.train.parallel import Network
from mmpl.train.self_mmpl import Batch, Draw, Matching, Teacher, begins_with_image, self_mmpl
from mmpl.train.wan_loss import (
    KINDS,
    Clips,
    Kind,
    captions_alone,
    check_captions,
    check_clips,
    latent_size,
)
from mmpl.train.wan_run import network_of
from mmpl.train.world import ALONE, World
from mmpl.wan.config import DiTConfig, VAEConfig
from mmpl.wan.dit import DEFAULT_ENGINE, Engine
from mmpl.wan.ops import natural_precision
from mmpl.wan.vae import VAEParams

SEEDS = (0, 1)  # the latent frames that a segment is handed


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is distilled. `dense_captions`: share of dense captions, the others being short
    ones. Passes compute in `dtype`; `shard` spreads the weights over the processes."""

    matching: Matching
    recipe: DistilRecipe
    dense_captions: float
    dtype: torch.dtype
    shard: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Cast:
    """Who the student begins as, who teaches it, and the VAE in whose latents both think."""

    student: Transformer
    teacher: Transformer
    vae: VAEParams
    vae_config: VAEConfig


def distil_wan(
    cast: Cast,
    clips: Clips,
    run: Path,
    plan: Plan,
    *,
    device: str = "cpu",
    engine: Engine = DEFAULT_ENGINE,
    world: World = ALONE,
    save_every: int = 100,
) -> Iterator[Progress]:
    """Distils in the folder `run`, resuming what is there; yields progress every step.

    All weights of student and critic move, as float32; the teacher's are held as passes read them.
    The processes of `world` share the batch, which each makes one clip at a time. Raises what
    `mmpl.train.distil.distil` does, ArgumentError for a batch that cannot be shared or layouts
    that cannot begin as asked, and InputError for clips that do not belong to the networks.
    """
    matching = plan.matching
    for layout in (by_name(name) for name, _ in matching.layouts):
        if matching.own_seeds:
            require_whole(layout, SEEDS)
        for one in (cast.student, cast.teacher):
            check_data(clips, one.config, layout)
    share = world.share(range(matching.batch))
    engine = replace(engine, precision=natural_precision(plan.dtype))

    def held(one: Transformer, names: tuple[str, ...]) -> Network:
        return network_of(one, names, device=device, engine=engine, world=world, shard=plan.shard)

    student = held(cast.student, tuple(cast.student.flat))
    critic = held(cast.teacher, tuple(cast.teacher.flat))
    real = held(cast.teacher, ())
    turns = self_mmpl(
        _teacher(cast, clips, real, device),
        cast.student.config,
        draw_from(clips, plan.dense_captions, device),
        matching,
        engine=student.engine,
        networks=(student, critic),
        share=share,
    )
    yield from distil(
        student.start,
        critic.start,
        turns,
        plan.recipe,
        run,
        setting=_setting(cast, clips, plan),
        save_every=save_every,
        report_every=1,
        world=world,
    )


def check_data(clips: Clips, config: DiTConfig, layout: Layout) -> None:
    """Raises InputError unless there are clips that fit the network and the layout; captions alone
    do for one that does not begin with an image."""
    if not captions_alone(clips):
        check_clips(clips, config, layout.frames)
    elif begins_with_image(layout):
        raise InputError(
            "captions alone have no first frame to begin with",
            where=clips.name(0),
            got=f"layout {layout.name}",
            todo="encode videos for it, or leave it out of --layouts",
        )
    else:
        check_captions(clips, config)


def draw_from(clips: Clips, dense_captions: float, device: str = "cpu") -> Draw:
    """Draws clips with replacement: of each one caption, and its first latent frame for layouts
    that begin with an image."""

    def draw(rng: np.random.Generator, count: int, layout: Layout) -> Batch:
        chosen = rng.integers(len(clips), size=count).tolist()
        kinds: list[Kind] = [KINDS[int(drawn >= dense_captions)] for drawn in rng.random(count)]
        texts = [clips.text(clip, kind).to(device) for clip, kind in zip(chosen, kinds)]
        if not begins_with_image(layout):
            return Batch(texts, {})
        images = [clips.latents(clip)[:, 0].to(device, torch.float32) for clip in chosen]
        return Batch(texts, {0: torch.stack(images)})

    return draw


def plan_of_memory(
    student: DiTConfig,
    teacher: DiTConfig,
    plan: Plan,
    latent_size: tuple[int, int],
    *,
    shards: int,
    checkpointing: bool,
) -> DistilMemory:
    """What `distil_wan` takes of a device, for latents of this height and width."""
    matching = plan.matching
    return distil_memory(
        student,
        teacher,
        [by_name(name) for name, _ in matching.layouts],
        latent_size,
        bidirectional=matching.scores == "bidirectional",
        shards=shards,
        precision=natural_precision(plan.dtype),
        frozen=plan.dtype,
        checkpointing=checkpointing,
    )


def _teacher(cast: Cast, clips: Clips, network: Network, device: str) -> Teacher:
    return Teacher(
        params=network.params_of({}),
        config=cast.teacher.config,
        negative=clips.negative.to(device),
        vae=cast.vae,
        vae_config=cast.vae_config,
        latent_shape=(
            cast.teacher.config.in_dim,
            *latent_size(clips, cast.vae_config.spatial_stride),
        ),
        within=network.within,
    )


def _setting(cast: Cast, clips: Clips, plan: Plan) -> dict[str, object]:
    """All that the result depends on beside the recipe."""
    return {
        "network": cast.student.config,
        "model": cast.student.digest,
        "critic": cast.teacher.config,
        "teacher": cast.teacher.digest,
        "matching": plan.matching,
        "dense_captions": plan.dense_captions,
        "dtype": str(plan.dtype),
        "data": sorted(clips.made.items()),
    }
