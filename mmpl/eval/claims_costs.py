"""The paper's cost tables by arithmetic: its figures beside those of our schedule and cost model.

Nothing here is measured. Table 10 and 11 are simulated from the paper's own stage times (Table 9),
Table 12 by the operations of the transformer; memory by the number of cache slots. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmpl.layout.layout import Group, Layout, committed, needed
from mmpl.layout.mesh import Machine, Mesh, Sizes, stage_costs
from mmpl.layout.presets import SEGMENT_LATENTS, mmpl_t2v
from mmpl.layout.schedule import Costs, build_schedule
from mmpl.layout.simulate import Timeline, simulate
from mmpl.layout.timeline import chain_of, film_frames, needed_latents
from mmpl.layout.work import film_work
from mmpl.wan.config import WAN_14B, VAEConfig

STAGES_S = {"init": 25.0, "plan": 109.0, "fill_head": 113.0, "fill_tail": 148.0}  # Table 9
TABLE_10 = {1: (4465.0, 99.44), 2: (2354.0, 94.31), 4: (1660.0, 80.69)}  # GPUs: s, busy %
_WEIGHTS_GB, _SLOT_GB = 28.6, 2.556  # 14B in bf16; keys and values of a latent, both branches
_FLOPS = 350e12  # a second: what the paper's stage times amount to on one H100
_STEPS, _BRANCHES = 50, 2
_WIDE = WAN_14B
_PIXELS = (480, 832)


@dataclass(frozen=True, slots=True)
class Cost:
    """A figure of the paper, and ours for the same."""

    table: str
    what: str
    unit: str
    paper: float
    ours: float


def cost_tables() -> list[Cost]:
    """Tables 10, 11 and 12."""
    return [*_gpus(), *_seeding(), *_index_sets()]


def _gpus() -> list[Cost]:
    found = []
    for gpus, (seconds, utilisation) in TABLE_10.items():
        fixed = _film("terminal", 12, gpus, "round_robin")
        free = _film("terminal", 12, gpus, "adaptive")
        what = f"60 s of film on {gpus} GPU{'s' if gpus > 1 else ''}"
        found += [
            Cost("10", f"{what}, the paper's schedule", "s", seconds, fixed.makespan_s),
            Cost("10", f"{what}, our schedule", "s", seconds, free.makespan_s),
            Cost("10", f"{what}, busy", "%", utilisation, 100 * fixed.utilisation),
        ]
    return [*found, Cost("10", "memory of each", "GB", 68.16, _memory_gb(mmpl_t2v(), "terminal"))]


def _seeding() -> list[Cost]:
    found = []
    for seeding, segments, memory, seconds in (
        ("midpoint", 4, 55.17, 586.0),
        ("terminal", 2, 68.16, 504.0),
    ):
        timeline = _film(seeding, segments, 2, "round_robin")
        found += [
            Cost("11", f"10 s on 2 GPUs, {seeding} seeding", "s", seconds, timeline.makespan_s),
            Cost("11", f"memory, {seeding}", "GB", memory, _memory_gb(mmpl_t2v(), seeding)),
        ]
    return found


def _index_sets() -> list[Cost]:
    sets = (
        ((2, 3), (10, 11, 12), (19, 20), 68, (25, 109, 113, 148)),
        ((2, 3, 4), (10, 11, 12), (18, 19, 20), 70, (25, 148, 101, 129)),
        ((2, 3, 4, 5), (10, 11, 12), (17, 18, 19, 20), 72, (25, 192, 88, 109)),
        ((2, 3, 4, 5), (11,), (17, 18, 19, 20), 70, (25, 148, 101, 129)),
    )
    sizes = Sizes(
        dim=_WIDE.dim,
        ffn_dim=_WIDE.ffn_dim,
        heads=_WIDE.num_heads,
        layers=_WIDE.num_layers,
        frame_tokens=_WIDE.frame_tokens(*(side // VAEConfig().spatial_stride for side in _PIXELS)),
        text_tokens=_WIDE.text_len,
        token_values=_WIDE.in_dim * _WIDE.patch_size[1] * _WIDE.patch_size[2],
    )
    found = []
    for early, middle, last, memory, seconds in sets:
        layout = _with_keyframes(early, middle, last)
        steps = {group.name: _STEPS for group in layout.groups}
        costs = stage_costs(
            layout, sizes, Machine(_FLOPS, 1e12), Mesh(1), steps=steps, branches=_BRANCHES
        )
        what = f"keyframes {_range(early)}, {_range(middle)}, {_range(last)}"
        found.append(Cost("12", f"{what}: memory", "GB", memory, _memory_gb(layout, "terminal")))
        for group, paper in zip(layout.groups, seconds, strict=True):
            ours = costs.make[group.name]
            found.append(Cost("12", f"{what}: {group.name}", "s", paper, ours))
    return found


def _film(seeding: str, segments: int, gpus: int, mode: str) -> Timeline:
    """A film of the paper's on so many GPUs, hand-overs and decodes free as in its own sums."""
    layout = mmpl_t2v()
    chain = chain_of(layout, seeding=seeding, temporal_stride=VAEConfig().temporal_stride)
    costs = Costs(STAGES_S, {})
    work = film_work(layout, chain, film_frames(chain, segments))
    return simulate(build_schedule(work, gpus, costs, mode=mode), costs)


def _memory_gb(layout: Layout, seeding: str) -> float:
    """Weights, and the cache slots of what later groups see in a segment that has a successor."""
    chain = chain_of(layout, seeding=seeding, temporal_stride=VAEConfig().temporal_stride)
    running = needed(layout, needed_latents(chain, 0, film_frames(chain, 2)))
    return _WEIGHTS_GB + _SLOT_GB * sum(len(group.frames) for group in committed(layout, running))


def _with_keyframes(
    early: tuple[int, ...], middle: tuple[int, ...], last: tuple[int, ...]
) -> Layout:
    """MMPL with other keyframes."""
    init = Group("init", (0, 1))
    plan = Group("plan", (*early, *middle, *last), init.frames)
    head = Group(
        "fill_head", tuple(range(early[-1] + 1, middle[0])), (*init.frames, *early, *middle)
    )
    tail = tuple(range(middle[-1] + 1, last[0]))
    seen = tuple(frame for frame in range(SEGMENT_LATENTS) if frame not in tail)
    groups = (init, plan, head, Group("fill_tail", tail, seen))
    return Layout("other_keyframes", SEGMENT_LATENTS, groups, middle[-1])


def _range(frames: tuple[int, ...]) -> str:
    first, last = min(frames), max(frames)
    return f"{first}" if first == last else f"{first}-{last}"
