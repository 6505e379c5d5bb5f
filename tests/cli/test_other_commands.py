"""mmpl-train and mmpl-eval: help, bad input in one line before anything is loaded, whole runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from mmpl.cli import evaluate, train
from mmpl.train import loop, pipeline, tiny
from tests.cli.conftest import ROOT
from tests.small import small_blueprint, write_small

THREADS = f"--threads {torch.get_num_threads()}"  # those of the other tests
MAINS = {"mmpl-train": train.main, "mmpl-eval": evaluate.main}
# command and arguments, exit code, words of the message
BAD = [
    ("mmpl-train", 2, "required: STAGE; see --help"),
    ("mmpl-train weights", 2, "stage has a wrong value; got 'weights'; wanted one of vae, latents"),
    ("mmpl-train vae latents", 2, "an argument without a flag; got 'latents'"),
    ("mmpl-train vae --thread 1", 2, "did you mean --threads?"),
    (
        "mmpl-train vae --threads 0",
        2,
        "--threads has a wrong value; got '0'; wanted a whole number",
    ),
    ("mmpl-train vae --threads 2.5", 2, "--threads has a wrong value"),
    ("mmpl-train dit --steps 0", 2, "--steps has a wrong value; got '0'; wanted a whole number, 1"),
    ("mmpl-train dit --steps -5", 2, "--steps has a wrong value"),
    ("mmpl-train dit --steps many", 2, "--steps has a wrong value"),
    ("mmpl-train dit --steps 1 --steps 2", 2, "--steps is given twice"),
    ("mmpl-train vae --steps 9", 2, "--steps means nothing here; got stage vae; wanted stage dit"),
    ("mmpl-train latents --compile", 2, "--compile means nothing here"),
    ("mmpl-train dit --output model", 2, "--output means nothing here"),
    ("mmpl-train vae --model_path m", 2, "--model_path means nothing here; got stage vae; wanted"),
    ("mmpl-train dit --model_path missing", 3, "missing: no such"),
    ("mmpl-train all --network plain", 2, "--network plain has the VAE and the text encoder of a"),
    ("mmpl-train dit", 3, "runs: no such run folder; begin with the stage vae"),
    ("mmpl-train bundle --runs missing", 3, "missing: no such run folder"),
    ("mmpl-train vae --runs file", 4, "file: cannot write: a part of its path is not a folder"),
    ("mmpl-train all --runs r --output file/model", 4, "file/model: cannot write"),
    ("mmpl-eval", 2, "required: WHAT; see --help"),
    (
        "mmpl-eval beauty",
        2,
        "what has a wrong value; got 'beauty'; wanted films, adherence or claims",
    ),
    ("mmpl-eval missing.mp4", 3, "missing.mp4: cannot read: No such file"),
    ("mmpl-eval file", 3, "file: the file is empty"),
    ("mmpl-eval file --prompts 3", 2, "--prompts means nothing here; got a measure of films"),
    ("mmpl-eval file --hue_bins 1", 2, "--hue_bins has a wrong value; got '1'"),
    ("mmpl-eval file --joint_every 0", 2, "--joint_every has a wrong value; got '0'"),
    ("mmpl-eval adherence --compare", 2, "--compare means nothing here"),
    ("mmpl-eval adherence --threads 0", 2, "--threads has a wrong value"),
    ("mmpl-eval adherence --prompts 0", 2, "--prompts has a wrong value; got '0'; wanted a whole"),
    ("mmpl-eval adherence --prompts -1", 2, "--prompts has a wrong value"),
    ("mmpl-eval adherence --seed -1", 2, "--seed has a wrong value"),
    ("mmpl-eval adherence --model_path missing", 3, "missing: no such model folder"),
    ("mmpl-eval adherence --model_path file", 3, "file: no such model folder"),
    ("mmpl-eval adherence --duration soon", 2, "--duration has a wrong value; got 'soon'"),
    ("mmpl-eval adherence --duration nan", 2, "duration out of range; got nan"),
    ("mmpl-eval adherence --duration -3", 2, "duration out of range; got -3"),
    ("mmpl-eval adherence --duration 0", 2, "duration out of range"),
    ("mmpl-eval adherence --duration inf", 2, "duration out of range"),
    ("mmpl-eval adherence --duration 1e9", 2, "duration out of range"),
    ("mmpl-eval file --lpips", 2, "argument --lpips: expected one argument"),
    ("mmpl-eval claims --budget 5m", 2, "--budget has a wrong value; got '5m'; wanted one of 10m"),
    ("mmpl-eval claims --minutes -1", 2, "--minutes has a wrong value"),
    ("mmpl-eval claims --methods fifo,magic", 2, "unknown method; got 'magic'; wanted mmpl_term"),
    ("mmpl-eval claims --model_path missing", 3, "missing: no such model folder"),
    ("mmpl-eval claims --methods tuned_qk", 2, "tuned_qk is a network of its own; give the folder"),
    ("mmpl-eval claims --networks missing", 3, "missing: the folder of networks cannot be read"),
    ("mmpl-eval claims --guidance_scale nan", 2, "guidance_scale is out of range; got nan"),
    ("mmpl-eval claims --runs file", 4, "file: cannot write: a part of its path is not a folder"),
    ("mmpl-eval claims --output no/page.html", 4, "no/page.html: cannot write"),
    ("mmpl-eval claims film.mp4", 2, "an argument without a flag; got 'film.mp4'"),
]

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)


def call(command: str) -> int:
    name, *argv = command.split()
    return MAINS[name](argv)


@pytest.mark.parametrize(("command", "code", "words"), BAD, ids=[case[0] for case in BAD])
def test_bad_input(capfd: Capture, command: str, code: int, words: str) -> None:
    assert call(command) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(command.split()[0] + ": error: ")
    assert words in err
    assert err.count("\n") == 1
    assert os.listdir() == ["file"]


@pytest.mark.parametrize("name", MAINS)
def test_help(capfd: Capture, name: str) -> None:
    assert call(f"{name} --help") == 0
    out, err = capfd.readouterr()
    assert out.startswith(f"usage: {name} ")
    assert err == ""


def test_none_of_these_waits_for_torch() -> None:
    """All of the table in one fresh process, which must not have imported torch at its end."""
    script = """
