"""A very small random model on disk, and the command run in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmpl.checkpoint.bundle import model_from_state_dicts, write_bundle
from mmpl.checkpoint.defaults import Defaults
from mmpl.checkpoint.folder import Configs
from mmpl.cli.gen import main
from mmpl.wan.config import DiTConfig, VAEConfig
from mmpl.wan.dit_params import dit_shapes
from mmpl.wan.params import Shapes
from mmpl.wan.text import text_shapes
from mmpl.wan.vae import vae_shapes
from tests.checkpoint import worlds

ROOT = Path(__file__).parents[2]
PROMPT = "red circle moves right"
SIZE = 64
CONFIGS = Configs(
    dit=DiTConfig(
        dim=24, ffn_dim=32, num_heads=2, num_layers=1, freq_dim=16, text_dim=24, text_len=8,
        in_dim=4, out_dim=4,
    ),
    vae=VAEConfig(
        dim=4, z_dim=4, dim_mult=(1, 1, 1), num_res_blocks=1, temporal_downsample=(True, True),
        patch_size=2, latent_mean=(0.0,) * 4, latent_std=(1.0,) * 4,
    ),
    text=worlds.CONFIGS.text,
)  # fmt: skip
DEFAULTS = Defaults(
    width=SIZE,
    height=SIZE,
    steps=2,
    negative_prompt="",
    vocabulary=worlds.WORDS,
    examples=(PROMPT, "red circle"),
)


def small_state(shapes: Shapes, seed: int) -> dict[str, torch.Tensor]:
    """Random weights that keep activations in the range of a trained network's."""
    return {name: 0.2 * tensor for name, tensor in worlds.random_state(shapes, seed).items()}


def write_model(
    folder: Path, *, defaults: Defaults = DEFAULTS, seed: int = 0, broken: bool = False
) -> Path:
    """A bundle of the toy sizes; a `broken` one holds a NaN."""
    dit = small_state(dit_shapes(CONFIGS.dit), seed)
    if broken:
        dit["head.head.bias"][0] = torch.nan
    model = model_from_state_dicts(
        dit=dit,
        vae=small_state(vae_shapes(CONFIGS.vae), seed + 1),
        text=small_state(text_shapes(CONFIGS.text), seed + 2),
        tokenizer_json=worlds.tokenizer_json(),
        configs=CONFIGS,
        defaults=defaults,
    )
    write_bundle(
        folder,
        dit=model.dit,
        vae=model.vae,
        text=model.text,
        configs=CONFIGS,
        tokenizer_json=worlds.tokenizer_json(),
        defaults=defaults,
    )
    return folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def sized_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that makes two sizes only and knows no vocabulary."""
    defaults = replace(DEFAULTS, sizes=("64x64", "64x96"), vocabulary=(), examples=())
    return write_model(tmp_path_factory.mktemp("models") / "sized", defaults=defaults)


Outcome = tuple[int, str, str]
Gen = Callable[..., Outcome]


@pytest.fixture
def gen(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Gen:
    """`gen(*flags) -> (exit code, stdout, stderr)` in this process, in an empty folder.

    Flags that make a film of a second are put in front; give others to replace them.
    """
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def call(*flags: object, plain: bool = False) -> Outcome:
        argv = [str(flag) for flag in flags]
        usual = {"--model_path": bundle, "--num_frames": 9, "--threads": torch.get_num_threads()}
        names = {word.partition("=")[0] for word in argv}
        for name, value in usual.items():
            if not plain and name not in names:
                argv += [name, str(value)]
        code = main(argv)
        out, err = capfd.readouterr()
        return code, out, err

    return call


def shell(*argv: object, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """The command as users run it."""
    return subprocess.run(
        [sys.executable, str(ROOT / "bin" / "mmpl-gen"), *map(str, argv)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
