"""What starting takes: `--help`, and importing mmpl once torch is there. CPU time of processes of
one thread, in turns, least of several.

    python -m tests.bench.start [--repeats 5]

As installed: Python reads the byte code that the first run, which is not counted, has written, even
where the environment forbids writing it. Its collector goes through all of torch's objects once
more while mmpl is imported, whatever is imported then; what that takes is told apart.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "python": ["-c", "pass"],
    "--help": [str(ROOT / "bin" / "mmpl-gen"), "--help"],
    "torch": ["-c", "import torch"],
}
IMPORT = """
import gc, time, torch
{}
start = time.process_time()
import mmpl.generate
print(time.process_time() - start)
"""
IMPORTS = {"mmpl": IMPORT.format(""), "mmpl, uncollected": IMPORT.format("gc.disable()")}


Environment = dict[str, str]


def installed(bytecode: str) -> Environment:
    """This environment with one thread, and byte code written to and read from this folder."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": bytecode}


def cpu_seconds(argv: list[str], environment: Environment) -> float:
    """User and system time of a process that runs Python so."""
    process = subprocess.Popen(
        [sys.executable, *argv],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, argv
    return usage.ru_utime + usage.ru_stime


def import_seconds(code: str, environment: Environment) -> float:
    """What a process says that its import took."""
    return float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment))


def least(repeats: int) -> dict[str, float]:
    """Of each command and import, the least CPU seconds of `repeats` runs after one that is not
    counted."""
    with tempfile.TemporaryDirectory() as bytecode:
        here = installed(bytecode)
        turns = [
            {name: cpu_seconds(argv, here) for name, argv in COMMANDS.items()}
            | {name: import_seconds(code, here) for name, code in IMPORTS.items()}
            for _ in range(repeats + 1)
        ]
    return {name: min(turn[name] for turn in turns[1:]) for name in turns[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    found = least(parser.parse_args().repeats)
    bare, shown = found["python"], found["--help"]
    print(f"--help {shown:.3f} s CPU, {shown / bare:.1f} times bare Python's {bare:.3f}")
    print(
        f"import mmpl.generate {found['mmpl']:.3f} s CPU after torch's {found['torch']:.3f}, "
        f"{found['mmpl, uncollected']:.3f} without the collector"
    )


if __name__ == "__main__":
    main()
