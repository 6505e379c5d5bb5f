"""mmpl-train distil --data: bad input, and from clips to a film of the checkpoint it makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmpl.checkpoint.bundle import check_folder, load_transformer
from mmpl.cli import distil_wan, gen
from mmpl.train.wan_distil import Cast
from tests.cli.conftest import DEFAULTS, PROMPT, ROOT
from tests.cli.refusals import call, check_nothing_waits_for_torch, check_refused
from tests.small import CONFIGS, small_dit, small_model, write_small
from tests.train.encoded import FakeClips

Capture = pytest.CaptureFixture[str]
SMALL = f"--model_path small --threads {torch.get_num_threads()}"
QUICK = "--batch 1 --critic_updates 1 --sampling_steps 1 --generator_rate 1e-3 --ema_from 0"
USUAL = f"distil {SMALL} --data clips {QUICK}"
BAD = [
    ("distil --scores layout", 2, "--scores means nothing without --data"),
    ("distil --batch 4 --stage match", 2, "--batch means nothing without --data"),
    ("distil --data clips --stage match", 2, "--stage means nothing with --data or --plan"),
    ("distil --data clips --films 2", 2, "--films means nothing with --data"),
    ("distil --plan --output x", 2, "--output means nothing with --data or --plan"),
    ("distil --data clips --layouts mmpl", 2, "--layouts has a wrong value; got 'mmpl'; wanted NA"),
    ("distil --data clips --layouts mmpl_t2v:0", 2, "--layouts has a wrong value"),
    ("distil --data clips --layouts mmpl_t2v,mmpl_t2v", 2, "--layouts has a wrong value"),
    ("distil --data clips --layouts chunked_3", 2, "cannot begin with given frames; got chunked_3"),
    ("distil --data clips --scores causal", 2, "wanted one of bidirectional, layout"),
    ("distil --data clips --own_seeds 2", 2, "--own_seeds has a wrong value"),
    ("distil --data clips --generator_rate nan", 2, "--generator_rate has a wrong value"),
    ("distil --data clips --critic_rate 1", 2, "--critic_rate has a wrong value; got '1'"),
    ("distil --data clips --critic_updates 0", 2, "--critic_updates has a wrong value"),
    ("distil --data clips --shard", 2, "--shard needs several processes; start them: torchrun"),
    ("distil --data missing", 3, "missing: no such folder of encoded clips"),
    ("distil --data clips --runs file", 4, "file: cannot write"),
    ("distil --data clips --model_path missing", 3, "missing: no such model folder"),
    ("distil --data clips --model_path small --teacher no", 3, "no: no such model folder"),
    ("distil --data clips --model_path small --checkpoint x.pt", 3, "x.pt: no such file"),
    ("distil --data clips --model_path small --teacher_checkpoint x.pt", 3, "x.pt: no such file"),
    (f"distil --data clips {SMALL} --teacher embedded", 3, "embedded: the teacher has another vae"),
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "clips").mkdir()
    (tmp_path / "small").symlink_to(bundle)
    (tmp_path / "embedded").symlink_to(ROOT / "weights" / "tiny")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil_wan, "open_clips", lambda _: FakeClips(CONFIGS.dit, size=(4, 4)))


def other_transformer() -> None:
    """A bundle that differs from `small` in nothing else."""
    write_small(Path("other"), replace(small_model(DEFAULTS), dit=small_dit()))


@pytest.mark.parametrize(("command", "code", "words"), BAD, ids=[case[0] for case in BAD])
def test_bad_input(capfd: Capture, command: str, code: int, words: str) -> None:
    check_refused(capfd, command, code, words)


def test_none_of_these_waits_for_torch() -> None:
    check_nothing_waits_for_torch(BAD)


def test_clips_of_another_model(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    made = FakeClips(CONFIGS.dit, made={"vae": "0" * 64})
    monkeypatch.setattr(distil_wan, "open_clips", lambda _: made)
    assert call(USUAL) == 3
    assert "encoded with another vae than the model's" in capfd.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.usefixtures("fake")
def test_a_run_goes_on_to_the_same_bits_and_holds_to_its_settings(capfd: Capture) -> None:
    other_transformer()
    both = f"{USUAL} --teacher other --runs"
    assert call(f"{both} whole --steps 2 --checkpointing") == 0
    out, err = capfd.readouterr()
    assert out == "whole\n"
    assert [line.split(" loss")[0] for line in err.splitlines()] == ["1/2", "2/2"]
    for steps in (1, 2):
        assert call(f"{both} cut --steps {steps} --checkpointing") == 0
    states = [Path(run, "state.safetensors").read_bytes() for run in ("whole", "cut")]
    assert states[0] == states[1]
    for change in ("--teacher_checkpoint small/dit.safetensors", "--seed 1", "--own_seeds 0.3"):
        assert call(f"{both} cut --steps 2 {change}") == 2
        assert "another recipe" in capfd.readouterr().err


@pytest.mark.usefixtures("fake")
def test_who_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder's own transformer scores whole clips, the tuned one groups; or another's."""
    other_transformer()
    cases = {
        "": ("other", "small"),
        "--scores layout": ("other", "other"),
        "--scores layout --teacher small": ("other", "small"),
        "--teacher small --teacher_checkpoint other/dit.safetensors": ("other", "other"),
    }
    own = {name: load_transformer(check_folder(name)).digest for name in ("small", "other")}
    seen: list[tuple[str, str]] = []

    def noted(_: object, cast: Cast, *__: object) -> None:
        seen.append((cast.student.digest, cast.teacher.digest))

    monkeypatch.setattr(distil_wan, "_learn", noted)
    for number, flags in enumerate(cases):
        assert call(f"{USUAL} --checkpoint other/dit.safetensors {flags} --runs {number}") == 0
    assert seen == [(own[student], own[teacher]) for student, teacher in cases.values()]


