"""Models from folders as Wan and mmpl write them, from state dicts, and back to disk."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmpl.checkpoint.bundle import (
    Configs,
    Defaults,
    Model,
    load_model,
    model_from_state_dicts,
    write_bundle,
)
from mmpl.checkpoint.defaults import WAN_NEGATIVE_PROMPT
from mmpl.checkpoint.names import Kind, to_diffusers
from mmpl.errors import ArgumentError, CheckpointError, OutputError
from mmpl.wan.config import VAEConfig
from mmpl.wan.params import to_flat
from tests.checkpoint import worlds
from tests.parity import golden

STATES: dict[Kind, dict[str, Tensor]] = {
    "dit": worlds.dit_state(),
    "vae": worlds.vae_state(),
    "text": worlds.text_state(),
}
WRAPPED = "model._fsdp_wrapped_module."


def same(tree: object, wanted: dict[str, Tensor]) -> bool:
    got = to_flat(tree)
    return got.keys() == wanted.keys() and all(torch.equal(got[k], wanted[k]) for k in wanted)


def written(folder: Path, model: Model) -> dict[str, str]:
    return write_bundle(
        folder,
        dit=model.dit,
        vae=model.vae,
        text=model.text,
        configs=Configs(model.dit_config, model.vae_config, model.text_config),
        tokenizer_json=worlds.tokenizer_json(),
        defaults=model.defaults,
    )


def made(states: dict[Kind, dict[str, Tensor]], **options: Any) -> Model:
    """A model of state dicts, with the toy sizes and settings unless others are given."""
    usual = {"configs": worlds.CONFIGS, "defaults": worlds.DEFAULTS}
    tokenizer_json = options.pop("tokenizer_json", worlds.tokenizer_json())
    return model_from_state_dicts(**states, tokenizer_json=tokenizer_json, **usual | options)


@pytest.fixture
def model() -> Model:
    return made(STATES)


# ------------------------------------------------------------------------- official folders


def test_official_folder(tmp_path: Path) -> None:
    model = load_model(worlds.write_wan_folder(tmp_path / "wan"))
    assert model.dit_config == worlds.CONFIGS.dit
    assert model.vae_config == worlds.CONFIGS.vae
    assert model.text_config == replace(worlds.CONFIGS.text)
    assert model.defaults == Defaults()
    assert same(model.dit, STATES["dit"])
    assert same(model.vae, STATES["vae"])
    assert same(model.text, {k: v.bfloat16() for k, v in STATES["text"].items()})
    assert model.tokenizer.encode("red circle", 8)[-1] == model.tokenizer.eos_id
    assert set(model.digests) == {"dit", "vae", "text", "tokenizer"}


def test_official_folder_in_shards(tmp_path: Path) -> None:
    folder = worlds.write_wan_folder(tmp_path / "wan", with_dit=False)
    worlds.write_shards(folder, STATES["dit"], 3)
    assert same(load_model(folder).dit, STATES["dit"])


def pieces_of_fsdp(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as a trainer leaves them that wraps the model and each of its blocks."""
    return {
        WRAPPED + name.replace("blocks.1.", "blocks.1._fsdp_wrapped_module."): tensor
        for name, tensor in state.items()
    }


@pytest.mark.parametrize(
    ("saved", "use_ema", "seed"),
    [
        ("both", None, 12),
        ("both", True, 12),
        ("both", False, 11),
        ("generator", None, 11),
        ("generator_ema", None, 12),
        ("flat", None, 11),
        ("diffusers", None, 11),
    ],
)
@pytest.mark.parametrize("with_dit", [True, False])
def test_checkpoint_takes_the_place_of_the_transformer(
    tmp_path: Path, saved: str, use_ema: bool | None, seed: int, with_dit: bool
) -> None:
    folder = worlds.write_wan_folder(tmp_path / "wan", with_dit=with_dit)
    state, ema = worlds.dit_state(11), worlds.dit_state(12)
    generator = {"generator": worlds.prefixed(state, "model.")}
    average = {"generator_ema": pieces_of_fsdp(ema)}
    content = {
        "both": {**generator, **average, "critic": {"x": torch.ones(1)}, "step": 8000},
        "generator": generator,
        "generator_ema": average,
        "flat": worlds.prefixed(state, "model."),
        "diffusers": {to_diffusers("dit", name): tensor for name, tensor in state.items()},
    }
    torch.save(content[saved], tmp_path / "t2v_14B_8k.pt")
    model = load_model(folder, checkpoint=tmp_path / "t2v_14B_8k.pt", use_ema=use_ema)
    assert same(model.dit, worlds.dit_state(seed))
    assert same(model.vae, STATES["vae"])


