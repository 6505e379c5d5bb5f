"""The blueprint of weights/tiny-fast: weights/tiny distilled to four steps without guidance.

    paths of the teacher -> jump (regression to their ends) -> bundle

Between the last two there may be match (Self-MMPL), whose weights are then the bundle's. All in one
run folder. Every stage resumes from what the folder holds, and refuses a folder that was
made otherwise. The text encoder and the VAE are the teacher's, unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmpl.checkpoint.bundle import Configs, Defaults, Model, write_bundle
from mmpl.errors import ArgumentError
from mmpl.layout.layout import Layout
from mmpl.train.clips import caption, draw_spec, render_batch
from mmpl.train.distil import DistilRecipe, distil
from mmpl.train.loop import Progress, Recipe, train
from mmpl.train.paths import Teaching, jump_loss, read_paths, teach
from mmpl.train.self_mmpl import (
    Batch,
    Draw,
    Matching,
    Teacher,
    begins_with_image,
    scores_of,
    self_mmpl,
)
from mmpl.train.state import STATE_FILE, Weights, averaged_weights
from mmpl.wan import vae
from mmpl.wan.dit import DEFAULT_ENGINE, Engine, dit_from_flat
from mmpl.wan.params import to_flat, tree_map

PATHS, JUMP, MATCH = "paths", "jump", "match"  # stages, and their folders
_BACKGROUNDS = 0.65  # share of captions that name it, as in the teacher's last stages


@dataclass(frozen=True, slots=True)
class FastBlueprint:
    """All that makes one distilled bundle another than the next."""

    teaching: Teaching
    jump: Recipe
    jump_batch: int
    matching: Matching
    match: DistilRecipe


def blueprint(teacher: Defaults) -> FastBlueprint:
    """For the teacher's way of sampling; guidance is learned at the scale it is used with."""
    layouts = (teacher.layout_t2v, 0.85), (teacher.layout_i2v, 0.15)
    return FastBlueprint(
        teaching=Teaching(
            layouts,
            films=24,
            batch=16,
            shift=teacher.shift,
            guidance=teacher.guidance_scale,
        ),
        jump=Recipe(
            steps=1200,
            learning_rate=1e-3,
            matrix_rate=4e-3,
            warmup=20,
            beta2=0.98,
            ema_decay=0.99,
        ),
        jump_batch=6,
        matching=Matching(
            layouts,
            batch=6,
            scores=scores_of(teacher.layout_t2v),
            shift=teacher.shift,
            guidance=teacher.guidance_scale,
            hand_overs=2,
            fresh=False,
        ),
        match=DistilRecipe(
            steps=250, generator_rate=5e-5, critic_rate=1e-4, critic_updates=3, ema_from=20
        ),
    )


def make_paths(
    blueprint: FastBlueprint, model: Model, runs: Path, *, engine: Engine = DEFAULT_ENGINE
) -> Iterator[int]:
    """The teacher's trajectories; yields how many films are there."""
    yield from teach(
        teacher_of(model),
        draw_of(model),
        blueprint.teaching,
        runs / PATHS,
        made_by=_made_by(model),
        engine=engine,
    )


def train_jump(
    blueprint: FastBlueprint, model: Model, runs: Path, *, engine: Engine = DEFAULT_ENGINE
) -> Iterator[Progress]:
    """Regression from the points of the trajectories to their ends, begun as the teacher."""
    teaching, batch = blueprint.teaching, blueprint.jump_batch
    paths = read_paths(runs / PATHS)
    loss = jump_loss(model.dit_config, paths, teaching, batch=batch, engine=engine)
    setting = {"teacher": _made_by(model), "teaching": teaching, "batch": batch}
    yield from train(
        to_flat(model.dit), loss, blueprint.jump, runs / JUMP, setting=setting, save_every=50
    )


def train_match(
    blueprint: FastBlueprint, model: Model, runs: Path, *, engine: Engine = DEFAULT_ENGINE
) -> Iterator[Progress]:
    """Distribution matching on own rollouts, begun as the student that has learned to jump."""
    start, steps = averaged_weights(runs / JUMP)
    device = model.dit.head.head.weight.device
    turns = self_mmpl(
        teacher_of(model), model.dit_config, draw_of(model), blueprint.matching, engine=engine
    )
    yield from distil(
        {name: tensor.to(device) for name, tensor in start.items()},
        to_flat(model.dit),
        turns,
        blueprint.match,
        runs / MATCH,
        setting={"teacher": _made_by(model), "matching": blueprint.matching, "jumps": steps},
    )


def bundle(model: Model, tokenizer_json: str, runs: Path, folder: Path) -> dict[str, str]:
    """Writes the averaged weights of the last stage begun as a model folder; returns digests."""
    stage = MATCH if (runs / MATCH / STATE_FILE).exists() else JUMP
    weights: Weights = averaged_weights(runs / stage)[0]
    return write_bundle(
        folder,
        dit=dit_from_flat(weights, model.dit_config),
        vae=tree_map(_halved, model.vae),
        text=model.text,
        configs=Configs(model.dit_config, model.vae_config, model.text_config),
        tokenizer_json=tokenizer_json,
        defaults=sampled(model.defaults),
    )


def sampled(teacher: Defaults) -> Defaults:
    """How the bundle is sampled: in the few steps it was made for, without guidance."""
    return replace(
        teacher,
        solver="few_step",
        steps=blueprint(teacher).matching.steps,
        populate_steps=2,
        guidance_scale=1.0,
        noise="off",  # as in the rollouts
    )


def teacher_of(model: Model) -> Teacher:
    """The model as the real score network, at its own size of films."""
    defaults, config = model.defaults, model.vae_config
    stride = config.spatial_stride
    return Teacher(
        params=model.dit,
        config=model.dit_config,
        negative=model.encoded([defaults.negative_prompt])[0],
        vae=model.vae,
        vae_config=config,
        latent_shape=(config.z_dim, defaults.height // stride, defaults.width // stride),
    )


def draw_of(model: Model) -> Draw:
    """Clips of the procedural grammar. ArgumentError for a model that was not made for them."""
    defaults = model.defaults
    if not defaults.vocabulary or defaults.width != defaults.height:
        raise ArgumentError(
            "only models of procedural clips can be distilled from captions drawn here",
            got="a model without a vocabulary, or whose films are not square",
            wanted="a bundle such as weights/tiny",
        )

    @torch.no_grad()
    def draw(rng: np.random.Generator, count: int, layout: Layout) -> Batch:
        specs = [draw_spec(int(seed)) for seed in rng.integers(2**62, size=count)]
        variants = rng.integers(2**31, size=count)
        captions = [
            caption(spec, int(variant), backgrounds=_BACKGROUNDS)
            for spec, variant in zip(specs, variants, strict=True)
        ]
        given = {}
        if begins_with_image(layout):
            device = model.dit.head.head.weight.device
            pixels = render_batch(specs, [(0, 1)] * count, size=defaults.width, device=device)
            given[0] = vae.encode(model.vae, model.vae_config, pixels)[0][:, :, 0]
        return Batch(model.encoded(captions), given)

    return draw


def _made_by(model: Model) -> dict[str, str]:
    return dict(model.digests)


def _halved(leaf: Tensor) -> Tensor:
    """As float16 where that loses nothing, as of a VAE that was stored so."""
    half = leaf.half()
    return half if torch.equal(half.to(leaf.dtype), leaf) else leaf
