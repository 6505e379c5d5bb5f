"""Frame accounting: every film frame comes from exactly one segment, and films end exactly."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpl.errors import ArgumentError
from mmpl.layout.layout import needed
from mmpl.layout.presets import mmpl_i2v, mmpl_t2v, without_midpoint
from mmpl.layout.timeline import (
    LONGEST_FRAMES,
    Chain,
    chain_of,
    film_frame,
    film_frames,
    frames_for_duration,
    kept_frames,
    latent_of,
    locate,
    needed_latents,
    segments_for,
)

TERMINAL = chain_of(mmpl_t2v(), seeding="terminal", temporal_stride=4)
MIDPOINT = chain_of(mmpl_t2v(), seeding="midpoint", temporal_stride=4)

chains = st.builds(
    lambda seeds, more, stride: Chain(seeds + more, stride, seeds),
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(1, 8),
)


def test_a_wan_segment() -> None:
    assert (TERMINAL.segment_frames, TERMINAL.overlap, TERMINAL.step) == (81, 5, 76)
    assert (MIDPOINT.segment_frames, MIDPOINT.overlap, MIDPOINT.step) == (49, 5, 44)
    assert chain_of(mmpl_i2v(), seeding="midpoint", temporal_stride=4) == MIDPOINT


def test_film_lengths() -> None:
    assert [film_frames(TERMINAL, s) for s in (1, 2, 6, 12)] == [81, 157, 461, 917]
    assert [film_frames(MIDPOINT, s) for s in (1, 2, 3, 4)] == [49, 93, 137, 181]
    assert [segments_for(TERMINAL, n) for n in (1, 81, 82, 157, 158, 480, 960)] == [
        1, 1, 2, 2, 3, 7, 13,
    ]  # fmt: skip
    assert [segments_for(MIDPOINT, n) for n in (49, 50, 160)] == [1, 2, 4]


def test_handover() -> None:
    assert TERMINAL.handover == (0, 19, 19, 20)
    assert MIDPOINT.handover == (0, 11, 11, 12)
    assert TERMINAL.handover_frames == MIDPOINT.handover_frames == (8, 13)


def test_kept_frames_of_30_seconds() -> None:
    kept = [kept_frames(TERMINAL, segment, 480) for segment in range(7)]
    assert kept == [(0, 81)] + [(5, 81)] * 5 + [(5, 24)]


def test_groups_that_no_kept_frame_needs_are_skipped() -> None:
    def groups(at: Chain, segment: int, frames: int) -> list[str]:
        latents = needed_latents(at, segment, frames)
        return [group.name for group in needed(mmpl_t2v(), latents)]

    everything = ["init", "plan", "fill_head", "fill_tail"]
    assert needed_latents(TERMINAL, 6, 480) == (0, 1, 2, 3, 4, 5, 6)
    assert [groups(TERMINAL, s, 480) for s in range(7)] == [everything] * 6 + [everything[:3]]
    assert groups(TERMINAL, 6, 462) == ["init", "plan"]
    assert groups(TERMINAL, 0, 5) == ["init"]
    assert [groups(MIDPOINT, s, 160) for s in range(4)] == [everything[:3]] * 4
    assert needed_latents(MIDPOINT, 0, 160) == tuple(range(13))
    assert groups(MIDPOINT, 0, 1) == ["init"]


def test_latent_frames_of_pixel_frames() -> None:
    assert [latent_of(TERMINAL, frame) for frame in (0, 1, 4, 5, 8, 76, 77, 80)] == [
        0, 1, 1, 2, 2, 19, 20, 20,
    ]  # fmt: skip


def test_locate_literals() -> None:
    assert [locate(TERMINAL, frame) for frame in (0, 80, 81, 156, 157)] == [
        (0, 0), (0, 80), (1, 5), (1, 80), (2, 5),
    ]  # fmt: skip
    assert film_frame(TERMINAL, 1, 0) == film_frame(TERMINAL, 0, 76) == 76


@given(chains, st.integers(1, 3000))
def test_kept_frames_partition_the_film(at: Chain, frames: int) -> None:
    shown = [
        film_frame(at, segment, frame)
        for segment in range(segments_for(at, frames))
        for frame in range(*kept_frames(at, segment, frames))
    ]
    assert shown == list(range(frames))


@given(chains, st.integers(1, 3000))
def test_as_few_segments_as_possible(at: Chain, frames: int) -> None:
    segments = segments_for(at, frames)
    assert film_frames(at, segments) >= frames
    assert segments == 1 or film_frames(at, segments - 1) < frames


@given(chains, st.integers(0, 3000))
def test_locate_inverts_film_frame(at: Chain, frame: int) -> None:
    segment, local = locate(at, frame)
    assert film_frame(at, segment, local) == frame
    start, stop = kept_frames(at, segment, frame + 1)
    assert start <= local < stop


@given(chains, st.integers(1, 3000))
def test_needed_latents_cover_what_is_shown_and_handed_over(at: Chain, frames: int) -> None:
    last = segments_for(at, frames) - 1
    for segment in (0, last):
        latents = needed_latents(at, segment, frames)
        _, stop = kept_frames(at, segment, frames)
        # A causal decoder makes 1 + stride (n - 1) frames from latent frames 0..n-1.
        count = next(n for n in range(1, 99) if 1 + at.temporal_stride * (n - 1) >= stop)
        handover = set(at.handover) if segment < last else set()
        assert set(latents) == set(range(count)) | handover
        assert list(latents) == sorted(set(latents))
        assert latents[-1] < at.latents


@given(chains)
def test_handover_frames_are_the_overlap(at: Chain) -> None:
    """The frames handed over are decoded from the keyframes that make the segment's last ones."""
    first, stop = at.handover_frames
    assert stop == 1 + at.temporal_stride * (len(at.handover) - 1)
    made = [at.handover[latent_of(at, frame)] for frame in range(first, stop)]
    tail = range(at.segment_frames - at.overlap, at.segment_frames)
    assert made == [latent_of(at, frame) for frame in tail]


