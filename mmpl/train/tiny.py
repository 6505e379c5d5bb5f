"""The blueprint of weights/tiny: its sizes, its training, what it says it can do."""

from __future__ import annotations

from dataclasses import replace

from mmpl.checkpoint.bundle import Configs
from mmpl.checkpoint.defaults import Defaults
from mmpl.layout.presets import (
    SEGMENT_LATENTS,
    bidirectional_window,
    chunked,
    mmpl_i2v,
    mmpl_t2v,
    without_early,
    without_midpoint,
)
from mmpl.train import grammar
from mmpl.train.dit_loss import DiTTraining, course
from mmpl.train.loop import Recipe
from mmpl.train.pipeline import Blueprint, Stage
from mmpl.train.vae_loss import VAETraining, detail, motion, segments, stills
from mmpl.wan.config import DiTConfig, TextConfig, VAEConfig

SHIFT = 3.0  # of timesteps towards noise, in training and sampling
SIZE = 64  # pixels a side
CIRCLING = ("clockwise", 1.5), ("counterclockwise", 1.5)  # how many times as often it is drawn
LATENT_CHANNELS = 16
TEXT_DIM = 64

CONFIGS = Configs(
    dit=DiTConfig(
        dim=128,
        ffn_dim=512,
        num_heads=4,
        num_layers=12,
        freq_dim=64,
        text_dim=TEXT_DIM,
        text_len=24,
        in_dim=LATENT_CHANNELS,
        out_dim=LATENT_CHANNELS,
    ),
    vae=VAEConfig(
        dim=24,
        z_dim=LATENT_CHANNELS,
        dim_mult=(1, 2, 4),
        num_res_blocks=1,
        temporal_downsample=(True, True),
        patch_size=2,
        latent_mean=(0.0,) * LATENT_CHANNELS,
        latent_std=(1.0,) * LATENT_CHANNELS,
    ),
    text=TextConfig(
        vocab_size=1,  # counted when the vocabulary is made
        dim=TEXT_DIM,
        dim_attn=TEXT_DIM,
        dim_ffn=128,
        num_heads=4,
        num_layers=2,
    ),
)


def blueprint(network: str = "embedded") -> Blueprint:
    """All of it. `network`: the "embedded" one; or one that goes on from it so that methods can be
    compared, see `compared`; or the "plain" one, see there."""
    embedded = Blueprint(
        configs=CONFIGS,
        size=SIZE,
        captions=20000,
        vae_stages=vae_stages(),
        clips=4608,
        latents=SEGMENT_LATENTS,
        beginnings=8192,  # at a tenth of a clip's cost
        dit_stages=dit_stages(),
        defaults=defaults(),
    )
    if network == "embedded":
        return embedded
    last = plain() if network == "plain" else compared(network)
    return replace(embedded, dit_stages=(*embedded.dit_stages, last))


def vae_stages() -> tuple[Stage[VAETraining], ...]:
    """From single frames to whole segments."""
    return (
        Stage(
            "vae-stills",
            stills(SIZE),
            Recipe(steps=300, learning_rate=1e-3, matrix_rate=1e-2, warmup=20, ema_decay=0.95),
        ),
        Stage(
            "vae-motion",
            motion(SIZE),
            Recipe(steps=300, learning_rate=1e-3, matrix_rate=1e-2, warmup=20, ema_decay=0.97),
        ),
        Stage(
            "vae-detail",
            detail(SIZE),
            Recipe(steps=2600, learning_rate=1e-3, matrix_rate=1.2e-2, warmup=20, ema_decay=0.99),
        ),
        Stage(
            "vae-segments",
            segments(SIZE),
            Recipe(steps=230, learning_rate=5e-4, matrix_rate=6e-3, warmup=20, ema_decay=0.95),
        ),
    )


