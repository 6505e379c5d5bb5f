"""What every step of a training said: a line of JSON each, and the same as a table.

`log.jsonl` is appended to; `log.csv` is made from it. Numbers are exact, nothing in them depends on
the clock, so the log of a run that was killed and resumed is that of one that was not.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path

from mmpl.media import durable

FILE, TABLE = "log.jsonl", "log.csv"
Row = dict[str, float]


def append(run: Path, step: int, values: Mapping[str, float]) -> None:
    """Adds the line of a step, counted from 1. Raises OutputError."""
    line = json.dumps({"step": step, **dict(sorted(values.items()))})
    try:
        with (run / FILE).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise durable.output_error(run / FILE, error) from error


def settle(run: Path) -> None:
    """Returns when no power cut can take the lines written so far. Raises OutputError."""
    try:
        with (run / FILE).open("ab") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise durable.output_error(run / FILE, error) from error


def rows(run: Path) -> list[Row]:
    """The lines in order, without one that was cut short."""
    return [row for _, row in _parsed(run)]


def cut(run: Path, step: int) -> None:
    """Removes what was said after `step`, from which the run goes on. Raises OutputError."""
    kept = [line for line, row in _parsed(run) if row["step"] <= step]
    content = "".join(kept).encode()
    path = run / FILE
    if path.exists() and path.stat().st_size != len(content):
        durable.put(path, lambda file: file.write(content))


def write_table(run: Path, told: list[Row]) -> None:
    """The lines as CSV, a column for everything that any of them says. Raises OutputError."""
    first = [name for name in ("step", "loss") if any(name in row for row in told)]
    others = sorted({name for row in told for name in row} - set(first))
    text = io.StringIO()
    table = csv.DictWriter(text, [*first, *others], lineterminator="\n")
    table.writeheader()
    table.writerows(told)
    durable.put(run / TABLE, lambda file: file.write(text.getvalue().encode()))


def _parsed(run: Path) -> list[tuple[str, Row]]:
    path = run / FILE
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if line.endswith("\n") and isinstance(row, dict) and "step" in row:
            found.append((line, row))
    return found
