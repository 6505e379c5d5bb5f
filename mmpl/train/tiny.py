"""The embedded bundle weights/tiny: its sizes, its tasks, what it says it can do."""

from __future__ import annotations

from mmpl.checkpoint.defaults import Defaults
from mmpl.layout.presets import mmpl_i2v, mmpl_t2v
from mmpl.train import grammar
from mmpl.train.dit_loss import DiTTraining, course
from mmpl.wan.config import DiTConfig, TextConfig, VAEConfig

SIZE = 64  # pixels a side
FPS = 16
LATENTS = 21  # latent frames of a training clip, one segment
LATENT_CHANNELS = 16
TEXT_DIM = 64

VAE = VAEConfig(
    dim=24,
    z_dim=LATENT_CHANNELS,
    dim_mult=(1, 2, 4),
    num_res_blocks=1,
    temporal_downsample=(True, True),
    patch_size=2,
    latent_mean=(0.0,) * LATENT_CHANNELS,  # measured when the clips are encoded
    latent_std=(1.0,) * LATENT_CHANNELS,
)

DIT = DiTConfig(
    dim=128,
    ffn_dim=512,
    num_heads=4,
    num_layers=8,
    freq_dim=64,
    text_dim=TEXT_DIM,
    text_len=24,
    in_dim=LATENT_CHANNELS,
    out_dim=LATENT_CHANNELS,
)


def text_config(vocab_size: int) -> TextConfig:
    """The text encoder over a tokenizer of that many pieces."""
    return TextConfig(
        vocab_size=vocab_size,
        dim=TEXT_DIM,
        dim_attn=TEXT_DIM,
        dim_ffn=128,
        num_heads=4,
        num_layers=2,
    )


def dit_training(frames: int) -> DiTTraining:
    """Text-to-video and image-to-video mixed. Most on the first frames, which alone must be read
    off the text, and on the plan, which carries the story."""
    shares = {"init": 3.0, "second": 0.5, "plan": 2.0}
    return DiTTraining((course(mmpl_t2v(), 0.75, shares), course(mmpl_i2v(), 0.25, shares)), frames)


def defaults() -> Defaults:
    """How the bundle is sampled unless the user says otherwise."""
    return Defaults(
        solver="unipc",
        steps=16,
        shift=3.0,
        guidance_scale=2.0,
        negative_prompt="",
        noise="unit",
        width=SIZE,
        height=SIZE,
        fps=FPS,
        duration_s=30.0,
        sizes=(f"{SIZE}x{SIZE}",),
        vocabulary=tuple(grammar.vocabulary()),
        examples=tuple(grammar.example_prompts()),
    )
