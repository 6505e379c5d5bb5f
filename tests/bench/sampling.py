"""How much faster one bundle samples than another: CPU seconds of the transformer for one film.

    python -m tests.bench.sampling weights/tiny weights/tiny-fast [--duration 30] [--repeats 3]

The films are made in turns in this process, on one thread. What counts is the time of the groups
that are made, clean passes among them; hand-overs and frames take the same for both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from mmpl.checkpoint.model import Model
from mmpl.generate import Made, Request, generate, load_model

PROMPT = "a red circle moves right on a blue background"


def sampling_s(model: Model, duration_s: float) -> tuple[float, float]:
    """CPU seconds of the groups of a film, and of all of it."""
    begun = mark = time.process_time()
    groups_s = 0.0
    for event in generate(model, Request(PROMPT, 1, duration_s=duration_s)):
        if isinstance(event, Made):
            now = time.process_time()
            groups_s += (now - mark) * (event.task.kind == "make")
            mark = now
    return groups_s, time.process_time() - begun


def main() -> None:
    """Prints medians of both bundles and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs=2, type=Path)
    parser.add_argument("--duration", type=float, default=30.0, help="seconds of film")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    models = [load_model(folder) for folder in given.bundles]
    for model in models:  # what is done once in a process
        sampling_s(model, 5)
    taken = [[sampling_s(m, given.duration) for m in models] for _ in range(given.repeats)]
    for what, part in (("transformer", 0), ("film", 1)):
        slow, fast = (statistics.median(turn[which][part] for turn in taken) for which in (0, 1))
        ratios = sorted(turn[0][part] / turn[1][part] for turn in taken)
        print(
            f"{what:12s} {slow:7.2f} s {fast:7.2f} s   {statistics.median(ratios):.2f} times as "
            f"fast ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
