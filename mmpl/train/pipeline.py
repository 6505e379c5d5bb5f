"""The embedded bundle from nothing, stage by stage, in one run folder.

    vae-stills -> vae-motion -> vae-detail -> vae-segments -> latents -> dit -> bundle

Every stage resumes from what the folder holds, and refuses a folder that was made otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mmpl.checkpoint.bundle import Configs, write_bundle
from mmpl.layout.timeline import SEED_LATENTS
from mmpl.train import tiny
from mmpl.train.dit_loss import Data, dit_loss, split
from mmpl.train.latents import (
    encode_shards,
    normalised,
    read_shards,
    with_statistics,
)
from mmpl.train.loop import Progress, Recipe, Weights, averaged_weights, train
from mmpl.train.start import start_transformer, start_vae
from mmpl.train.vae_loss import VAETraining, detail, motion, segments, stills, vae_loss
from mmpl.train.vocabulary import make_tokenizer
from mmpl.wan.config import VAEConfig
from mmpl.wan.dit import DEFAULT_ENGINE, Engine, dit_from_flat, dit_shapes
from mmpl.wan.params import tree_map
from mmpl.wan.text import text_from_flat, text_shapes
from mmpl.wan.tokenizer import Tokenizer
from mmpl.wan.vae import vae_from_flat


@dataclass(frozen=True, slots=True)
class VAEStage:
    """One stage of the VAE: what it looks at, and for how long."""

    name: str
    training: VAETraining
    recipe: Recipe


VAE_STAGES = (
    VAEStage(
        "vae-stills",
        stills(tiny.SIZE),
        Recipe(steps=300, learning_rate=1e-3, matrix_rate=1e-2, warmup=20, ema_decay=0.95),
    ),
    VAEStage(
        "vae-motion",
        motion(tiny.SIZE),
        Recipe(steps=300, learning_rate=1e-3, matrix_rate=1e-2, warmup=20, ema_decay=0.97),
    ),
    VAEStage(
        "vae-detail",
        detail(tiny.SIZE),
        Recipe(steps=2600, learning_rate=1e-3, matrix_rate=1.2e-2, warmup=20, ema_decay=0.99),
    ),
    VAEStage(
        "vae-segments",
        segments(tiny.SIZE),
        Recipe(steps=230, learning_rate=5e-4, matrix_rate=6e-3, warmup=20, ema_decay=0.95),
    ),
)
CLIPS = 3072
BEGINNINGS = 12288  # films of which only the first frames are encoded, at a tenth of the cost
DIT_FRAMES = 256  # latent frames a step, context included
DIT_RECIPE = Recipe(
    steps=8000, learning_rate=2e-3, matrix_rate=1.5e-2, warmup=100, beta2=0.98, ema_decay=0.995
)


def train_vae(runs: Path) -> Iterator[tuple[str, Progress]]:
    """All stages of the VAE; yields (stage, progress)."""
    weights = start_vae(tiny.VAE, seed=0)
    for stage in VAE_STAGES:
        loss = vae_loss(tiny.VAE, stage.training)
        setting = {"network": tiny.VAE, "training": stage.training}
        for progress in train(weights, loss, stage.recipe, runs / stage.name, setting=setting):
            yield stage.name, progress
        weights, _ = averaged_weights(runs / stage.name)


def encode_clips(
    runs: Path, clips: int = CLIPS, beginnings: int = BEGINNINGS
) -> Iterator[tuple[str, int]]:
    """Latents of the training clips; yields (which, how many are done)."""
    params = vae_from_flat(_vae_weights(runs), tiny.VAE)
    for name, seeds, latents in (
        ("clips", range(clips), tiny.LATENTS),
        ("beginnings", range(0, 2 * beginnings, 2), SEED_LATENTS),
    ):
        folder = runs / "latents" / name
        for done in encode_shards(
            params, tiny.VAE, folder, seeds=seeds, latents=latents, size=tiny.SIZE
        ):
            yield name, done


def dit_recipe(steps: int | None = None) -> Recipe:
    """The transformer's recipe, with another number of steps if given."""
    return DIT_RECIPE if steps is None else replace(DIT_RECIPE, steps=steps)


def train_dit(
    runs: Path, recipe: Recipe = DIT_RECIPE, *, engine: Engine = DEFAULT_ENGINE
) -> Iterator[Progress]:
    """The transformer and its text encoder on the encoded clips."""
    data, config = _data(runs)
    tokenizer = Tokenizer(make_tokenizer())
    text_config = tiny.text_config(tokenizer.vocab_size)
    start = {f"dit.{n}": t for n, t in start_transformer(dit_shapes(tiny.DIT), 0).items()}
    start |= {f"text.{n}": t for n, t in start_transformer(text_shapes(text_config), 1).items()}
    training = tiny.dit_training(DIT_FRAMES)
    loss = dit_loss(tiny.DIT, text_config, tokenizer, data, training, engine=engine)
    setting = {
        "network": (tiny.DIT, text_config),
        "training": training,
        "data": (len(data.clips.seeds), len(data.beginnings.seeds), config),
    }
    yield from train(start, loss, recipe, runs / "dit", setting=setting)


def bundle(runs: Path, folder: Path) -> dict[str, str]:
    """Writes the averaged weights of a run as a model folder; returns its digests.

    The VAE is stored as float16, which moves its pixels by less than one level; it runs in float32.
    """
    weights, _ = averaged_weights(runs / "dit")
    tokenizer = make_tokenizer()
    text_config = tiny.text_config(Tokenizer(tokenizer).vocab_size)
    _, vae_config = _data(runs)
    return write_bundle(
        folder,
        dit=dit_from_flat(split(weights, "dit"), tiny.DIT),
        vae=tree_map(lambda leaf: leaf.half(), vae_from_flat(_vae_weights(runs), vae_config)),
        text=text_from_flat(split(weights, "text"), text_config),
        configs=Configs(tiny.DIT, vae_config, text_config),
        tokenizer_json=tokenizer,
        defaults=tiny.defaults(),
    )


def _vae_weights(runs: Path) -> Weights:
    return averaged_weights(runs / VAE_STAGES[-1].name)[0]


def _data(runs: Path) -> tuple[Data, VAEConfig]:
    clips = read_shards(runs / "latents" / "clips")
    beginnings = read_shards(runs / "latents" / "beginnings")
    config = with_statistics(tiny.VAE, clips)
    return Data(normalised(config, clips), normalised(config, beginnings)), config
