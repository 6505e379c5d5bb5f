"""What one GPU makes of it at real sizes, beside what is wanted: for an H200, in nine minutes.

    python -m tests.bench.gpu                     everything that fits into the time
    python -m tests.bench.gpu --official Wan2.1   beside an official checkout's modules too
    python -m tests.bench.gpu --json f.json       the figures as JSON too, written after every one
    python -m tests.bench.gpu --rows 14B          only rows whose name has this in it
    python -m tests.bench.gpu --small             every row at tiny sizes on the CPU, in seconds

Weights are random and made on the device. Times are of CUDA events, medians after warm-ups; rates
stand beside the same run's own rate of a large matrix product. Rows go in the order of their
importance, in a process of their own: one that dies or hangs is started again behind the row
that it died of.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import torch

from tests.bench.gpu.lab import REAL, TINY, Lab, machine
from tests.bench.gpu.record import Book, Row, perform
from tests.bench.gpu.rows import ROWS
from tests.bench.gpu.worker import supervise, work

_BETWEEN = "|"  # names of rows


def chosen(rows: tuple[Row, ...], part: str, *, official: bool) -> tuple[Row, ...]:
    """The rows whose name has `part` in it; without a checkout none that needs one."""
    return tuple(r for r in rows if part in r.name and (official or "official" not in r.name))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--official", type=Path, help="a checkout of Wan2.1")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--budget_s", type=float, default=540.0)
    parser.add_argument("--rows", default="")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--start_s", type=float, default=time.monotonic(), help=argparse.SUPPRESS)
    parser.add_argument("--skip", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.small and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use: try --small")
    rows = chosen(ROWS, given.rows, official=given.official is not None)
    lab = partial(Lab, "cpu" if given.small else "cuda", TINY if given.small else REAL)
    if given.worker is not None:
        skipped = given.skip.split(_BETWEEN)
        left = tuple(row for row in rows if row.name not in skipped)
        work(left, lab(given.official), given.worker, given.start_s, given.budget_s)
        return
    book = Book(given.json)
    if given.official is None:
        print("no --official: nothing is compared with the official modules")
    if given.small:
        print("tiny sizes on the CPU: that rows come tells something, figures and targets do not")
        torch.set_num_threads(1)
        here = lab(given.official)
        book.enter({"machine": machine(here)})
        for record in perform(rows, here, start_s=given.start_s, budget_s=given.budget_s):
            book.enter(record)
        return

    def command(pipe: int, skipped: list[str]) -> list[str]:
        program = [sys.executable, "-m", "tests.bench.gpu", *sys.argv[1:]]
        again = ["--worker", str(pipe), "--start_s", str(given.start_s)]
        return [*program, *again, "--skip", _BETWEEN.join(skipped)]

    supervise(command, book)


if __name__ == "__main__":
    main()