def test_durations() -> None:
    cases = ((30, 16, 480), (60, 16, 960), (0.1, 16, 2), (5.0625, 16, 81), (1, 29.97, 30))
    for seconds, fps, frames in cases:
        assert frames_for_duration(seconds, fps) == frames
    assert frames_for_duration(10, 1, longest=10) == 10


@given(st.floats(0.1, 1e5), st.sampled_from([8, 16, 24, 25, 29.97, 60]))
def test_duration_is_rounded_once(seconds: float, fps: float) -> None:
    assert frames_for_duration(seconds, fps) == round(seconds * fps)


@given(st.floats())
def test_any_float_is_a_film_or_an_argument_error(seconds: float) -> None:
    if 1 / 32 < seconds <= LONGEST_FRAMES / 16:
        assert frames_for_duration(seconds, 16) == round(seconds * 16) >= 1
    else:
        with pytest.raises(ArgumentError, match="^duration out of range; .*$"):
            frames_for_duration(seconds, 16)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, -math.inf, 1e9, 1e-9, 10**400])
def test_bad_durations(seconds: float) -> None:
    with pytest.raises(ArgumentError, match="duration out of range; got .*; wanted"):
        frames_for_duration(seconds, 16)


@pytest.mark.parametrize("fps", [0, -16, math.nan, math.inf])
def test_bad_rates(fps: float) -> None:
    with pytest.raises(ArgumentError, match="fps out of range; got .*; wanted a positive number"):
        frames_for_duration(1, fps)


def test_wrong_questions_are_refused() -> None:
    with pytest.raises(ArgumentError, match="got middle; wanted one of terminal, midpoint"):
        chain_of(mmpl_t2v(), seeding="middle", temporal_stride=4)
    with pytest.raises(ArgumentError, match="layout without_midpoint: .*no middle keyframes"):
        chain_of(without_midpoint(), seeding="midpoint", temporal_stride=4)
    with pytest.raises(ArgumentError, match="segments cannot join; got 2 latent frames, 2 seeds"):
        Chain(2, 4)
    with pytest.raises(ArgumentError, match="got 0; wanted >= 1"):
        film_frames(TERMINAL, 0)
    with pytest.raises(ArgumentError, match="got 0; wanted >= 1"):
        segments_for(TERMINAL, 0)
    with pytest.raises(ArgumentError, match=r"got 7; wanted 0\.\.6"):
        kept_frames(TERMINAL, 7, 480)
    with pytest.raises(ArgumentError, match="got -1; wanted >= 0"):
        locate(TERMINAL, -1)
    with pytest.raises(ArgumentError, match=r"got segment 0, frame 81; .*0\.\.80"):
        film_frame(TERMINAL, 0, 81)
