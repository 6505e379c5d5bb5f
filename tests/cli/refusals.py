"""What every verb of mmpl-train does with bad input: one line, nothing written, and soon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from mmpl.cli import train
from tests.cli.conftest import ROOT

Bad = Sequence[tuple[str, int, str]]  # arguments, exit code, words of the message

_WITHOUT_TORCH = """
import json, sys
from mmpl.cli import train
codes = [train.main(argv) for argv in json.load(sys.stdin)]
print(json.dumps([codes, "torch" in sys.modules]))
"""


def call(command: str) -> int:
    """Exit code of mmpl-train with these words."""
    return train.main(command.split())


def check_refused(capfd: pytest.CaptureFixture[str], command: str, code: int, words: str) -> None:
    """In one line, with nothing made in the current folder."""
    before = sorted(os.listdir())
    assert call(command) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("mmpl-train: error: ")
    assert words in err
    assert err.count("\n") == 1
    assert sorted(os.listdir()) == before


def check_nothing_waits_for_torch(bad: Bad, *good: str) -> None:
    """All of them and what is `good`, in one process that must not have imported torch."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH],
        input=json.dumps([command.split() for command in (*(case[0] for case in bad), *good)]),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    wanted = [code for _, code, _ in bad] + [0] * len(good)
    assert json.loads(done.stdout.splitlines()[-1]) == [wanted, False], done.stderr
