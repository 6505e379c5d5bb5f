"""What starting takes: `--help`, and importing mmpl over importing torch. CPU time of processes of
one thread, in turns, least of several.

    python -m tests.bench.start [--repeats 5]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "python": ["-c", "pass"],
    "--help": [str(ROOT / "bin" / "mmpl-gen"), "--help"],
    "torch": ["-c", "import torch"],
    "mmpl": ["-c", "import torch, mmpl.generate"],
}


def cpu_seconds(argv: list[str]) -> float:
    """User and system time of a process that runs Python so."""
    process = subprocess.Popen(
        [sys.executable, *argv],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, argv
    return usage.ru_utime + usage.ru_stime


def least(names: list[str], repeats: int) -> dict[str, float]:
    """Of each command, the least CPU seconds of `repeats` runs after one that is not counted."""
    turns = [{name: cpu_seconds(COMMANDS[name]) for name in names} for _ in range(repeats + 1)]
    return {name: min(turn[name] for turn in turns[1:]) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    found = least(list(COMMANDS), parser.parse_args().repeats)
    bare, shown = found["python"], found["--help"]
    over = found["mmpl"] - found["torch"]
    print(f"--help {shown:.3f} s CPU, {shown / bare:.1f} times bare Python's {bare:.3f}")
    print(f"import mmpl.generate {over:.3f} s CPU over torch's {found['torch']:.3f}")


if __name__ == "__main__":
    main()
