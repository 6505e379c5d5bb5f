"""What the transformer costs: counts, and times against the other sides measured in the same run.

    python -m tests.bench                     counts, and times against the floor: products and
                                              attention with nothing around them
    python -m tests.bench --official Wan2.1   the same, and an official checkout's code in turns
    python -m tests.bench --json f.json       the figures as JSON too, to compare two commits
    python -m tests.bench --counts            without times
    python -m tests.bench --no_compile        without compiled blocks, which take a minute each

A ratio above 1 says that the other side takes longer. CPU time and wall, medians of rounds taken
in turns. Counts depend on no machine; RESULTS.md says what they were and what moved them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from mmpl.layout.presets import mmpl_t2v
from mmpl.wan.compiled import compiled_block
from mmpl.wan.ops import BFLOAT16, FLOAT32, Precision
from tests.bench import cases, figures, official
from tests.bench.cases import Row
from tests.bench.counter import count
from tests.bench.figures import Figures
from tests.bench.timing import Call, floor_call, in_turns

ROWS = (
    Row(512, 1408, 4, 6, (3, 12, 20)),
    Row(512, 1408, 4, 6, (5, 15, 26)),
    Row(1536, 8960, 12, 2, (3, 12, 20)),
)
LONG = Row(384, 1024, 6, 6, (21, 15, 26))
HOST = Row(24, 32, 2, 40, (1, 1, 1), text=1)  # all of its time is the host's
FORMATS = {"bf16": BFLOAT16, "fp32": FLOAT32}


def counted(checkout: Path | None, *, compiles: bool) -> Iterator[tuple[str, Figures]]:
    """Every count, by name."""
    for name, precision in FORMATS.items():
        yield f"block {name}", figures.eager_block(precision, cached=False)
        yield f"block {name}, cached", figures.eager_block(precision, cached=True)
        if checkout:
            counts = count(official.block_call(checkout, figures.BLOCK, precision))
            yield f"block {name}, official", figures.block_figures(counts, figures.BLOCK)
        if compiles:
            yield f"block {name}, compiled", figures.compiled_block(precision)
    yield "denoising step", figures.step_figures(stored=mmpl_t2v().frames)
    yield "denoising step, 15 slots", figures.step_figures()
    yield "compilations per group", figures.graphs_per_group()


def timed(given: argparse.Namespace) -> Iterator[tuple[str, Figures]]:
    """Every time, by name."""
    sides: dict[str, Call] = {"ours": cases.block_call(HOST, FLOAT32)}
    if given.official:
        sides["official"] = official.block_call(given.official, HOST, FLOAT32)
    taken = in_turns(sides, given.rounds, in_a_row=5)  # passes of a film follow each other
    host = {f"{name} us": one.cpu_s / HOST.layers * 1e6 for name, one in taken.items()}
    yield "host per block", host
    rows = [(row, name) for name in FORMATS for row in ROWS]
    for row, name in [*rows, (LONG, "fp32")] if given.long else rows:
        yield f"forward {row} {name}", forward(row, FORMATS[name], given)


def forward(row: Row, precision: Precision, given: argparse.Namespace) -> Figures:
    """Seconds of CPU time of a whole forward, and how many times as long the other sides take."""
    sides = {"ours": cases.forward_call(row, precision), "floor": floor_call(row, precision)}
    if not given.no_compile:
        sides["compiled"] = cases.forward_call(row, precision, block_fn=compiled_block())
    if given.official:
        sides["official"] = official.forward_call(given.official, row, precision)
    taken = in_turns(sides, given.rounds)
    found = {"ours s": taken["ours"].cpu_s}
    for own in ("ours", "compiled"):
        for other in ("floor", "official"):
            if own in taken and other in taken:
                found[f"{other}/{own}"] = taken[other].cpu_s / taken[own].cpu_s
                found[f"{other}/{own} wall"] = taken[other].wall_s / taken[own].wall_s
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--official", type=Path, help="a checkout of Wan2.1")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--counts", action="store_true")
    parser.add_argument("--no_compile", action="store_true")
    parser.add_argument("--long", action="store_true", help="the longest clip too, minutes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread"
    print(machine)
    found: dict[str, Figures] = {}
    for part in (
        counted(given.official, compiles=not given.no_compile),
        () if given.counts else timed(given),
    ):
        for name, values in part:
            found[name] = values
            print(f"{name:34}", ", ".join(f"{k} {v:.4g}" for k, v in values.items()), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, "figures": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
