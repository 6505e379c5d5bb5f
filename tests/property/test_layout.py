"""Layouts and slots: literal tables for the presets, properties over random layouts."""

from __future__ import annotations

import ast
import itertools
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmpl.layout
from mmpl.errors import ArgumentError
from mmpl.layout.contiguous import any_order, first_order, narrow
from mmpl.layout.layout import Group, Layout, committed, needed
from mmpl.layout.mask import (
    dense_blocks,
    training_mask,
)
from mmpl.layout.presets import (
    PRESETS,
    bidirectional_window,
    by_name,
    chunked,
    inverted,
    mmpl_i2v,
    mmpl_t2v,
    without_early,
    without_midpoint,
)
from mmpl.layout.slots import Pass, slot_plan, stored_slots


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """A random layout: frames dealt to groups at random, each seeing random earlier frames."""
    frames = draw(st.integers(1, 14))
    owner = draw(st.lists(st.integers(0, 5), min_size=frames, max_size=frames))
    groups: list[Group] = []
    earlier: list[int] = []
    for index in draw(st.permutations(sorted(set(owner)))):
        own = tuple(frame for frame in range(frames) if owner[frame] == index)
        sees = tuple(frame for frame in sorted(earlier) if draw(st.integers(0, 2)))
        groups.append(Group(f"g{index}", own, sees))
        earlier.extend(own)
    return Layout("random", frames, tuple(groups))


# ---------------------------------------------------------------- slots of the presets


def test_t2v_slots_literal() -> None:
    plan = slot_plan(mmpl_t2v())
    middle = (2, 3, 10, 11, 12)
    head, tail = (4, 5, 6, 7, 8, 9), (13, 14, 15, 16, 17, 18)
    assert plan.order == (19, 20, *middle, 0, 1, *head, *tail)
    assert plan.passes == (
        Pass("init", (0, 1), write=(7, 9), read=(7, 9)),
        Pass("plan", (19, 20, *middle), write=(0, 7), read=(0, 9)),
        Pass("fill_head", head, write=(9, 15), read=(2, 15)),
        Pass("fill_tail", tail, write=(15, 21), read=(0, 21)),
    )
    assert (plan.slots, plan.stored) == (21, 15)
    assert plan.slot(19) == 0
    assert plan.pass_of("plan").write == (0, 7)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_contiguous(name: str) -> None:
    layout = by_name(name)
    assert layout.name == name
    assert all(step.gather is None for step in slot_plan(layout).passes)


def test_uncommitted_frames_have_the_last_slots() -> None:
    for layout in (mmpl_t2v(), mmpl_i2v(), without_early(), without_midpoint()):
        tail = layout.group("fill_tail").frames
        assert sorted(slot_plan(layout).order[-len(tail) :]) == list(tail)


def test_groups_that_are_not_made_need_no_memory() -> None:
    def stored(*made: str) -> int:
        return stored_slots(mmpl_t2v(), made)

    assert stored("init", "plan", "fill_head", "fill_tail") == 15
    assert stored("init", "plan", "fill_head") == stored("plan", "fill_head") == 9
    assert stored("init", "plan") == 9  # init and what lies before it: plan is read last
    assert stored("init") == 0
    window = bidirectional_window(5, 2)
    assert stored_slots(window, [group.name for group in window.groups]) == 2


def test_sink_and_window_gather() -> None:
    plan = slot_plan(chunked(6, 1, window=3, sink=1))
    last = plan.pass_of("chunk_6")
    assert last.gather is not None
    assert [plan.order[slot] for slot in last.gather] == [0, 4, 5]
    assert last.read == (last.gather[0], last.gather[-1] + 1)


def test_slots_are_found_fast() -> None:
    layout = chunked(48, 4, window=16, sink=4)  # 12 groups with no order in one piece
    started = time.perf_counter()
    slot_plan(layout)
    assert time.perf_counter() - started < 0.05


# ---------------------------------------------------------------- groups


def test_the_inverted_order_goes_back_from_the_end() -> None:
    groups = inverted(21, 2, 3).groups
    made = [(group.frames[0], group.frames[-1]) for group in groups]
    assert made == [(0, 1), (17, 20), (14, 16), (11, 13), (8, 10), (5, 7), (2, 4)]
    assert groups[1].sees == (0, 1)
    assert groups[2].sees == (0, 1, 17, 18, 19, 20)
    assert groups[-1].reads == tuple(range(21))
    for sizes in ((21, 0, 3), (21, 21, 1), (6, 2, 5), (6, 2, 0)):
        with pytest.raises(ArgumentError, match="chunks do not fit"):
            inverted(*sizes)


