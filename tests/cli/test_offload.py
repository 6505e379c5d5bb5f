"""--offload: the same film wherever its weights live, chosen by what is free, predicted before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmpl.cli import make, memory
from tests.cli.conftest import PROMPT, Gen
from tests.cli.test_film import again, frames_of, settings_of

SAID = ("--prompt", PROMPT, "--seed", 7, "--steps", 1, "--guidance_scale", 3)
FILM = (*SAID, "--num_frames", 5)
SEGMENT = (*SAID, "--num_frames", 81)


def test_a_film_is_the_same_and_goes_on_with_any_offload(gen: Gen) -> None:
    assert gen(*FILM)[0] == 0
    plain, settings = frames_of(), settings_of()
    for kind in ("block", "model"):
        code, _, err = gen(*FILM, "--offload", kind, "--overwrite", "--fresh")
        assert code == 0, err
        assert (frames_of() == plain).all()
        assert settings_of() == settings
    printed = again(err)
    assert printed[printed.index("--offload") + 1] == "model"
    latents = next(Path("film.mp4.job").glob("segment_0001.fill_head*"), None)
    kept = next(Path("film.mp4.job").glob("segment_*.safetensors")) if latents is None else latents
    kept.unlink()
    code, _, err = gen("resume", "film.mp4.job", "--offload", "block", "--overwrite", plain=True)
    assert code == 0, err
    assert (frames_of() == plain).all()


def test_an_unknown_offload_is_refused(gen: Gen) -> None:
    code, _, err = gen(*FILM, "--offload", "disk")
    assert (code, "auto, none, model, block" in err) == (2, True)
    assert not Path("film.mp4").exists()


def watch(monkeypatch: pytest.MonkeyPatch, taken: list[str]) -> None:
    """Notes the offload of every model that is loaded."""
    load = make.load_model

    def watched(*args: object, offload: str, **kwargs: object) -> object:
        taken.append(offload)
        return load(*args, offload=offload, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(make, "load_model", watched)


def test_a_film_goes_on_with_the_offload_it_was_begun_with(
    gen: Gen, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    watch(monkeypatch, taken)
    assert gen("plan", *FILM, "--offload", "block")[0] == 0
    code, _, err = gen("resume", "film.mp4.job", plain=True)
    assert (code, taken) == (0, ["block", "block"]), err


@pytest.mark.parametrize(
    ("free", "kind"), [(10**12, "none"), (1000, "block"), (None, None)], ids=str
)
def test_auto_says_what_it_took(
    gen: Gen, monkeypatch: pytest.MonkeyPatch, free: int | None, kind: str | None
) -> None:
    taken: list[str] = []
    watch(monkeypatch, taken)
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    code, _, err = gen(*FILM)
    assert (code, taken) == (0, [kind or "none"]), err
    assert (f"--offload {kind}: " in err) == (kind is not None)
    assert ("may not fit" in err) == (kind == "block")


def test_a_prediction_says_what_each_offload_takes(gen: Gen) -> None:
    code, out, err = gen(*SEGMENT, "--dry_run", "--json")
    assert code == 0, err
    found = json.loads(out)
    peaks = [found[f"gpu_gb_offload_{kind}"] for kind in ("none", "model", "block")]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] > 0
    assert found["host_gb_offload_block"] > found["host_gb_offload_model"] > 0
    code, out, _ = gen(*SEGMENT, "--dry_run", "--json", "--offload", "model", "--dtype", "fp32")
    one = json.loads(out)
    assert [name for name in one if "offload" in name] == [
        "gpu_gb_offload_model",
        "host_gb_offload_model",
    ]
    assert one["gpu_gb_offload_model"] > peaks[1]


def test_a_prediction_counts_what_is_shared(gen: Gen) -> None:
    """Of processes that share passes each has a part of the cache."""
    known = (*SEGMENT, "--dry_run", "--json", "--offload", "none")
    alone = json.loads(gen(*known)[1])["gpu_gb_offload_none"]
    for mesh in ("1x1x2", "1x2x1", "auto"):
        code, out, err = gen(*known, "--ranks", 2, "--parallel", mesh)
        assert code == 0, err
        found = json.loads(out)
        assert (found["gpu_gb_offload_none"] < alone) == found["mesh"].startswith("1 x")
        assert mesh == "auto" or found["mesh"].startswith("1 x")
