"""The command killed, at any time, and gone on with: the same film, nothing lost, nothing left."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mmpl.checkpoint.folder import check_folder
from mmpl.cli.unchanged import Unchanged
from mmpl.errors import CheckpointError
from mmpl.film.job import JOB_FILE, STORYBOARD, THUMBNAILS, start_over, write_job
from mmpl.media.durable import locked
from mmpl.media.video import read_frames
from tests.checkpoint import worlds
from tests.cli.conftest import PROMPT, ROOT, Gen

FILM = ["--prompt", PROMPT, "--seed", "5", "--num_frames", "100", "--steps", "12", "--threads", "1"]
JOB = "film.mp4.job"
LIMIT_S = 120
GONE_S = 20.0  # a process without its parent is gone in this time, on a busy machine too
# What a run comes to one after the other, each of which shows itself by a file.
MOMENTS = {
    "plan": f"{JOB}/job.json",
    "storyboard": f"{JOB}/segment_0002.plan.safetensors",
    "populate": f"{JOB}/segment_0001.fill_head.safetensors",
    "decode": f"{JOB}/segment_0001.fill_tail.safetensors",
    "write": f"{JOB}/segment_0002.fill_head.safetensors",
    "read back": "film.mp4",
}
MOMENT_S = 0.15  # some time within each


@pytest.fixture(scope="module")
def line(bundle: Path) -> list[str]:
    return [*FILM, "--model_path", str(bundle)]


@pytest.fixture(scope="module")
def whole(line: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the film was made in one go."""
    folder = tmp_path_factory.mktemp("whole")
    with started(folder, *line) as process:
        _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, said
    return folder


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "bin" / "mmpl-gen"), *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_weights_cut_while_they_are_mapped(bundle: Path, tmp_path: Path) -> None:
    """A bus error cannot be caught; it is at least named, and what was made stays."""
    weights = shutil.copytree(bundle, tmp_path / "model") / "dit.safetensors"
    with started(tmp_path, *FILM, "--model_path", str(weights.parent)) as process:
        end = time.monotonic() + LIMIT_S
        while not (tmp_path / MOMENTS["plan"]).exists() and time.monotonic() < end:
            time.sleep(0.003)
        os.truncate(weights, 1000)
        _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == -signal.SIGBUS
    assert "Bus error" in said
    assert not (tmp_path / "film.mp4").exists()


def test_weights_written_to_while_they_are_mapped(bundle: Path, tmp_path: Path) -> None:
    """What is made of other weights than the rest never gets into the film."""
    weights = shutil.copytree(bundle, tmp_path / "model") / "dit.safetensors"
    with started(tmp_path, *FILM, "--model_path", str(weights.parent)) as process:
        end = time.monotonic() + LIMIT_S
        while not (tmp_path / MOMENTS["plan"]).exists() and time.monotonic() < end:
            time.sleep(0.003)
        with weights.open("r+b") as file:
            file.seek(-100, os.SEEK_END)
            file.write(bytes(100))
        _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 3, said
    assert f"{weights}: the weights changed while they were in use; got other content" in said
    assert not (tmp_path / "film.mp4").exists()


def test_weights_replaced_by_a_rename_do_no_harm(tmp_path: Path) -> None:
    folder = worlds.write_wan_folder(tmp_path / "wan", with_dit=False)
    worlds.write_shards(folder, worlds.dit_state())
    weights = Unchanged(check_folder(folder))
    shard = next(folder.glob("*-00002-of-*"))
    shutil.copy(shard, tmp_path / "new")
    os.replace(tmp_path / "new", shard)
    (folder / "Wan2.1_VAE.pth").unlink()
    assert list(weights.follow(iter((1, 2)))) == [1, 2]
    other = next(folder.glob("*-00001-of-*"))
    os.truncate(other, 1000)
    with pytest.raises(CheckpointError, match=f"{other.name}.*got 1000 bytes"):
        weights.require()


def killed(folder: Path, words: list[str], moment: str, delay_s: float) -> bool:
    """Whether the command was killed, `delay_s` after it came to a moment, or had ended."""
    sign = folder / MOMENTS[moment]
    if sign.exists():  # of a run before: this one shows itself by the film it begins
        sign = folder
    before = set(folder.glob(".film.mp4.*"))
    with started(folder, *words) as process:
        end = time.monotonic() + LIMIT_S
        while process.poll() is None and time.monotonic() < end:
            if set(folder.glob(".film.mp4.*")) - before if sign == folder else sign.exists():
                break
            time.sleep(0.003)
        time.sleep(delay_s)
        process.kill()
        _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode in (0, -signal.SIGKILL), said
    return process.returncode != 0