@pytest.mark.usefixtures("fake")
def test_the_plan_of_memory(capfd: Capture) -> None:
    totals = []
    for flags in ("--plan", "--plan 4 --shard", "--data clips --plan --checkpointing"):
        assert call(f"distil {SMALL} {flags}") == 0
        out, err = capfd.readouterr()
        assert err == ""
        lines = [line.split() for line in out.splitlines()]
        assert [line[0] for line in lines[:3]] == ["student", "critic", "teacher"]
        assert lines[-1][0] == "total"
        totals.append(float(lines[-1][1]))
    assert max(totals) < 1
    assert not Path("runs").exists()


def test_prompts_are_enough(capfd: Capture) -> None:
    threads = f"--threads {torch.get_num_threads()}"
    Path("prompts.txt").write_text("a red circle\na blue star\n")
    assert call(f"encode --data prompts.txt --output shards --model_path small {threads}") == 0
    made = "distil {} --data shards {} --steps 1 --runs r"
    capfd.readouterr()
    assert call(made.format(SMALL, f"{QUICK} --layouts mmpl_t2v:0.5,mmpl_i2v:0.5")) == 3
    said = "line 1#0: captions alone have no first frame to begin with; got layout mmpl_i2v; encode"
    assert said in capfd.readouterr().err
    assert not Path("r").exists()
    assert call(made.format(SMALL, QUICK)) == 0
    assert capfd.readouterr().err.startswith("1/1 loss")


def test_from_clips_to_a_film_of_four_steps(capfd: Capture) -> None:
    """Nothing is a stand-in here but the size of the model."""
    threads = f"--threads {torch.get_num_threads()}"
    assert call(f"encode --data procedural:2 --output shards --model_path small {threads}") == 0
    layouts = "--layouts mmpl_t2v:0.5,mmpl_i2v:0.5"
    assert call(f"distil {SMALL} --data shards {QUICK} {layouts} --steps 1 --runs r") == 0
    assert call("export --runs r --output few.pt") == 0
    before, after = (
        load_transformer(check_folder("small", checkpoint=file)).flat for file in (None, "few.pt")
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"head.head.weight", "blocks.0.ffn.0.weight", "blocks.1.self_attn.q.weight"} <= moved
    capfd.readouterr()
    film = ["--prompt", PROMPT, "--output", "a.mp4", "--num_frames", "9", *SMALL.split()]
    assert gen.main([*film, "--checkpoint", "few.pt", "--distilled", "self_mmpl"]) == 0
    assert "few_step, 4 steps, shift 5, guidance 1" in capfd.readouterr().err
    assert Path("a.mp4").stat().st_size > 0
