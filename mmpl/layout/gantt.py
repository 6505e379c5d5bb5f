"""A timeline as a Gantt chart: text for terminals, SVG for people. One row a team."""

from __future__ import annotations

from html import escape

from mmpl.layout.simulate import Span, Timeline

WAITING = "."
_ROW, _LABEL, _WIDTH = 34, 70, 1000  # pixels
_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#72b7b2", "#e45756", "#b279a2", "#9d755d", "#bab0ac")


def gantt_text(timeline: Timeline, *, width: int = 100) -> str:
    """Two lines a team: what it does, a letter each, and below on which segment, from 1, modulo
    10. A cell shows what runs in its middle; a point is waiting."""
    letters = _letters(timeline)
    end = timeline.makespan_s or 1.0
    lines = []
    for team, spans in enumerate(timeline.spans):
        shown = [_at(spans, (cell + 0.5) * end / width) for cell in range(width)]
        does = "".join(WAITING if s is None else letters[_name(s)] for s in shown)
        where = "".join(" " if s is None else str((s.operation.segment + 1) % 10) for s in shown)
        lines += [f"{team:3d} {does}", f"    {where}".rstrip()]
    axis = f"0 s{f'{end:.6g} s':>{width - 3}}"
    legend = ", ".join(f"{letter} {name}" for name, letter in letters.items())
    return "\n".join([*lines, f"    {axis}", f"    {legend}, {WAITING} waiting"])


def gantt_svg(timeline: Timeline) -> str:
    """The chart as an SVG document; every bar tells its segment, and its times when pointed at."""
    names = list(_letters(timeline))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    scale = (_WIDTH - _LABEL - 10) / (timeline.makespan_s or 1.0)
    parts = []
    for team, spans in enumerate(timeline.spans):
        top = 10 + team * _ROW
        parts.append(f'<text x="4" y="{top + 18}">team {team}</text>')
        for span in filter(_works, spans):
            left, wide = _LABEL + span.start_s * scale, (span.stop_s - span.start_s) * scale
            says = (
                f"{_name(span)} of segment {span.operation.segment + 1}, "
                f"{span.start_s:.2f} to {span.stop_s:.2f} s"
            )
            parts.append(
                f'<g><rect x="{left:.1f}" y="{top}" width="{wide:.1f}" height="{_ROW - 8}" '
                f'fill="{colours[_name(span)]}" stroke="white" stroke-width="0.5"/>'
                f"<title>{escape(says)}</title>"
                + (
                    f'<text x="{left + 3:.1f}" y="{top + 17}" fill="white">'
                    f"{span.operation.segment + 1}</text>"
                    if wide > 16
                    else ""
                )
                + "</g>"
            )
    bottom = 10 + len(timeline.spans) * _ROW + 14
    for index, name in enumerate(names):
        left = _LABEL + 120 * index
        parts.append(
            f'<rect x="{left}" y="{bottom - 10}" width="12" height="12" fill="{colours[name]}"/>'
            f'<text x="{left + 17}" y="{bottom}">{escape(name)}</text>'
        )
    parts.append(f'<text x="4" y="{bottom}">{timeline.makespan_s:.6g} s</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{bottom + 10}" '
        'font-family="sans-serif" font-size="12">\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _works(span: Span) -> bool:
    return span.operation.kind not in ("send", "receive") and span.stop_s > span.start_s


def _name(span: Span) -> str:
    return span.operation.group or span.operation.kind


def _letters(timeline: Timeline) -> dict[str, str]:
    """A letter of its own for everything that some team does, out of its name where it can be."""
    letters: dict[str, str] = {}
    for name in dict.fromkeys(_name(s) for spans in timeline.spans for s in spans if _works(s)):
        # The part after an underscore tells groups of one kind apart: head and tail.
        choice = name.rpartition("_")[2] + name + "abcdefghijklmnopqrstuvwxyz"
        free = [c for c in choice if c not in letters.values() and c != WAITING]
        letters[name] = free[0]
    return letters


def _at(spans: tuple[Span, ...], moment_s: float) -> Span | None:
    """What a team does at a moment; what runs aside is hidden by what it runs beside."""
    running = [s for s in spans if _works(s) and s.start_s <= moment_s < s.stop_s]
    return max(running, key=lambda span: span.operation.kind == "make", default=None)