def durable(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / JOB).glob("segment_*")}


def kills_of(folder: Path, line: list[str], whole: Path, seed: int) -> int:
    """How often a film was killed, once at most in each of the moments, before it was done."""
    draw, kills, kept, finished = random.Random(seed), 0, {}, durable(whole)
    words = line
    for moment in MOMENTS:
        if not killed(folder, words, moment, draw.uniform(0, MOMENT_S)):
            break
        kills += 1
        there = durable(folder)
        assert kept.items() <= there.items(), f"lost after {moment}"
        assert there.items() <= finished.items(), f"other bits after {moment}"
        kept = there
        words = ["resume", JOB] if (folder / JOB / JOB_FILE).exists() else line
    begun = {path: path.stat().st_mtime_ns for path in (folder / JOB).glob("segment_*")}
    with started(folder, *words) as process:
        _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, said
    assert durable(folder) == finished
    assert {path: path.stat().st_mtime_ns for path in begun} == begun, "made again"
    assert np.array_equal(read_frames(folder / "film.mp4"), read_frames(whole / "film.mp4"))
    assert left_in(folder) == left_in(whole)
    return kills


def left_in(folder: Path) -> list[str]:
    """All but thumbnails, which are drawn of what is made in this run."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return [name for name in files if f"/{THUMBNAILS}" not in name]


def test_a_film_killed_in_every_moment(line: list[str], whole: Path, tmp_path: Path) -> None:
    assert kills_of(tmp_path, line, whole, seed=1) >= 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sixty_kills(line: list[str], whole: Path, tmp_path: Path) -> None:
    folders = [tmp_path / str(seed) for seed in range(15)]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(2) as pool:
        kills = pool.map(lambda seed: kills_of(folders[seed], line, whole, seed), range(15))
    assert sum(kills) >= 60


def members(session: int) -> Iterator[int]:
    """The processes of a session that have not ended."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = path.read_text().rsplit(")", 1)[1].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_session) == session and state not in "ZX":
            yield int(path.parent.name)


@pytest.mark.parametrize("moment", ["start", "import", "plan", "decode"])
def test_no_process_outlives_the_parent(
    line: list[str], whole: Path, tmp_path: Path, moment: str
) -> None:
    with started(tmp_path, *line, "--ranks", "2") as process:
        end = time.monotonic() + LIMIT_S
        while len(list(members(process.pid))) < 3:
            assert time.monotonic() < end
            assert process.poll() is None
        if moment in MOMENTS:
            while not (tmp_path / MOMENTS[moment]).exists():
                assert time.monotonic() < end
                assert process.poll() is None
                time.sleep(0.003)
        elif moment == "import":
            time.sleep(0.3)
        process.kill()
    end = time.monotonic() + GONE_S
    while left := list(members(process.pid)):
        assert time.monotonic() < end, f"{left} live on"
        time.sleep(0.02)
    assert moment in MOMENTS or not durable(tmp_path), "made without a parent"
    with started(tmp_path, *line) as process:
        _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, said
    assert durable(tmp_path) == durable(whole)
    assert np.array_equal(read_frames(tmp_path / "film.mp4"), read_frames(whole / "film.mp4"))
    assert left_in(tmp_path) == left_in(whole)


def test_a_refused_command_leaves_the_job_to_the_one_at_work(gen: Gen) -> None:
    """Which may not have finished anything yet."""
    assert gen("plan", *FILM)[0] == 0
    for path in Path(JOB).glob("segment_*"):
        path.unlink()
    with locked(JOB):
        assert gen(*FILM)[0] == 2
        assert Path(JOB, JOB_FILE).exists()


def test_parts_of_an_unknown_film_are_not_taken_for_this_one(gen: Gen) -> None:
    assert gen("plan", *FILM)[0] == 0
    Path(JOB, JOB_FILE).unlink()
    code, _, said = gen(*FILM)
    assert code == 6
    assert "nothing says of which film" in said
    assert gen(*FILM, "--fresh")[0] == 0


@pytest.mark.parametrize("number", range(4))
def test_starting_over_may_be_killed_at_any_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write_job(tmp_path, {})
    for name in ("segment_0001.init.safetensors", "segment_0001.plan.safetensors", STORYBOARD):
        (tmp_path / name).touch()
    unlink, calls = os.unlink, iter(range(99))

    def stop(path: Path) -> None:
        if path.exists() and next(calls) == number:
            raise KeyboardInterrupt
        unlink(path)

    monkeypatch.setattr(os, "unlink", stop)
    with pytest.raises(KeyboardInterrupt):
        start_over(tmp_path)
    assert (tmp_path / JOB_FILE).exists(), "what is left is known to be of the film it is of"
