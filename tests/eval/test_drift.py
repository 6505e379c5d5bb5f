"""Drift measured on colours whose answers are known."""

from __future__ import annotations

import colorsys
from itertools import pairwise

import numpy as np
import pytest

from mmpl.eval.drift import HUE_BINS, SAMPLED, Drift, Look

Pixels = np.ndarray


def frames(*colours: tuple[int, int, int], count: int = 4, size: int = 16) -> Pixels:
    """Frames in vertical stripes of these colours, of equal widths."""
    row = np.repeat(np.array(colours, np.uint8), size // len(colours), axis=0)
    return np.broadcast_to(row, (count, size, len(row), 3)).copy()


def hue(degrees: float, saturation: float = 1.0, value: float = 1.0) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(degrees % 360 / 360, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def looks(*segments: Pixels, first_frames: int = 4) -> list[Look]:
    drift = Drift(first_frames)
    for segment, pixels in enumerate(segments):
        drift.see(segment, pixels)
    return list(drift.segments().values())


@pytest.mark.parametrize("turn", range(0, 360, 15))
def test_a_known_shift_of_hue(turn: int) -> None:
    one, other = looks(frames(hue(0)), frames(hue(turn)))
    assert one.hue_l1 == 0.0
    assert other.hue_l1 == (0.0 if turn == 0 else 2.0)


def test_half_the_picture_shifts() -> None:
    half = looks(frames(hue(0), hue(120)), frames(hue(0), hue(240)))[1].hue_l1
    assert half == pytest.approx(1.0)


def test_hues_are_where_they_should_be() -> None:
    """Every bin's middle is in a bin of its own, and a few degrees aside still in that."""
    width = 360 / HUE_BINS
    for number in range(HUE_BINS):
        middle = frames(hue(number * width))
        for aside in (-0.35 * width, 0.35 * width):
            assert looks(middle, frames(hue(number * width + aside)))[1].hue_l1 == 0.0
        assert looks(middle, frames(hue((number + 1) * width)))[1].hue_l1 == 2.0


def test_pixels_count_by_their_chroma() -> None:
    """A faint half weighs less than a strong one, and grey nothing."""
    faint = (140, 100, 100)  # chroma 40 of 255
    found = looks(frames(hue(240)), frames(hue(240), faint))[1].hue_l1
    assert found == pytest.approx(2 * 40 / 295)
    assert looks(frames(hue(240)), frames(hue(240), (90, 90, 90)))[1].hue_l1 == 0.0


@pytest.mark.parametrize("grey", [(0, 0, 0), (128, 128, 128), (255, 255, 255)])
def test_without_colour_there_is_no_hue(grey: tuple[int, int, int]) -> None:
    assert looks(frames(hue(0)), frames(grey))[1].hue_l1 is None
    assert looks(frames(grey), frames(hue(0)))[1].hue_l1 is None
    (alone,) = looks(frames(grey))
    assert alone.saturation == 0.0
    assert alone.brightness == pytest.approx(grey[0] / 255)


def test_brightness_and_saturation() -> None:
    red, pale = looks(frames((255, 0, 0)), frames((255, 127, 127)))
    assert red.brightness == pytest.approx(0.2126)
    assert red.saturation == 1.0
    assert pale.brightness == pytest.approx(0.2126 + 0.7874 * 127 / 255)
    assert pale.saturation == pytest.approx(128 / 255)


def test_the_first_frames_alone_are_compared_with() -> None:
    drift = Drift(6)
    drift.see(0, frames(hue(0), count=4))
    drift.see(0, frames(hue(120), count=4))  # two of these still count as the first
    first, segments = drift.first, drift.segments()
    assert first is not None
    assert first.brightness == pytest.approx((4 * 0.2126 + 2 * 0.7152) / 6)
    assert segments[0].hue_l1 == pytest.approx(2 * (4 / 6 - 1 / 2))


def test_no_frames_no_look() -> None:
    drift = Drift(8)
    assert drift.first is None
    drift.see(0, np.zeros((0, 8, 8, 3), np.uint8))
    assert drift.first is None
    assert drift.segments() == {}


def test_pieces_of_a_segment_are_as_good_as_the_whole() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 24, 16, 3), dtype=np.uint8)
    whole, parts = Drift(5), Drift(5)
    whole.see(0, pixels)
    for start, stop in pairwise((0, 1, 5, 9, 12)):
        parts.see(0, pixels[start:stop])
    one, other = whole.segments()[0], parts.segments()[0]
    assert one.brightness == pytest.approx(other.brightness)
    assert one.saturation == pytest.approx(other.saturation)
    assert one.hue_l1 is not None
    assert one.hue_l1 == pytest.approx(other.hue_l1)


def test_large_frames_are_sampled_evenly() -> None:
    """A few thousand pixels of them give the numbers of all."""
    size = 512
    assert size * size > 16 * SAMPLED
    ramp = np.linspace(0, 360, size, endpoint=False)
    row = np.array([hue(degrees) for degrees in ramp], np.uint8)
    pixels = np.broadcast_to(row, (1, size, size, 3))
    (look,) = looks(pixels, first_frames=1)
    assert look.brightness == pytest.approx((row @ [0.2126, 0.7152, 0.0722]).mean() / 255, abs=5e-3)
    assert looks(pixels, pixels[:, ::-1], first_frames=1)[1].hue_l1 == pytest.approx(0.0, abs=0.1)
