"""mmpl-train tune and export: bad input, whole runs, and films with what they wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmpl.checkpoint.bundle import check_folder, load_model, load_transformer
from mmpl.cli import gen, tune
from mmpl.cli.model import EMBEDDED_MODEL
from mmpl.train.encoded import EncodedClips
from mmpl.train.trainable import trained
from tests.cli.conftest import PROMPT
from tests.cli.refusals import call, check_nothing_waits_for_torch, check_refused
from tests.small import CONFIGS, small_model, write_small
from tests.train.encoded import FakeClips

Capture = pytest.CaptureFixture[str]
SMALL = f"--model_path small --threads {torch.get_num_threads()}"
USUAL = f"tune {SMALL} --data clips --batch 2 --learning_rate 1e-3"
BAD = [
    ("tune", 2, "--data is missing"),
    ("tune --data clips --learning_rate 1", 2, "--learning_rate has a wrong value; got '1'; want"),
    ("tune --data clips --learning_rate nan", 2, "--learning_rate has a wrong value"),
    ("tune --data clips --batch 0", 2, "--batch has a wrong value; got '0'; wanted a whole number"),
    ("tune --data clips --layout mmpl", 2, "--layout has a wrong value; got 'mmpl'; wanted one of"),
    ("tune --data clips --trains some", 2, "wanted one of self-attention, qk, all, none"),
    ("tune --data clips --prompt_dropout 1.5", 2, "--prompt_dropout has a wrong value"),
    ("tune --data clips --schedule linear", 2, "wanted one of constant, cosine"),
    ("tune --data clips --attention flex", 2, "FlexAttention is for GPUs; got --device cpu"),
    ("tune --data clips --shard", 2, "--shard needs several processes; start them: torchrun"),
    ("tune --data missing", 3, "missing: no such folder of encoded clips"),
    ("tune --data clips --runs file", 4, "file: cannot write"),
    ("tune --data clips --model_path missing", 3, "missing: no such model folder"),
    ("tune --data clips --model_path small --checkpoint x.pt", 3, "x.pt: no such file"),
    ("export", 2, "--output is missing"),
    ("export --output a.bin.gz", 3, "cannot be read; got .gz"),
    ("export --output missing/a.pt", 4, "missing/a.pt: cannot write: its folder does not exist"),
    ("export --output file.pt", 2, "file.pt"),
    ("export --runs missing --output a.pt", 3, "missing: this is not the run folder of a tuning"),
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("file", "file.pt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "clips").mkdir()
    (tmp_path / "small").symlink_to(bundle)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "open_clips", lambda _: FakeClips(CONFIGS.dit))


@pytest.mark.parametrize(("command", "code", "words"), BAD, ids=[case[0] for case in BAD])
def test_bad_input(capfd: Capture, command: str, code: int, words: str) -> None:
    check_refused(capfd, command, code, words)


def test_none_of_these_waits_for_torch() -> None:
    check_nothing_waits_for_torch(BAD, "tune --help")


@pytest.mark.parametrize("verb", ["tune", "export"])
def test_help(capfd: Capture, verb: str) -> None:
    assert call(f"{verb} --help") == 0
    out, err = capfd.readouterr()
    assert out.startswith(f"usage: mmpl-train {verb} ")
    assert err == ""


@pytest.mark.parametrize(
    ("clips", "code", "words"),
    [
        (FakeClips(CONFIGS.dit, 0), 3, "there are no clips to learn from"),
        (FakeClips(replace(CONFIGS.dit, in_dim=8)), 3, "the clips were encoded for another model"),
        (FakeClips(replace(CONFIGS.dit, text_dim=9)), 3, "the captions were encoded for another"),
        (FakeClips(CONFIGS.dit, made={"vae": "0" * 64}), 3, "encoded with another vae than the"),
    ],
)
def test_clips_of_another_model(
    capfd: Capture, monkeypatch: pytest.MonkeyPatch, clips: FakeClips, code: int, words: str
) -> None:
    monkeypatch.setattr(tune, "open_clips", lambda _: clips)
    assert call(USUAL) == code
    assert words in capfd.readouterr().err
    assert not Path("runs").exists()


# ------------------------------------------------------------------------------- whole runs


def stored(
    folder: str, checkpoint: str | None = None, **options: bool
) -> Mapping[str, torch.Tensor]:
    return load_transformer(check_folder(folder, checkpoint=checkpoint), **options).flat


def moved(folder: str, checkpoint: str, **options: bool) -> set[str]:
    """The weights that are others than the folder's."""
    before, after = stored(folder), stored(folder, checkpoint, **options)
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_from_model_to_checkpoint(capfd: Capture) -> None:
    assert call(f"{USUAL} --steps 3 --runs run --checkpointing") == 0
    out, err = capfd.readouterr()
    assert out == "run\n"
    assert [line.split(" loss")[0] for line in err.splitlines()] == ["1/3", "2/3", "3/3"]
    assert all(f" {group} " in err for group in ("init", "plan", "fill_head", "fill_tail"))
    for name in ("a.safetensors", "a.pt"):
        assert call(f"export --runs run --output {name}") == 0
        out, err = capfd.readouterr()
        assert (out, err) == (f"{name}\n", f"after 3 steps: {name}\n")
    before = stored("small")
    attention = set(trained("self-attention", before))
    assert moved("small", "a.safetensors") == attention
    averaged, last = stored("small", "a.pt"), stored("small", "a.pt", use_ema=False)
    one_file = stored("small", "a.safetensors")
    assert all(torch.equal(averaged[name], one_file[name]) for name in before)
    changed = "blocks.0.self_attn.v.weight"
    assert not torch.equal(averaged[changed], last[changed])
    assert call("export --runs run --output raw.safetensors --raw") == 0
    raw = stored("small", "raw.safetensors")
    assert all(torch.equal(raw[name], last[name]) for name in before)
    model = load_model("small", checkpoint="a.pt")
    assert torch.equal(model.dit.blocks[0].self_attn.v.weight, averaged[changed])
    assert call("export --runs run --output a.pt") == 2
    assert "a.pt" in capfd.readouterr().err
    assert call("export --runs run --output a.pt --overwrite") == 0


