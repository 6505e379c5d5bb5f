"""How far a film's look wanders, and where it jumps: from its pixels alone, for any film.

The paper publishes figures (tables 5, 13 and 14) but no definitions; these are stated here. One
pass over the frames, of which one is held at a time.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmpl.errors import InputError
from mmpl.eval.drift import planes_of, sampled

HUE_BINS = 180  # of 2 degrees each
_LUMA = (0.2126, 0.7152, 0.0722)  # of BT.709
_NEIGHBOURS = 6  # steps on each side of a joint that its own step is compared with
_LEAST_STEP = 0.05  # of 255 levels: the median of steps smaller than that is rest


@dataclass(frozen=True, slots=True)
class Joint:
    """Two frames that follow each other, the second of number `frame`.

    `hue_l1`, `hue_correlation`: between their histograms of hues. `jump_ratio`: how much they
    differ (mean absolute difference of luma), over the median of the `_NEIGHBOURS` steps on each
    side: 1 where nothing is to be seen of the joint. None where the film rests there.
    """

    frame: int
    hue_l1: float
    hue_correlation: float
    jump_ratio: float | None


@dataclass(frozen=True, slots=True)
class Second:
    """The look of one second. `hue_deg`: circular mean of the hues, each pixel by its chroma, None
    without any; `brightness`: mean luma; `contrast`: its standard deviation; both of 0 to 1."""

    hue_deg: float | None
    brightness: float
    contrast: float


@dataclass(frozen=True, slots=True)
class FilmMetrics:
    """What is measured of one film of `frames` frames.

    `hue_l1_first_last` (0 alike to 2) and `hue_correlation_first_last` compare the histograms of
    the first frame and the last: hues of HSV in `hue_bins` equal bins, every pixel counts one, a
    grey one at 0 degrees. The others compare seconds with the first second: hues by the angle
    between circular means in degrees, brightness and contrast (0 to 1) as differences; `mean_*`
    over all later seconds of the absolute value, `*_first_last` of the last with its sign.
    """

    frames: int
    fps: float
    hue_bins: int
    hue_l1_first_last: float
    hue_correlation_first_last: float
    mean_hue_drift_deg: float | None
    hue_drift_deg_first_last: float | None
    mean_brightness_drift: float
    brightness_drift_first_last: float
    mean_contrast_drift: float
    contrast_drift_first_last: float
    seconds: tuple[Second, ...]
    hue_drifts_deg: tuple[float | None, ...]  # of each later second
    joints: tuple[Joint, ...]

    @property
    def mean_jump_ratio(self) -> float | None:
        """Over all joints that have one."""
        return _mean([j.jump_ratio for j in self.joints if j.jump_ratio is not None])


def measure(
    frames_HWC: Iterable[NDArray[np.uint8]],
    fps: float,
    *,
    joints: Sequence[Container[int]] = (),
    hue_bins: int = HUE_BINS,
) -> FilmMetrics:
    """Measures a film, uint8 RGB, at the frames that are in one of `joints` too. Raises InputError
    for a film without frames."""
    seconds: list[_Second] = []
    steps: list[float] = []  # how much each frame differs from the one before
    found: dict[int, tuple[float, float]] = {}
    first: NDArray[np.float64] | None = None
    before: tuple[NDArray[np.float32], NDArray[np.float64]] | None = None
    for number, pixels_HWC in enumerate(frames_HWC):
        planes = planes_of(sampled(pixels_HWC[None]))
        luma = np.dot(np.array(_LUMA, np.float32), planes)
        hues_deg, chroma = hues_of(planes)
        if number >= len(seconds) * fps:
            seconds.append(_Second())
        seconds[-1].add(luma, hues_deg, chroma)
        histogram = histogram_of(hues_deg, hue_bins)
        if before is not None:
            steps.append(float(np.abs(luma - before[0]).mean()))
            if any(number in kind for kind in joints):
                found[number] = compared(before[1], histogram)
        first = histogram if first is None else first
        before = luma, histogram
    if first is None or before is None:
        raise InputError("there is nothing to measure", got="a film without frames")
    looks = tuple(second.look() for second in seconds)
    hue_drifts = [turn(looks[0].hue_deg, look.hue_deg) for look in looks[1:]]
    brightness = [look.brightness - looks[0].brightness for look in looks[1:]]
    contrast = [look.contrast - looks[0].contrast for look in looks[1:]]
    l1, correlation = compared(first, before[1])
    return FilmMetrics(
        frames=len(steps) + 1,
        fps=fps,
        hue_bins=hue_bins,
        hue_l1_first_last=l1,
        hue_correlation_first_last=correlation,
        mean_hue_drift_deg=_mean([abs(angle) for angle in hue_drifts if angle is not None]),
        hue_drift_deg_first_last=hue_drifts[-1] if hue_drifts else None,
        mean_brightness_drift=_mean([abs(value) for value in brightness]) or 0.0,
        brightness_drift_first_last=brightness[-1] if brightness else 0.0,
        mean_contrast_drift=_mean([abs(value) for value in contrast]) or 0.0,
        contrast_drift_first_last=contrast[-1] if contrast else 0.0,
        seconds=looks,
        hue_drifts_deg=tuple(hue_drifts),
        joints=tuple(
            Joint(frame, *found[frame], _jump(steps, frame - 1)) for frame in sorted(found)
        ),
    )


class _Second:
    """Sums over the pixels of one second."""

    def __init__(self) -> None:
        self._count, self._luma, self._square, self._hue = 0, 0.0, 0.0, 0j

    def add(
        self, luma: NDArray[np.float32], hues_deg: NDArray[np.float32], chroma: NDArray[np.float32]
    ) -> None:
        scaled = luma.astype(np.float64) / 255
        self._count += len(luma)
        self._luma += float(scaled.sum())
        # The spread within each frame; what changes from one to the next is no contrast.
        self._square += float(scaled.std()) * len(luma)
        self._hue += complex(np.dot(chroma, np.exp(1j * np.radians(hues_deg))))

    def look(self) -> Second:
        hue = math.degrees(math.atan2(self._hue.imag, self._hue.real)) % 360
        has_hue = abs(self._hue) > 1e-3 * self._count
        count = self._count
        return Second(hue if has_hue else None, self._luma / count, self._square / count)


def hues_of(planes: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Hue of HSV in degrees, 0 for grey, and chroma (largest minus smallest of R, G, B)."""
    red, green, blue = planes
    largest = planes.max(0)
    chroma = largest - planes.min(0)
    scale = 60.0 / np.maximum(chroma, 1)
    hues = (red - green) * scale + 240
    hues = np.where(largest == green, (blue - red) * scale + 120, hues)
    hues = np.where(largest == red, (green - blue) * scale, hues)
    return np.where(chroma > 0, hues % 360, 0).astype(np.float32), chroma


def histogram_of(hues_deg: NDArray[np.float32], bins: int) -> NDArray[np.float64]:
    """Shares of the pixels in equal bins of hue, from 0 degrees on."""
    index = (hues_deg * (bins / 360)).astype(np.intp) % bins
    return np.bincount(index, minlength=bins) / len(hues_deg)


def compared(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float]:
    """L1 distance and Pearson's correlation of two histograms; of two flat ones 1."""
    a, b = one - one.mean(), other - other.mean()
    norm = math.sqrt(float(a @ a) * float(b @ b))
    correlation = float(a @ b) / norm if norm > 0 else float(np.array_equal(one, other))
    return float(np.abs(one - other).sum()), correlation


def _jump(steps: Sequence[float], at: int) -> float | None:
    around = [*steps[max(0, at - _NEIGHBOURS) : at], *steps[at + 1 : at + 1 + _NEIGHBOURS]]
    usual = float(np.median(around)) if around else 0.0
    return steps[at] / usual if usual > _LEAST_STEP else None


def turn(start_deg: float | None, end_deg: float | None) -> float | None:
    """The smaller angle from one hue to another, in (-180, 180]."""
    if start_deg is None or end_deg is None:
        return None
    return 180 - (180 - (end_deg - start_deg)) % 360


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
