"""The film of the README's first line within its bounds: on an idle machine, with `-m slow`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmpl.media.video import probe
from tests.cli.conftest import ROOT

PROMPT = "a red circle moves right on a blue background"
MOST_SECONDS, MOST_BYTES = 60, 2e9


@pytest.mark.slow
def test_thirty_seconds_of_film_on_two_threads(tmp_path: Path) -> None:
    argv = ["--prompt", PROMPT, "--threads", "2", "--seed", "1", "--output", "film.mp4"]
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, ROOT / "bin" / "mmpl-gen", *argv],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)  # the usage of this process alone
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
    # Kilobytes, bytes on macOS; what this process held when it started the other counts as well.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{seconds:.1f} s, {peak / 1e9:.2f} GB")
    assert process.returncode == 0
    film = probe(tmp_path / "film.mp4")
    assert (film.frames, film.width, film.height) == (480, 64, 64)
    assert seconds <= MOST_SECONDS
    assert peak <= MOST_BYTES
