"""A model small enough to make whole films in a second: random weights, real code.

The one such model of the tests; `tests/checkpoint/worlds.py` has the folders of other makers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from mmpl.checkpoint.bundle import Configs, Model, model_from_state_dicts, write_bundle
from mmpl.checkpoint.defaults import Defaults
from mmpl.layout.presets import SEGMENT_LATENTS, mmpl_t2v
from mmpl.train.dit_loss import DiTTraining, course
from mmpl.train.loop import Recipe
from mmpl.train.pipeline import Blueprint, Stage
from mmpl.train.start import start_transformer, start_vae
from mmpl.train.vae_loss import VAETraining, View
from mmpl.wan.config import DiTConfig, TextConfig, VAEConfig
from mmpl.wan.dit import DiTParams, dit_from_flat, dit_shapes
from mmpl.wan.text import text_shapes
from tests.checkpoint.worlds import random_state, tokenizer_json

CHANNELS = 4
CONFIGS = Configs(
    DiTConfig(
        dim=24,
        ffn_dim=32,
        num_heads=2,
        num_layers=2,
        freq_dim=16,
        text_dim=16,
        text_len=8,
        in_dim=CHANNELS,
        out_dim=CHANNELS,
    ),
    VAEConfig(
        dim=8,
        z_dim=CHANNELS,
        dim_mult=(1, 1, 1),
        num_res_blocks=1,
        temporal_downsample=(True, True),
        patch_size=2,
        latent_mean=(0.1,) * CHANNELS,
        latent_std=(1.1,) * CHANNELS,
    ),
    TextConfig(vocab_size=32, dim=16, dim_attn=16, dim_ffn=16, num_heads=2, num_layers=1),
)
DEFAULTS = replace(
    Defaults(), steps=2, width=32, height=32, duration_s=5.0, negative_prompt="", guidance_scale=2.0
)


def small_model(
    defaults: Defaults = DEFAULTS, *, seed: int = 0, configs: Configs = CONFIGS
) -> Model:
    """Random weights; the head is opened so that the transformer matters."""
    dit = start_transformer(dit_shapes(configs.dit), seed)
    generator = torch.Generator().manual_seed(seed + 3)
    dit["head.head.weight"].normal_(0, 0.1, generator=generator)
    return model_from_state_dicts(
        dit=dit,
        vae=start_vae(configs.vae, seed + 1),
        text=start_transformer(text_shapes(configs.text), seed + 2),
        tokenizer_json=tokenizer_json(),
        configs=configs,
        defaults=defaults,
    )


def write_small(folder: Path, model: Model | None = None) -> Path:
    """The bundle of a small model, by default a new one, as a folder that `load_model` reads."""
    model = model or small_model()
    write_bundle(
        folder,
        dit=model.dit,
        vae=model.vae,
        text=model.text,
        configs=CONFIGS,
        tokenizer_json=tokenizer_json(),
        defaults=model.defaults,
    )
    return folder


def small_blueprint() -> Blueprint:
    """All stages of a training, in seconds. The networks learn nothing to speak of."""
    size = 2 * CONFIGS.vae.spatial_stride
    plain = {"latent_mean": (0.0,) * CHANNELS, "latent_std": (1.0,) * CHANNELS}
    recipe = Recipe(steps=3, learning_rate=1e-3, matrix_rate=1e-2, warmup=1, ema_decay=0.5)
    return Blueprint(
        configs=replace(CONFIGS, vae=replace(CONFIGS.vae, **plain)),
        size=size,
        captions=50,
        vae_stages=(
            Stage("vae-first", VAETraining(size, (View(2, 1, size),)), recipe),
            Stage("vae-last", VAETraining(size, (View(1, 3, size),), seed=1), recipe),
        ),
        clips=4,
        latents=SEGMENT_LATENTS,
        beginnings=3,
        dit_stages=(
            Stage(
                "dit-first",
                DiTTraining((course(mmpl_t2v(), 1.0, {"init": 0.0}),), 30, 4),
                recipe,
                layers=1,
            ),
            Stage("dit-last", DiTTraining((course(mmpl_t2v(), 1.0, {}),), 30, 4, seed=1), recipe),
        ),
        defaults=replace(DEFAULTS, width=size, height=size),
    )


def small_dit() -> DiTParams:
    """A transformer alone, with larger weights in every layer, so that all of them count."""
    return dit_from_flat(random_state(dit_shapes(CONFIGS.dit), 1, scale=0.3), CONFIGS.dit)
