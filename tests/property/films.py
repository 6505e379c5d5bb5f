"""Films, costs and schedules to test on: the paper's own, and random ones."""

from __future__ import annotations

from hypothesis import strategies as st

from mmpl.layout.layout import Layout
from mmpl.layout.presets import by_name, chunked
from mmpl.layout.schedule import MODES, ORDERS, Costs, Schedule, build_schedule
from mmpl.layout.timeline import Chain, chain_of, film_frames, segments_for
from mmpl.layout.work import Task, Work, film_work

PAPER = Costs(make={"init": 25, "plan": 109, "fill_head": 113, "fill_tail": 148}, refresh={})
CHAINED = (
    "mmpl_t2v", "mmpl_t2v_head_sees_terminal", "mmpl_i2v", "without_early", "without_midpoint",
    "chunked_2_3", "chunked_1", "bidirectional_2",
)  # fmt: skip
seconds = st.one_of(st.integers(0, 9).map(float), st.floats(0, 20))


def film(segments: int, seeding: str = "terminal", layout: str = "mmpl_t2v") -> Work:
    """A film of whole segments."""
    groups = by_name(layout)
    chain = chain_of(groups, seeding=seeding, temporal_stride=4)
    return film_work(groups, chain, film_frames(chain, segments))


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    if draw(st.integers(0, 3)):
        return by_name(draw(st.sampled_from(CHAINED)))
    size = draw(st.integers(1, 3))
    window = draw(st.sampled_from((None, 4, 6)))
    return chunked(draw(st.integers(4, 9)), size, first=2, window=window)


@st.composite
def works(draw: st.DrawFn, most: int = 5) -> Work:
    """A film of up to `most` segments, of any length, some of them begun by hard cuts, in a layout
    that can be chained."""
    layout = draw(layouts())
    seeding = draw(st.sampled_from(("terminal", "midpoint"))) if layout.midpoint else "terminal"
    chain: Chain = chain_of(layout, seeding=seeding, temporal_stride=4)
    frames = draw(st.integers(1, film_frames(chain, most)))
    later = range(1, segments_for(chain, frames))
    cuts = draw(st.sets(st.sampled_from(later))) if later and draw(st.booleans()) else ()
    return film_work(layout, chain, frames, tuple(sorted(cuts)))


@st.composite
def costs_of(draw: st.DrawFn, work: Work, teams: int) -> Costs:
    names = [group.name for group in work.layout.groups]
    aside = draw(st.sampled_from(((), ("hand_over",), ("decode",), ("hand_over", "decode"))))
    speed = st.sampled_from((0.5, 1.0, 2.0, 3.0))
    return Costs(
        make={name: draw(seconds) for name in names},
        refresh={name: draw(seconds) for name in names if draw(st.booleans())},
        hand_over=draw(seconds),
        decode=draw(seconds),
        transfer=draw(seconds),
        speeds=tuple(draw(speed) for _ in range(teams)) if draw(st.booleans()) else (),
        aside=aside,
    )


@st.composite
def done_sets(draw: st.DrawFn, work: Work) -> frozenset[Task]:
    """Tasks that were done before: none, any, or any with all that they need."""
    how = draw(st.sampled_from(("none", "any", "closed")))
    if how == "none":
        return frozenset()
    done = draw(st.sets(st.sampled_from(work.tasks)))
    if how == "closed":
        for task in reversed(work.tasks):
            if task in done:
                done.update(work.needs[task])
    return frozenset(done)


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Schedule, Costs]:
    work, teams = draw(works()), draw(st.integers(1, 5))
    costs, done = draw(costs_of(work, teams)), draw(done_sets(work))
    mode, order = draw(st.sampled_from(MODES)), draw(st.sampled_from(ORDERS))
    return build_schedule(work, teams, costs, mode=mode, order=order, done=done), costs
