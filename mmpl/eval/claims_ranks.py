"""The paper's Table 10 measured: one film by one process and by several, the same machine.

A pair is one film made twice, by one process and by several, one after the other. What counts is
the time from the first stage to the last, loading and measuring excluded. No torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from mmpl.eval.claims_costs import TABLE_10
from mmpl.layout.schedule import Costs, build_schedule
from mmpl.layout.simulate import simulate
from mmpl.layout.work import Work

SEGMENTS = 12  # 60 s, as in Table 10
PAIRS = 3

Bars = Sequence[Mapping[str, Any]]  # what a process did: kind, part, segment, start_s, stop_s
Run = Mapping[str, Any]


def run_of(ranks: Sequence[Bars]) -> dict[str, Any]:
    """What is kept of one making of a film: its processes, the seconds from the first stage to the
    last, the share of them that processes were busy, and the median seconds of each stage."""
    every = [bar for bars in ranks for bar in bars]
    seconds = max(bar["stop_s"] for bar in every) - min(bar["start_s"] for bar in every)
    stages: dict[str, list[float]] = defaultdict(list)
    for bar in every:
        stages[bar["part"] or bar["kind"]].append(bar["stop_s"] - bar["start_s"])
    busy = sum(sum(times) for times in stages.values())
    return {
        "ranks": len(ranks),
        "seconds": round(seconds, 3),
        "busy": round(busy / (seconds * len(ranks)), 4),
        "stages_s": {name: round(median(times), 5) for name, times in stages.items()},
    }


def speed_up(pairs: Sequence[tuple[Run, Run]], work: Work) -> dict[str, Any]:
    """The speed-up over all pairs of (one process, several), beside what the schedule of `work`
    promises at the stage times of the one, and the paper's where it has it."""
    ranks = pairs[0][1]["ranks"]
    ratios = sorted(one["seconds"] / many["seconds"] for one, many in pairs)
    names = {name for one, _ in pairs for name in one["stages_s"]}
    stages = {n: median(one["stages_s"][n] for one, _ in pairs) for n in names}
    hand_over, decode = (stages.pop(kind, 0.0) for kind in ("hand-over", "decode"))
    costs = Costs(stages, {}, hand_over, decode)
    alone, together = (
        simulate(build_schedule(work, teams, costs, mode="adaptive"), costs) for teams in (1, ranks)
    )
    of_paper = TABLE_10.get(ranks)
    return {
        "ranks": ranks,
        "pairs": len(pairs),
        "seconds_of_one": median(one["seconds"] for one, _ in pairs),
        "seconds": median(many["seconds"] for _, many in pairs),
        "speed_up": median(ratios),
        "speed_up_least": ratios[0],
        "speed_up_most": ratios[-1],
        "speed_up_simulated": alone.makespan_s / together.makespan_s,
        "speed_up_paper": TABLE_10[1][0] / of_paper[0] if of_paper else None,
        "busy": fmean(many["busy"] for _, many in pairs),
        "busy_of_one": fmean(one["busy"] for one, _ in pairs),
        "busy_simulated": together.utilisation,
        "busy_paper": of_paper[1] / 100 if of_paper else None,
    }
