"""Rows of the transformer: passes, segments, frames per second, and how busy the device is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch.profiler import DeviceType, ProfilerActivity, profile

from mmpl.film.denoise import Sampler, denoise
from mmpl.wan.dit import Engine
from mmpl.wan.flow import schedule
from tests.bench.gpu.lab import Call, Lab, apart
from tests.bench.gpu.record import Figure, Wanted
from tests.bench.gpu.scene import Scene, segment

STEPS = 50
FEW = 4  # steps of a distilled model, without guidance
FRAMES = 76  # that each later segment adds to a film
PASS_MS = {"plan": 650.0, "fill_head": 640.0, "fill_tail": 800.0}
SEGMENT_S = {"14B": Wanted(most=212, best=190), "1.3B": Wanted(most=37)}
FEW_FPS = Wanted(least=45)
BUSY = Wanted(least=0.98)
ALIKE = Wanted(most=0.02)  # results in bfloat16 that differ by rounding


def matmul(lab: Lab) -> Iterator[Figure]:
    """What the device can do at best."""
    yield Figure(f"bf16 product of {lab.matmul_side}^3", lab.matmul_tflops, "TFLOP/s")


def passes(
    lab: Lab, size: str, attention: str | None = None, *, compiled: bool = False
) -> Iterator[Figure]:
    """A forward of every group, and what a segment of them takes; what compiling takes before, of
    all groups. `attention`: a backend that is no row of its own elsewhere."""
    scene = segment(lab, lab.sizes[size])
    engine = lab.engine(compiled=compiled, attention=attention)
    if compiled:
        calls = [scene.pass_call(lab, group, engine) for group in scene.layout.groups]
        taken_s = [lab.wall_s(call) for call in calls]
        beside = {"longest of a group": max(taken_s)}
        yield Figure(f"{size} first passes, compiled there", sum(taken_s), "s", beside)
    yield from timed(lab, scene, engine, size)


def others(lab: Lab, size: str) -> Iterator[Figure]:
    """The passes with every attention backend but the first, which has rows of its own."""
    names = list(lab.backends())[1:]
    yield Figure("other attention backends", len(names), "")
    for name in names:
        for figure in passes(lab, size, name):
            yield replace(figure, name=f"{figure.name}, {name}")
        lab.tidy()


def timed(lab: Lab, scene: Scene, engine: Engine, size: str) -> Iterator[Figure]:
    """The passes of a segment through `engine`."""
    seconds: dict[str, float] = {}
    for group in scene.layout.groups:
        call = scene.pass_call(lab, group, engine)
        seconds[group.name] = lab.seconds(call)
        most = PASS_MS.get(group.name) if size == "14B" else None
        tflops = scene.flops(group) / seconds[group.name] / 1e12
        yield Figure(
            f"{size} {group.name}",
            seconds[group.name] * 1e3,
            "ms",
            {"TFLOP/s": tflops, "of matmul": tflops / lab.matmul_tflops},
            None if most is None else Wanted(most=most),
        )
    taken_s, flops = segment_s(seconds, STEPS, 2), segment_flops(scene, STEPS, 2)
    yield Figure(
        f"{size} segment of {STEPS} steps, guidance",
        taken_s,
        "s",
        {"TFLOP/s": flops / taken_s / 1e12, "PFLOP": flops / 1e15},
        SEGMENT_S[size],
    )
    last = scene.layout.groups[-1]
    error = apart(scene.pass_call(lab, last, engine)()[0], scene.pass_call(lab, last)()[0])
    yield Figure(f"{size} apart from the plain way", error, "", {}, ALIKE)
    fps = FRAMES / segment_s(seconds, FEW, 1)
    name = f"{size} of {FEW} steps, transformer alone"
    yield Figure(name, fps, "FPS", {}, FEW_FPS if size == "1.3B" else None)


def segment_s(seconds: Mapping[str, float], steps: int, branches: int) -> float:
    """What a later segment takes whose passes take `seconds`: its first group is given, and the
    last one needs no clean pass."""
    first, *made = seconds.values()
    return branches * (steps * sum(made) + first + sum(made[:-1]))


def segment_flops(scene: Scene, steps: int, branches: int) -> float:
    """The operations of the same."""
    flops = {group.name: float(scene.flops(group)) for group in scene.layout.groups}
    return segment_s(flops, steps, branches)


# -------------------------------------------------------------------------------- inside a stage


def stage(lab: Lab, size: str, *, steps: int, compiled: bool = False) -> Iterator[Figure]:
    """Some steps of fill_tail with guidance by the film's own sampler: gaps between its kernels,
    and waits of the host."""
    scene, sampler = segment(lab, lab.sizes[size], branches=2), _sampler(steps)
    group = scene.layout.groups[-1]
    engine = lab.engine(compiled=compiled)
    network = replace(scene.network, engine=engine)
    noise_BCTHW = scene.latents(lab, group)

    def make(count: int = steps) -> None:
        few = replace(sampler, schedule=_sampler(count).schedule)
        for _ in denoise(network, scene.contexts[group.name], group, noise_BCTHW, few):
            pass

    pass_s = lab.seconds(scene.pass_call(lab, group, engine), repeats=5)
    make(1)
    made_s = lab.wall_s(make)
    passes_s = 2 * steps * pass_s
    name = f"{size} fill_tail of {steps} steps"
    yield Figure(name, made_s, "s", {"passes alone": passes_s, "share": passes_s / made_s})
    yield Figure(f"{name}, host waits per step", _waits(lab, make) / steps, "", {}, Wanted(most=1))
    activity = ProfilerActivity.CUDA if lab.is_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiled:
        make()
        lab.wait()
    yield Figure(f"{name}, device busy", _busy(lab, profiled), "", {}, BUSY)


def busy_share(spans: Sequence[tuple[float, float]]) -> float:
    """How much of the time from the first start to the last stop lies in some span."""
    ordered = sorted(spans)
    covered, reached = 0.0, ordered[0][0]
    for start, stop in ordered:
        covered += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return covered / (reached - ordered[0][0])


def _busy(lab: Lab, profiled: profile) -> float:
    kind = DeviceType.CUDA if lab.is_gpu else DeviceType.CPU
    events = profiled.events() or ()
    spans = [(e.time_range.start, e.time_range.end) for e in events if e.device_type == kind]
    if not spans:
        raise RuntimeError("the profiler saw nothing on the device")
    return busy_share(spans)


def _waits(lab: Lab, make: Call) -> int:
    """How often the host waits for the device in a call, as torch notices it."""
    if not lab.is_gpu:
        make()
        return 0
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            make()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("called a synchronizing" in str(one.message) for one in told)


def _sampler(steps: int) -> Sampler:
    return Sampler("unipc", schedule("unipc", steps, 5.0), 5.0)
