"""The parent's judgement of processes that end badly."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmpl.cli.beats import Beat, Beats
from mmpl.cli.ranks import _Child, _watch
from mmpl.errors import MmplError, OutOfMemoryError, RankError


def child(rank: int, folder: Path, code: int, text: str, script: str) -> _Child:
    """A process that has reported an error and runs `script`."""
    report = folder / f"report-{rank}"
    report.write_text(json.dumps({"code": code, "text": text}), encoding="utf-8")
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    return _Child(rank, process, report, Beat(), time.monotonic())


def test_a_process_that_aborts_after_its_report_is_taken_at_its_word(tmp_path: Path) -> None:
    """It lost its neighbour, and a thread of its own brought it down: the neighbour is to blame."""
    lost, full = RankError.exit_code, OutOfMemoryError.exit_code
    children = [
        child(0, tmp_path, lost, "rank 1 went away", "import os; os.abort()"),
        child(1, tmp_path, full, "out of memory", f"import time; time.sleep(0.5); exit({full})"),
    ]
    beats = Beats(tmp_path / "beats", len(children), create=True)
    with pytest.raises(MmplError, match="rank 1: out of memory") as caught:
        _watch(children, beats, patience_s=60.0)
    assert caught.value.exit_code == full
