"""The colours of what stands behind: hue metrics that a moving object does not move.

The histograms of whole frames change when an object does, or when it covers other parts of the
picture. Here only pixels count that are background both at the start of the film and at its end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmpl.errors import InputError
from mmpl.eval.drift import planes_of, sampled
from mmpl.eval.metrics import compared, histogram_of, hues_of, turn

FRAMES = 33  # of a film, evenly spread, that the median is of
TOLERANCE = 24.0  # of 255 levels
_LEAST_SHARE = 0.05  # of the pixels; with fewer there is no background to speak of


@dataclass(frozen=True, slots=True)
class BackgroundMetrics:
    """Between the first frame and the last, over the pixels that are background in both; `share`
    of all pixels are. The rest is None where fewer than 5 % are.

    `hue_l1` (0 alike to 2) and `hue_correlation` as of whole frames; `hue_drift_deg`: from the
    circular mean hue of the first, every pixel by its chroma, to that of the last, None where
    there is no colour.
    """

    share: float
    hue_l1_first_last: float | None
    hue_correlation_first_last: float | None
    hue_drift_deg_first_last: float | None


def measure_background(frames_FHWC: NDArray[np.uint8], *, hue_bins: int) -> BackgroundMetrics:
    """Measures frames, uint8 RGB, taken evenly from a film, its first and last among them.

    Background of a frame are the pixels that differ from the median of their place over all these
    frames by at most `TOLERANCE` levels in each colour, after the median difference of all pixels
    of the frame is taken off: so that a drift of the whole background does not make it an object.
    An object that rests, or covers a place more than half of the time, is background there.
    Raises InputError without frames.
    """
    if not len(frames_FHWC):
        raise InputError("there is nothing to measure", got="a film without frames")
    small_FHWC = sampled(frames_FHWC).astype(np.float32)
    usual_HWC = np.median(small_FHWC, axis=0)
    masks = [_background(small_HWC - usual_HWC) for small_HWC in (small_FHWC[0], small_FHWC[-1])]
    both_P = (masks[0] & masks[1]).reshape(-1)
    share = float(both_P.mean())
    if share < _LEAST_SHARE:
        return BackgroundMetrics(share, None, None, None)
    histograms, means_deg = [], []
    for pixels_HWC in (sampled(frames_FHWC[:1]), sampled(frames_FHWC[-1:])):
        hues_deg, chroma = hues_of(planes_of(pixels_HWC)[:, both_P])
        histograms.append(histogram_of(hues_deg, hue_bins))
        means_deg.append(mean_hue_deg(hues_deg, chroma))
    l1, correlation = compared(*histograms)
    return BackgroundMetrics(share, l1, correlation, turn(*means_deg))


def mean_hue_deg(hues_deg: NDArray[np.float32], chroma: NDArray[np.float32]) -> float | None:
    """Circular mean of hues, each by its chroma (0 to 255); None where there is hardly any."""
    mean = complex(np.dot(chroma, np.exp(1j * np.radians(hues_deg)))) / len(hues_deg)
    return math.degrees(math.atan2(mean.imag, mean.real)) % 360 if abs(mean) > 1.0 else None


def _background(difference_HWC: NDArray[np.float32]) -> NDArray[np.bool_]:
    drift_C = np.median(difference_HWC, axis=(0, 1))
    return np.all(np.abs(difference_HWC - drift_C) <= TOLERANCE, axis=2)
