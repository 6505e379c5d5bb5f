"""mmpl-gen --dry_run: what a film would take, on how many processes, before anything is loaded.

Predictions by the schedule that would be carried out, against stage times that were measured
(--stage_seconds) or come from the cost model of `mmpl.layout.mesh`. No torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpl.checkpoint.folder import ModelFolder
from mmpl.checkpoint.shards import shard_paths
from mmpl.cli.shell import Console, print_result
from mmpl.errors import ArgumentError
from mmpl.film.settings import Film
from mmpl.layout.gantt import gantt_svg, gantt_text
from mmpl.layout.layout import Layout
from mmpl.layout.mesh import (
    Choice,
    Machine,
    Mesh,
    Sizes,
    check_mesh,
    choose_mesh,
    rank_bytes,
    stage_costs,
)
from mmpl.layout.schedule import Costs, build_schedule
from mmpl.layout.simulate import Timeline, makespan_bound, simulate, watch_from_s
from mmpl.layout.work import Work
from mmpl.media import durable

# Totals that the paper's Tables 10 and 11 state for its stage times, in seconds.
PAPER_STAGES_S = (25.0, 109.0, 113.0, 148.0)
PAPER_MAKESPANS_S = {
    ("terminal", 12, 1): 4465.0,
    ("terminal", 12, 2): 2354.0,
    ("terminal", 12, 4): 1660.0,
    ("terminal", 2, 2): 504.0,
    ("midpoint", 4, 2): 586.0,
}
PAPER_TFLOPS = 350.0  # what the paper's stage times amount to on one H100
LINKS = {"nvlink": 450e9, "pcie": 32e9}  # bytes a second


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be predicted. `stage_seconds`: of each group of the layout, in its order; None
    for the cost model. `sizes`, `branches`, `steps`: of the model and the sampling."""

    work: Work
    seeding: str
    fps: int
    ranks: int
    mesh: Mesh | None
    mode: str
    order: str | None
    stage_seconds: tuple[float, ...] | None
    sizes: Sizes
    machine: Machine
    steps: Mapping[str, int]
    branches: int


