"""The command with several processes: killed, stopped, orphaned, interrupted, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest

from tests.cli.conftest import PROMPT, ROOT, write_model

LIMIT_S = 120
STEPS = "30"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


class Run:
    """A command started in a folder, in a process group of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "bin" / "mmpl-gen"), *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def children(self) -> list[int]:
        pid = self.process.pid
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [int(word) for word in text.split()]

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < end
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.01)

    def until_made(self, name: str) -> None:
        self.until((self.folder / "film.mp4.job" / f"{name}.safetensors").exists)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, out, err


def started_by_hand(
    folder: Path, ranks: int, port: int, *lines: list[str], first: int = 0, local: int | None = None
) -> list[subprocess.Popen[str]]:
    """The command as torchrun would start it, one process a line, from rank `first` on."""
    processes = []
    for rank, line in enumerate(lines, first):
        places = {"RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        places["LOCAL_RANK"] = rank if local is None else local
        environment = {**os.environ, **{k: str(v) for k, v in places.items()}}
        processes.append(
            subprocess.Popen(
                [sys.executable, str(ROOT / "bin" / "mmpl-gen"), *line],
                cwd=folder,
                env={**environment, "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


def words(model: Path, *more: str) -> list[str]:
    fixed = ["--prompt", PROMPT, "--seed", "5", "--segments", "4", "--steps", STEPS]
    return [*fixed, "--model_path", str(model), "--threads", "1", *more]


def frames(path: Path) -> list[bytes]:
    with av.open(str(path)) as film:
        return [frame.to_ndarray().tobytes() for frame in film.decode(video=0)]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name != "film.mp4"]


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("alone")
    code, _, err = Run(folder, *words(model)).end()
    assert code == 0, err
    return frames(folder / "film.mp4")


@pytest.fixture
def two(model: Path, tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path, *words(model, "--ranks", "2", "--rank_timeout", "2"))
    yield run
    run.process.kill()
    run.process.communicate()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("made", ["segment_0001.init", "segment_0002.plan"])
def test_a_killed_rank_is_done_without(
    two: Run, alone: list[bytes], victim: int, made: str
) -> None:
    two.until_made(made)
    os.kill(two.children()[victim], signal.SIGKILL)
    code, out, err = two.end()
    assert code == 0, err
    assert out == "film.mp4\n"
    assert f"rank {victim} was killed by SIGKILL; going on with 1" in err
    assert frames(two.folder / "film.mp4") == alone
    assert leftovers(two.folder) == ["film.mp4.job"]


def test_a_rank_that_hangs_is_killed(two: Run, alone: list[bytes]) -> None:
    two.until_made("segment_0001.plan")
    os.kill(two.children()[1], signal.SIGSTOP)
    code, _, err = two.end()
    assert code == 0, err
    assert "made no progress" in err
    assert frames(two.folder / "film.mp4") == alone


def test_no_process_outlives_its_parent(two: Run, model: Path, alone: list[bytes]) -> None:
    two.until_made("segment_0001.plan")
    children = two.children()
    kept = two.folder / "film.mp4.job" / "segment_0001.plan.safetensors"
    before = kept.stat().st_mtime_ns
    two.process.kill()
    end = time.monotonic() + 5
    while not all(map(gone, children)):
        assert time.monotonic() < end
        time.sleep(0.05)
    again = Run(two.folder, *words(model, "--ranks", "3"))
    again.until_made("segment_0003.plan")
    assert kept.stat().st_mtime_ns == before, "what was finished is not made again"
    code, _, err = again.end()
    assert code == 0, err
    assert frames(two.folder / "film.mp4") == alone


def test_a_seed_that_was_drawn_is_kept_in_the_job_folder(model: Path, tmp_path: Path) -> None:
    line = words(model, "--ranks", "2")
    for flag in ("--seed", "--threads"):
        del line[line.index(flag) : line.index(flag) + 2]
    first = Run(tmp_path, *line)
    first.until_made("segment_0001.plan")
    first.process.send_signal(signal.SIGTERM)
    assert first.end()[0] == 143
    begun = json.loads((tmp_path / "film.mp4.job" / "job.json").read_text())
    line[-1] = "3"
    code, _, err = Run(tmp_path, *line).end()
    assert code == 0, err
    again = next(line for line in err.splitlines() if line.split()[:1] == ["again"])
    assert str(ROOT / "bin" / "mmpl-gen") in again
    assert f"--seed {begun['settings']['seed']} " in again
    assert f"--threads {begun['settings']['threads']}" in again


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_all_within_seconds(two: Run, number: int, code: int) -> None:
    two.until_made("segment_0001.plan")
    children, start = two.children(), time.monotonic()
    os.killpg(two.process.pid, number)
    found, _, err = two.end()
    assert found == code
    assert time.monotonic() - start < 5
    assert all(map(gone, children))
    assert err.splitlines()[-1].startswith("mmpl-gen: stopped")
    assert leftovers(two.folder) == ["film.mp4.job"]


def test_the_error_of_a_rank_is_the_commands(tmp_path: Path) -> None:
    broken = write_model(tmp_path / "broken", broken=True)
    code, _, err = Run(tmp_path, *words(broken, "--ranks", "2")).end()
    assert code == 7
    assert err.splitlines()[-1].startswith("mmpl-gen: error: rank")
    assert "not finite" in err.splitlines()[-1]


# Put on the path of all processes: on rank 1, groups are too large for the memory of its device.
FULL = """
import importlib.machinery, importlib.util, os, sys

class Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        import torch
        def make_group(*args):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        module.make_group = make_group

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "mmpl.film.segment" and os.environ.get("RANK") == "1":
            file = os.path.join(path[0], "segment.py")
            return importlib.util.spec_from_file_location(name, file, loader=Loader(name, file))

sys.meta_path.insert(0, Finder())
"""


def test_a_rank_out_of_memory_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FULL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    line = words(model, "--ranks", "2", "--schedule", "round_robin")
    code, _, err = Run(tmp_path, *line).end()
    assert code == 8, err
    said = err.splitlines()[-1]
    assert "rank 1: out of memory; got CUDA out of memory" in said
    assert "make the film smaller, or use --dtype bfloat16" in said
    assert (tmp_path / "film.mp4.job" / "segment_0001.plan.safetensors").exists(), "all is kept"


def test_a_job_folder_of_another_film_is_refused(model: Path, tmp_path: Path) -> None:
    first = Run(tmp_path, *words(model, "--job_dir", "job", "--output", "a.mp4"))
    assert first.end()[0] == 0
    other = [*words(model, "--job_dir", "job", "--output", "b.mp4")]
    other[other.index("--seed") + 1] = "6"
    code, _, err = Run(tmp_path, *other).end()
    assert code == 6
    assert "got seed 6; wanted seed 5" in err.splitlines()[-1]


def test_more_ranks_than_useful_are_named(model: Path, tmp_path: Path) -> None:
    line = ["--segments", "1", "--steps", "1", "--ranks", "4"]
    fixed = ["--prompt", PROMPT, "--seed", "5", "--model_path", str(model)]
    code, _, err = Run(tmp_path, *fixed, *line).end()
    assert code == 0, err
    assert "4 processes are more than 1 segment can use: going on with 1" in err


def test_processes_started_by_torchrun_make_the_same_film(
    model: Path, tmp_path: Path, alone: list[bytes]
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    line = [*torchrun, "--master-port", str(free_port()), str(ROOT / "bin" / "mmpl-gen")]
    done = subprocess.run(
        [*line, *words(model)], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "film.mp4\n"
    assert frames(tmp_path / "film.mp4") == alone


def test_another_machine_says_that_it_takes_part(model: Path, tmp_path: Path) -> None:
    """Two processes that are each the first of a machine."""
    line = words(model, "--segments", "1", "--steps", "1")
    del line[4:8]
    port = free_port()
    leader, other = (
        process
        for rank in range(2)
        for process in started_by_hand(tmp_path, 2, port, line, first=rank, local=0)
    )
    _, err = leader.communicate(timeout=LIMIT_S)
    assert leader.returncode == 0, err
    _, said = other.communicate(timeout=LIMIT_S)
    assert other.returncode == 0, said
    assert said.splitlines() == [f"{socket.gethostname()}: from rank 1 of 2 on, cpu, float32, sdpa"]


def test_a_dead_port_is_told_before_a_model_is_loaded(model: Path, tmp_path: Path) -> None:
    line = words(model, "--rank_timeout", "1")
    (process,) = started_by_hand(tmp_path, 2, free_port(), line, first=1)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 5
    (said,) = err.splitlines()
    assert "the processes did not find each other" in said
    assert "check MASTER_ADDR and MASTER_PORT" in said


def test_other_weights_on_another_rank_are_refused(model: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", seed=9)
    lines = [words(folder) for folder in (model, other)]
    for process in started_by_hand(tmp_path, 2, free_port(), *lines):
        _, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 2
        assert "different versions, settings or weights" in err.splitlines()[-1]
        assert "ranks 1 differ from rank 0" in err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]
