"""A model small enough to make whole films in a second: random weights, real code."""

from __future__ import annotations

from dataclasses import replace

import torch

from mmpl.checkpoint.bundle import Configs, Model, model_from_state_dicts
from mmpl.checkpoint.defaults import Defaults
from mmpl.train.start import start_transformer, start_vae
from mmpl.wan.config import DiTConfig, TextConfig, VAEConfig
from mmpl.wan.dit import dit_shapes
from mmpl.wan.text import text_shapes
from tests.checkpoint.worlds import tokenizer_json

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


def small_model(defaults: Defaults = DEFAULTS) -> Model:
    """Random weights; the head is opened so that the transformer matters."""
    dit = start_transformer(dit_shapes(CONFIGS.dit), seed=0)
    dit["head.head.weight"].normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    return model_from_state_dicts(
        dit=dit,
        vae=start_vae(CONFIGS.vae, seed=1),
        text=start_transformer(text_shapes(CONFIGS.text), seed=2),
        tokenizer_json=tokenizer_json(),
        configs=CONFIGS,
        defaults=defaults,
    )