def test_needed_groups() -> None:
    layout = mmpl_t2v()

    def names(frames: tuple[int, ...]) -> list[str]:
        return [group.name for group in needed(layout, frames)]

    assert names(()) == []
    assert names((0,)) == ["init"]
    assert names((0, 19, 20)) == ["init", "plan"]
    assert names((3, 4)) == ["init", "plan", "fill_head"]
    assert names((13,)) == ["init", "plan", "fill_head", "fill_tail"]
    assert names(tuple(range(13))) == ["init", "plan", "fill_head"]  # midpoint seeding


def test_committed_groups() -> None:
    layout = mmpl_t2v()
    assert [g.name for g in committed(layout)] == ["init", "plan", "fill_head"]
    running = needed(layout, range(13))
    assert [g.name for g in committed(layout, running)] == ["init", "plan"]


@pytest.mark.parametrize(
    ("frames", "groups", "midpoint", "words"),
    [
        (0, (), None, "no latent frames"),
        (2, (Group("a", (0,)),), None, r"in no group; got \[1\]"),
        (2, (Group("a", (0, 1)), Group("b", (1,))), None, r"earlier group; got \[1\]"),
        (1, (Group("a", (0, 3)),), None, r"outside the segment; got \[3\]"),
        (1, (Group("a", (-1, 0)),), None, r"outside the segment; got \[-1\]"),
        (2, (Group("a", (0,), (1,)), Group("b", (1,))), None, r"no earlier group makes; got \[1\]"),
        (2, (Group("a", (0,), (0,)), Group("b", (1,))), None, r"no earlier group makes; got \[0\]"),
        (2, (Group("a", (1, 0)),), None, r"ascend without repeats; got \[1, 0\]"),
        (2, (Group("a", (0, 0, 1)),), None, "ascend without repeats"),
        (2, (Group("a", (0,)), Group("b", (1,), (0, 0))), None, "sees must ascend"),
        (2, (Group("a", (0, 1)), Group("b", ())), None, "without frames"),
        (2, (Group("a", (0,)), Group("a", (1,))), None, "same name; got a, a"),
        (1, (Group("a", (0,)),), 1, "midpoint outside"),
    ],
)
def test_wrong_layouts_are_refused(
    frames: int, groups: tuple[Group, ...], midpoint: int | None, words: str
) -> None:
    with pytest.raises(ArgumentError, match=words):
        Layout("wrong", frames, groups, midpoint)


def test_wrong_questions_are_refused() -> None:
    layout = mmpl_t2v()
    with pytest.raises(ArgumentError, match="got tail; wanted init, plan, fill_head, fill_tail"):
        layout.group("tail")
    with pytest.raises(ArgumentError, match=r"got 21; wanted 0\.\.20"):
        layout.group_of(21)
    with pytest.raises(ArgumentError, match="got -1"):
        needed(layout, (0, -1))
    with pytest.raises(ArgumentError, match="got mmpl; wanted one of mmpl_t2v, .*chunked_3"):
        by_name("mmpl")
    with pytest.raises(ArgumentError, match="got tail; wanted init, plan"):
        slot_plan(layout).pass_of("tail")


@pytest.mark.parametrize(
    ("frames", "chunk", "options"),
    [
        (0, 1, {}),
        (6, 0, {}),
        (6, 3, {"first": 0}),
        (6, 3, {"first": 7}),
        (6, 3, {"window": 2}),
        (6, 3, {"window": 3, "sink": 1}),
        (6, 3, {"window": 4, "sink": -1}),
        (6, 3, {"sink": 1}),
        (6, 1, {"first": 3, "window": 2}),
    ],
)
def test_wrong_chunks_are_refused(frames: int, chunk: int, options: dict[str, int]) -> None:
    with pytest.raises(ArgumentError, match="wanted"):
        chunked(frames, chunk, **options)


def test_wrong_windows_are_refused() -> None:
    for given_frames in (-1, 4):
        with pytest.raises(ArgumentError, match=r"wanted 0\.\.3"):
            bidirectional_window(4, given_frames)


def test_the_last_chunk_takes_what_is_left() -> None:
    assert [g.frames for g in chunked(7, 3, first=2).groups] == [(0, 1), (2, 3, 4), (5, 6)]


