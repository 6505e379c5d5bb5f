"""The curves of a training as an SVG file that stands alone: loss, smoothed loss, learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from mmpl.media import durable
from mmpl.train.log import Row

FILE = "curve.svg"
_WIDTH, _LEFT, _RIGHT = 720, 64, 16
_LOSS, _RATE = (34, 230), (290, 90)  # top and height
_HEIGHT = 410
_MOST_POINTS = 600  # of a line; more cannot be seen
_MEMORY = 50  # points that the smoothed loss remembers
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#646b78}.name{font-weight:600}.value{text-anchor:end}"
    ".tick{text-anchor:middle}rect{fill:#fff}polyline{fill:none;stroke-linejoin:round}"
    ".grid{stroke:#e3e6eb}.raw{stroke:#b9c4f5}.smooth{stroke:#3b5bdb;stroke-width:2}"
    ".rate{stroke:#12a594;stroke-width:2}@media(prefers-color-scheme:dark){rect{fill:#0f1115}"
    "text{fill:#98a0ae}.grid{stroke:#2a2f38}.raw{stroke:#3d4a86}.smooth{stroke:#8da2fb}}"
)

Points = list[tuple[float, float]]


def write_curve(run: Path, told: Sequence[Row]) -> None:
    """Draws the rows of a log into the run's folder. Raises OutputError."""
    content = curve(told).encode()
    durable.put(run / FILE, lambda file: file.write(content))


def curve(told: Sequence[Row]) -> str:
    """The SVG. The loss stands on a logarithmic axis where it is positive."""
    loss = _points(told, "loss")
    marks = _panel("loss", _LOSS, ("raw", loss), ("smooth", smoothed(loss)))
    marks += _panel("learning rate", _RATE, ("rate", _points(told, "rate")), digits=2)
    last = max((int(step) for step, _ in loss), default=0)
    bottom = _RATE[0] + _RATE[1] + 18
    for step in sorted({1, last // 2, last} - {0}) if last else ():
        marks.append(f'<text class="tick" x="{_x(step, last):.1f}" y="{bottom}">{step}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="loss and learning rate over {last} steps"><style>{_STYLE}</style>'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}"/>{"".join(marks)}</svg>\n'
    )


def smoothed(points: Points) -> Points:
    """An exponential average over about 50 points, without a bias towards its start."""
    total = weight = 0.0
    smooth: Points = []
    for step, value in points:
        total += (value - total) / _MEMORY
        weight += (1 - weight) / _MEMORY
        smooth.append((step, total / weight))
    return smooth


def _points(told: Sequence[Row], name: str) -> Points:
    return [(r["step"], r[name]) for r in told if name in r and math.isfinite(r[name])]


def _panel(
    title: str, place: tuple[int, int], *lines: tuple[str, Points], digits: int = 3
) -> list[str]:
    top, height = place
    marks = [f'<text class="name" x="{_LEFT}" y="{top - 10}">{title}</text>']
    values = [value for _, points in lines for _, value in points]
    if not values:
        return marks
    logarithmic = title == "loss" and min(values) > 0
    scale: Callable[[float], float] = math.log if logarithmic else float
    low, high = scale(min(values)), scale(max(values))
    span = high - low or 1.0
    for share in (0.0, 0.5, 1.0):
        y, level = top + height * (1 - share), low + share * (high - low)
        text = f"{math.exp(level) if logarithmic else level:.{digits}g}"
        marks.append(
            f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>'
            f'<text class="value" x="{_LEFT - 8}" y="{y + 4:.1f}">{text}</text>'
        )
    for kind, points in lines:
        last = points[-1][0]
        drawn = " ".join(
            f"{_x(step, last):.1f},{top + height * (1 - (scale(value) - low) / span):.1f}"
            for step, value in _thinned(points)
        )
        marks.append(f'<polyline class="{kind}" points="{drawn}"/>')
    return marks


def _x(step: float, last: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / max(1, last)


def _thinned(points: Points) -> Points:
    """Means of as many neighbours as leave few enough points."""
    size = math.ceil(len(points) / _MOST_POINTS)
    parts = (points[start : start + size] for start in range(0, len(points), size))
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]
