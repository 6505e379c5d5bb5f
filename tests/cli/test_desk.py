"""The storyboard first, then the film; the job folder gone on with, refused, damaged, inspected."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mmpl.media.durable import locked
from mmpl.media.image import read_image
from mmpl.media.video import read_frames
from tests.cli.conftest import PROMPT, Gen, write_model

LONG = ("--num_frames", 100)  # two segments
FILM = ("--prompt", PROMPT, "--seed", 5, *LONG)
JOB = Path("film.mp4.job")


@pytest.fixture
def plain(gen: Gen) -> np.ndarray:
    """The film made in one go."""
    code, _, err = gen(*FILM, "--output", "plain.mp4")
    assert code == 0, err
    return read_frames("plain.mp4")


def test_the_storyboard_then_the_film(
    gen: Gen, plain: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = gen("plan", *FILM)
    assert (code, out) == (0, f"{JOB}/storyboard.png\n"), err
    assert "resume film.mp4.job" in err
    assert not Path("film.mp4").exists()
    stills = sorted(path.name for path in (JOB / "keyframes").iterdir())
    frames = (0, 4, 8, 12, 40, 44, 48, 76, 80, 84, 88)  # below 100, of latents 0-3, 10-12, 19, 20
    assert stills == [f"segment_{1 + (f > 80):04d}.frame_{f:06d}.png" for f in frames]
    sheet = read_image(JOB / "storyboard.png")
    assert sheet.shape[0] > 2 * 120
    assert sheet.shape[1] > 9 * 120
    begun = {path.name for path in JOB.glob("segment*")}
    assert not any("fill" in name for name in begun)

    (tmp_path / "elsewhere").mkdir()
    job = JOB.resolve()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, err = gen("resume", job, plain=True)
    film = job.with_suffix("")
    assert (code, out) == (0, f"{film}\n"), err
    assert f"{len(begun)} of " in err
    assert np.array_equal(read_frames(film), plain)
    assert os.listdir() == []


def test_populate_is_resume(gen: Gen, plain: np.ndarray) -> None:
    assert gen("plan", *FILM)[0] == 0
    assert gen("populate", JOB, "--output", "other.mp4", plain=True)[0] == 0
    assert np.array_equal(read_frames("other.mp4"), plain)


def test_the_plain_command_leaves_both(gen: Gen) -> None:
    code, _, err = gen(*FILM)
    assert code == 0, err
    assert (JOB / "storyboard.png").exists()
    assert err.index("storyboard.png") < err.index("seconds")
    code, _, err = gen(*FILM, "--overwrite")
    assert code == 0
    assert "parts are there already" in err


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (("--steps", 3), "steps 3"),
        (("--seed", 6), "seed 6"),
        (("--prompt", "red"), "prompt red"),
        (("--threads", 1023), "threads 1023"),
    ],
)
def test_another_film_is_refused(gen: Gen, change: tuple[object, ...], difference: str) -> None:
    assert gen("plan", *FILM)[0] == 0
    before = {path: path.read_bytes() for path in JOB.glob("segment*")}
    code, _, err = gen("resume", JOB, *change, plain=True)
    assert code == 6
    assert difference in err
    assert "--fresh" in err
    assert {path: path.read_bytes() for path in JOB.glob("segment*")} == before


def test_other_weights_are_refused(gen: Gen, tmp_path: Path) -> None:
    assert gen("plan", *FILM)[0] == 0
    other = write_model(tmp_path / "other", seed=5)
    code, _, err = gen("resume", JOB, "--model_path", other, plain=True)
    assert code == 6, err
    assert "weights dit" in err


def test_fresh_starts_over(gen: Gen, plain: np.ndarray) -> None:
    assert gen("plan", "--prompt", "red", "--seed", 9, *LONG)[0] == 0
    (JOB / "mine.txt").write_text("keep me")
    code, _, err = gen(*FILM, "--fresh")
    assert code == 0, err
    assert "are there already" not in err
    assert np.array_equal(read_frames("film.mp4"), plain)
    assert (JOB / "mine.txt").read_text() == "keep me"


def test_a_folder_in_use_is_refused(gen: Gen) -> None:
    assert gen("plan", *FILM)[0] == 0
    with locked(JOB):
        code, _, err = gen("resume", JOB, plain=True)
    assert code == 2
    assert "another process is at work" in err
    assert gen("resume", JOB, plain=True)[0] == 0


@pytest.mark.parametrize("harm", ["flipped", "cut", "emptied", "swapped"])
def test_damaged_files_are_told_and_made_again(gen: Gen, plain: np.ndarray, harm: str) -> None:
    assert gen("plan", *FILM)[0] == 0
    first, second = JOB / "segment_0001.plan.safetensors", JOB / "segment_0002.plan.safetensors"
    content = first.read_bytes()
    if harm == "flipped":
        first.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif harm == "cut":
        first.write_bytes(content[:-1])
    elif harm == "emptied":
        first.write_bytes(b"")
    else:
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
    code, _, err = gen("resume", JOB, plain=True)
    assert code == 0, err
    assert f"damaged, its part is made again: {first}" in err
    assert (str(second) in err) == (harm == "swapped")
    assert np.array_equal(read_frames("film.mp4"), plain)


def test_a_job_that_cannot_be_read(gen: Gen) -> None:
    assert gen("plan", *FILM)[0] == 0
    (JOB / "job.json").write_text("{")
    code, _, err = gen(*FILM)
    assert code == 6
    assert "cannot be read" in err
    (JOB / "job.json").unlink()
    code, _, err = gen(*FILM)
    assert code == 6
    assert "nothing says of which film" in err


@pytest.mark.parametrize("argv", [("resume",), ("resume", "--steps", "3"), ("inspect",)])
def test_a_verb_needs_its_folder(gen: Gen, argv: tuple[str, ...]) -> None:
    code, _, err = gen(*argv, plain=True)
    assert code == 2
    assert f"{argv[0]} of what?" in err


def test_not_a_job_folder(gen: Gen, tmp_path: Path) -> None:
    for folder in (tmp_path, "nowhere"):
        code, _, err = gen("resume", folder, plain=True)
        assert code == 3
        assert "not a job folder" in err
    assert gen("resume", tmp_path, "--job_dir", "x", plain=True)[0] != 0


def test_no_folder_is_left_where_nothing_was_made(gen: Gen, tmp_path: Path) -> None:
    code, _, _ = gen("--prompt", PROMPT, "--model_path", tmp_path)
    assert code == 3
    assert os.listdir() == []


def test_config_takes_a_job_folder(gen: Gen, plain: np.ndarray) -> None:
    assert gen("plan", *FILM)[0] == 0
    assert gen("--config", JOB, "--output", "again.mp4", plain=True)[0] == 0
    assert np.array_equal(read_frames("again.mp4"), plain)


def test_inspect(gen: Gen, bundle: Path) -> None:
    assert gen("plan", *FILM)[0] == 0
    code, out, err = gen("inspect", JOB, plain=True)
    assert code == 0, err
    assert "100 frames" in out
    assert PROMPT in out
    assert "plan     3 of 3" in out
    assert "populate 0 of " in out
    assert "film.mp4: not there yet" in out
    assert f"resume {JOB}" in out
    assert gen("resume", JOB, plain=True)[0] == 0
    _, out, _ = gen("inspect", JOB, plain=True)
    assert "not there yet" not in out
    assert "resume" not in out
    _, out, _ = gen("inspect", "film.mp4", plain=True)
    assert "100 frames of 64x64 at 16 fps" in out
    assert "seed 5" in out
    _, out, _ = gen("inspect", bundle, plain=True)
    assert "an mmpl bundle" in out
    _, out, _ = gen("inspect", bundle / "dit.safetensors", plain=True)
    assert "a transformer (dim 24, num_layers 2)" in out
    _, out, _ = gen("inspect", bundle / "vae.safetensors", plain=True)
    assert "a video VAE" in out
    code, _, err = gen("inspect", "nothing", plain=True)
    assert code == 3
    assert "nothing there" in err


def test_a_job_is_readable_json(gen: Gen, bundle: Path) -> None:
    assert gen("plan", *FILM)[0] == 0
    job = json.loads((JOB / "job.json").read_text())
    assert job["settings"]["prompt"] == PROMPT
    assert job["model"]["model_path"] == str(bundle)
    assert job["output"] == str(Path("film.mp4").resolve())
    assert set(job["weights"]) == {"dit", "vae", "text", "tokenizer"}


def test_prompts_over_time(gen: Gen) -> None:
    two = ("--prompt", "0s: red", "--prompt", "5s: circle")
    code, _, err = gen("plan", *two, "--cut", "5s", "--seed", 5, *LONG)
    assert code == 0, err
    assert "0.00 s red" in err
    assert "5.06 s circle (cut)" in err
    assert (JOB / "segment_0002.init.safetensors").exists()
    job = json.loads((JOB / "job.json").read_text())
    assert job["settings"]["prompt"] == "#1: red\n#2: circle"
    assert job["settings"]["cut"] == "#2"
    code, _, err = gen("resume", JOB, plain=True)
    assert code == 0, err
    Path("prompts.txt").write_text("red\n\ncircle\n")
    code, _, err = gen(
        "--prompt_file", "prompts.txt", "--cut", "#2", "--seed", 5, *LONG, "--output", "b.mp4"
    )
    assert code == 0, err
    assert np.array_equal(read_frames("film.mp4"), read_frames("b.mp4"))


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--prompt", "0s: red", "--prompt", "90s: x"), 2, "after the end of the film"),
        (("--prompt", "red", "--cut", "0s"), 2, "a cut at the start"),
        (("--prompt", "red", "--cut", "soon"), 2, "not a time"),
        (("--prompt_file", "nowhere.txt"), 3, "No such file"),
        (("--prompt_file", "nul"), 3, "not a text file"),
        (("--prompt_file", "empty"), 2, "the prompt is empty"),
        (("--prompt", "red", "--prompt_file", "empty"), 2, "given twice"),
    ],
)
def test_scripts_that_are_refused(gen: Gen, flags: tuple[str, ...], code: int, words: str) -> None:
    Path("nul").write_bytes(b"\xff\xfe\x00")
    Path("empty").write_bytes(b"\n")
    found, _, err = gen(*flags)
    assert found == code
    assert words in err
    assert sorted(os.listdir()) == ["empty", "nul"]


# ------------------------------------------------------------------------ changed on purpose

THREE = ("--prompt", PROMPT, "--seed", 5, "--num_frames", 233)


def held() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in JOB.glob("segment_*.safetensors")}


def changed_segments(before: dict[str, bytes]) -> set[int]:
    """The segments whose files are not what they were."""
    after = held()
    assert after.keys() == before.keys()
    return {int(name[8:12]) for name in after if after[name] != before[name]}


@pytest.mark.parametrize(("cut", "changed"), [((), {2, 3}), (("--cut", "#3"), {2})])
def test_a_segment_is_rolled_again(gen: Gen, cut: tuple[str, ...], changed: set[int]) -> None:
    assert gen(*THREE, *cut)[0] == 0
    before = held()
    code, out, err = gen("reroll", JOB, "--segment", 2, "--seed", 77, plain=True)
    assert (code, out) == (0, f"{Path('film.mp4').resolve()}\n"), err
    said = "segments 2 to 3 of 3" if len(changed) == 2 else "segment 2 of 3"
    assert f"{said} will be made again" in err
    assert changed_segments(before) == changed
    assert held()["segment_0002.seeds.safetensors"] == before["segment_0002.seeds.safetensors"]
    code, _, err = gen(*THREE, *cut, "--segment_seeds", "#2:77", "--output", "same.mp4")
    assert code == 0, err
    assert np.array_equal(read_frames("film.mp4"), read_frames("same.mp4"))


def test_a_segment_gets_another_prompt(gen: Gen) -> None:
    assert gen(*THREE)[0] == 0
    code, _, err = gen("reroll", JOB, "--segment", 2, "--seed", 5, "--prompt", "red", plain=True)
    assert code == 0, err
    settings = json.loads((JOB / "job.json").read_text())["settings"]
    assert settings["prompt"] == f"#1: {PROMPT}\n#2: red\n#3: {PROMPT}"
    assert settings["seed"] == 5


def test_a_plan_is_rolled_again_on_two_processes(gen: Gen) -> None:
    threads = ("--threads", 1)
    assert gen(*THREE, *threads)[0] == 0
    before = held()
    code, _, err = gen("reroll", JOB, "--segment", 3, "--ranks", 2, plain=True)
    assert code == 0, err
    assert changed_segments(before) == {3}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "which segment?"),
        (("--segment", 0), "no such segment"),
        (("--segment", 4), "no such segment"),
        (("--segment", 2, "--seed", -2), "seed is out of range"),
    ],
)
def test_rolls_that_cannot_be(gen: Gen, flags: tuple[object, ...], words: str) -> None:
    assert gen("plan", *THREE)[0] == 0
    before = held()
    code, _, err = gen("reroll", JOB, *flags, plain=True)
    assert code == 2
    assert words in err
    assert held() == before


def test_other_settings_do_not_come_in_with_a_roll(gen: Gen) -> None:
    assert gen("plan", *THREE)[0] == 0
    before = held()
    code, _, err = gen("reroll", JOB, "--segment", 2, "--steps", 3, plain=True)
    assert code == 6
    assert "steps 3" in err
    assert held() == before


def test_a_longer_film(gen: Gen) -> None:
    assert gen(*FILM)[0] == 0
    before = held()
    code, _, err = gen("extend", JOB, "--num_frames", 170, plain=True)
    assert code == 0, err
    assert "all 2 segments stay" in err
    after = held()
    assert {name: after[name] for name in before} == before
    assert len(after) > len(before)
    assert gen(*FILM[:4], "--num_frames", 170, "--output", "same.mp4")[0] == 0
    assert np.array_equal(read_frames("film.mp4"), read_frames("same.mp4"))


@pytest.mark.parametrize("length", [("--num_frames", 100), ("--duration", "1s")])
def test_films_are_not_made_shorter(gen: Gen, length: tuple[object, ...]) -> None:
    assert gen("plan", *FILM)[0] == 0
    code, _, err = gen("extend", JOB, *length, plain=True)
    assert code == 2
    assert "not longer" in err


def test_segment_without_reroll(gen: Gen) -> None:
    code, _, err = gen(*FILM, "--segment", 1)
    assert code == 2
    assert "belongs to reroll" in err
