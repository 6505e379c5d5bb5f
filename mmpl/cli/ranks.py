"""Several processes for one film: started, watched, and started again without those that die.

Each process runs this same command, with RANK and WORLD_SIZE in its environment as torchrun sets
them, so `torchrun mmpl-gen ...` and `mmpl-gen --ranks N` are one path. The parent started by the
latter joins no process group and imports no torch: whatever hangs, it does not. What the film has
finished lies in its job folder, so starting again is all the recovery there is.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmpl.cli.beats import Beat, Beats
from mmpl.cli.place import FOLDER, PARENT, settings_file
from mmpl.cli.shell import REPORT, Console
from mmpl.errors import MmplError, RankError
from mmpl.layout.mesh import Mesh

POLL_S = 0.1
STOP_S = 3.0  # a process told to stop has this long before it is killed
LOADING_S = 900.0  # the longest that reading weights and compiling may take
STEPS = 20  # times the median of its steps, a process may be silent
MOST_DEATHS = 3


@dataclass(slots=True, eq=False)
class _Child:
    """A running process and what its signs of life tell."""

    rank: int
    process: subprocess.Popen[bytes]
    report: Path
    beat: Beat
    changed_s: float
    pauses_s: list[float] = field(default_factory=list)

    def silent_too_long(self, beat: Beat, now_s: float, patience_s: float) -> bool:
        if beat != self.beat:
            if self.beat.started:
                self.pauses_s.append(now_s - self.changed_s)
            self.beat, self.changed_s = beat, now_s
        typical = statistics.median(self.pauses_s[-200:]) if self.pauses_s else 0.0
        limit = max(patience_s, STEPS * typical) if beat.started else LOADING_S
        return now_s - self.changed_s > limit


def supervise(
    argv: Sequence[str],
    settings: Mapping[str, Any],
    devices: Sequence[str],
    mesh: Mesh,
    *,
    patience_s: float,
    clean: Callable[[], None],
    console: Console,
) -> None:
    """Runs this command with `argv` and `settings` on each of `devices`, joined in `mesh`, until
    the film is there.

    A process that dies, or is silent for longer than `patience_s` and 20 of its usual steps, is
    left out and the others are started again, after `clean`. Raises RankError after too many
    deaths, and what a process reports about the film itself.
    """
    devices, deaths, why = list(devices), 0, ""
    while devices:
        if mesh.ranks != len(devices):
            mesh = Mesh(len(devices))
        own = {**settings, "parallel": [mesh.teams, mesh.cfg, mesh.ulysses]}
        try:
            lost = _run(argv, own, devices, patience_s)
        finally:
            clean()
        if lost is None:
            return
        deaths += 1
        rank, why = lost
        del devices[rank]
        if deaths > MOST_DEATHS or not devices:
            break
        console.warn(f"rank {rank} {why}; going on with {len(devices)} from what is finished")
    raise RankError(
        f"{deaths} processes were lost, the last one {why}",
        todo="what is finished is kept: run the same command again",
    )


def told(argv: Sequence[str]) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and events of mmpl-gen with `argv`, run as another program runs it."""
    done = subprocess.run(
        [sys.executable, "-m", "mmpl.cli.gen", "--json_progress", *argv],
        env={**os.environ, **_importable()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    lines = (line for line in done.stderr.splitlines() if line.startswith('{"event"'))
    return done.returncode, [json.loads(line) for line in lines]


def _run(
    argv: Sequence[str], settings: Mapping[str, Any], devices: list[str], patience_s: float
) -> tuple[int, str] | None:
    """One start of all processes. Returns None at success, else which one was lost, and how."""
    with tempfile.TemporaryDirectory(prefix="mmpl-") as folder:
        beats = Beats(Path(folder) / "beats", len(devices), create=True)
        children: list[_Child] = []
        try:
            for rank, device in enumerate(devices):
                own = {**settings, "device": device}
                children.append(_start(argv, own, rank, len(devices), Path(folder)))
            return _watch(children, beats, patience_s)
        finally:
            _stop(children)


def _start(
    argv: Sequence[str], settings: Mapping[str, Any], rank: int, ranks: int, folder: Path
) -> _Child:
    settings_file(folder, rank).write_text(json.dumps(settings), encoding="utf-8")
    report = folder / f"report-{rank}"
    environment = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "GLOO_SOCKET_IFNAME": "lo",  # nobody outside this machine is to reach the processes
        **_importable(),
        FOLDER: str(folder),
        PARENT: str(os.getpid()),
        REPORT: str(report),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "mmpl.cli.gen", *argv],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    return _Child(rank, process, report, Beat(), time.monotonic())


def _watch(children: list[_Child], beats: Beats, patience_s: float) -> tuple[int, str] | None:
    """Until all have ended well, or one was lost. Raises what a process reports."""
    running = list(children)
    while running:
        for child in list(running):
            code = _ended(child)
            if code is None:
                if child.silent_too_long(beats.read(child.rank), time.monotonic(), patience_s):
                    child.process.kill()
                    return child.rank, f"made no progress {child.beat.where}and was stopped"
                continue
            if code == 0:
                running.remove(child)
            elif code == RankError.exit_code:
                return _culprit(children, child)  # it lost a neighbour: which one?
            elif child.report.exists():
                raise _reported(child, alone=len(children) == 1)
            else:
                return child.rank, _death(code)
        time.sleep(POLL_S)
    return None


def _culprit(children: list[_Child], witness: _Child) -> tuple[int, str]:
    """The process whose end made the others fail, which may be seen a moment later."""
    end = time.monotonic() + STOP_S
    while time.monotonic() < end:
        for child in children:
            code = _ended(child)
            if code is None or code in (0, RankError.exit_code):
                continue
            if child.report.exists():
                raise _reported(child, alone=False)
            return child.rank, _death(code)
        time.sleep(POLL_S)
    return witness.rank, "lost its connection"


def _ended(child: _Child) -> int | None:
    """The exit code of a process, or the one it reported: what it lost may bring it down
    altogether after that. None while it runs."""
    code = child.process.poll()
    if code and child.report.exists():
        return int(json.loads(child.report.read_text(encoding="utf-8"))["code"])
    return code


def _death(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        cut = ": weights were cut while in use, or the disk fails" if -code == signal.SIGBUS else ""
        return f"was killed by {signal.Signals(-code).name}{cut}"
    except ValueError:
        return f"was killed by signal {-code}"


def _reported(child: _Child, *, alone: bool) -> MmplError:
    """The error that ended a process, as its own."""
    report = json.loads(child.report.read_text(encoding="utf-8"))
    error = MmplError(("" if alone else f"rank {child.rank}: ") + report["text"])
    error.exit_code = report["code"]
    return error


def _stop(children: list[_Child]) -> None:
    """Asks all that still run to stop, then kills them."""
    for child in children:
        with suppress(OSError):
            child.process.terminate()
    end = time.monotonic() + STOP_S
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(max(0.0, end - time.monotonic()))
        child.process.kill()
        child.process.wait()


def _importable() -> dict[str, str]:
    """What lets a process that is started import this package, wherever that is."""
    root = str(Path(__file__).resolve().parents[2])
    before = filter(None, [os.environ.get("PYTHONPATH")])
    return {"PYTHONPATH": os.pathsep.join([root, *before])}
