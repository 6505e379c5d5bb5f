"""--compile: by the real command, said in its header, part of the job and of the film."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from mmpl.cli import make
from mmpl.film import studio
from mmpl.wan.compiled import compiled_block
from tests.cli.conftest import PROMPT, Gen
from tests.cli.test_film import again, settings_of

FILM = ("--prompt", PROMPT, "--seed", 7, "--num_frames", 5, "--steps", 1)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the graph: the rest takes a minute."""
    torch._dynamo.reset()
    monkeypatch.setattr(studio, "compiled_block", partial(compiled_block, "eager"))


def test_a_compiled_film_says_so_and_is_gone_on_with_alike(gen: Gen) -> None:
    code, _, err = gen(*FILM, "--compile", "yes")
    assert (code, "attention, compiled, " in err) == (0, True), err
    assert settings_of()["compile"] == "yes"
    printed = again(err)
    assert printed[printed.index("--compile") + 1] == "yes"
    assert gen(*FILM, "--compile", "yes")[0] == 0  # it is there
    code, _, err = gen("resume", "film.mp4.job", "--overwrite", plain=True)
    assert (code, "attention, compiled, " in err) == (0, True), err
    code, _, err = gen("resume", "film.mp4.job", "--overwrite", "--compile", "no", plain=True)
    assert (code, "compile no" in err) == (6, True), err


def test_a_cpu_compiles_only_when_told(gen: Gen) -> None:
    code, _, err = gen(*FILM)
    assert (code, "compile" in err.split("again")[0]) == (0, False), err
    assert settings_of()["compile"] == "no"


def test_what_keeps_a_gpu_from_it_is_said(gen: Gen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "resolve_compiled", lambda *_, **__: (False, "no Triton"))
    code, _, err = gen(*FILM)
    assert (code, "compile  left out: no Triton" in err) == (0, True), err


def test_another_value_is_refused(gen: Gen) -> None:
    code, _, err = gen(*FILM, "--compile", "maybe")
    assert (code, "auto, yes, no" in err) == (2, True), err
