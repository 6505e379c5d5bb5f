"""Models by their name on the hub, by the real command and library, from a hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmpl.checkpoint import hub
from mmpl.errors import CheckpointError
from tests.checkpoint import worlds
from tests.checkpoint.hub_worlds import serving
from tests.cli.conftest import ROOT, Gen

NAME = "somebody/Wan2.1-tiny"
PICKLED_VAE = "Wan2.1_VAE.pth"
OTHERS = ("README.md", "assets/logo.png", "Wan2.1_I2V_clip.pth", "extra.safetensors", "x.py")


class Here:
    """The command as users run it, in a folder and with a cache of its own."""

    def __init__(self, folder: Path, address: str) -> None:
        (folder / "work").mkdir()
        kept = {n: v for n, v in os.environ.items() if not n.startswith("HF_")}
        self.folder, self.work = folder, folder / "work"
        self.env = {
            **kept, "HF_HOME": str(folder / "cache"), "HF_ENDPOINT": address,
            "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip

    def run(self, *words: object, **env: str) -> tuple[int, str]:
        """Exit code and stderr."""
        done = subprocess.run(
            [sys.executable, str(ROOT / "bin/mmpl-gen"), *map(str, words)],
            cwd=self.work, capture_output=True, text=True, timeout=60, env=self.env | env,
        )  # fmt: skip
        return done.returncode, done.stderr

    def predict(self, model: str, *words: object, **env: str) -> tuple[int, str]:
        """What finds a model and needs no torch."""
        film = ("--num_frames", 1, "--size", "32x32", "--ranks", 1)
        return self.run("--dry_run", "--model_path", model, *film, *words, **env)


def publish(folder: Path) -> Path:
    """A repository of Wan2.1 with much beside the model."""
    model = worlds.write_wan_folder(folder / NAME, with_dit=False)
    worlds.write_shards(model, worlds.dit_state())
    (model / "google/umt5-xxl/spiece.model").write_bytes(b"x")
    for name in OTHERS:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(b"x")
    return model


def refused(said: tuple[int, str], *words: str) -> None:
    code, err = said
    assert code == 3, err
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_a_model_is_fetched_once_and_then_works_offline(tmp_path: Path) -> None:
    shards = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    wanted = {
        "config.json", "diffusion_pytorch_model.safetensors.index.json", *shards,
        PICKLED_VAE, "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/tokenizer.json",
    }  # fmt: skip
    publish(tmp_path / "hub")
    with serving(tmp_path / "hub") as server:
        here = Here(tmp_path, server.address)
        code, err = here.predict(NAME, "--checkpoint", "none.pt")
        assert set(server.sent) == wanted - {n for n in wanted if n.startswith("diffusion")}
        refused((code, err), "none.pt")
        code, err = here.predict(NAME)
        assert code == 0, err
        assert sorted(server.sent) == sorted(wanted)  # each once
        before = server.asked
        assert here.predict(NAME)[0] == 0
        assert server.asked == before
    code, err = here.run("convert", NAME, "bundle", HF_HUB_OFFLINE="1")
    assert code == 0, err
    assert json.loads((here.work / "bundle/config.json").read_text())["dit"]["dim"] == 48


def test_what_cannot_be_fetched_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "hub/somebody/pictures").mkdir(parents=True)
    (tmp_path / "hub/somebody/pictures/a.safetensors").write_bytes(b"x")
    with serving(tmp_path / "hub") as server:
        here = Here(tmp_path, server.address)
        refused(here.predict("somebody/else"), "somebody/else: ", "check the name")
        refused(here.predict("somebody/pictures"), "no whole model", "a.safetensors")
        assert server.sent == []
    start = time.monotonic()
    refused(here.predict(NAME), NAME, "cannot be reached")
    refused(here.predict(NAME, HF_HUB_OFFLINE="1"), NAME, "cannot be reached")
    assert time.monotonic() - start < 20


def test_a_folder_of_that_name_wins(tmp_path: Path) -> None:
    publish(tmp_path / "hub")
    with serving(tmp_path / "hub") as server:
        here = Here(tmp_path, server.address)
        worlds.write_wan_folder(here.work / NAME)
        code, err = here.predict(NAME)
        assert code == 0, err
        refused(here.predict("./somebody/else"), "no such model folder")
        assert server.asked == 0


def test_without_the_library(gen: Gen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, _, err = gen("--dry_run", "--model_path", NAME)
    refused((code, err), NAME, "pip install 'mmpl[hub]'")
    assert gen("--dry_run")[0] == 0


def test_job_folders_remember_the_name(
    gen: Gen, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a model lies among fetched ones is this machine's affair."""
    monkeypatch.setattr(hub, "_there", lambda *_: bundle)
    code, _, err = gen("--model_path", NAME, "--prompt", "red circle", "--steps", 1)
    assert code == 0, err
    assert json.loads(Path("film.mp4.job/job.json").read_text())["model"] == {"model_path": NAME}
    Path("film.mp4").unlink()
    assert gen("resume", "film.mp4.job", plain=True)[0] == 0


# ------------------------------------------------------------------------------ what is chosen

DIFFUSERS = {
    "model_index.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json",
    "transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors", "tokenizer/tokenizer.json",
}  # fmt: skip
BUNDLE = {f"{part}.safetensors" for part in ("dit", "vae", "text")} | {
    "config.json",
    "tokenizer.json",
}


@pytest.mark.parametrize("files", [DIFFUSERS, BUNDLE])
def test_nothing_else_is_chosen(files: set[str]) -> None:
    others = {
        *OTHERS, "transformer/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.fp16.bin",
        "text_encoder/model.fp16.safetensors", "tokenizer/spiece.model", "scheduler/config.json",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors", "image_encoder/x.bin",
    }  # fmt: skip
    assert set(hub.choose(files | others) or ()) == files
    for name in files:
        if name.endswith(".safetensors"):  # no pickle takes its place
            assert hub.choose((files | others) - {name}) is None


def test_parts_given_by_flags_are_left_out() -> None:
    weights = {name for name in DIFFUSERS if name.startswith("transformer/diff")}
    assert set(hub.choose(DIFFUSERS, ["dit"]) or ()) == DIFFUSERS - weights
    assert hub.choose(DIFFUSERS - weights) is None


@pytest.mark.parametrize(
    ("name", "belongs"),
    [
        ("Wan-AI/Wan2.1-T2V-1.3B", True),
        ("a/b", True),
        ("a", False),
        ("a/b/c", False),
        ("../b", False),
        ("./b", False),
        ("/a/b", False),
        ("a/..", False),
        ("a b/c", False),
        ("a/b\n", False),
    ],
)
def test_names(name: str, belongs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.is_repository(name) is belongs


def test_a_repository_that_changes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of two commits are not mixed."""
    from types import SimpleNamespace as Made

    counted = iter(range(99))
    library = Made(
        utils=Made(disable_progress_bars=lambda: None),
        try_to_load_from_cache=lambda name, file: None,
        HfApi=lambda: Made(
            model_info=lambda name, timeout: Made(siblings=[Made(rfilename=f) for f in BUNDLE])
        ),
        hf_hub_download=lambda name, file: f"/cache/{next(counted) // 3}/{file}",
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    with pytest.raises(CheckpointError, match="changed by its owner"):
        hub.fetch(NAME)


def test_a_full_disk_is_the_output_s(tmp_path: Path) -> None:
    from mmpl.errors import OutputError

    def full() -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "x"))

    with pytest.raises(OutputError, match="x"):
        hub._asked(NAME, full)