import json, sys
from mmpl.cli import evaluate, train
mains = {"mmpl-train": train.main, "mmpl-eval": evaluate.main}
codes = [mains[name](argv) for name, *argv in json.load(sys.stdin)]
print(json.dumps([codes, "torch" in sys.modules]))
"""
    commands = [command.split() for command, _, _ in BAD] + [[name, "--help"] for name in MAINS]
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    wanted = [code for _, code, _ in BAD] + [0] * len(MAINS)
    assert json.loads(done.stdout.splitlines()[-1]) == [wanted, False], done.stderr


# ------------------------------------------------------------------------------- whole runs


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training of seconds in place of that of weights/tiny."""
    monkeypatch.setattr(tiny, "blueprint", lambda network: small_blueprint())
    monkeypatch.setattr(pipeline, "train", partial(loop.train, report_every=1))


@pytest.mark.usefixtures("toy")
def test_train_all(capfd: Capture) -> None:
    assert call(f"mmpl-train all --steps 2 --output model {THREADS}") == 0
    out, err = capfd.readouterr()
    assert out == "model\n"
    shown = [line.split(" loss")[0] for line in err.splitlines()]
    assert shown == [
        *(f"vae-{stage} {step}/3" for stage in ("first", "last") for step in (1, 2, 3)),
        "latents clips 4",
        "latents beginnings 3",
        *(f"dit-first {step}/3" for step in (1, 2, 3)),
        *(f"dit-last {step}/2" for step in (1, 2)),
    ]
    assert "s/step" in err
    assert "min left" in err
    assert sorted(os.listdir()) == ["file", "model", "runs"]
    assert call(f"mmpl-train bundle {THREADS}") == 0
    assert capfd.readouterr().out == "runs/bundle\n"
    for name in ("config.json", "dit.safetensors", "vae.safetensors", "text.safetensors"):
        assert Path("runs/bundle", name).read_bytes() == Path("model", name).read_bytes()


def test_train_stopped(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(*_: object, **__: object) -> Iterator[None]:
        os.kill(os.getpid(), signal.SIGINT)
        for _number in range(1000):  # where Ctrl-C is ignored, as in the background, it never comes
            time.sleep(0.01)
        yield

    monkeypatch.setattr(pipeline, "train_vae", begun)
    assert call(f"mmpl-train vae {THREADS}") == 130
    assert capfd.readouterr().err == "mmpl-train: stopped by Ctrl-C\n"


def test_adherence(capfd: Capture, tmp_path: Path) -> None:
    write_small(tmp_path / "model")
    usual = f"mmpl-eval adherence --model_path model --prompts 2 {THREADS}"
    assert call(f"{usual} --json --duration 5.5") == 0
    out, err = capfd.readouterr()
    report = json.loads(out)
    assert {name: table["films"] for name, table in report.items() if name != "vae_l1"} == {
        "films": 2,
        "vae_reconstructions": 2,
        "true_clips": 2,
    }
    assert report["true_clips"]["shape"] == report["true_clips"]["motion"] == 1.0
    assert report["true_clips"]["left"] is None
    assert report["films"]["left"] is not None
    assert 0 < report["vae_l1"] < 1
    assert err.count("(seen: ") == 2

    assert call(usual) == 0
    out, err = capfd.readouterr()
    heading, *rows = (line.split() for line in out.splitlines())
    assert heading == ["films", "shape", "hue", "motion", "left"]
    assert [row[:2] for row in rows] == [[name, "2"] for name in report if name != "vae_l1"]
    assert rows[0][-1] == "-", "a film of one segment has no later part"
    assert "mean absolute error of the VAE" in err