def dit_stages() -> tuple[Stage[DiTTraining], ...]:
    """First frames and plans, for what a film shows must be read off the text there; then whole
    films, text-to-video and image-to-video mixed; then plans from seeds as a chain has them; then
    the same on more clips, with more of what is hardest to keep: stars, and what circles; then,
    for outlines are decided late, with as many timesteps of little noise as of much; and longer,
    in smaller steps, with more of what changes its size; then, for a small network cannot draw them
    any better, with half as many blocks again; at last the same in smaller steps."""
    beginning = course(
        mmpl_t2v(), 1.0, {"init": 7.0, "plan": 3.0, "fill_head": 0.0, "fill_tail": 0.0}
    )
    shares = {"init": 4.0, "second": 0.5, "plan": 3.0}
    films = course(mmpl_t2v(), 0.85, shares), course(mmpl_i2v(), 0.15, shares)
    shares = {"init": 3.0, "second": 0.5, "plan": 4.0}
    chains = course(mmpl_t2v(), 0.85, shares), course(mmpl_i2v(), 0.15, shares)
    recipe = Recipe(5000, 2e-3, matrix_rate=1.2e-2, warmup=100, beta2=0.98, ema_decay=0.995)
    chained = DiTTraining(
        chains, frames=192, shift=SHIFT, clips=1536, seed=2, backgrounds=0.65, own_seeds=0.8
    )
    stars = replace(chained, clips=4608, seed=3, odds=(("star", 2.0), *CIRCLING))
    outlines = replace(stars, seed=4, shift=1.0)
    hardest = ("star", 2.5), *CIRCLING, ("grows", 2.5), ("shrinks", 2.5)
    settled = replace(outlines, seed=8, odds=hardest)
    return (
        Stage(
            "dit-beginnings",
            DiTTraining((beginning,), frames=192, shift=SHIFT, clips=1536),
            recipe,
            layers=8,
        ),
        Stage(
            "dit-films",
            DiTTraining(films, frames=192, shift=SHIFT, clips=1536, seed=1),
            replace(recipe, steps=3000, matrix_rate=8e-3),
            layers=8,
        ),
        Stage("dit-chains", chained, replace(recipe, steps=6000, matrix_rate=8e-3), layers=8),
        Stage("dit-stars", stars, replace(recipe, steps=4800, matrix_rate=8e-3), layers=8),
        Stage("dit-outlines", outlines, replace(recipe, steps=4000, matrix_rate=8e-3), layers=8),
        Stage(
            "dit-edges",
            replace(outlines, seed=6, odds=(*stars.odds, ("grows", 1.5), ("shrinks", 1.5))),
            replace(recipe, steps=6000, matrix_rate=6e-3),
            layers=8,
        ),
        Stage(
            "dit-deeper",
            replace(
                outlines,
                seed=7,
                odds=(("star", 3.0), *CIRCLING, ("grows", 2.5), ("shrinks", 1.5)),
            ),
            replace(recipe, steps=3400, matrix_rate=8e-3),
        ),
        Stage("dit-settled", settled, replace(recipe, steps=3700, matrix_rate=6e-3)),
    )


def compared(network: str) -> Stage[DiTTraining]:
    """The last stage of a network that methods are compared with: equally long for all.

    "mixed" learns the layouts of all methods, so that none has a network of its own to thank;
    "mmpl" and "chunked" learn one and stand beside it as controls.
    """
    shares = {"init": 3.0, "plan": 4.0}
    chunks = chunked(SEGMENT_LATENTS, 3), chunked(SEGMENT_LATENTS, 3, first=2)
    window, whole = (bidirectional_window(SEGMENT_LATENTS, given) for given in (2, 0))
    courses = {
        "mmpl": (course(mmpl_t2v(), 1.0, shares),),
        "chunked": (course(chunks[0], 0.5), course(chunks[1], 0.5)),
        "mixed": (
            course(mmpl_t2v(), 0.3, shares),
            course(mmpl_t2v(head_sees_terminal=True), 0.05, shares),
            course(without_early(), 0.05, shares),
            course(without_midpoint(), 0.05, shares),
            course(chunks[0], 0.1),
            course(chunks[1], 0.2),
            course(window, 0.1),
            course(whole, 0.15, levels="frame"),
        ),
    }
    *_, last = dit_stages()
    return Stage(
        f"dit-{network}",
        replace(last.training, courses=courses[network], seed=5, shift=SHIFT),
        replace(last.recipe, steps=3000),
    )


def plain() -> Stage[DiTTraining]:
    """A network such as Wan2.1 is before it is tuned to plan: whole clips from their text, all
    frames at one timestep, and nothing else. It begins with random weights, for those of the
    embedded transformer can plan; its text encoder is the embedded one's and stays, as Wan's does,
    so that what is tuned from it is a transformer alone. As long as those of `compared`."""
    first, *_ = dit_stages()
    whole = bidirectional_window(SEGMENT_LATENTS, 0)
    return Stage(
        "dit-plain",
        DiTTraining((course(whole, 1.0),), frames=192, shift=SHIFT, clips=4608, seed=9),
        replace(first.recipe, steps=3000),
        anew=True,
    )


def defaults() -> Defaults:
    """How the bundle is sampled unless the user says otherwise."""
    return Defaults(
        solver="unipc",
        steps=12,
        populate_steps=4,
        shift=SHIFT,
        guidance_scale=1.5,
        negative_prompt="",
        noise="unit",
        width=SIZE,
        height=SIZE,
        fps=16,
        duration_s=30.0,
        sizes=(f"{SIZE}x{SIZE}",),
        vocabulary=tuple(grammar.vocabulary()),
        examples=tuple(grammar.example_prompts()),
    )
