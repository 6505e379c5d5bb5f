"""How far a film's colours wander from how it began, segment by segment, while it is written.

A chain of segments hands its errors on: colours that slowly shift, brighten or saturate are the
first thing to be seen of that. What is kept are sums, so memory does not grow with the frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

HUE_BINS = 36  # of 10 degrees each, with the six pure hues in the middle of theirs
SAMPLED = 64 * 64  # pixels of a frame that are looked at, at most about that many
_LUMA = (0.2126, 0.7152, 0.0722)  # of BT.709


@dataclass(frozen=True, slots=True)
class Look:
    """The colours of some frames. `brightness`: mean luma of BT.709; `saturation`: mean of that of
    HSV; both 0 to 1. `hue_l1`: sum over `HUE_BINS` of the differences between the shares of hues
    here and in the first frames, 0 (alike) to 2 (nothing in common); every pixel counts as much as
    it has chroma. None where there is no colour at all, here or there."""

    brightness: float
    saturation: float
    hue_l1: float | None


@dataclass(slots=True)
class _Sums:
    hues: NDArray[np.float64] = field(default_factory=lambda: np.zeros(HUE_BINS))
    brightness: float = 0.0
    saturation: float = 0.0
    pixels: int = 0

    def add(self, pixels_FHWC: NDArray[np.uint8]) -> None:
        planes = planes_of(sampled(pixels_FHWC))
        red, green, blue = planes
        largest = np.maximum(np.maximum(red, green), blue)
        chroma = largest - np.minimum(np.minimum(red, green), blue)
        bins = _hue_bins(planes, largest, chroma)
        self.hues += np.bincount(bins, weights=chroma, minlength=HUE_BINS)
        self.brightness += float(np.dot(_LUMA, planes.sum(1, dtype=np.float64))) / 255
        saturation = chroma / np.maximum(largest, 1)
        self.saturation += float(saturation.sum(dtype=np.float64))
        self.pixels += planes.shape[1]

    def look(self, first: _Sums) -> Look:
        hue_l1 = None
        if self.hues.any() and first.hues.any():
            shares = (sums.hues / sums.hues.sum() for sums in (self, first))
            hue_l1 = float(np.abs(np.subtract(*shares)).sum())
        return Look(self.brightness / self.pixels, self.saturation / self.pixels, hue_l1)


class Drift:
    """Takes in a film's frames as they are written; tells how each segment looks beside the first
    `first_frames` frames of the film. Of large frames every n-th row and column counts."""

    def __init__(self, first_frames: int) -> None:
        self._left = first_frames
        self._first = _Sums()
        self._segments: dict[int, _Sums] = {}

    def see(self, segment: int, pixels_FHWC: NDArray[np.uint8]) -> None:
        """The next frames of the film, uint8 RGB, which belong to a segment."""
        self._segments.setdefault(segment, _Sums()).add(pixels_FHWC)
        if self._left:
            start = pixels_FHWC[: self._left]
            self._first.add(start)
            self._left -= len(start)

    @property
    def first(self) -> Look | None:
        """How the film begins; None before any frame."""
        return self._first.look(self._first) if self._first.pixels else None

    def segments(self) -> dict[int, Look]:
        """How each segment looks, as far as it was seen."""
        return {
            segment: sums.look(self._first)
            for segment, sums in sorted(self._segments.items())
            if sums.pixels
        }


def sampled(pixels_FHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every n-th row and column, so that about `SAMPLED` pixels of a frame are left, or all."""
    height, width = pixels_FHWC.shape[1:3]
    stride = math.ceil(math.sqrt(height * width / SAMPLED))
    return pixels_FHWC[:, ::stride, ::stride]


def evenly(frames: int, count: int) -> Sequence[int]:
    """The numbers of `count` frames from the first to the last, or of all where there are fewer."""
    count = min(count, frames)
    return [round(n * (frames - 1) / max(1, count - 1)) for n in range(count)]


def planes_of(pixels_FHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The pixels as [3, n], a row for each colour, which is much faster to compute with."""
    return np.ascontiguousarray(pixels_FHWC.reshape(-1, 3).T, np.float32)


def _hue_bins(
    planes: NDArray[np.float32], largest: NDArray[np.float32], chroma: NDArray[np.float32]
) -> NDArray[np.intp]:
    """The bin of each pixel's hue; of greys, which have none, some bin."""
    red, green, blue = planes
    scale = (HUE_BINS / 6) / np.maximum(chroma, 1)
    bins = (red - green) * scale + (4 * HUE_BINS / 6)
    bins = np.where(largest == green, (blue - red) * scale + (2 * HUE_BINS / 6), bins)
    bins = np.where(largest == red, (green - blue) * scale + HUE_BINS, bins)
    return (bins + 0.5).astype(np.intp) % HUE_BINS
