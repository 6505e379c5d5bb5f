"""Names the motion of a track: translation in eight directions, circling, bouncing, size, rest.

Pure geometry of the centre and area over time, in canvas units (64 to a side), y down.
"""

import math

import numpy as np
from numpy.typing import NDArray

from mmpl.train.grammar import DIRECTIONS

Array = NDArray[np.float64]

_SMOOTHING_FRAMES = 5
_PLAIN_STEP = 15.0  # a displacement that is plainly a translation, units
_PLAIN_GROWTH = math.log(2.2)  # the same for the logarithm of the area's ratio
_REST = 0.4  # evidence below this share of the plain amount is rest
_ORBIT_SWEEP = math.radians(150.0)
_ORBIT_RADII = (4.0, 28.0)
_ORBIT_ROUNDNESS = 0.3  # greatest deviation from the fitted circle, in radii
_BOUNCE_STEP = 3.5  # least way between two turns that counts as going up or down
_BOUNCE_TURNS = 3


def read_motion(x: Array, y: Array, area: Array) -> str:
    """The motion of a track, one value per frame, as a word of the grammar."""
    x, y, area = (_smooth(values) for values in (x, y, area))
    if _turns(y) >= _BOUNCE_TURNS and np.ptp(x) < 0.7 * np.ptp(y):
        return "bounces"
    sweep = _orbit_sweep(x, y)
    if abs(sweep) >= _ORBIT_SWEEP:
        return "clockwise" if sweep > 0 else "counterclockwise"
    way = np.hypot(x - x[0], y - y[0])
    farthest = int(np.argmax(way))
    growth = math.log(max(area[-1], 1e-6) / max(area[0], 1e-6))
    moved, grown = way[farthest] / _PLAIN_STEP, abs(growth) / _PLAIN_GROWTH
    if max(moved, grown) < _REST:
        return "still"
    if grown > moved:
        return "grows" if growth > 0 else "shrinks"
    return _direction(float(x[farthest] - x[0]), float(y[farthest] - y[0]))


def _direction(dx: float, dy: float) -> str:
    """The nearest of the eight directions."""

    def likeness(name: str) -> float:
        step_x, step_y = DIRECTIONS[name]
        return (dx * step_x + dy * step_y) / math.hypot(step_x, step_y)

    return max(DIRECTIONS, key=likeness)


def _orbit_sweep(x: Array, y: Array) -> float:
    """Angle swept around the circle that fits the track best; 0 if the track is no circle.

    Positive is clockwise on the screen, since y points down.
    """
    rows = np.stack([x, y, np.ones_like(x)], axis=1)
    (a, b, c), *_ = np.linalg.lstsq(rows, x * x + y * y)
    centre_x, centre_y = a / 2.0, b / 2.0
    radius = math.sqrt(max(c + centre_x**2 + centre_y**2, 0.0))
    if not _ORBIT_RADII[0] <= radius <= _ORBIT_RADII[1]:
        return 0.0
    away = np.hypot(x - centre_x, y - centre_y)
    if np.abs(away - radius).max() > _ORBIT_ROUNDNESS * radius:
        return 0.0
    angle = np.unwrap(np.arctan2(y - centre_y, x - centre_x))
    return float(angle[-1] - angle[0])


def _turns(values: Array) -> int:
    """How often a track turns back after going at least the bounce step one way."""
    turns, way, extreme = 0, 0, values[0]
    for value in values:
        if way == 0:
            if abs(value - extreme) >= _BOUNCE_STEP:
                way, extreme = (1 if value > extreme else -1), value
        elif way * (value - extreme) > 0:
            extreme = value
        elif way * (extreme - value) >= _BOUNCE_STEP:
            turns, way, extreme = turns + 1, -way, value
    return turns


def _smooth(values: Array) -> Array:
    """Running median, then running mean: single misread frames leave no trace."""
    side = _SMOOTHING_FRAMES // 2
    for reduce in (np.median, np.mean):
        padded = np.pad(values, side, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, _SMOOTHING_FRAMES)
        values = reduce(windows, axis=1)
    return values
