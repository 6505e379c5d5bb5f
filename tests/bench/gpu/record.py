"""What a run finds: figures beside what is wanted of them, row by row, and what became of the rows.

A row yields figures as it takes them, so those it had before an error stay. Nothing that one row
does stops another, and rows that no longer fit into the time are said to be left out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.gpu.lab import Lab


@dataclass(frozen=True, slots=True)
class Wanted:
    """A target: at most `most`, at least `least`; `best` is what would be extremely good."""

    most: float | None = None
    least: float | None = None
    best: float | None = None

    def reached(self, value: float) -> bool:
        """Whether `value` is as wanted."""
        above = self.least is None or value >= self.least
        return above and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        parts = [f">= {self.least:g}"] if self.least is not None else []
        parts += [f"<= {self.most:g}"] if self.most is not None else []
        return " and ".join(parts) + (f" (extreme {self.best:g})" if self.best is not None else "")


@dataclass(frozen=True, slots=True)
class Figure:
    """`value` in `unit`, other numbers of the same measurement, and the target if there is one."""

    name: str
    value: float
    unit: str
    beside: dict[str, float] = field(default_factory=dict)
    wanted: Wanted | None = None

    def __str__(self) -> str:
        beside = "".join(f", {name} {value:.4g}" for name, value in self.beside.items())
        line = f"  {self.name:44} {self.value:9.4g} {self.unit}{beside}"
        if self.wanted is None:
            return line
        return f"{line}; wanted {self.wanted}: {'yes' if self.wanted.reached(self.value) else 'NO'}"


@dataclass(frozen=True, slots=True)
class Row:
    """What is measured together. `needs_s`: what it takes on an H200, compilation and warm-ups
    included, guessed on the safe side."""

    name: str
    needs_s: float
    measure: Callable[[Lab], Iterator[Figure]]


Record = dict[str, Any]  # what a row did: JSON


def perform(rows: Sequence[Row], lab: Lab, *, start_s: float, budget_s: float) -> Iterator[Record]:
    """Measures the rows in turn, as long as the next one fits into `budget_s` from `start_s` on, a
    moment of `time.monotonic`."""
    for row in rows:
        left_s = budget_s - (time.monotonic() - start_s)
        if left_s < (row.needs_s if lab.is_gpu else 0):
            yield {"row": row.name, "left_out": f"{row.needs_s:.0f} s needed, {left_s:.0f} s left"}
            continue
        yield {"row": row.name, "begins": True, "needs_s": row.needs_s}
        begin_s, error = time.monotonic(), None
        try:
            for figure in row.measure(lab):
                yield {"row": row.name, "figure": _plain(figure)}
        except Exception as failure:  # noqa: BLE001  whatever it is, the other rows go on
            error = first_line(failure)
        lab.tidy()
        done = {"row": row.name, "seconds": round(time.monotonic() - begin_s, 2)}
        yield done if error is None else done | {"error": error}


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0]}"[:300]


def _plain(figure: Figure) -> Record:
    plain = asdict(figure)
    if figure.wanted is not None:
        plain["reached"] = figure.wanted.reached(figure.value)
    return plain


def figure_of(plain: Record) -> Figure:
    """A figure that was written down."""
    wanted = None if plain["wanted"] is None else Wanted(**plain["wanted"])
    beside = plain["beside"]
    return Figure(plain["name"], plain["value"], plain["unit"], beside, wanted)


class Book:
    """All that is found: printed as it comes, and in the file `path` after every record."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.found: Record = {"machine": {}, "rows": {}}

    @property
    def rows(self) -> dict[str, Record]:
        """What became of each row that was begun or left out, by name."""
        return self.found["rows"]

    def enter(self, record: Record) -> None:
        """Notes a record of `perform`, or what machine it is."""
        if "machine" in record:
            self.found["machine"] = record["machine"]
            print(", ".join(f"{name} {what}" for name, what in record["machine"].items()))
        else:
            self._enter(record)
        if self._path is not None:
            self._path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")

    def _enter(self, record: Record) -> None:
        row = self.rows.setdefault(record["row"], {"figures": []})
        if "begins" in record:
            print(f"{record['row']}:", flush=True)
        elif "figure" in record:
            row["figures"].append(record["figure"])
            print(figure_of(record["figure"]), flush=True)
        else:
            row |= {name: value for name, value in record.items() if name != "row"}
            if "error" in record:
                print(f"  failed: {record['error']}", flush=True)
            if "left_out" in record:
                print(f"{record['row']}: left out, {record['left_out']}", flush=True)
