"""The process that measures, and the one that watches it: rows survive each other even where one
hangs, or leaves the GPU in a state in which nothing else can be done.

Records are lines of JSON through a pipe; whatever libraries print goes its own way.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO

from tests.bench.gpu.lab import Lab, machine
from tests.bench.gpu.record import Book, Record, Row, first_line, perform

START_S = 180.0  # that a process may take until its first row begins
PATIENCE = 3.0  # times what a row needs, and
GRACE_S = 30.0  # these seconds, may pass without a sign


def work(rows: Sequence[Row], lab: Lab, pipe: int, start_s: float, budget_s: float) -> None:
    """Measures the rows and tells through `pipe`. Ends with code 1 behind a row after which the
    device answers no more."""
    with os.fdopen(pipe, "w", encoding="utf-8") as told:

        def tell(record: Record) -> None:
            told.write(json.dumps(record) + "\n")
            told.flush()

        tell({"machine": machine(lab)})
        for record in perform(rows, lab, start_s=start_s, budget_s=budget_s):
            tell(record)
            if "error" in record:
                try:
                    lab.wait()
                except RuntimeError as error:
                    print(first_line(error), file=sys.stderr)
                    sys.exit(1)


def supervise(command: Callable[[int, list[str]], list[str]], book: Book) -> None:
    """Starts `command(pipe, rows to skip)` until every row has had its turn, and notes in `book`
    what it tells."""
    while True:
        known = len(book.rows)
        reading, writing = os.pipe()
        with subprocess.Popen(command(writing, list(book.rows)), pass_fds=(writing,)) as process:
            os.close(writing)
            with os.fdopen(reading, "rb", buffering=0) as told:
                running, late = _follow(told, book)
            if late:
                process.kill()
        if running is None and process.returncode == 0:
            return
        if running is not None:
            why = "no sign for too long" if late else f"its process ended: {process.returncode}"
            book.enter({"row": running, "error": why})
        if len(book.rows) == known:  # died before any row: it would again
            print(f"the process that measures ended with {process.returncode}", file=sys.stderr)
            return


def _follow(told: IO[bytes], book: Book) -> tuple[str | None, bool]:
    """Notes what is told until the end; the row that was not finished then, and whether it is
    overdue."""
    running, deadline_s, rest = None, time.monotonic() + START_S, b""
    with selectors.DefaultSelector() as selector:
        selector.register(told, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline_s - time.monotonic())):
            chunk = told.read(65536)
            if not chunk:
                return running, False
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                record = json.loads(line)
                book.enter(record)
                if "begins" in record:
                    running = record["row"]
                    allowed_s = PATIENCE * record["needs_s"] + GRACE_S
                    deadline_s = time.monotonic() + allowed_s
                elif "seconds" in record:
                    running, deadline_s = None, time.monotonic() + START_S
    return running, True