def test_a_run_goes_on_and_holds_to_its_settings(capfd: Capture) -> None:
    assert call(f"{USUAL} --steps 1") == 0
    assert call(f"{USUAL} --steps 2") == 0
    assert "2/2 loss" in capfd.readouterr().err
    for change, words in (
        ("--layout without_early", "another recipe"),
        ("--seed 1", "another recipe"),
        ("--trains qk", "started otherwise; got trains qk; wanted trains self-attention"),
    ):
        assert call(f"{USUAL} --steps 2 {change}") == 2
        assert words in capfd.readouterr().err
    os.unlink("small")
    write_small(Path("small"), small_model(seed=5))
    assert call(f"{USUAL} --steps 2") == 2
    assert "started otherwise; got digest" in capfd.readouterr().err
    assert call("export --output a.pt") == 3
    assert "begun with another transformer" in capfd.readouterr().err


def test_a_moved_model(capfd: Capture) -> None:
    assert call(f"{USUAL} --steps 1") == 0
    os.rename("small", "moved")
    assert call("export --output a.pt") == 3
    assert "no such model folder" in capfd.readouterr().err
    assert call("export --output a.pt --model_path moved") == 0


def test_frozen(capfd: Capture) -> None:
    assert call(f"tune {SMALL} --trains none") == 0
    out, err = capfd.readouterr()
    assert (out, err.split(":")[0]) == ("runs/tune\n", "nothing is trained")
    assert call("export --output a.pt") == 0
    assert moved("small", "a.pt") == set()


def test_a_loss_that_is_not_a_number_names_its_clips(
    capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spoiled(FakeClips):
        def latents(self, index: int, /) -> torch.Tensor:
            return super().latents(index) * (float("nan") if index == 1 else 1.0)

    monkeypatch.setattr(tune, "open_clips", lambda _: Spoiled(CONFIGS.dit, 2))
    assert call(f"{USUAL} --steps 1") == 7
    err = capfd.readouterr().err
    assert "the loss is not finite" in err
    assert "clip 1" in err


def test_the_plan_of_memory(capfd: Capture) -> None:
    totals = []
    for flags in ("--plan", "--plan 4 --shard", "--plan 4 --device cuda"):
        assert call(f"tune {SMALL} {flags}") == 0
        out, err = capfd.readouterr()
        assert err == ""
        totals.append(out.splitlines()[-1].split()[0])
    assert totals == ["total"] * 3
    assert not Path("runs").exists()


def test_from_clips_to_a_film(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is a stand-in here but the size of the model."""
    monkeypatch.setattr(tune, "open_clips", EncodedClips)
    threads = f"--threads {torch.get_num_threads()}"
    assert call(f"encode --data procedural:2 --output shards --model_path small {threads}") == 0
    assert call(f"tune {SMALL} --data shards --batch 2 --steps 1") == 0
    assert call("export --output a.pt") == 0
    capfd.readouterr()
    film = ["--prompt", PROMPT, "--output", "a.mp4", "--num_frames", "9", *SMALL.split()]
    assert gen.main([*film, "--checkpoint", "a.pt"]) == 0
    assert Path("a.mp4").stat().st_size > 0


def test_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    found = check_folder(EMBEDDED_MODEL)
    clips = FakeClips(found.configs.dit, 2)
    monkeypatch.setattr(tune, "open_clips", lambda _: clips)
    threads = f"--threads {torch.get_num_threads()}"
    assert call(f"tune --data clips --batch 1 --steps 3 --learning_rate 1e-3 {threads}") == 0
    assert call("export --output a.safetensors") == 0
    before = load_model(EMBEDDED_MODEL)
    after = load_model(EMBEDDED_MODEL, checkpoint="a.safetensors")
    assert after.digests["vae"] == before.digests["vae"]
    changed = moved(str(EMBEDDED_MODEL), "a.safetensors")
    assert changed
    assert all(".self_attn." in name for name in changed)
