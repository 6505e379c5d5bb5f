"""A model bundle from nothing, stage by stage, in one run folder.

    the stages of the VAE, one after the other -> latents -> those of the transformer -> bundle

What is made is a `Blueprint`, a value; `mmpl.train.tiny` has the one of weights/tiny. Every stage
resumes from what the folder holds, and refuses a folder that was made otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor

from mmpl.checkpoint.bundle import Configs, Model, text_digest, write_bundle
from mmpl.checkpoint.defaults import Defaults
from mmpl.checkpoint.read import digest
from mmpl.errors import ArgumentError
from mmpl.layout.timeline import SEED_LATENTS
from mmpl.train.dit_loss import Data, DiTTraining, dit_loss, split
from mmpl.train.latents import LatentClips, encode_shards, read_shards
from mmpl.train.loop import (
    STATE_FILE,
    Loss,
    LossOf,
    Progress,
    Recipe,
    Weights,
    averaged_weights,
    train,
)
from mmpl.train.start import deepened, start_transformer, start_vae
from mmpl.train.vae_loss import VAETraining, vae_loss
from mmpl.train.vocabulary import make_tokenizer
from mmpl.train.whitening import Whitening, fold, unchanged, whitened, whitening_of
from mmpl.wan.dit import DEFAULT_ENGINE, Engine, dit_from_flat, dit_shapes
from mmpl.wan.params import to_flat, tree_map
from mmpl.wan.text import text_from_flat, text_shapes
from mmpl.wan.tokenizer import Tokenizer
from mmpl.wan.vae import vae_from_flat

Training = TypeVar("Training", VAETraining, DiTTraining)


@dataclass(frozen=True, slots=True)
class Stage(Generic[Training]):
    """One stage of a network: what it learns from, and for how long. It begins with the averaged
    weights of the stage before. `name` is its run's folder. `layers`: how many blocks the
    transformer has in it, where later stages have more; those of the config by default. `anew`:
    the transformer begins with random weights, and the text encoder of the bundle that the run
    begins with, which there must be, stays as it is."""

    name: str
    training: Training
    recipe: Recipe
    layers: int | None = None
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Blueprint:
    """All that makes one bundle another than the next.

    `configs`: sizes of the networks; the vocabulary is counted on the way. `size`: pixels a
    side. `captions`: how many the vocabulary is taken from. The transformer learns from `clips` of
    `latents` latent frames and from the first frames of `beginnings` more films. `defaults`: how
    the bundle is used.

    A run that `begins_with` a finished bundle of the same VAE and vocabulary encodes clips with its
    VAE, and trains its transformer and text encoder, or one beside them, in the last stage alone.
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
    begins_with: Model | None = None


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
    config = _with_vocabulary(blueprint)[0].vae
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
    """The stages of the transformer and its text encoder on the encoded clips; yields (stage,
    progress)."""
    clips, beginnings, whitening = _latents(blueprint, runs)
    data = Data(*(_clips_on(device, whitened(whitening, part)) for part in (clips, beginnings)))
    configs, tokenizer_json = _with_vocabulary(blueprint)
    tokenizer = Tokenizer(tokenizer_json)
    kept = _on(device, _kept(blueprint))
    stages, weights = _begun(blueprint, configs)
    made_of = len(beginnings.seeds), digest({"z": whitening.forward_CC})
    for stage in stages:
        dit = replace(configs.dit, num_layers=stage.layers or configs.dit.num_layers)
        loss = dit_loss(dit, configs.text, tokenizer, data, stage.training, engine=engine)
        setting = {
            "network": (dit, configs.text),
            "training": stage.training,
            "data": made_of,
        }
        if blueprint.begins_with is not None:
            setting["begins_with"] = sorted(blueprint.begins_with.digests.items())
        start = _on(device, deepened(weights, dit.num_layers, "dit.blocks"))
        of = partial(_beside, loss, kept)
        for progress in train(start, of, stage.recipe, runs / stage.name, setting=setting):
            yield stage.name, progress
        weights = averaged_weights(runs / stage.name)[0]


