"""What all commands share: messages on stderr, a log on request, signals, errors as exit codes.

A command is a function `command(argv, console) -> exit code` that may raise; `run` turns what it
raises into one line and the exit code of that error. No torch here.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

from mmpl.errors import MmplError, OutOfMemoryError, OutputError, is_out_of_memory
from mmpl.media.durable import output_error

REPORT = "MMPL_REPORT"  # the file in which a process tells its parent why it failed
_BOUNCE_S = 2.0  # signals repeated within this time are one wish to stop, not two


class Terminated(KeyboardInterrupt):
    """SIGTERM came: stop as for Ctrl-C, with another exit code."""


class Console:
    """Where a command's messages go: stderr, and the log once `open_log` was called.

    With `quiet` only `fail` reaches stderr; the log gets everything. With `as_json` stderr is for
    programs: one JSON object a line, with its `event`.
    """

    def __init__(self, name: str) -> None:
        self.name, self.quiet, self.as_json = name, False, False
        self._log: TextIO | None = None

    def say(self, text: str) -> None:
        """Information, of any number of lines; what users gave must be made `printable` first."""
        self.log(text)
        if not self.quiet and self.as_json:
            self.tell("message", text=text)
        elif not self.quiet:
            _to_stderr(text)

    def tell(self, event: str, **fields: object) -> None:
        """An event for programs; nothing unless `as_json`."""
        if self.as_json:
            _to_stderr(json.dumps({"event": event, **fields}))

    def warn(self, text: str) -> None:
        self.say(f"{self.name}: warning: {printable(text)}")

    def fail(self, text: str, code: int) -> None:
        """The one line that says why the command ends without success."""
        line = f"{self.name}: {printable(text)}"
        self.log(line)
        if self.as_json:
            self.tell("failed", text=text, code=code)
        else:
            _to_stderr(line)

    def log(self, text: str) -> None:
        """To the log only. A log that cannot be written any more never ends a job."""
        if self._log is not None:
            with suppress(OSError):
                stamp = time.strftime("%Y-%m-%d %H:%M:%S")
                self._log.writelines(f"{stamp} {line}\n" for line in text.splitlines())
                self._log.flush()

    def open_log(self, path: str) -> None:
        """Adds to the log at `path`, or begins it. Raises OutputError."""
        try:
            if os.path.lexists(path) and not stat.S_ISREG(os.stat(path).st_mode):
                raise OutputError("the log cannot be written: not an ordinary file", where=path)
            self._log = open(path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        except OSError as error:
            raise output_error(path, error) from error

    def close(self) -> None:
        if self._log is not None:
            with suppress(OSError):
                self._log.close()
            self._log = None


def run(
    command: Callable[[list[str], Console], int],
    argv: Sequence[str] | None = None,
    *,
    name: str,
) -> int:
    """The exit code of `command(argv, console)`, by default with the arguments of this process.

    Whatever it raises becomes one line on stderr, with a traceback before it only where `--debug`
    is among the arguments. Ctrl-C and SIGTERM stop it by an exception, so that it can clean up.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    console = Console(name)
    stops: list[KeyboardInterrupt] = []
    with suppress(RuntimeError, ValueError, OSError):  # stderr may be closed, or not a file
        faulthandler.enable()  # weights cut while they are mapped: no exception, a bus error
    try:
        with _stopping(stops):
            return command(words, console)
    except BaseException as error:  # noqa: BLE001  the last stop: every error gets its exit code
        if "--debug" in words:
            _to_stderr("".join(traceback.format_exception(error)).rstrip())
        # A library may have turned a signal into an error of its own.
        code, text = explain(stops[0] if stops else error)
        if REPORT in os.environ:
            console.log(text)
            _report(code, text)
        else:
            console.fail(text, code)
        return code
    finally:
        console.close()


def _report(code: int, text: str) -> None:
    """For the parent, which has the last word on the terminal."""
    with suppress(OSError), open(os.environ[REPORT], "w", encoding="utf-8") as file:
        json.dump({"code": code, "text": text.removeprefix("error: ")}, file)


def explain(error: BaseException) -> tuple[int, str]:
    """Exit code and message of an error, with what the command noted on it."""
    if isinstance(error, KeyboardInterrupt):
        code = 143 if isinstance(error, Terminated) else 130
        text = "stopped by SIGTERM" if isinstance(error, Terminated) else "stopped by Ctrl-C"
    elif isinstance(error, MmplError):
        code, text = error.exit_code, f"error: {error}"
    elif is_out_of_memory(error):
        wrapped = OutOfMemoryError(
            "out of memory",
            got=(str(error).split(". ")[0] or type(error).__name__)[:200],
            todo="make the film smaller, or use --dtype bfloat16",
        )
        code, text = wrapped.exit_code, f"error: {wrapped}"
    elif isinstance(error, ModuleNotFoundError):
        code, text = 1, f"error: {error}; install mmpl in this Python environment, see README.md"
    else:
        code = 1
        text = (
            f"internal error: {type(error).__name__}: {str(error)[:200]}; "
            "please report it, with the output of the same command and --debug"
        )
    return code, "; ".join([text, *getattr(error, "__notes__", ())])


def printable(text: str) -> str:
    """One line that any terminal can show: control characters and the like as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def print_result(text: str) -> None:
    """A line on stdout, which is for what was asked for only. Bytes of a path stay as they are."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(text) + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Nobody reads it. Python would complain again when it flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _to_stderr(text: str) -> None:
    if sys.stderr is not None:  # closed by the caller; print would then write to stdout
        with suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def uncollected() -> Iterator[None]:
    """Within the block torch may be imported without Python's garbage collector, which would go
    through all of its objects again and again and find nothing; afterwards it leaves them alone.
    For a process of our own, once: where torch is there already nothing is done.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _stopping(stops: list[KeyboardInterrupt]) -> Iterator[None]:
    """Within the block SIGINT and SIGTERM raise; what they raised is added to `stops`.

    Repeats within a moment are ignored: nervous fingers must not interrupt the cleaning up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals
        return
    last = -_BOUNCE_S

    def stop(number: int, _: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _BOUNCE_S:
            last = now
            stops.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
            raise stops[-1]

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # What the caller ignores, as for a job in the background of a script, stays ignored.
    ours = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in ours:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
