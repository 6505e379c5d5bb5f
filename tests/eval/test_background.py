"""The background's hue metrics on films in which the object moves and either changes its hue."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mmpl.errors import InputError
from mmpl.eval.background import BackgroundMetrics, measure_background
from mmpl.eval.metrics import measure
from tests.eval.planted import colour

Pixels = NDArray[np.uint8]
FRAMES, SIZE, SIDE = 32, 32, 8


def film(
    object_deg: tuple[float, float], background_deg: tuple[float, float], *, value: float = 0.9
) -> Pixels:
    """A square that goes from corner to corner, over a gradient; both turn their hue evenly."""
    frames = np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)
    for number, frame_HWC in enumerate(frames):
        along = number / (FRAMES - 1)
        start, stop = background_deg
        for row, line_WC in enumerate(frame_HWC):
            line_WC[:] = colour(start + (stop - start) * along + row * 20 / SIZE, 0.7, value)
        at = round(along * (SIZE - SIDE))
        hue = object_deg[0] + (object_deg[1] - object_deg[0]) * along
        frame_HWC[at : at + SIDE, at : at + SIDE] = colour(hue, 1.0, 1.0)
    return frames


def measured(frames: Pixels) -> BackgroundMetrics:
    return measure_background(frames, hue_bins=180)


def test_an_object_that_moves_and_changes_does_not_count() -> None:
    frames = film((200, 260), (40, 40))
    found = measured(frames)
    assert found.share == pytest.approx(1 - 2 * SIDE**2 / SIZE**2, abs=0.01)
    assert found.hue_l1_first_last == 0.0
    assert found.hue_correlation_first_last == pytest.approx(1.0)
    assert found.hue_drift_deg_first_last == pytest.approx(0.0, abs=1e-6)
    assert measure(frames, 16).hue_l1_first_last > 0.1  # of whole frames: it does


@pytest.mark.parametrize("shift", [10, -10, 30, 90])
def test_a_planted_shift_of_the_background_is_read(shift: int) -> None:
    found = measured(film((200, 260), (40, 40 + shift)))
    assert found.hue_drift_deg_first_last == pytest.approx(shift, abs=0.5)
    assert found.hue_l1_first_last is not None
    assert found.hue_l1_first_last > 0.5


def test_grey_has_no_hue() -> None:
    frames = film((200, 200), (0, 0))
    frames[:] = np.where(np.ptp(frames, axis=3, keepdims=True) < 200, 90, frames)
    found = measured(frames)
    assert found.hue_drift_deg_first_last is None
    assert found.hue_l1_first_last == 0.0


def test_without_background_there_is_nothing_to_say() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    found = measured(noise)
    assert found.share < 0.05
    assert found.hue_l1_first_last is None
    assert found.hue_drift_deg_first_last is None
    with pytest.raises(InputError, match="nothing to measure"):
        measured(noise[:0])
