"""Pictures and clips from the command line: first, last and in between, and gone on from."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mmpl.media.image import write_png
from mmpl.media.video import VideoWriter, read_frames
from tests.cli.conftest import PROMPT, Gen
from tests.media.corpus import Video

FILM = ("--prompt", PROMPT, "--seed", 5, "--num_frames", 100)  # two segments
JOB = Path("film.mp4.job")


@pytest.fixture(autouse=True)
def files(gen: Gen) -> None:
    """Two pictures and a clip, of other sizes and another rate than the film's."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        write_png(name, rng.integers(0, 256, (90, 64, 3), dtype=np.uint8))
    with VideoWriter("clip.mp4", 96, 64, 24) as writer:
        writer.write(rng.integers(0, 256, (60, 64, 96, 3), dtype=np.uint8))


def digests(job: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(job.glob("segment_*.safetensors"))
    }


def test_first_last_and_between(gen: Gen) -> None:
    pictures = ("--image", "a.png", "--keyframe", "b.png@2.4s", "--last-frame", "b.png")
    code, _, err = gen(*FILM, *pictures)
    assert code == 0, err
    assert "a.png lands on 0.000 s, frame 0 (segment 1, latent frame 0)" in err
    assert "b.png lands on 2.500 s, frame 40 (segment 1, latent frame 10)" in err
    assert "b.png lands on 6.188 s, frame 99 (segment 2, latent frame 6)" in err
    assert "planning mmpl_i2v" in err
    film = read_frames("film.mp4")
    assert len(film) == 100

    # The command that the summary prints, and the settings in the file, make the same film.
    command = next(line for line in err.splitlines() if line.startswith("  again"))
    assert "--image a.png --keyframe b.png@2.4s --last_frame b.png" in command
    code, out, err = gen(*FILM, *pictures)
    assert (code, out) == (0, "film.mp4\n")
    assert "complete already" in err
    assert gen("--config", "film.mp4", "--output", "again.mp4", plain=True)[0] == 0
    assert np.array_equal(read_frames("again.mp4"), film)


def test_a_job_is_gone_on_with_when_its_picture_is_gone(gen: Gen) -> None:
    assert gen(*FILM, "--image", "a.png")[0] == 0
    film = read_frames("film.mp4")
    for name in ("a.png", "film.mp4", *JOB.glob("*.plan.*"), *JOB.glob("*.second.*")):
        Path(name).unlink()
    assert gen("resume", JOB, plain=True)[0] == 0
    assert np.array_equal(read_frames("film.mp4"), film)
    code, _, err = gen("--config", "film.mp4", "--output", "other.mp4", plain=True)
    assert code == 3
    assert "a.png" in err


@pytest.mark.parametrize(
    "change", [("--image", "b.png"), ("--image", "a.png", "--fit", "letterbox"), ()]
)
def test_another_picture_is_another_film(gen: Gen, change: tuple[str, ...]) -> None:
    assert gen(*FILM, "--image", "a.png")[0] == 0
    Path("film.mp4").unlink()
    code, _, err = gen(*FILM, *change)
    assert code == 6
    assert "given" in err


def test_a_picture_that_changed_since_is_not_taken_for_the_same(gen: Gen) -> None:
    assert gen(*FILM, "--image", "a.png")[0] == 0
    Path("b.png").rename("a.png")
    code, _, err = gen("--config", "film.mp4", "--output", "other.mp4", plain=True)
    assert code == 3
    assert "not all the pictures that the film was made from" in err
    assert not Path("other.mp4").exists()


def test_a_clip_and_what_follows_it(gen: Gen) -> None:
    code, _, err = gen(*FILM, "--video", "clip.mp4")
    assert code == 0, err
    assert "2.500 s, 40 frames at 16 fps, by the times of its frames, which come at 24 fps" in err
    whole = read_frames("film.mp4")
    assert len(whole) == 40 + 100  # 60 frames at 24 fps are 40 at 16
    assert gen(*FILM, "--video", "clip.mp4", "--only-new", "--output", "new.mp4")[0] == 0
    new = read_frames("new.mp4")
    assert len(new) == 100
    assert np.abs(whole[40:].astype(int) - new).mean() < 3  # encoded in other company
    assert "complete already" in gen(*FILM, "--video", "clip.mp4")[2]
    Path("film.mp4").unlink()
    assert gen("resume", JOB, plain=True)[0] == 0
    assert len(read_frames("film.mp4")) == 140


