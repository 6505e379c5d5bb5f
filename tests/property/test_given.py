"""The layout of a segment in which latent frames are given, for any frames and any layout."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpl.errors import ArgumentError
from mmpl.film.pins import Pin, landing, pins_text, read_pins
from mmpl.layout.given import GIVEN, with_given
from mmpl.layout.layout import Layout, needed
from mmpl.layout.presets import PRESETS, by_name, mmpl_i2v, mmpl_t2v
from mmpl.layout.slots import slot_plan
from mmpl.layout.timeline import Chain, film_frame, kept_frames, segments_for

CHAIN = Chain(21, 4)
NAMES = [name for name in PRESETS if by_name(name).frames == CHAIN.latents]


@given(st.sampled_from(NAMES), st.sets(st.integers(0, 20)))
def test_what_is_given_counts_from_the_start(name: str, frames: set[int]) -> None:
    layout = by_name(name)
    found = with_given(layout, frames)  # which checks that each frame is in one group
    assert (found.name, found.frames, found.midpoint) == (name, layout.frames, layout.midpoint)
    whole = {frame for g in layout.groups if set(g.frames) <= frames for frame in g.frames}
    pinned = frames - whole
    if not pinned:
        assert found is layout
        return
    first, *others = found.groups
    assert (first.name, set(first.frames), first.sees) == (GIVEN, pinned, ())
    for group, before in zip(others, layout.groups, strict=True):
        assert group.name == before.name
        assert set(group.frames) == set(before.frames) - pinned
        assert set(group.sees) == pinned | set(before.sees)
    assert sorted(slot_plan(found).order) == list(range(layout.frames))


def test_an_image_at_the_start_is_the_image_to_video_layout() -> None:
    assert with_given(mmpl_i2v(), {0}) is not None
    assert with_given(mmpl_i2v(), {0}) == mmpl_i2v()
    groups = {g.name: g for g in with_given(mmpl_t2v(), {0}).groups}
    assert groups["init"].frames == (1,)
    assert groups["init"].sees == mmpl_i2v().group("second").sees == (0,)
    assert groups["plan"].sees == mmpl_i2v().group("plan").sees


def test_what_is_given_needs_nothing() -> None:
    layout: Layout = with_given(mmpl_t2v(), {10})
    assert [g.name for g in needed(layout, [10])] == [GIVEN]


@given(st.integers(1, 400), st.sampled_from([0, 5]), st.data())
def test_every_moment_lands_on_the_latent_that_shows_it(
    frames: int, lead: int, data: st.DataObject
) -> None:
    frame = data.draw(st.integers(0, frames - 1))
    segment, latent = landing(CHAIN, frames, lead, frame)
    last = film_frame(CHAIN, segment, 4 * latent) - lead
    assert last - 3 <= frame <= last
    own = lead + frame - CHAIN.step * segment
    start, stop = kept_frames(CHAIN, segment, lead + frames)
    assert start <= own < stop
    (pin,) = read_pins(pins_text([Pin(segment, latent, "0" * 16)]), CHAIN, 21, lead + frames)
    assert (pin.segment, pin.latent) == (segment, latent)


@given(st.integers(1, 400), st.integers())
def test_moments_outside_the_film_are_refused(frames: int, frame: int) -> None:
    if 0 <= frame < frames:
        frame += frames
    with pytest.raises(ArgumentError, match="outside the film"):
        landing(CHAIN, frames, 0, frame)


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "#1.2",
        "#1.2:abc",
        "#0.3:0123456789abcdef",
        "#1.21:0123456789abcdef",
        "#9.1:" + "0" * 16,
    ],
)
def test_texts_that_are_no_pins_are_refused(text: str) -> None:
    with pytest.raises(ArgumentError):
        read_pins(text, CHAIN, 21, 100)


def test_two_pictures_for_one_moment_are_refused() -> None:
    pins = [Pin(0, 3, "0" * 16), Pin(0, 3, "1" * 16)]
    with pytest.raises(ArgumentError, match="segment 1, latent frame 3"):
        read_pins(pins_text(pins), CHAIN, 21, 100)
    assert segments_for(CHAIN, 100) == 2
