"""The rolling window: what it holds, and that its clips are those of the plain cache."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.eval import rolling
from mmpl.eval.rolling import Window, entered, rolled, sink_keys, turn_sink_
from mmpl.eval.stage import Shot, Stage, film_of, open_stage
from mmpl.eval.windows import made
from mmpl.film.denoise import Context, commit, velocities
from mmpl.layout.layout import Group, Layout
from mmpl.layout.presets import chunked
from mmpl.layout.slots import Pass
from mmpl.wan.cache import SlotView, check_view
from tests.small import DEFAULTS, small_dit, small_model

CLOSE = 2e-5


@cache
def stage() -> Stage:
    """Weights large enough that every frame that is seen makes a difference."""
    model = replace(small_model(replace(DEFAULTS, width=32, height=16)), dit=small_dit())
    return open_stage(model, film_of(model, Shot("red circle moves right", seed=5, segments=1)))


def clip(window: Window, latents: int, *, rerotate: bool = True) -> Tensor:
    return torch.stack(list(rolled(stage(), window, latents, rerotate=rerotate)), dim=2)


def by_layout(layout: Layout) -> Tensor:
    """All frames of one segment of `layout`."""
    film = replace(stage().film, layout=layout, noise="off")
    latents = made(replace(stage(), film=film), 0, {}, layout.frames)
    return torch.stack([latents[frame] for frame in range(layout.frames)], dim=2)


def worst(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def test_a_long_window_is_the_plain_cache() -> None:
    wanted = by_layout(chunked(12, 3))
    assert worst(clip(Window(frames=12), 12), wanted) < CLOSE
    assert worst(clip(Window(frames=15), 12), wanted) < CLOSE
    assert worst(clip(Window(frames=12, sink=3), 12), wanted) < CLOSE


@pytest.mark.parametrize("sink", [0, 1, 2])
def test_a_short_window_is_the_windowed_layout(sink: int) -> None:
    """The same cache that never forgets, with a layout that says what is seen."""
    wanted = by_layout(chunked(9, 1, window=4, sink=sink))
    got = clip(Window(4, 1, sink), 9, rerotate=False)
    assert worst(got, wanted) < CLOSE
    if sink:
        assert worst(clip(Window(4, 1, sink), 9), wanted) > 100 * CLOSE, "the turn counts"
        assert worst(clip(Window(4, 1), 9, rerotate=False), wanted) > 100 * CLOSE


def test_only_distances_count() -> None:
    """Positions may keep counting: moved together, frames are the same."""
    x_BCTHW = stage().noise(range(6))
    near, far = (velocity_at(first, x_BCTHW) for first in (0, 900))
    assert worst(near, far) < CLOSE
    assert worst(near, velocity_at(0, x_BCTHW, gap=5)) > 100 * CLOSE


def velocity_at(first: int, x_BCTHW: Tensor, gap: int = 0) -> Tensor:
    """The second of two chunks, with the first one behind it at `first` in time."""
    context, second = committed_at(first, x_BCTHW[:, :, :3]), Window(6)
    context = entered(context, second, 1)
    group = Group("chunk_2", tuple(range(first + 3 + gap, first + 6 + gap)))
    context = replace(context, slots=replace(context.slots, passes=(at(context, group),)))
    return velocities(stage().network, context, group, x_BCTHW[:, :, 3:], 500.0)[0]


def committed_at(first: int, z_BCTHW: Tensor) -> Context:
    """The first chunk committed, at `first` in time."""
    context = entered(stage().context(chunked(6, 3), 6), Window(6), 0)
    group = Group("chunk_1", tuple(range(first, first + 3)))
    context = replace(context, slots=replace(context.slots, passes=(at(context, group),)))
    return commit(stage().network, context, group, z_BCTHW)


def at(context: Context, group: Group) -> Pass:
    return replace(context.slots.passes[0], group=group.name, frames=group.frames)


@pytest.mark.parametrize("by", [1, 7, 400])
def test_turned_keys_are_those_of_the_place(by: int) -> None:
    z_BCTHW = stage().noise(range(3))
    moved, wanted = committed_at(0, z_BCTHW), committed_at(by, z_BCTHW)
    keys = sink_keys(moved, Window(6, sink=3))
    assert worst(keys[0], sink_keys(wanted, Window(6, sink=3))[0]) > 100 * CLOSE
    turn_sink_(stage().network, moved, keys, by - 1)
    turn_sink_(stage().network, moved, keys, by)  # from the committed ones, not from the turned
    for one, other in zip(moved.branches, wanted.branches, strict=True):
        assert worst(one.cache.k_IBSNK, other.cache.k_IBSNK) < CLOSE
        assert torch.equal(sink_keys(moved, Window(6))[0], keys[0][:, :, :0])


def test_the_sink_stays_at_the_far_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of frames 0..11 in a window of 6: once 6 are there the sink moves with each chunk."""
    by: list[int] = []
    monkeypatch.setattr(rolling, "turn_sink_", lambda *given: by.append(given[-1]))
    latents = list(rolled(stage(), Window(6, 2, sink=2), 12))
    assert len(latents) == 12
    assert by == [2, 4, 6], "the newest frames are 7, 9, 11: 5 after the first of the sink"


windows = st.builds(
    lambda chunk, sink, ring: Window(chunk * (sink + ring), chunk, chunk * sink),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(1, 6),
)


@given(windows, st.integers(0, 40), st.integers(0, 3))
def test_a_window_holds_the_sink_and_the_latest(window: Window, number: int, ahead: int) -> None:
    """Slot by slot as a cache would: each chunk overwrites what it takes the place of."""
    newest, held = number + ahead, (window.frames - window.sink) // window.chunk
    slots: dict[int, int] = {}
    for chunk in range(newest + 1):
        slots[window.slot(chunk)] = chunk
    there = {chunk for chunk in slots.values() if chunk < number}
    assert set(window.seen(number, newest)) == there
    assert len(slots) <= window.frames // window.chunk
    step = window.passes(number, newest)
    read = range(*step.read) if step.gather is None else step.gather
    assert len(read) == window.chunk * (1 + len(there))
    if ahead < held:
        assert len(set(read)) == len(read)


def test_no_pass_reads_what_is_not_there() -> None:
    window = Window(6, 3)
    context = entered(stage().context(window.layout, window.frames), window, 5)
    cache = context.branches[0].cache
    check_view(cache, SlotView((3, 6), (0, 6)), 3)
    with pytest.raises(ArgumentError):
        check_view(cache, SlotView((0, 3), (0, 6)), 3)


@pytest.mark.parametrize("sizes", [(7, 3, 0), (6, 3, 1), (6, 3, 6), (3, 0, 0), (6, 3, -3)])
def test_windows_that_cannot_be(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ArgumentError, match="whole chunks"):
        Window(*sizes)
