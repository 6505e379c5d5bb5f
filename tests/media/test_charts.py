"""Bars where their times say, lanes without overlap, curves the right way up."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from mmpl.media.charts import KINDS, Bar, Curve, Line, curve, duration, gantt, lines, totals
from mmpl.media.report_style import STYLE

BARS = [
    Bar("plan", "init", 1, 0.0, 1.0),
    Bar("hand-over", "", 1, 1.0, 1.5),
    Bar("populate", "fill_head", 2, 2.0, 4.0),
]
ASIDE = Bar("decode", "", 1, 1.2, 3.0)  # beside the two last


def bars_of(svg: str) -> dict[str, tuple[float, float, float]]:
    """What each bar tells -> left, width, top."""
    found = {}
    for group in ElementTree.fromstring(svg).iter("g"):
        rect, title = group.find("rect"), group.find("title")
        assert rect is not None
        assert title is not None
        left, width, top = (float(rect.get(name, "")) for name in ("x", "width", "y"))
        found[title.text or ""] = left, width, top
    return found


def test_bars_are_where_their_times_say() -> None:
    bars = bars_of(gantt([("rank 0", BARS)]))
    assert list(bars) == [
        "plan (init) of segment 1: 0.00 to 1.00 s, 1.00 s",
        "hand-over of segment 1: 1.00 to 1.50 s, 0.50 s",
        "populate (fill_head) of segment 2: 2.00 to 4.00 s, 2.00 s",
    ]
    (zero, second, top), (at_one, half, _), (at_two, two, _) = bars.values()
    assert at_one - zero == pytest.approx(second, abs=0.11)
    assert half == pytest.approx(second / 2, abs=0.11)
    assert at_two - zero == pytest.approx(2 * second, abs=0.21)
    assert two == pytest.approx(2 * second, abs=0.21)
    assert {bar[2] for bar in bars.values()} == {top}


def test_what_runs_beside_has_a_lane_of_its_own() -> None:
    apart = bars_of(gantt([("rank 0", [*BARS, ASIDE]), ("rank 1", BARS[:1])]))
    tops = [top for _, _, top in apart.values()]
    assert len(set(tops)) == 3
    for one in apart.values():
        for other in apart.values():
            if one is not other and one[2] == other[2]:
                assert one[0] + one[1] <= other[0] + 0.2 or other[0] + other[1] <= one[0] + 0.2


def test_names_are_escaped() -> None:
    svg = gantt([("<b>", BARS)])
    assert [text.text for text in ElementTree.fromstring(svg).iter("text")][0] == "<b>"


def test_every_kind_has_its_colour() -> None:
    bars = [Bar(kind, "", 1, at, at + 1.0) for at, kind in enumerate(KINDS)]
    rects = ElementTree.fromstring(gantt([("rank 0", bars)])).iter("rect")
    kinds = [rect.get("class", "").split()[-1] for rect in rects]
    assert kinds == ["row", "kind-0", "kind-1", "kind-2", "kind-3"]


@pytest.mark.parametrize("end_s", [1e-3, 0.7, 9.99, 59.0, 61.0, 3000.0, 40_000.0, 1e6])
def test_the_axis_has_a_few_round_times(end_s: float) -> None:
    svg = gantt([("rank 0", [Bar("plan", "", 1, 0.0, end_s)])])
    texts = ElementTree.fromstring(svg).iter("text")
    ticks = [text.text for text in texts if text.get("class") == "tick"]
    assert 3 <= len(ticks) <= 12
    assert len(set(ticks)) == len(ticks)


def test_nothing_done_is_no_error() -> None:
    assert bars_of(gantt([("rank 0", [])])) == {}
    assert totals([("rank 0", [])]) == {}


def test_totals_are_over_all_ranks() -> None:
    assert totals([("a", BARS), ("b", [*BARS, ASIDE])]) == pytest.approx(
        {"plan": 2.0, "populate": 4.0, "hand-over": 1.0, "decode": 1.8}
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (0.25, "0.25 s"), (12.0, "12 s"), (125.0, "2:05"), (3723.0, "1:02:03")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_curve_is_the_right_way_up_and_tells_its_numbers() -> None:
    svg = ElementTree.fromstring(curve(Curve("x", "", [0.2, 0.6, 0.4], 0.3, least=0.1)))
    first, second, third = (float(dot.get("cy", "")) for dot in svg.iter("circle"))
    assert second < third < first
    (start,) = (line for line in svg.iter("line") if line.get("class") == "start")
    assert second < third < float(start.get("y1", "")) < first
    assert [title.text for title in svg.iter("title")] == [
        f"segment {segment}: {value}, start of the film: 0.300"
        for segment, value in ((1, "0.200"), (2, "0.600"), (3, "0.400"))
    ]


def test_where_there_is_no_number_there_is_a_gap() -> None:
    svg = ElementTree.fromstring(curve(Curve("x", "", [0.1, 0.2, None, 0.4], 0.0, least=0.1)))
    assert [len((p.get("points") or "").split()) for p in svg.iter("polyline")] == [2, 1]
    assert len(list(svg.iter("circle"))) == 3
    assert "no colour" in [title.text or "" for title in svg.iter("title")][2]


def test_small_differences_look_small() -> None:
    svg = ElementTree.fromstring(curve(Curve("x", "", [0.500, 0.501], 0.5, least=0.1)))
    one, other = (float(dot.get("cy", "")) for dot in svg.iter("circle"))
    assert abs(one - other) < 3


@pytest.mark.parametrize("segments", [1, 1000])
def test_short_and_long_films(segments: int) -> None:
    values = [0.5] * segments
    svg = ElementTree.fromstring(curve(Curve("x", "", values, 0.5, least=0.1)))
    for dot in svg.iter("circle"):
        assert 40 <= float(dot.get("cx", "")) <= 310
        assert 0 <= float(dot.get("cy", "")) <= 150


def test_the_last_number_of_an_axis_ends_where_the_axis_does() -> None:
    """Centred there, half of it would be beyond the page."""
    line = Line("a", [(1.0, 0.1, 0.0, 0.2), (6.0, 0.3, 0.2, 0.4)])
    svg = ElementTree.fromstring(lines("x", "segments", [line]))
    ticks = [text for text in svg.iter("text") if "tick" in text.get("class", "").split()]
    assert [text.text for text in ticks] == ["0 segments", "3 segments", "6 segments"]
    assert ["last" in text.get("class", "").split() for text in ticks] == [False, False, True]
    after_tick = STYLE[STYLE.index("svg .tick") :]
    assert "svg .last { text-anchor: end; }" in after_tick
