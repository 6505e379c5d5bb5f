"""Models that cannot be one: one line, exit code 3, in under a second, before torch is imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmpl.checkpoint.folder import check_folder
from tests.checkpoint import lora_worlds, worlds
from tests.cli.conftest import ROOT

Damage = Callable[[Path], object]

DIT = "diffusion_pytorch_model.safetensors"
INDEX = f"{DIT}.index.json"
SHARD = "diffusion_pytorch_model-00002-of-00002.safetensors"
VAE, TEXT = "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER, CONFIG = "google/umt5-xxl/tokenizer.json", "config.json"
LORA = "../lora.safetensors"


@dataclass(frozen=True)
class Outcome:
    code: int
    err: str
    seconds: float
    with_torch: bool


@dataclass(frozen=True)
class Case:
    """A damage to a sound folder, flags, and what the line must say. `shards`: the transformer of
    the folder is in two, with an index."""

    damage: Damage
    said: str
    flags: tuple[str, ...] = ()
    shards: bool = False


def instead(name: str, make: Damage) -> Damage:
    """Something else at a file's place."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def indexed(**changes: str) -> Damage:
    def damage(folder: Path) -> None:
        table = json.loads((folder / INDEX).read_text())
        table["weight_map"] |= changes
        (folder / INDEX).write_text(json.dumps(table))

    return damage


def big_lora(folder: Path) -> None:
    pairs = {"blocks.0.self_attn.q": (torch.ones(2, 5120), torch.ones(5120, 2))}
    save_file(lora_worlds.comfy(pairs), folder / LORA)


def deep_checkpoint(folder: Path) -> None:
    """A training checkpoint of a deeper transformer than the folder's config says."""
    state = worlds.dit_state()
    state |= {name.replace("blocks.0.", "blocks.7."): x.clone() for name, x in state.items()}
    inside = {f"model._fsdp_wrapped_module.{name}": x for name, x in state.items()}
    torch.save({"generator": inside, "generator_ema": inside}, folder / "deep.pt")


def looped(folder: Path) -> None:
    """A folder that is inside itself, and no VAE."""
    (folder / "again").symlink_to(folder, target_is_directory=True)
    (folder / VAE).unlink()


CASES: dict[str, Case] = {
    "missing shard": Case(lambda f: (f / SHARD).unlink(), SHARD, shards=True),
    "index out of its folder": Case(indexed(x="../x.safetensors"), "outside", shards=True),
    "index to anywhere": Case(indexed(x="/etc/x.safetensors"), "outside", shards=True),
    "two families": Case(
        lambda f: save_file(worlds.renamed("dit", worlds.dit_state()), f / "x.safetensors"),
        "several files hold a transformer",
    ),
    "a T5 for the transformer": Case(
        instead(DIT, lambda p: save_file(worlds.text_state(), p)), "no transformer"
    ),
    "a T5 as checkpoint": Case(
        lambda f: None, "does not hold a transformer", ("--checkpoint", TEXT)
    ),
    "a checkpoint of another size": Case(
        deep_checkpoint, "got 8 blocks", ("--checkpoint", "deep.pt")
    ),
    "a VAE for the T5": Case(
        instead(TEXT, lambda p: torch.save(worlds.vae_state(), p)), "no text encoder"
    ),
    "a LoRA of another size": Case(big_lora, "5120x5120 (Wan2.1 14B)", ("--lora", LORA)),
    "a LoRA as checkpoint": Case(big_lora, "--lora", ("--checkpoint", LORA)),
    "other width": Case(lambda f: worlds.write_config(f, dim=96), "contradict"),
    "other depth": Case(lambda f: worlds.write_config(f, num_layers=2), "contradict"),
    "image-to-video": Case(lambda f: worlds.write_config(f, model_type="i2v"), "model_type"),
    "a folder in itself": Case(looped, "no video VAE"),
    **{
        f"{name} {what}": Case(instead(file, make), said, flags, shards=file in (SHARD, INDEX))
        for name, file, flags in (
            ("transformer", DIT, ()),
            ("index", INDEX, ()),
            ("shard", SHARD, ()),
            ("VAE", VAE, ()),
            ("text encoder", TEXT, ()),
            ("tokenizer", TOKENIZER, ()),
            ("config", CONFIG, ()),
            ("LoRA", LORA, ("--lora", LORA)),
            ("checkpoint", "x.pt", ("--checkpoint", "x.pt")),
            ("VAE given", "y.pt", ("--vae", "y.pt")),
            ("whole model", "../m.sft", ("--model_path", "../m.sft")),
        )
        for what, make, said in (
            ("of no bytes", lambda p: p.touch(), "empty"),
            ("a folder", lambda p: p.mkdir(), ""),
            ("a pipe", os.mkfifo, "got a pipe"),
            ("a link to itself", lambda p: p.symlink_to(p.name), "cannot be read"),
            ("a device", lambda p: p.symlink_to("/dev/zero"), "got a device"),
        )
    },
}
RUN = """
import io, json, os, sys, time
from contextlib import redirect_stderr
from mmpl.cli.gen import main
said = {}
for name, folder, flags in json.load(sys.stdin):
    os.chdir(folder)
    err, begun = io.StringIO(), time.monotonic()
    with redirect_stderr(err):
        code = main(["--prompt", "x", "--output", "../film.mp4", *flags])
    said[name] = code, err.getvalue(), time.monotonic() - begun, "torch" in sys.modules
print(json.dumps(said))
"""


def sound(folder: Path, *, shards: bool) -> Path:
    worlds.write_wan_folder(folder, with_dit=not shards)
    if shards:
        worlds.write_shards(folder, worlds.dit_state())
    return folder


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """All cases by one process of the command."""
    root = tmp_path_factory.mktemp("models")
    kinds = {shards: sound(root / f"sound {shards}", shards=shards) for shards in (False, True)}
    orders = []
    for number, (name, case) in enumerate(CASES.items()):
        folder = root / str(number) / "wan"
        shutil.copytree(kinds[case.shards], folder)
        case.damage(folder)
        flags = [] if "--model_path" in case.flags else ["--model_path", "."]
        orders.append((name, str(folder), [*flags, *case.flags]))
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(orders),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return {name: Outcome(*said) for name, said in json.loads(done.stdout).items()}


@pytest.mark.parametrize("name", CASES)
def test_bad_models(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    assert outcome.code == 3, outcome.err
    assert outcome.err.count("\n") == 1
    assert outcome.err.rstrip("\n").isprintable()
    assert CASES[name].said in outcome.err
    assert "internal error" not in outcome.err
    assert outcome.seconds < 1
    assert not outcome.with_torch


def test_the_sound_folders_are_sound(tmp_path: Path) -> None:
    """What is refused above is refused for its damage."""
    for shards in (False, True):
        folder = sound(tmp_path / str(shards), shards=shards)
        assert check_folder(folder).configs.dit == worlds.CONFIGS.dit
