"""Weights as others publish them, on the command line: films, convert, inspect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmpl.media.video import read_metadata
from tests.checkpoint import worlds
from tests.cli.conftest import Gen

FILM = ("--prompt", "a cat", "--size", "32x32", "--num_frames", 1, "--steps", 1, "--cfg", 1)
DIT = "diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors"


@pytest.fixture(autouse=True)
def _quiet_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller weights than the usual ones: a film needs numbers that stay finite."""
    usual = worlds.random_state
    monkeypatch.setattr(worlds, "random_state", lambda shapes, seed: usual(shapes, seed, scale=0.1))


def test_film_from_a_diffusers_folder(gen: Gen, tmp_path: Path) -> None:
    folder = worlds.write_diffusers_folder(tmp_path / "wan", shards=2)
    code, out, err = gen(*FILM, "--model_path", folder)
    assert (code, out) == (0, "film.mp4\n"), err
    assert "diffusers folder" in err
    assert "were never trained for layout" in err


def test_a_prediction_counts_every_shard(gen: Gen, tmp_path: Path) -> None:
    def predicted(shards: int) -> float:
        folder = worlds.write_diffusers_folder(tmp_path / str(shards), shards=shards)
        code, out, err = gen(*FILM, "--model_path", folder, "--dry_run", "--json")
        assert code == 0, err
        return json.loads(out)["memory_gb_per_rank"]

    headers_gb = 20e3 / 1e9
    assert predicted(3) == pytest.approx(predicted(0), abs=headers_gb)
    assert predicted(2) > 10 * headers_gb


def test_film_from_single_files(gen: Gen, tmp_path: Path) -> None:
    comfy = worlds.write_comfy_folder(tmp_path / "comfy")
    alone = tmp_path / "a" / "b" / "x.safetensors"
    alone.parent.mkdir(parents=True)
    (comfy / DIT).rename(alone)
    vae = tmp_path / "vae.pt"
    torch.save(worlds.vae_state(), vae)
    flags = [*FILM, "--model_path", alone, "--vae", vae, "--seed", 3]
    code, _, err = gen(*flags)
    assert code == 3
    assert "no text encoder" in err
    assert err.count("\n") == 1
    flags += ["--text_encoder", comfy / "text_encoders/umt5_xxl_fp16.safetensors"]
    flags += ["--tokenizer", comfy / "text_encoders/tokenizer.json"]
    code, out, err = gen(*flags)
    assert (code, out) == (0, "film.mp4\n"), err
    assert read_metadata("film.mp4")["model"]["vae"] == str(vae)
    code, out, err = gen("inspect", "film.mp4.job", plain=True)
    assert code == 0, err
    code, _, err = gen("--config", "film.mp4", "--output", "again.mp4", plain=True)
    assert code == 0, err


def test_convert(gen: Gen, tmp_path: Path) -> None:
    source = worlds.write_comfy_folder(tmp_path / "comfy")
    code, out, err = gen("convert", source, "bundle", plain=True)
    assert (code, out) == (0, "bundle\n"), err
    assert "ComfyUI folder" in err
    code, _, err = gen(*FILM, "--model_path", "bundle")
    assert code == 0, err
    code, _, err = gen("convert", source, "bundle", plain=True)
    assert code == 2
    assert "exists" in err
    code, _, err = gen("convert", source, "bundle", "--overwrite", "--dtype", "bf16", plain=True)
    assert code == 0, err
    code, _, err = gen("convert", source, source / "vae", "--overwrite", plain=True)
    assert code == 2
    assert "own folder" in err
    for words in ((), (source,), (source, "--overwrite")):
        assert gen("convert", *words, plain=True)[0] == 2
    assert gen("convert", tmp_path / "none", "x", plain=True)[0] == 3


def test_inspect(gen: Gen, tmp_path: Path) -> None:
    folder = worlds.write_diffusers_folder(tmp_path / "wan")
    _, out, _ = gen("inspect", folder, plain=True)
    assert "a diffusers folder, transformer of 3 layers, 48 wide" in out
    assert "vae/diffusion_pytorch_model.safetensors" in out
    assert "diffusers naming" in out
    odd = worlds.write_odd_folder(tmp_path / "apart" / "odd")
    (odd / "one.sft").unlink()
    code, out, _ = gen("inspect", odd, plain=True)
    assert code == 0
    assert "three.ckpt: a transformer, a training checkpoint" in out
    assert "missing" in out
    assert "no video VAE" in out
    code, out, _ = gen("inspect", odd / "three.ckpt", plain=True)
    assert code == 0
    assert "a transformer (dim 48, num_layers 3)" in out
    assert "of F32" in out
    assert "no video VAE" in out
    half = {"a.lora_A.weight": torch.ones(2, 2)}
    save_file(half, "lora.safetensors")
    code, _, err = gen("inspect", "lora.safetensors", plain=True)
    assert code == 3
    assert "half of a low-rank pair" in err
