"""Charts of a film's report as SVG to stand in HTML: who did what when, and a number per segment.

Their colours are the CSS variables of `mmpl.media.report_style`, so they follow light and dark;
every mark tells its numbers when pointed at. Text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

KINDS = ("plan", "populate", "hand-over", "decode")
_WIDTH, _LABEL, _RIGHT = 1000, 72, 14  # of the Gantt chart, in its own units
_LANE, _PAD, _AXIS = 22, 8, 26
_TICKS = 10  # about as many along the time axis
_READABLE = 13  # the narrowest bar that is given a number, a digit
LINE_COLOURS = 8
_WIDE_WIDTH, _WIDE_HEIGHT = 1000, 300  # of a chart of several lines
_CHART_WIDTH, _CHART_HEIGHT, _LEFT, _TOP, _BOTTOM = 320, 150, 40, 12, 24


@dataclass(frozen=True, slots=True)
class Bar:
    """Something done on a segment, which counts from 1 here, from `start_s` to `stop_s`; `kind` is
    one of `KINDS`, `part` says more: a group."""

    kind: str
    part: str
    segment: int
    start_s: float
    stop_s: float


@dataclass(frozen=True, slots=True)
class Curve:
    """A number per segment, or other `part` of a film, from the first on, None where there is none.
    `start`: what it is at the start of the film; `digits` after the point; the axis spans at least
    `least`."""

    name: str
    text: str
    values: Sequence[float | None]
    start: float
    least: float
    digits: int = 3
    part: str = "segment"


@dataclass(frozen=True, slots=True)
class Line:
    """Numbers at places along an axis: (where, number, low, high), low and high the ends of its
    interval."""

    name: str
    points: Sequence[tuple[float, float, float, float]]


def gantt(rows: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """A row for each name with what was done there, in seconds from 0; what was done at the same
    time stands in lanes below each other."""
    end = max((bar.stop_s for _, bars in rows for bar in bars), default=0.0) or 1.0
    width = _WIDTH - _LABEL - _RIGHT
    behind: list[str] = []
    marks: list[str] = []
    top = _PAD
    for name, bars in rows:
        lanes = _lanes(bars)
        height = _LANE * max(1, len(lanes))
        behind.append(
            f'<text class="name" x="0" y="{top + height / 2 + 4:g}">{escape(name)}</text>'
            f'<rect class="row" x="{_LABEL}" y="{top}" width="{width}" height="{height}" rx="3"/>'
        )
        for number, lane in enumerate(lanes):
            marks += (_bar(bar, top + _LANE * number, width / end) for bar in lane)
        top += height + _PAD
    for at in _ticks(end):
        x = _LABEL + at * width / end
        behind.append(
            f'<line class="grid" x1="{x:.1f}" y1="{_PAD}" x2="{x:.1f}" y2="{top}"/>'
            f'<text class="tick" x="{x:.1f}" y="{top + 15}">{duration(at)}</text>'
        )
    return _svg("gantt", _WIDTH, top + _AXIS, "what was done when", "".join(behind + marks))


def totals(rows: Sequence[tuple[str, Sequence[Bar]]]) -> dict[str, float]:
    """Seconds spent on each kind that there is, over all rows."""
    spent: dict[str, float] = {}
    for kind in KINDS:
        found = [bar.stop_s - bar.start_s for _, bars in rows for bar in bars if bar.kind == kind]
        if found:
            spent[kind] = math.fsum(found)
    return spent


def curve(data: Curve) -> str:
    """A line through the numbers of the segments, and a dashed one where the film started."""
    known = [value for value in data.values if value is not None]
    low, high = _domain([*known, data.start], data.least)
    width, height = _CHART_WIDTH - _LEFT - 10, _CHART_HEIGHT - _TOP - _BOTTOM
    step = width / max(1, len(data.values))

    def x(index: int) -> float:
        return _LEFT + step * (index + 0.5)

    def y(value: float) -> float:
        return _TOP + height * (high - value) / (high - low)

    marks = [_level(y(at), f"{at:.2f}") for at in (low, (low + high) / 2, high)]
    marks.append(
        f'<line class="start" x1="{_LEFT}" y1="{y(data.start):.1f}" x2="{_LEFT + width}" '
        f'y2="{y(data.start):.1f}"/>'
    )
    for run in _runs(data.values):
        points = " ".join(f"{x(index):.1f},{y(value):.1f}" for index, value in run)
        marks.append(f'<polyline class="curve" points="{points}"/>')
    radius = max(1.2, min(4.0, step / 3))
    for index, value in enumerate(data.values):
        says = "no colour" if value is None else f"{value:.{data.digits}f}"
        dot = ""
        if value is not None:
            dot = f'<circle class="dot" cx="{x(index):.1f}" cy="{y(value):.1f}" r="{radius:.1f}"/>'
        marks.append(  # the whole column can be pointed at
            f'<g class="point"><rect x="{x(index) - step / 2:.1f}" y="{_TOP}" '
            f'width="{step:.1f}" height="{height}" fill="transparent"/>{dot}'
            f"<title>{data.part} {index + 1}: {says}, start of the film: "
            f"{data.start:.{data.digits}f}</title></g>"
        )
    for index in sorted({0, len(data.values) - 1} if data.values else ()):
        where = f'x="{x(index):.1f}" y="{_CHART_HEIGHT - 7}"'
        marks.append(f'<text class="tick" {where}>{index + 1}</text>')
    return _svg("chart", _CHART_WIDTH, _CHART_HEIGHT, data.name, "".join(marks))


def lines(name: str, along: str, found: Sequence[Line]) -> str:
    """Lines over one axis from 0 on, which is named by `along`, with bars for their intervals; in
    the colours `line-0`, `line-1` and so on of the style sheet."""
    points = [point for line in found for point in line.points]
    low, high = _domain([value for point in points for value in point[1:]] or [0.0], 1e-3)
    right = max((point[0] for point in points), default=0.0) or 1.0
    width, height = _WIDE_WIDTH - _LEFT - 10, _WIDE_HEIGHT - _TOP - _AXIS

    def x(at: float) -> float:
        return _LEFT + 6 + (width - 12) * at / right

    def y(value: float) -> float:
        return _TOP + height * (high - value) / (high - low)

    marks = [_level(y(at), f"{at:.3g}", _WIDE_WIDTH) for at in (low, (low + high) / 2, high)]
    for at, kind in ((0.0, "tick"), (right / 2, "tick"), (right, "tick last")):
        where = f'x="{x(at):.1f}" y="{_WIDE_HEIGHT - 10}"'
        marks.append(f'<text class="{kind}" {where}>{at:.3g} {escape(along)}</text>')
    for number, line in enumerate(found):
        places = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value, _, _ in line.points)
        marks.append(f'<g class="line-{number % LINE_COLOURS}"><polyline points="{places}"/>')
        for at, value, least, most in line.points:
            says = f"{line.name}, {at:.3g} {along}: {value:.3g} ({least:.3g} to {most:.3g})"
            marks.append(
                f'<g><line x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{y(least):.1f}" '
                f'y2="{y(most):.1f}"/><circle cx="{x(at):.1f}" cy="{y(value):.1f}" r="3"/>'
                f"<title>{escape(says)}</title></g>"
            )
        marks.append("</g>")
    return _svg("lines", _WIDE_WIDTH, _WIDE_HEIGHT, name, "".join(marks))


def duration(seconds: float) -> str:
    """0.25 s, 12 s, 2:05, 1:02:03."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _svg(kind: str, width: float, height: float, label: str, marks: str) -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(label)}">{marks}</svg>'
    )