def test_layout_imports_no_torch() -> None:
    for path in Path(mmpl.layout.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                outside = name.startswith("mmpl") and not name.startswith(
                    ("mmpl.layout", "mmpl.errors")
                )
                assert not outside, f"{path.name} imports {name}"
                assert name.split(".")[0] not in ("torch", "numpy"), f"{path.name} imports {name}"


# ---------------------------------------------------------------- properties


@given(layouts())
def test_slots_hold_each_frame_once_and_passes_touch_what_the_layout_says(layout: Layout) -> None:
    plan = slot_plan(layout)
    assert sorted(plan.order) == list(range(layout.frames))
    assert [step.group for step in plan.passes] == [group.name for group in layout.groups]
    for step, group in zip(plan.passes, layout.groups, strict=True):
        assert plan.order[slice(*step.write)] == step.frames
        assert sorted(step.frames) == list(group.frames)
        slots = range(*step.read) if step.gather is None else step.gather
        assert sorted(plan.order[slot] for slot in slots) == sorted((*group.sees, *group.frames))


@given(layouts(), st.data())
def test_what_is_made_of_a_layout_fits_into_the_slots_that_are_stored(
    layout: Layout, data: st.DataObject
) -> None:
    """Each group has its own slots, or none of them and can do without: what it reads are stored
    slots of others, then itself. Nothing is stored for nobody."""
    wanted = data.draw(st.sets(st.integers(0, layout.frames - 1), min_size=1))
    made = [group.name for group in needed(layout, wanted)]
    plan, stored = slot_plan(layout), stored_slots(layout, made)
    assert stored_slots(layout, [group.name for group in layout.groups]) == plan.stored
    kept = {group.name for group in committed(layout, needed(layout, wanted))}
    used = 0
    for step in plan.passes:
        if step.group not in made:
            continue
        if step.write[1] <= stored:
            used = max(used, step.write[1], step.read[1])
        else:
            assert step.group not in kept
            assert (step.gather, step.read[1]) == (None, step.write[1])
            used = max(used, step.write[0] if step.read[0] < step.write[0] else 0)
    assert used == stored


@given(layouts())
def test_cache_behaves_as_the_mask_says(layout: Layout) -> None:
    """Run the passes on a cache of labels and compare every query with its mask row."""
    plan = slot_plan(layout)
    clean_passes = {group.name for group in committed(layout)}
    cache: dict[int, tuple[int, bool]] = {}  # slot -> frame, clean
    mask = training_mask(layout)
    for step in plan.passes:
        for clean in (False, True) if step.group in clean_passes else (False,):
            slots = range(*step.read) if step.gather is None else step.gather
            for slot in range(*step.write):
                cache[slot] = plan.order[slot], clean
            assert all(slot in cache for slot in slots), "read before anything was written"
            seen = {cache[slot] for slot in slots}
            for frame in step.frames:
                row = mask[frame if clean else layout.frames + frame]
                allowed = {(key, True) for key in range(layout.frames) if row[key]}
                allowed |= {
                    (key, False) for key in range(layout.frames) if row[layout.frames + key]
                }
                assert seen == allowed


@given(layouts())
def test_dense_blocks_are_the_part_of_the_mask_that_reaches_a_noisy_frame(layout: Layout) -> None:
    mask, size = training_mask(layout), 2 * layout.frames
    live = set(range(layout.frames, size))
    while grown := {k for q in live for k in range(size) if mask[q][k]} - live:
        live |= grown
    wanted = {(q, k) for q in live for k in range(size) if mask[q][k]}
    got: list[tuple[int, int]] = []
    for block in dense_blocks(layout):
        offset = 0 if block.clean else layout.frames
        keys = [*block.context, *(offset + frame for frame in block.frames)]
        got += [(offset + query, key) for query in block.frames for key in keys]
    assert sorted(got) == sorted(wanted)


@given(layouts(), st.data())
def test_needed_is_the_smallest_set_of_groups_that_can_run(
    layout: Layout, data: st.DataObject
) -> None:
    frames = data.draw(st.sets(st.integers(0, layout.frames - 1)))
    chosen = needed(layout, frames)
    assert [g for g in layout.groups if g in chosen] == list(chosen)
    made = {frame for group in chosen for frame in group.frames}
    assert frames <= made
    assert all(set(group.sees) <= made for group in chosen)
    for group in chosen:  # without any one of them, something would be missing
        rest = [other for other in chosen if other is not group]
        wants = frames.union(*(other.sees for other in rest))
        assert wants & set(group.frames)


@settings(max_examples=150)
@given(st.lists(st.frozensets(st.integers(0, 4)), max_size=5))
def test_orders_are_found_exactly_where_there_are_any(sets: list[frozenset[int]]) -> None:
    def fits(order: tuple[int, ...], members: frozenset[int]) -> bool:
        at = [order.index(item) for item in members]
        return not at or max(at) - min(at) == len(at) - 1

    tree = any_order(5)
    granted: list[frozenset[int]] = []
    for members in sets:
        possible = any(
            all(fits(order, other) for other in [*granted, members])
            for order in itertools.permutations(range(5))
        )
        narrower = narrow(tree, members)
        assert (narrower is not None) == possible
        if narrower is not None:
            tree = narrower
            granted.append(members)
        order = first_order(tree)
        assert sorted(order) == list(range(5))
        assert all(fits(order, other) for other in granted)
