"""Errors, signals and streams, as every command has them."""

from __future__ import annotations

import errno
import gc
import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from mmpl import errors
from mmpl.cli.shell import (
    Console,
    Terminated,
    explain,
    print_result,
    printable,
    run,
    uncollected,
)

CODES = [
    (errors.ArgumentError("x"), 2),
    (errors.InputError("x"), 3),
    (errors.CheckpointError("x"), 3),
    (errors.OutputError("x"), 4),
    (errors.NumericError("x"), 7),
    (errors.OutOfMemoryError("x"), 8),
    (MemoryError(), 8),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), 8),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), 8),
    (KeyboardInterrupt(), 130),
    (Terminated(), 143),
    (RuntimeError("something else"), 1),
    (KeyError("x"), 1),
    (ModuleNotFoundError("No module named 'torch'"), 1),
    (OSError(errno.EIO, "bad disk"), 1),
]


@pytest.mark.parametrize(("error", "code"), CODES)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: list[str], console: Console) -> int:
        raise error

    assert run(command, [], name="mmpl-x") == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mmpl-x: ")
    assert err.count("\n") == 1
    assert run(command, ["--debug"], name="mmpl-x") == code
    assert "Traceback" in capsys.readouterr().err


def test_what_the_command_returns_is_the_exit_code() -> None:
    assert run(lambda argv, console: len(argv), ["a", "b"], name="x") == 2


def test_torch_out_of_memory_says_how_much_and_what_to_do() -> None:
    _, text = explain(CODES[7][0])
    assert text.startswith("error: out of memory; got CUDA out of memory; make the film smaller")


def test_notes_follow_the_message() -> None:
    error = errors.NumericError("not finite")
    error.add_note("film.mp4 was not written")
    assert explain(error)[1] == "error: not finite; film.mp4 was not written"


def test_a_signal_that_a_library_swallows_still_counts() -> None:
    def command(argv: list[str], console: Console) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            while True:
                pass
        except KeyboardInterrupt as stop:
            raise ImportError("interrupted while importing") from stop

    assert run(command, [], name="x") == 143


def test_signals_in_quick_succession_are_one(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    def command(argv: list[str], console: Console) -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)
            cleaned.append(True)
        return 0

    assert run(command, [], name="x") == 130
    assert cleaned == [True]
    assert capsys.readouterr().err == "x: stopped by Ctrl-C\n"


def test_in_another_thread_signals_are_left_alone() -> None:
    codes = []
    thread = threading.Thread(target=lambda: codes.append(run(lambda a, c: 0, [], name="x")))
    thread.start()
    thread.join()
    assert codes == [0]


def test_printable() -> None:
    assert printable("a\nb\x1b[0m\0\udc80 é 漢") == "a\\nb\\x1b[0m\\x00\\udc80 é 漢"


def test_quiet_console_says_only_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console("x")
    console.open_log(str(tmp_path / "log"))
    console.quiet = True
    console.say("a\nb")
    console.warn("c")
    console.fail("d", 1)
    console.close()
    assert capsys.readouterr().err == "x: d\n"
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line[20:] for line in lines] == ["a", "b", "x: warning: c", "x: d"]


def test_a_full_log_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console("x")
    console.open_log(str(tmp_path / "log"))
    assert console._log is not None
    os.dup2(os.open("/dev/full", os.O_WRONLY), console._log.fileno())
    console.say("a")
    console.close()
    assert capsys.readouterr().err == "a\n"


def test_closed_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    Console("x").fail("nobody hears it", 1)
    print_result("nobody sees it")


def test_a_result_keeps_the_bytes_of_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    print_result(os.fsdecode(b"film-\xff-\xc3\xa9.mp4"))
    stream.seek(0)
    assert stream.buffer.read() == b"film-\xff-\xc3\xa9.mp4\n"


def test_the_collector_is_back_after_the_imports_and_leaves_them_alone() -> None:
    code = """
import gc
from mmpl.cli.shell import uncollected
try:
    with uncollected():
        assert not gc.isenabled()
        raise ImportError
except ImportError:
    assert gc.isenabled() and gc.get_freeze_count() > 0
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_collector_of_a_program_that_has_torch_is_left_alone() -> None:
    before = gc.get_freeze_count()
    with uncollected():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