def _level(y: float, text: str, width: int = _CHART_WIDTH) -> str:
    """A horizontal line of the grid, and what it stands for."""
    right = width - 10
    return (
        f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
        f'<text class="value" x="{_LEFT - 6}" y="{y + 3.5:.1f}">{text}</text>'
    )


def _bar(bar: Bar, top: float, scale: float) -> str:
    left, width = _LABEL + bar.start_s * scale, max(0.6, (bar.stop_s - bar.start_s) * scale)
    part = f" ({bar.part})" if bar.part else ""
    says = (
        f"{bar.kind}{part} of segment {bar.segment}: {bar.start_s:.2f} to {bar.stop_s:.2f} s, "
        f"{bar.stop_s - bar.start_s:.2f} s"
    )
    number = ""
    if width >= _READABLE * len(str(bar.segment)) ** 0.5:
        at = f'x="{left + width / 2:.1f}" y="{top + _LANE / 2 + 4:g}"'
        number = f'<text class="number" {at}>{bar.segment}</text>'
    return (
        f'<g><rect class="bar {_class(bar.kind)}" x="{left:.1f}" y="{top + 1}" '
        f'width="{width:.1f}" height="{_LANE - 2}" rx="{min(3.0, width / 4):.1f}"/>{number}'
        f"<title>{escape(says)}</title></g>"
    )


def _class(kind: str) -> str:
    """The CSS class of a kind, which names its colour."""
    return f"kind-{KINDS.index(kind)}"


def _lanes(bars: Sequence[Bar]) -> list[list[Bar]]:
    """The bars in as few lanes as none overlaps within one."""
    lanes: list[list[Bar]] = []
    for bar in sorted(bars, key=lambda bar: bar.start_s):
        for lane in lanes:
            if lane[-1].stop_s <= bar.start_s:
                lane.append(bar)
                break
        else:
            lanes.append([bar])
    return lanes


def _ticks(end: float) -> list[float]:
    """Round numbers of seconds from 0 to `end`; of minutes and hours where it is long."""
    rounded = [10.0**power * digit for power in range(-4, 2) for digit in (1, 2, 5)]
    rounded += [30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0]
    hours = 3600.0
    while hours < end:
        rounded.append(hours)
        hours *= 2
    rounded = sorted({size for size in rounded if size < 60 or size % 60 == 0})
    step = next((size for size in rounded if end / size <= _TICKS), rounded[-1])
    return [step * number for number in range(int(end / step) + 1)]


def _domain(values: Sequence[float], least: float) -> tuple[float, float]:
    """What an axis shows of numbers from 0 on, so that small differences stay small."""
    low, high = min(values), max(values)
    margin = max(0.1 * (high - low), (least - (high - low)) / 2)
    low = max(0.0, low - margin)
    return low, max(high + margin, low + least)


def _runs(values: Sequence[float | None]) -> Iterator[list[tuple[int, float]]]:
    """Neighbours that are known, with their places."""
    run: list[tuple[int, float]] = []
    for index, value in enumerate(values):
        if value is not None:
            run.append((index, value))
        elif run:
            yield run
            run = []
    if run:
        yield run
