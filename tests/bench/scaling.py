"""One film on 1 and on 2 CPU processes of one thread each, against what the simulator says.

    python -m tests.bench.scaling [--segments 12] [--model_path weights/tiny] [--repeats 2]

The runs alternate. Stage times go into the simulator, whose makespan for two is compared with the
measured one: those of the process alone, and those of the two while both cores were busy, which
share caches and memory. Both Gantt charts are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch.distributed as dist

from mmpl.generate import Frames, Made, Ranks, Request, Started, generate, load_model
from mmpl.layout.gantt import gantt_text
from mmpl.layout.schedule import Costs, Operation, build_schedule
from mmpl.layout.simulate import Span, Timeline, simulate
from mmpl.layout.work import Task, Work
from tests.dist.ranks import run_ranks

PROMPT = "a red circle moves right on a blue background"
Log = list[tuple[Task, float, float]]  # task, start and stop in seconds of the common clock


def record(rank: int, folder: Path, segments: int, threads: int) -> tuple[float, Log, Work]:
    """Makes the film on this rank; its start, what it did when, and what there was to do."""
    model = load_model(folder)
    log: Log = []
    group = dist.group.WORLD
    assert group is not None
    dist.barrier()
    start = time.monotonic()
    work: Work | None = None
    events = generate(model, Request(PROMPT, 1, segments=segments), ranks=Ranks(group))
    for event in events:
        if isinstance(event, Started):
            film = event.film
            work = film.work
        elif isinstance(event, Made):
            log.append((event.task, event.start_s, event.stop_s))
        elif isinstance(event, Frames):
            pass
    assert work is not None
    return start, log, work


def costs_of(log: Log) -> Costs:
    """The median time of each kind of task; clean passes are in the times of their readers."""
    times: dict[str, list[float]] = defaultdict(list)
    for task, start, stop in log:
        times[task.group or task.kind].append(stop - start)
    medians = {name: statistics.median(found) for name, found in times.items()}
    hand_over, decode = medians.pop("hand_over", 0.0), medians.pop("decode", 0.0)
    return Costs(make=medians, refresh={}, hand_over=hand_over, decode=decode)


def measured(logs: list[tuple[float, Log, Work]]) -> Timeline:
    """What happened, in the form of what the simulator says."""
    start = min(begin for begin, _, _ in logs)
    spans = tuple(
        tuple(
            Span(Operation(task.kind, task.segment, task.group), a - start, b - start)
            for task, a, b in log
        )
        for _, log, _ in logs
    )
    work = logs[0][2]
    ends = {span.operation.task: span.stop_s for row in spans for span in row}
    first = work.layout.group_of(0).name
    return Timeline(
        spans,
        makespan_s=max(ends.values()),
        storyboard_s=max(ends[task] for task in work.planning),
        first_frame_s=ends[Task(0, "make", first)],
        first_segment_s=ends[Task(0, "decode")],
        busy_s=tuple(sum(s.stop_s - s.start_s for s in row) for row in spans),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=12)
    parser.add_argument("--model_path", type=Path, default=Path("weights/tiny"))
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    runs: dict[int, list[Timeline]] = {1: [], 2: []}
    costs: dict[int, list[Costs]] = {1: [], 2: []}
    works: list[Work] = []
    for _ in range(given.repeats):
        for ranks in (1, 2):
            logs = run_ranks(ranks, record, given.model_path, given.segments, 1)
            runs[ranks].append(measured(logs))
            costs[ranks].append(costs_of([entry for _, log, _ in logs for entry in log]))
            works.append(logs[0][2])
    best = {n: min(range(given.repeats), key=lambda i: runs[n][i].makespan_s) for n in runs}
    one, two = (runs[n][best[n]].makespan_s for n in (1, 2))
    print(f"1 process {one:.2f} s, 2 processes {two:.2f} s: {one / two:.2f} times as fast")
    for n, whose in ((1, "one alone"), (2, "two at once")):
        stages = costs[n][best[n]]
        predicted = simulate(build_schedule(works[0], 2, stages), stages)
        print(f"stage times of {whose}:", end=" ")
        print(", ".join(f"{name} {s:.3f}" for name, s in stages.make.items()), end=", ")
        print(f"hand_over {stages.hand_over:.3f}, decode {stages.decode:.3f} s")
        off = two / predicted.makespan_s - 1
        print(f"  predicted for 2 {predicted.makespan_s:.2f} s, measured {off:+.1%}")
    print("measured\n" + gantt_text(runs[2][best[2]]))
    print("predicted\n" + gantt_text(predicted))


if __name__ == "__main__":
    main()
