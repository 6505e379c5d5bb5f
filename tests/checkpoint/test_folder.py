"""Damaged, hostile and contradictory model folders: one line, nothing loaded, nothing run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmpl.checkpoint.bundle import load_model, model_from_state_dicts, write_bundle
from mmpl.checkpoint.defaults import Defaults
from mmpl.checkpoint.folder import check_folder
from mmpl.errors import CheckpointError
from tests.checkpoint import worlds

DIT = "diffusion_pytorch_model.safetensors"
VAE = "Wan2.1_VAE.pth"
TEXT = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER = "google/umt5-xxl/tokenizer.json"
Damage = Callable[[Path], object]


def cut(name: str, part: float = 0.5) -> Damage:
    def damage(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * part)])

    return damage


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def config(**changes: object) -> Damage:
    return lambda folder: worlds.write_config(folder, **changes)


def config_text(text: str) -> Damage:
    return lambda folder: (folder / "config.json").write_text(text)


def dit(change: Callable[[dict], dict]) -> Damage:
    return lambda folder: save_file(change(worlds.dit_state()), folder / DIT)


def pickled(name: str, make: Callable[[Path], object]) -> Damage:
    return lambda folder: torch.save(make(folder), folder / name)


def without(name: str) -> Callable[[dict], dict]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def added(name: str) -> Callable[[dict], dict]:
    return lambda state: {**state, name: torch.ones(2)}


def reshaped(name: str, *shape: int) -> Callable[[dict], dict]:
    return lambda state: {**state, name: torch.ones(shape)}


def shards(change: Callable[[dict], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / DIT).unlink()
        index = worlds.write_shards(folder, worlds.dit_state())
        content = json.loads(index.read_text())
        change(content["weight_map"])
        index.write_text(json.dumps(content))

    return damage


def int8(state: dict) -> dict:
    return {**state, "head.head.weight": state["head.head.weight"].to(torch.int8)}


def integers(folder: Path) -> object:
    return {name: tensor.int() for name, tensor in worlds.vae_state().items()}


# Found before anything is loaded; what the one line must say.
EARLY: dict[str, tuple[Damage, str]] = {
    "config cut": (cut("config.json"), "JSON"),
    "config empty": (config_text(""), "empty"),
    "config a list": (config_text("[]"), "object"),
    "config of 2 MB": (config_text("{" + " " * 2**21 + "}"), "too large"),
    "config deep": (config_text("[" * 200_000), "JSON"),
    "config NaN": (config_text('{"dim": NaN}'), "JSON"),
    "config doubled key": (config_text('{"dim": 48, "dim": 64}'), "JSON"),
    "config huge number": (config_text('{"dim": 1' + "0" * 5000 + "}"), "JSON"),
    "config unknown key": (config(trust_remote_code=True), "trust_remote_code"),
    "config dim of text": (config(dim="48"), "dim"),
    "config dim of truth": (config(dim=True), "dim"),
    "config 10^9 layers": (config(num_layers=10**9), "num_layers"),
    "config negative": (config(ffn_dim=-1), "ffn_dim"),
    "config zero heads": (config(num_heads=0), "num_heads"),
    "config odd heads": (config(num_heads=5), "heads"),
    "config eps": (config(eps=0), "eps"),
    "config infinite eps": (config_text('{"eps": 1e999}'), "eps"),
    "config of I2V": (config(model_type="i2v"), "model_type"),
    "config windowed": (config(window_size=[5, 5]), "window_size"),
    "config of both": (config(num_attention_heads=2), "another transformer"),
    "config of 1.3B": (config(dim=1536, num_heads=12), "Wan2.1 1.3B"),
    "config other layers": (config(num_layers=2), "num_layers 3"),
    "bundle of the future": (config(format="mmpl-bundle", version=99), "newer mmpl"),
    "other format": (config(format="something"), "unknown kind of bundle"),
    "no transformer": (remove(DIT), "no transformer .*--checkpoint"),
    "no VAE": (remove(VAE), "no video VAE .*--vae"),
    "no text encoder": (remove(TEXT), "no text encoder .*--text_encoder"),
    "no tokenizer": (remove(TOKENIZER), "no tokenizer .*--tokenizer"),
    "transformer cut": (cut(DIT), DIT),
    "transformer cut in its header": (cut(DIT, 0.001), DIT),
    "transformer one byte short": (cut(DIT, 0.99999), DIT),
    "VAE cut": (cut(VAE), VAE),
    "text encoder cut": (cut(TEXT, 0.9), TEXT),
    "tokenizer cut": (cut(TOKENIZER), "tokenizer.json"),
    "transformer without its head": (dit(without("head.modulation")), "head.modulation"),
    "a VAE as transformer": (dit(lambda state: worlds.vae_state()), "transformer"),
    "transformer of flat patches": (dit(reshaped("patch_embedding.weight", 48, 64)), "axes"),
    "transformer with empty axis": (dit(reshaped("head.modulation", 1, 2, 0)), "dim"),
    "I2V channels": (dit(reshaped("patch_embedding.weight", 48, 36, 1, 2, 2)), "in_dim"),
    "I2V CLIP": (dit(added("img_emb.proj.0.weight")), "CLIP"),
    "VACE": (dit(added("vace_blocks.0.norm3.weight")), "VACE"),
    "LoRA": (dit(added("blocks.0.ffn.0.lora_A.weight")), "LoRA"),
    "int8 without scale": (dit(int8), "no scale"),
    "code alone as VAE": (
        pickled(VAE, lambda folder: worlds.Attack(folder / "canary")),
        "no video VAE .*Wan2.1_VAE.pth .weights of no network",
    ),
    "a list as VAE": (pickled(VAE, lambda folder: [torch.ones(2)]), "no video VAE"),
    "text encoder as VAE": (
        pickled(VAE, lambda folder: worlds.text_state()),
        "no video VAE .*Wan2.1_VAE.pth .a text encoder",
    ),
    "VAE as text encoder": (pickled(TEXT, lambda folder: worlds.vae_state()), "no text encoder"),
    "index with a path": (shards(lambda m: m.update(x="../x.safetensors")), "outside"),
    "index with a missing shard": (shards(lambda m: m.update(x="y.safetensors")), "y.safetensors"),
    "index with an absent key": (
        shards(lambda m: m.update({"x": next(iter(m.values()))})),
        "shard does not hold",
    ),
    "index without a key": (shards(lambda m: m.pop("head.modulation")), "shard does not hold"),
    "index without keys": (shards(lambda m: m.clear()), "no tensors"),
}

# Found only once the tensors are read.
LATE: dict[str, tuple[Damage, str]] = {
    "a key missing": (dit(without("blocks.2.ffn.2.bias")), "1 missing .*blocks.2.ffn.2.bias"),
    "a key too many": (dit(added("blocks.2.what.bias")), "1 unexpected .*blocks.2.what.bias"),
    "a wrong shape": (dit(reshaped("blocks.2.ffn.2.bias", 49)), "another shape .*ffn.2.bias"),
    "a flat head": (dit(reshaped("head.modulation", 48)), "another shape .*head.modulation"),
    "a transposed matrix": (dit(reshaped("blocks.1.ffn.0.weight", 48, 64)), "blocks.1.ffn.0"),
    "VAE of code": (
        pickled(VAE, lambda folder: worlds.vae_state() | {"x": worlds.Attack(folder / "canary")}),
        "not run",
    ),
    "text encoder of code": (
        pickled(TEXT, lambda folder: worlds.text_state() | {"x": worlds.Attack(folder / "canary")}),
        "not run",
    ),
    "VAE of integers": (pickled(VAE, integers), "number format"),
    "VAE of other depth": (
        pickled(
            VAE,
            lambda folder: {
                name: tensor
                for name, tensor in worlds.vae_state().items()
                if not name.startswith("encoder.downsamples.10.")
            },
        ),
        "number of layers",
    ),
    "tokenizer of another kind": (
        lambda folder: (folder / TOKENIZER).write_text('{"version": "1.0"}'),
        "not a tokenizer",
    ),
    "tokenizer too large": (
        lambda folder: (folder / TOKENIZER).write_text(
            worlds.tokenizer_json(extra=99), encoding="utf-8"
        ),
        "tokenizer does not belong",
    ),
}


def refused(function: Callable[..., object], folder: Path, message: str, **options: Any) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        function(folder, **options)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 700
    assert str(folder) in line
    assert caught.value.exit_code == 3
    assert not os.path.exists(folder / "canary")


@pytest.fixture(scope="session")
def sound_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return worlds.write_wan_folder(tmp_path_factory.mktemp("sound") / "wan")


@pytest.fixture
def folder(tmp_path: Path, sound_folder: Path) -> Path:
    return Path(shutil.copytree(sound_folder, tmp_path / "wan"))


def test_a_sound_folder_passes(folder: Path) -> None:
    found = check_folder(folder)
    assert found.kind == "wan"
    assert found.configs.dit == worlds.CONFIGS.dit
    assert found.defaults == Defaults()
    assert set(found.files) == {"dit", "vae", "text", "tokenizer"}


@pytest.mark.parametrize("kind", EARLY)
def test_found_before_loading(folder: Path, kind: str) -> None:
    damage, message = EARLY[kind]
    damage(folder)
    refused(check_folder, folder, message)
    refused(load_model, folder, message)


@pytest.mark.parametrize("kind", LATE)
def test_found_while_loading(folder: Path, kind: str) -> None:
    damage, message = LATE[kind]
    damage(folder)
    refused(load_model, folder, message)


@pytest.mark.parametrize("name", ["absent.pt", ".", "x.gguf", "empty.pt"])
def test_bad_checkpoints(folder: Path, name: str) -> None:
    (folder / "x.gguf").write_bytes(b"GGUF")
    (folder / "empty.pt").touch()
    for function in (check_folder, load_model):
        refused(function, folder, folder.name, checkpoint=folder / name)


def test_checkpoint_of_another_size(folder: Path) -> None:
    other = replace(worlds.CONFIGS.dit, dim=96, ffn_dim=80)
    state = worlds.random_state(worlds.dit_shapes(other), 0)
    torch.save({"generator": worlds.prefixed(state, "model.")}, folder / "x.pt")
    message = "got dim 96, ffn_dim 80; wanted dim 48, ffn_dim 64"
    refused(load_model, folder, message, checkpoint=folder / "x.pt")


def test_checkpoint_with_code(folder: Path) -> None:
    content = {"generator": worlds.dit_state(), "step": worlds.Attack(folder / "canary")}
    torch.save(content, folder / "x.pt")
    refused(load_model, folder, "not run", checkpoint=folder / "x.pt")


@pytest.mark.parametrize("name", ["absent", "file", "loop", "x" * 300])
def test_not_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for function in (check_folder, load_model):
        refused(function, tmp_path / name, "no such model folder")


# ---------------------------------------------------------------------------------- bundles

BUNDLE_DAMAGE: dict[str, tuple[Callable[[dict], object], str]] = {
    "unknown entry": (lambda c: c.update(extra=1), "extra"),
    "missing entry": (lambda c: c.pop("vae"), "vae"),
    "entry of another kind": (lambda c: c.update(dit=[]), "dit"),
    "unknown setting": (lambda c: c["defaults"].update(exec="x"), "exec"),
    "unknown solver": (lambda c: c["defaults"].update(solver="x"), "solver"),
    "unknown layout": (lambda c: c["defaults"].update(layout_t2v="x"), "layout"),
    "size that does not divide": (lambda c: c["defaults"].update(width=72), "default size"),
    "zero fps": (lambda c: c["defaults"].update(fps=0), "fps"),
    "words of numbers": (lambda c: c["defaults"].update(vocabulary=[1]), "vocabulary"),
    "VAE levels of 10^6": (lambda c: c["vae"].update(num_res_blocks=10**6), "layers"),
    "VAE multiple of zero": (lambda c: c["vae"].update(dim_mult=[0, 0, 0, 0]), "dim_mult"),
    "VAE statistics": (lambda c: c["vae"].update(latent_std=[0.0] * 16), "latent_std"),
    "VAE of other latents": (lambda c: c["vae"].update(z_dim=8), "latent"),
    "text encoder of other width": (lambda c: c["text"].update(dim=32), "dim"),
    "other patch": (lambda c: c["dit"].update(patch_size=[1, 2]), "patch_size"),
    "other layers": (lambda c: c["dit"].update(num_layers=10**9), "num_layers"),
    "digest of nothing": (lambda c: c["digests"].update(cat="x"), "digests"),
}


@pytest.fixture(scope="session")
def sound_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "tiny"
    model = model_from_state_dicts(
        dit=worlds.dit_state(),
        vae=worlds.vae_state(),
        text=worlds.text_state(),
        tokenizer_json=worlds.tokenizer_json(),
        configs=worlds.CONFIGS,
    )
    write_bundle(
        folder,
        dit=model.dit,
        vae=model.vae,
        text=model.text,
        configs=worlds.CONFIGS,
        tokenizer_json=worlds.tokenizer_json(),
        defaults=worlds.DEFAULTS,
    )
    return folder


@pytest.fixture
def bundle(tmp_path: Path, sound_bundle: Path) -> Path:
    return Path(shutil.copytree(sound_bundle, tmp_path / "tiny"))


def test_a_sound_bundle_passes(bundle: Path) -> None:
    found = check_folder(bundle)
    assert found.kind == "mmpl"
    assert found.configs == worlds.CONFIGS
    assert found.defaults == worlds.DEFAULTS


@pytest.mark.parametrize("kind", BUNDLE_DAMAGE)
def test_bad_bundle_configs(bundle: Path, kind: str) -> None:
    change, message = BUNDLE_DAMAGE[kind]
    content = json.loads((bundle / "config.json").read_text())
    change(content)
    (bundle / "config.json").write_text(json.dumps(content))
    refused(check_folder, bundle, message)
    refused(load_model, bundle, message)


def test_one_changed_number_in_a_bundle_is_noticed(bundle: Path) -> None:
    state = load_file(bundle / "dit.safetensors")
    state["blocks.2.ffn.2.bias"][5] += 1e-6
    save_file(state, bundle / "dit.safetensors")
    check_folder(bundle)
    refused(load_model, bundle, "is damaged")


def test_checking_imports_no_torch(bundle: Path, folder: Path) -> None:
    code = (
        "import sys; from mmpl.checkpoint.folder import check_folder;"
        "[check_folder(path) for path in sys.argv[1:]];"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, bundle, folder], check=True)