def bundle(blueprint: Blueprint, runs: Path, folder: Path) -> dict[str, str]:
    """Writes the averaged weights of a run as a model folder; returns its digests.

    The VAE is stored as float16, which moves its pixels by less than one level; it runs in float32.
    """
    weights = _kept(blueprint) | averaged_weights(runs / _last_begun(blueprint, runs).name)[0]
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


def _begun(
    blueprint: Blueprint, configs: Configs
) -> tuple[tuple[Stage[DiTTraining], ...], Weights]:
    """The stages to be trained, and the weights that the first of them begins with."""
    model = blueprint.begins_with
    stages = blueprint.dit_stages if model is None else blueprint.dit_stages[-1:]
    first = stages[0]
    if model is None or first.anew:
        dit = replace(configs.dit, num_layers=first.layers or configs.dit.num_layers)
        weights = _named("dit", start_transformer(dit_shapes(dit), 0))
    else:
        weights = _named("dit", to_flat(model.dit))
    if not first.anew:
        shapes = text_shapes(configs.text)
        text = start_transformer(shapes, 1) if model is None else to_flat(model.text)
        weights |= _named("text", text)
    return stages, weights


def _kept(blueprint: Blueprint) -> Weights:
    """The weights that stay as they are. Raises ArgumentError where nothing is there to stay."""
    if not any(stage.anew for stage in blueprint.dit_stages):
        return {}
    if blueprint.begins_with is None:
        raise ArgumentError(
            "this network has the text encoder and the VAE of a finished bundle",
            todo="give the bundle as --model_path",
        )
    return _named("text", to_flat(blueprint.begins_with.text))


def _named(part: str, flat: Mapping[str, Tensor]) -> Weights:
    """A network's weights as they are called beside another's."""
    return {f"{part}.{name}": leaf.float() for name, leaf in flat.items()}


def _beside(loss_of: LossOf, kept: Weights, trained: Weights) -> Loss:
    """The loss of weights some of which are not trained."""
    return loss_of(kept | trained)


def _last_begun(blueprint: Blueprint, runs: Path) -> Stage[DiTTraining]:
    """The last stage of the transformer that has weights, else the first."""
    begun = [stage for stage in blueprint.dit_stages if (runs / stage.name / STATE_FILE).exists()]
    return (begun or blueprint.dit_stages)[-1 if begun else 0]


def _on(device: str, weights: Weights) -> Weights:
    return {name: tensor.to(device) for name, tensor in weights.items()}


def _clips_on(device: str, clips: LatentClips) -> LatentClips:
    return LatentClips(clips.z_BCTHW.to(device), clips.seeds)


def _vae_weights(blueprint: Blueprint, runs: Path) -> Weights:
    if blueprint.begins_with is not None:
        return to_flat(blueprint.begins_with.vae)
    return averaged_weights(runs / blueprint.vae_stages[-1].name)[0]


def _latents(blueprint: Blueprint, runs: Path) -> tuple[LatentClips, LatentClips, Whitening]:
    """Raw latents of whole clips and of beginnings, and what whitens them: measured on the clips of
    the first stage, for it must stay as it is; the latents of a bundle are white."""
    clips = read_shards(runs / "latents" / "clips")
    if blueprint.begins_with is None:
        whitening = whitening_of(clips.first(blueprint.dit_stages[0].training.clips))
    else:
        whitening = unchanged(clips.z_BCTHW.shape[1])
    return clips, read_shards(runs / "latents" / "beginnings"), whitening


def _with_vocabulary(blueprint: Blueprint) -> tuple[Configs, str]:
    """The configs with the size of the vocabulary, and the JSON of the tokenizer. Raises
    ArgumentError when a bundle to begin with has another VAE or vocabulary."""
    tokenizer_json = make_tokenizer(blueprint.captions)
    vocab_size = Tokenizer(tokenizer_json).vocab_size
    configs = replace(
        blueprint.configs, text=replace(blueprint.configs.text, vocab_size=vocab_size)
    )
    model = blueprint.begins_with
    if model is not None and (model.vae_config, model.text_config, model.digests["tokenizer"]) != (
        configs.vae,
        configs.text,
        text_digest(tokenizer_json),
    ):
        raise ArgumentError(
            "a run cannot begin with this model: its VAE, text encoder or tokenizer is another",
            todo="give a bundle that `mmpl-train bundle` wrote",
        )
    return configs, tokenizer_json
