"""A model bundle from nothing, stage by stage, in one run folder.

    the stages of the VAE, one after the other -> latents -> those of the transformer -> bundle

What is made is a `Blueprint`, a value; `mmpl.train.tiny` has the one of weights/tiny. Every stage
resumes from what the folder holds, and refuses a folder that was made otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from mmpl.checkpoint.bundle import Configs, write_bundle
from mmpl.checkpoint.defaults import Defaults
from mmpl.checkpoint.read import digest
from mmpl.layout.timeline import SEED_LATENTS
from mmpl.train.dit_loss import Data, DiTTraining, dit_loss, split
from mmpl.train.latents import LatentClips, encode_shards, read_shards
from mmpl.train.loop import STATE_FILE, Progress, Recipe, Weights, averaged_weights, train
from mmpl.train.start import start_transformer, start_vae
from mmpl.train.vae_loss import VAETraining, vae_loss
from mmpl.train.vocabulary import make_tokenizer
from mmpl.train.whitening import Whitening, fold, whitened, whitening_of
from mmpl.wan.dit import DEFAULT_ENGINE, Engine, dit_from_flat, dit_shapes
from mmpl.wan.params import tree_map
from mmpl.wan.text import text_from_flat, text_shapes
from mmpl.wan.tokenizer import Tokenizer
from mmpl.wan.vae import vae_from_flat

Training = TypeVar("Training", VAETraining, DiTTraining)


@dataclass(frozen=True, slots=True)
class Stage(Generic[Training]):
    """One stage of a network: what it learns from, and for how long. It begins with the averaged
    weights of the stage before. `name` is its run's folder."""

    name: str
    training: Training
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Blueprint:
    """All that makes one bundle another than the next.

    `configs`: sizes of the networks; the vocabulary is counted on the way. `size`: pixels a
    side. `captions`: how many the vocabulary is taken from. The transformer learns from `clips` of
    `latents` latent frames and from the first frames of `beginnings` more films. `defaults`: how
    the bundle is used.
    """

    configs: Configs
    size: int
    captions: int
    vae_stages: tuple[Stage[VAETraining], ...]
    clips: int
    latents: int
    beginnings: int
    dit_stages: tuple[Stage[DiTTraining], ...]
    defaults: Defaults


def train_vae(
    blueprint: Blueprint, runs: Path, *, device: str = "cpu"
) -> Iterator[tuple[str, Progress]]:
    """All stages of the VAE; yields (stage, progress)."""
    config = blueprint.configs.vae
    weights = _on(device, start_vae(config, seed=0))
    for stage in blueprint.vae_stages:
        loss = vae_loss(config, stage.training)
        setting = {"network": config, "training": stage.training}
        for progress in train(weights, loss, stage.recipe, runs / stage.name, setting=setting):
            yield stage.name, progress
        weights = _on(device, averaged_weights(runs / stage.name)[0])


def encode_clips(
    blueprint: Blueprint, runs: Path, *, device: str = "cpu"
) -> Iterator[tuple[str, int]]:
    """Latents of the training clips; yields (which, how many are done)."""
    config = blueprint.configs.vae
    params = vae_from_flat(_on(device, _vae_weights(blueprint, runs)), config)
    for name, seeds, latents in (
        ("clips", range(blueprint.clips), blueprint.latents),
        ("beginnings", range(0, 2 * blueprint.beginnings, 2), SEED_LATENTS),
    ):
        folder = runs / "latents" / name
        for done in encode_shards(
            params, config, folder, seeds=seeds, latents=latents, size=blueprint.size
        ):
            yield name, done


def train_dit(
    blueprint: Blueprint, runs: Path, *, engine: Engine = DEFAULT_ENGINE, device: str = "cpu"
) -> Iterator[tuple[str, Progress]]:
    """All stages of the transformer and its text encoder on the encoded clips; yields (stage,
    progress)."""
    clips, beginnings, whitening = _latents(blueprint, runs)
    data = Data(*(_clips_on(device, whitened(whitening, part)) for part in (clips, beginnings)))
    configs, tokenizer_json = _with_vocabulary(blueprint)
    weights = {f"dit.{n}": t for n, t in start_transformer(dit_shapes(configs.dit), 0).items()}
    weights |= {f"text.{n}": t for n, t in start_transformer(text_shapes(configs.text), 1).items()}
    tokenizer = Tokenizer(tokenizer_json)
    made_of = len(beginnings.seeds), digest({"z": whitening.forward_CC})
    for stage in blueprint.dit_stages:
        loss = dit_loss(configs.dit, configs.text, tokenizer, data, stage.training, engine=engine)
        setting = {
            "network": (configs.dit, configs.text),
            "training": stage.training,
            "data": made_of,
        }
        start = _on(device, weights)
        for progress in train(start, loss, stage.recipe, runs / stage.name, setting=setting):
            yield stage.name, progress
        weights = averaged_weights(runs / stage.name)[0]


def bundle(blueprint: Blueprint, runs: Path, folder: Path) -> dict[str, str]:
    """Writes the averaged weights of a run as a model folder; returns its digests.

    The VAE is stored as float16, which moves its pixels by less than one level; it runs in float32.
    """
    weights, _ = averaged_weights(runs / _last_begun(blueprint, runs).name)
    _, _, whitening = _latents(blueprint, runs)
    configs, tokenizer_json = _with_vocabulary(blueprint)
    vae = vae_from_flat(fold(whitening, _vae_weights(blueprint, runs)), configs.vae)
    return write_bundle(
        folder,
        dit=dit_from_flat(split(weights, "dit"), configs.dit),
        vae=tree_map(lambda leaf: leaf.half(), vae),
        text=text_from_flat(split(weights, "text"), configs.text),
        configs=configs,
        tokenizer_json=tokenizer_json,
        defaults=blueprint.defaults,
    )


def _last_begun(blueprint: Blueprint, runs: Path) -> Stage[DiTTraining]:
    """The last stage of the transformer that has weights, else the first."""
    begun = [stage for stage in blueprint.dit_stages if (runs / stage.name / STATE_FILE).exists()]
    return (begun or blueprint.dit_stages)[-1 if begun else 0]


def _on(device: str, weights: Weights) -> Weights:
    return {name: tensor.to(device) for name, tensor in weights.items()}


def _clips_on(device: str, clips: LatentClips) -> LatentClips:
    return LatentClips(clips.z_BCTHW.to(device), clips.seeds)


def _vae_weights(blueprint: Blueprint, runs: Path) -> Weights:
    return averaged_weights(runs / blueprint.vae_stages[-1].name)[0]


def _latents(blueprint: Blueprint, runs: Path) -> tuple[LatentClips, LatentClips, Whitening]:
    """Raw latents of whole clips and of beginnings, and what whitens them: measured on the clips of
    the first stage, for it must stay as it is."""
    clips = read_shards(runs / "latents" / "clips")
    whitening = whitening_of(clips.first(blueprint.dit_stages[0].training.clips))
    return clips, read_shards(runs / "latents" / "beginnings"), whitening


def _with_vocabulary(blueprint: Blueprint) -> tuple[Configs, str]:
    """The configs with the size of the vocabulary, and the JSON of the tokenizer."""
    tokenizer_json = make_tokenizer(blueprint.captions)
    vocab_size = Tokenizer(tokenizer_json).vocab_size
    configs = blueprint.configs
    return replace(configs, text=replace(configs.text, vocab_size=vocab_size)), tokenizer_json