def test_checkpoint_as_safetensors(tmp_path: Path) -> None:
    folder = worlds.write_wan_folder(tmp_path / "wan", with_dit=False)
    state = worlds.prefixed(worlds.dit_state(11), "model.diffusion_model.")
    save_file(state, tmp_path / "x.safetensors")
    model = load_model(folder, checkpoint=tmp_path / "x.safetensors")
    assert same(model.dit, worlds.dit_state(11))


def test_config_json_says_how_many_heads(tmp_path: Path) -> None:
    folder = worlds.write_wan_folder(tmp_path / "wan")
    worlds.write_config(folder, num_heads=4)
    assert load_model(folder).dit_config.num_heads == 4


# ------------------------------------------------------------------------------ state dicts


def test_state_dicts_are_used_as_they_are(model: Model) -> None:
    assert to_flat(model.dit)["head.modulation"] is STATES["dit"]["head.modulation"]
    assert model.defaults == worlds.DEFAULTS


def test_state_dicts_in_other_namings() -> None:
    renamed: dict[Kind, dict[str, Tensor]] = {
        kind: {to_diffusers(kind, name) or "": tensor for name, tensor in state.items()}
        for kind, state in STATES.items()
    }
    renamed["text"]["encoder.embed_tokens.weight"] = renamed["text"]["shared.weight"]
    model = made(renamed)
    assert same(model.dit, STATES["dit"])
    assert same(model.vae, STATES["vae"])
    assert same(model.text, STATES["text"])


def test_sizes_come_from_the_shapes() -> None:
    model = made(STATES, configs=None, defaults=None)
    assert model.defaults == Defaults()
    assert model.dit_config == replace(worlds.CONFIGS.dit, num_heads=1, text_len=512)
    assert model.vae_config == worlds.CONFIGS.vae
    assert model.text_config == worlds.CONFIGS.text


def test_formats_of_the_weights(model: Model) -> None:
    halves = {name: tensor.half() for name, tensor in STATES["vae"].items()}
    narrow = made({**STATES, "vae": halves}, dtype=torch.bfloat16)
    leaves = to_flat(narrow.dit)
    products = ("blocks.0.ffn.0.weight", "blocks.0.cross_attn.q.bias", "patch_embedding.weight")
    islands = ("head.head.weight", "blocks.0.modulation", "blocks.0.self_attn.norm_q.weight")
    assert all(leaves[name].dtype is torch.bfloat16 for name in products)
    assert all(leaves[name].dtype is torch.float32 for name in islands)
    assert {leaf.dtype for leaf in to_flat(narrow.vae).values()} == {torch.float32}
    assert {leaf.dtype for leaf in to_flat(model.dit).values()} == {torch.float32}


@pytest.mark.parametrize("part", ["dit", "vae", "text"])
def test_an_empty_state_dict(part: Kind) -> None:
    with pytest.raises(CheckpointError, match=part):
        made({**STATES, part: {}})


def test_parts_must_fit_together() -> None:
    wider = replace(worlds.CONFIGS.dit, text_dim=32)
    state = worlds.random_state(worlds.dit_shapes(wider), 0)
    with pytest.raises(CheckpointError, match="text width"):
        made({**STATES, "dit": state}, configs=None)
    with pytest.raises(CheckpointError, match="tokenizer does not belong"):
        made(STATES, tokenizer_json=worlds.tokenizer_json(extra=99))
    with pytest.raises(CheckpointError, match="default size"):
        made(STATES, defaults=Defaults(width=840))
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        made(STATES, tokenizer_json="{}")


# ---------------------------------------------------------------------------------- bundles


def test_bundle_reads_back_as_written(tmp_path: Path, model: Model) -> None:
    digests = written(tmp_path / "tiny", model)
    again = load_model(tmp_path / "tiny")
    assert same(again.dit, STATES["dit"])
    assert same(again.vae, STATES["vae"])
    assert same(again.text, STATES["text"])
    assert again.defaults == worlds.DEFAULTS
    assert (again.dit_config, again.vae_config, again.text_config) == (
        model.dit_config,
        model.vae_config,
        model.text_config,
    )
    assert again.digests == digests == model.digests
    assert again.tokenizer.encode("red", 4) == model.tokenizer.encode("red", 4)