def test_a_rolled_segment_that_keeps_its_end_changes_alone(gen: Gen) -> None:
    assert gen(*FILM, "--keyframe", "a.png@1s")[0] == 0
    before, film = digests(JOB), read_frames("film.mp4")
    code, _, err = gen("reroll", JOB, "--segment", 1, "--keep-tail", "--seed", 9, plain=True)
    assert code == 0, err
    assert "segment 1 of 2 will be made again, all others stay" in err
    assert "again    " in err
    assert "resume film.mp4.job" in err
    after = digests(JOB)
    changed = {name for name in after if after[name] != before[name]}
    assert after.keys() == before.keys()
    assert changed == {
        f"segment_0001.{group}.safetensors" for group in ("init", "plan", "fill_head", "fill_tail")
    }
    again = read_frames("film.mp4")
    assert not np.array_equal(again[:76], film[:76])
    given = json.loads((JOB / "job.json").read_text())["settings"]["given"]
    assert [":kept" in word for word in given.split(",")] == [False, True, True]

    code, _, err = gen("--config", "film.mp4", "--output", "other.mp4", plain=True)
    assert code == 3  # its kept end is in the job folder alone
    # Rolled without, it is free again; the picture stays.
    assert gen("reroll", JOB, "--segment", 1, "--seed", 9, plain=True)[0] == 0
    given = json.loads((JOB / "job.json").read_text())["settings"]["given"]
    assert len(given.split(",")) == 1


def test_two_processes_make_the_same_film(gen: Gen) -> None:
    pictures = ("--keyframe", "a.png@1s", "--last_frame", "b.png")
    assert gen(*FILM, *pictures, "--threads", 1)[0] == 0
    code, _, err = gen(*FILM, *pictures, "--threads", 1, "--ranks", 2, "--output", "two.mp4")
    assert code == 0, err
    assert np.array_equal(read_frames("two.mp4"), read_frames("film.mp4"))


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--keyframe", "a.png"), 2, "still.png@12.5s"),
        (("--keyframe", "a.png@x"), 2, "still.png@12.5s"),
        (("--keyframe", "a.png@-1"), 2, "still.png@12.5s"),
        (("--keyframe", "a.png@nan"), 2, "still.png@12.5s"),
        (("--keyframe", "a.png@99s"), 2, "at most 6.1875 s"),
        (
            ("--keyframe", "a.png@1.1s", "--keyframe", "b.png@1.2s"),
            2,
            "two pictures for one moment",
        ),
        (("--image", "a.png", "--keyframe", "b.png@0"), 2, "two pictures"),
        (("--image", "missing.png"), 3, "missing.png"),
        (("--image", "clip.mp4"), 3, "PNG, JPEG or WebP"),
        (("--video", "a.png"), 3, "not a video"),
        (("--video", "missing.mp4"), 3, "missing.mp4"),
        (("--image", "a.png", "--video", "clip.mp4"), 2, "a film begins once"),
        (("--only_new",), 2, "--video"),
        (("--fit", "stretch"), 2, "cover, letterbox"),
        (("--keep_tail",), 2, "reroll"),
    ],
)
def test_refused(gen: Gen, flags: tuple[str, ...], code: int, said: str) -> None:
    found, out, err = gen(*FILM, *flags, "--output", "bad.mp4")
    assert (found, out) == (code, ""), err
    assert said in err
    assert err.count("\n") == 1
    assert not list(Path().glob("bad*"))


def test_a_clip_of_varying_rate_is_told(gen: Gen) -> None:
    uneven = Video(unit=Fraction(1, 100), times=(0, 5, 15, 20, 30, 40, 50, 90))
    Path("uneven.mp4").write_bytes(uneven.encode())
    code, _, err = gen("plan", *FILM, "--video", "uneven.mp4")
    assert code == 0, err
    assert "whose rate varies from 2.5 to 20 fps" in err


def test_a_clip_that_is_too_short(gen: Gen) -> None:
    with VideoWriter("short.mp4", 64, 64, 16) as writer:
        writer.write(np.zeros((4, 64, 64, 3), np.uint8))
    code, _, err = gen(*FILM, "--video", "short.mp4", "--output", "bad.mp4")
    assert code == 3
    assert "too short to go on from" in err


def test_a_kept_end_needs_a_finished_plan(gen: Gen) -> None:
    assert gen("plan", *FILM)[0] == 0
    next(JOB.glob("segment_0001.plan*")).unlink()
    code, _, err = gen("reroll", JOB, "--segment", 1, "--keep-tail", plain=True)
    assert code == 3
    assert "segment_0001.plan" in err
