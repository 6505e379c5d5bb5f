"""A bundle from nothing, on a toy scale: every stage, resumed, put together and used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mmpl.checkpoint.bundle import load_model
from mmpl.errors import ArgumentError
from mmpl.generate import Frames, Request, generate
from mmpl.train import loop, pipeline, tiny
from mmpl.train.loop import averaged_weights
from mmpl.train.pipeline import Blueprint, bundle, encode_clips, train_dit, train_vae
from mmpl.train.start import deepened, start_transformer
from mmpl.wan.dit import dit_shapes
from mmpl.wan.params import to_flat
from tests.small import small_blueprint, small_model

BLUEPRINT = small_blueprint()
CONFIGS = BLUEPRINT.configs
STAGES: tuple[Callable[[Blueprint, Path], Iterator[object]], ...] = (
    train_vae,
    encode_clips,
    train_dit,
)


@pytest.fixture(autouse=True)
def _saved_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "train", partial(loop.train, save_every=1, report_every=1))


def made(runs: Path, folder: Path, *, cut: bool) -> Mapping[str, str]:
    """The digests of a bundle; with `cut` every stage is begun, left, and begun again."""
    for stage in STAGES:
        if cut:
            next(stage(BLUEPRINT, runs))
        assert list(stage(BLUEPRINT, runs)), "nothing was left to do"
    return bundle(BLUEPRINT, runs, folder)


def test_a_bundle_from_nothing_makes_films_and_does_not_depend_on_stops(tmp_path: Path) -> None:
    digests = made(tmp_path / "runs", tmp_path / "model", cut=False)
    assert made(tmp_path / "cut", tmp_path / "again", cut=True) == digests
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert folders == ["dit-first", "dit-last", "latents", "vae-first", "vae-last"]

    model = load_model(tmp_path / "model")
    assert model.digests == digests
    assert (model.dit_config, model.vae_config) == (CONFIGS.dit, CONFIGS.vae)
    assert model.text_config.vocab_size == model.tokenizer.vocab_size != CONFIGS.text.vocab_size
    assert model.defaults == BLUEPRINT.defaults
    events = generate(model, Request("a red circle moves right", seed=1, frames=30))
    frames = [event.pixels_FHWC for event in events if isinstance(event, Frames)]
    assert np.concatenate(frames).shape == (30, BLUEPRINT.size, BLUEPRINT.size, 3)


def test_stages_build_on_each_other(tmp_path: Path) -> None:
    for stage, words in ((encode_clips, "no checkpoint"), (train_dit, "no latents")):
        with pytest.raises(ArgumentError, match=words):
            list(stage(BLUEPRINT, tmp_path))
    with pytest.raises(ArgumentError, match="no checkpoint"):
        bundle(BLUEPRINT, tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_run_may_begin_with_a_finished_bundle(tmp_path: Path) -> None:
    """Its VAE is kept to the bit, its last stage alone is trained, and nothing else is needed."""
    made(tmp_path / "runs", tmp_path / "model", cut=False)
    first = load_model(tmp_path / "model")
    going_on = replace(BLUEPRINT, begins_with=first)
    runs = tmp_path / "more"
    for stage in (encode_clips, train_dit):
        assert list(stage(going_on, runs))
    digests = bundle(going_on, runs, tmp_path / "again")
    assert sorted(path.name for path in runs.iterdir()) == ["dit-last", "latents"]
    again = load_model(tmp_path / "again")
    assert {part for part, value in digests.items() if value != first.digests[part]} == {
        "dit",
        "text",
    }
    assert again.defaults == first.defaults
    with pytest.raises(ArgumentError, match="another recipe; got begins_with"):
        next(train_dit(replace(going_on, begins_with=again), runs))


def test_a_transformer_anew_beside_encoders_that_stay(tmp_path: Path) -> None:
    """It is the same whatever transformer the bundle has, and all else is the bundle's to the
    bit."""
    made(tmp_path / "runs", tmp_path / "model", cut=False)
    *earlier, last = BLUEPRINT.dit_stages
    still = replace(last.recipe, learning_rate=1e-12, matrix_rate=1e-12)
    stages = (*earlier, replace(last, anew=True, recipe=still))
    first = load_model(tmp_path / "model")
    anew = replace(BLUEPRINT, begins_with=first, dit_stages=stages)
    for stage in (encode_clips, train_dit):
        assert list(stage(anew, tmp_path / "more"))
    digests = bundle(anew, tmp_path / "more", tmp_path / "plain")
    assert {n for n, value in digests.items() if value != first.digests[n]} == {"dit"}
    start = start_transformer(dit_shapes(CONFIGS.dit), 0)
    for name, weight in to_flat(load_model(tmp_path / "plain").dit).items():
        torch.testing.assert_close(weight, start[name], atol=1e-6, rtol=1e-6)
    with pytest.raises(
        ArgumentError, match="of a finished bundle; give the bundle as --model_path"
    ):
        next(train_dit(replace(anew, begins_with=None), tmp_path / "runs"))


def test_the_plain_network_knows_whole_clips_from_text_alone() -> None:
    *_, last = tiny.blueprint("plain").dit_stages
    assert last.anew
    (only,) = last.training.courses
    (task,) = only.tasks
    assert (task.group.frames, task.group.sees, task.fresh) == (tuple(range(21)), (), True)
    assert only.levels == "group"
    assert last.training.own_seeds == 0.0


def test_a_run_refuses_to_begin_with_a_model_of_another_vocabulary(tmp_path: Path) -> None:
    model = replace(small_model(), vae_config=CONFIGS.vae)
    with pytest.raises(ArgumentError, match="cannot begin with this model: its VAE, text encoder"):
        next(encode_clips(replace(BLUEPRINT, begins_with=model), tmp_path))


def test_a_run_of_another_blueprint_is_refused(tmp_path: Path) -> None:
    next(train_vae(BLUEPRINT, tmp_path))
    wider = replace(CONFIGS, vae=replace(CONFIGS.vae, dim=12))
    with pytest.raises(ArgumentError, match="another recipe; got network"):
        next(train_vae(replace(BLUEPRINT, configs=wider), tmp_path))


def test_the_blueprint_of_the_embedded_bundle_is_its_own() -> None:
    """Its sizes; what is measured on the way may differ."""
    folder = Path(tiny.__file__).parents[2] / "weights" / "tiny"
    written = json.loads((folder / "config.json").read_text())
    configs = json.loads(json.dumps(asdict(tiny.blueprint().configs)))
    for part in ("dit", "vae", "text"):
        measured = {"latent_mean", "latent_std", "vocab_size"}
        differing = {key for key, value in configs[part].items() if written[part][key] != value}
        assert differing <= measured


def test_a_stage_of_the_transformer_begins_with_the_weights_of_the_one_before(
    tmp_path: Path,
) -> None:
    *earlier, last = BLUEPRINT.dit_stages
    still = replace(last, recipe=replace(last.recipe, learning_rate=1e-12, matrix_rate=1e-12))
    blueprint = replace(BLUEPRINT, dit_stages=(*earlier, still))
    for stage in STAGES:
        assert list(stage(blueprint, tmp_path))
    before, after = (averaged_weights(tmp_path / s.name)[0] for s in blueprint.dit_stages)
    assert after.keys() > before.keys()
    for name, weight in deepened(before, CONFIGS.dit.num_layers, "dit.blocks").items():
        torch.testing.assert_close(after[name], weight, atol=1e-6, rtol=1e-6)