def plan_of(film: Film, folder: ModelFolder, settings: Mapping[str, Any]) -> Plan:
    """What the flags ask for. Raises ArgumentError."""
    dit, stride = folder.configs.dit, folder.configs.vae.spatial_stride
    sizes = Sizes(
        dim=dit.dim,
        ffn_dim=dit.ffn_dim,
        heads=dit.num_heads,
        layers=dit.num_layers,
        frame_tokens=dit.frame_tokens(film.height // stride, film.width // stride),
        text_tokens=dit.text_len,
        token_values=dit.in_dim * math.prod(dit.patch_size),
        weight_bytes=sum(
            os.stat(path).st_size for named in folder.files.values() for path in shard_paths(named)
        ),
    )
    gpus = settings.get("gpus")
    ranks = settings.get("ranks", len(gpus) if gpus else 1)
    mesh = settings.get("parallel", Mesh(ranks))
    _check_number(mesh, ranks)
    tflops = settings.get("tflops", PAPER_TFLOPS)
    return Plan(
        work=film.work,
        seeding=film.seeding,
        fps=film.fps,
        ranks=ranks,
        mesh=mesh,
        mode=settings.get("schedule", "adaptive"),
        order=settings.get("order"),
        stage_seconds=settings.get("stage_seconds"),
        sizes=sizes,
        machine=Machine(tflops * 1e12, LINKS[settings.get("link", "nvlink")]),
        steps=film.steps_of,
        branches=1 if film.guidance_scale == 1.0 else 2,
    )


def show(
    plan: Plan,
    choice: Choice,
    settings: Mapping[str, Any],
    console: Console,
    memory: Mapping[str, float],
) -> None:
    """Prints the prediction `choice`: JSON on stdout with --json, else a table and a Gantt chart.
    `memory`: what is known of the memory that each process takes."""
    numbers = {**_numbers(plan, choice), **memory}
    if "gantt" in settings:
        _write_chart(settings["gantt"], choice.timeline)
        console.say(f"chart written to {settings['gantt']}")
    if "json" in settings:
        print_result(json.dumps(numbers))
        return
    print_result("predicted, not measured")
    for name, value in numbers.items():
        print_result(f"  {name:22} {f'{value:.6g}' if isinstance(value, float) else value}")
    print_result(gantt_text(choice.timeline, width=100))


def predict(plan: Plan) -> Choice:
    """Mesh, costs, schedule and its times."""
    if plan.stage_seconds is None and plan.mesh is None:
        return choose_mesh(
            plan.work, plan.ranks, plan.sizes, plan.machine,
            steps=plan.steps, branches=plan.branches, order=_order(plan, 2),
        )  # fmt: skip
    layout = plan.work.layout
    mesh = plan.mesh or Mesh(plan.ranks)
    if plan.stage_seconds is None:
        costs = stage_costs(
            layout, plan.sizes, plan.machine, mesh, steps=plan.steps, branches=plan.branches
        )
    else:
        costs = _stated(layout, plan.stage_seconds)
    order = _order(plan, mesh.teams)
    schedule = build_schedule(plan.work, mesh.teams, costs, mode=plan.mode, order=order)
    return Choice(
        mesh,
        costs,
        schedule,
        simulate(schedule, costs),
        rank_bytes(plan.work, plan.sizes, mesh, plan.branches),
    )


def mesh_of(settings: Mapping[str, Any], film: Film, folder: ModelFolder, number: int) -> Mesh:
    """How `number` processes share the work; by the cost model it may be fewer of them."""
    mesh = settings.get("parallel", Mesh(number))
    if mesh is None:
        return predict(plan_of(film, folder, {**settings, "ranks": number, "parallel": None})).mesh
    _check_number(mesh, number)
    check_mesh(mesh, folder.configs.dit.num_heads, 1 if film.guidance_scale == 1.0 else 2)
    return mesh


def _check_number(mesh: Mesh | None, number: int) -> None:
    if number < 1 or (mesh is not None and mesh.ranks != number):
        raise ArgumentError(
            "the mesh is of another number of processes", got=str(mesh), wanted=f"{number} in all"
        )


def _stated(layout: Layout, stage_seconds: tuple[float, ...]) -> Costs:
    names = [group.name for group in layout.groups]
    if len(stage_seconds) != len(names):
        raise ArgumentError(
            "--stage_seconds has another number of stages than the layout has groups",
            got=len(stage_seconds),
            wanted=f"{len(names)}: {', '.join(names)}",
        )
    return Costs(make=dict(zip(names, stage_seconds, strict=True)), refresh={})


def _order(plan: Plan, teams: int) -> str:
    return plan.order or ("plan_first" if teams == 1 else "film_first")


def _numbers(plan: Plan, choice: Choice) -> dict[str, Any]:
    timeline, segments = choice.timeline, plan.work.segments
    found: dict[str, Any] = {
        "makespan_s": timeline.makespan_s,
        "storyboard_s": timeline.storyboard_s,
        "first_frame_s": timeline.first_frame_s,
        "first_segment_s": timeline.first_segment_s,
        "watch_from_s": watch_from_s(timeline, plan.work, plan.fps),
        "utilisation": timeline.utilisation,
        "bound_s": makespan_bound(plan.work, choice.mesh.teams, choice.costs),
        "segments": segments,
        "frames": plan.work.frames,
        "ranks": plan.ranks,
        "mesh": str(choice.mesh),
        "schedule": plan.mode,
        "order": _order(plan, choice.mesh.teams),
        "seeding": plan.seeding,
        "memory_gb_per_rank": choice.rank_bytes / 1e9,
    }
    if plan.stage_seconds == PAPER_STAGES_S:
        paper = PAPER_MAKESPANS_S.get((plan.seeding, segments, plan.ranks))
        if paper is not None:
            found["paper_makespan_s"] = paper
    return found


def _write_chart(path: str, timeline: Timeline) -> None:
    if Path(path).suffix.lower() != ".svg":
        raise ArgumentError("charts are written as SVG", got=path, wanted="a name ending in .svg")
    text = gantt_svg(timeline)
    durable.put(path, lambda file: file.write(text.encode()))
