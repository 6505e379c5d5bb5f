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

from mmpl.checkpoint.defaults import Defaults
from mmpl.cli.gen import main
from tests.checkpoint import worlds
from tests.small import small_model, write_small

ROOT = Path(__file__).parents[2]
PROMPT = "red circle moves right"
SIZE = 64
DEFAULTS = Defaults(
    width=SIZE,
    height=SIZE,
    steps=2,
    negative_prompt="",
    vocabulary=worlds.WORDS,
    examples=(PROMPT, "red circle"),
)


def write_model(
    folder: Path, *, defaults: Defaults = DEFAULTS, seed: int = 0, broken: bool = False
) -> Path:
    """A bundle of the small model; a `broken` one holds a NaN."""
    model = small_model(defaults, seed=seed)
    if broken:
        model.dit.head.head.bias[0] = torch.nan
    return write_small(folder, model)


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