def test_bundle_holds_five_files_and_no_pickle(tmp_path: Path, model: Model) -> None:
    written(tmp_path, model)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "config.json",
        "dit.safetensors",
        "vae.safetensors",
        "text.safetensors",
        "tokenizer.json",
    }


def test_bundle_keeps_another_vae_and_half_precision(tmp_path: Path, model: Model) -> None:
    config = VAEConfig(
        dim=4,
        z_dim=16,
        dim_mult=(1, 2, 2),
        num_res_blocks=1,
        temporal_downsample=(True, True),
        patch_size=2,
        latent_mean=(0.25,) * 16,
        latent_std=(2.0,) * 16,
    )
    state = worlds.random_state(worlds.vae_shapes(config), 3)
    halves = {name: tensor.half() for name, tensor in state.items()}
    configs = replace(worlds.CONFIGS, vae=config)
    written(tmp_path, made({**STATES, "vae": halves}, configs=configs))
    again = load_model(tmp_path)
    assert again.vae_config == config
    assert same(again.vae, {name: tensor.float() for name, tensor in halves.items()})


def test_bundle_of_tensors_that_share_memory_or_need_gradient(tmp_path: Path) -> None:
    base = torch.randn(2, 64, 48)
    state = {**STATES["dit"], "blocks.0.ffn.0.weight": base[0], "blocks.1.ffn.0.weight": base[1]}
    state["blocks.2.ffn.0.weight"] = torch.randn(48, 64).T.requires_grad_()
    written(tmp_path, made({**STATES, "dit": state}))
    assert same(load_model(tmp_path).dit, state)


def test_bundle_with_another_checkpoint(tmp_path: Path, model: Model) -> None:
    written(tmp_path / "tiny", model)
    torch.save({"generator": worlds.prefixed(worlds.dit_state(11), "model.")}, tmp_path / "x.pt")
    other = load_model(tmp_path / "tiny", checkpoint=tmp_path / "x.pt")
    assert same(other.dit, worlds.dit_state(11))
    assert other.digests["dit"] != model.digests["dit"]


def test_bundle_written_over_another_one(tmp_path: Path, model: Model) -> None:
    written(tmp_path, model)
    written(tmp_path, made({**STATES, "dit": worlds.dit_state(11)}))
    assert same(load_model(tmp_path).dit, worlds.dit_state(11))


def test_bundle_that_cannot_be_written(tmp_path: Path, model: Model) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        written(tmp_path / "file", model)


@pytest.mark.parametrize("part", ["dit", "vae", "text"])
def test_bundle_mixed_of_two_writes_is_refused(tmp_path: Path, model: Model, part: str) -> None:
    written(tmp_path, model)
    path = tmp_path / f"{part}.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_model(tmp_path)


# --------------------------------------------------------------------------------- defaults


def test_defaults_are_those_of_wan() -> None:
    recorded = golden.document("generation_defaults")
    assert recorded["sample_neg_prompt"] == WAN_NEGATIVE_PROMPT == Defaults().negative_prompt
    assert recorded["sample_fps"] == Defaults().fps
    t2v = recorded["generate_defaults"]["t2v"]
    defaults = Defaults()
    assert (defaults.solver, defaults.steps) == (t2v["solver"], t2v["steps"])
    assert (defaults.shift, defaults.guidance_scale) == (t2v["shift"], t2v["guide_scale"])


@pytest.mark.parametrize(
    "changes",
    [
        {"solver": "magic"},
        {"noise": "loud"},
        {"layout_t2v": "sideways"},
        {"layout_i2v": ""},
        {"steps": 0},
        {"shift": 0.0},
        {"shift": float("nan")},
        {"guidance_scale": -1.0},
        {"alpha": 1.5},
        {"beta": float("inf")},
        {"width": 0},
        {"height": 10**9},
        {"fps": 0},
        {"duration_s": -1.0},
    ],
)
def test_defaults_out_of_range(changes: dict) -> None:
    with pytest.raises(ArgumentError):
        Defaults(**changes)


def test_defaults_survive_json() -> None:
    again = json.loads(json.dumps(asdict(worlds.DEFAULTS)))
    assert again["vocabulary"] == list(worlds.WORDS)
