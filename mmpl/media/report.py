"""A film's report as one HTML page: the film, its story, who made what when, how its look drifts.

A page to be looked at and sent on: no script, nothing from the network, light and dark. Whatever
is not known or not there is left out. All text is escaped here; sources and links are made by
`data_uri`, `inline_picture` and `link`.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from mmpl.media.charts import (
    KINDS,
    LINE_COLOURS,
    Bar,
    Curve,
    Line,
    curve,
    duration,
    gantt,
    lines,
    totals,
)
from mmpl.media.image import read_image
from mmpl.media.report_style import STYLE

_HEADING, _TAB = 160, 80  # characters of the prompt in the heading, and in the title of the page
_SMALL_BYTES, _WIDTH, _QUALITY = 48_000, 480, 85  # pictures above are reduced to JPEG
_POLICY = "script-src 'none'; object-src 'none'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, slots=True)
class Picture:
    """A still: the words under it, where its pixels come from, and the file it leads to."""

    text: str
    source: str
    link: str


@dataclass(frozen=True, slots=True)
class Report:
    """All that a report shows. `script`: (time, prompt), the first of them alone for a film of one
    prompt. `film_source` is a data URI or a link, `film_link` a link. `stills`: rows of pictures
    with a line of text each. `gantt`: see `mmpl.media.charts`, `gantt_note` says what it is of;
    `drift_note` what the curves are of. `tables`: a name for each, and what it holds. `command`
    makes the film again."""

    facts: Sequence[str]
    script: Sequence[tuple[str, str]]
    film_source: str
    film_link: str
    stills: Sequence[tuple[str, Sequence[Picture]]]
    gantt: Sequence[tuple[str, Sequence[Bar]]]
    gantt_note: str
    drift: Sequence[Curve]
    drift_note: str
    tables: Mapping[str, Mapping[str, object]]
    command: str
    version: str


@dataclass(frozen=True, slots=True)
class Measured:
    """A film by name, its curves, and all its numbers by name."""

    name: str
    curves: Sequence[Curve]
    numbers: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page of results: a note, charts of several lines each with what it is of and what
    its axis is, and a table of `rows` under `head`; `strong` is the column to be seen first."""

    heading: str
    note: str
    charts: Sequence[tuple[str, str, Sequence[Line]]] = ()
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    strong: int | None = None


def report_html(report: Report) -> str:
    """The page."""
    prompt = " ".join(report.script[0][1].split()) if report.script else ""
    body = [
        *_head(report, prompt),
        *_film(report),
        *_script(report),
        *_stills(report),
        *_gantt(report),
        *_drift(report),
        *_command(report),
        *_tables("Made with", report.tables),
    ]
    return _page(prompt, body, report.version)


def measures_html(films: Sequence[Measured], version: str) -> str:
    """A page of what was measured of films, one after the other."""
    body = ['<header><p class="eyebrow">measures of films</p>']
    heading = films[0].name if len(films) == 1 else f"{len(films)} films"
    body.append(f"<h1>{escape(heading)}</h1></header>")
    for film in films:
        body += ["<section>", f"<h2>{escape(film.name)}</h2>", *_charts(film.curves), "</section>"]
        body += _tables("Numbers", {"": film.numbers})
    return _page(heading, body, version)


def results_html(
    title: str, facts: Sequence[str], sections: Sequence[Section], version: str
) -> str:
    """A page of results of many films."""
    body = ['<header><p class="eyebrow">measures of methods</p>', f"<h1>{escape(title)}</h1>"]
    body.append(
        f'<ul class="facts">{"".join(f"<li>{escape(f)}</li>" for f in facts)}</ul></header>'
    )
    for section in sections:
        body.append(f"<section><h2>{escape(section.heading)}</h2>")
        body.append(f'<p class="note">{escape(section.note)}</p>')
        for name, along, found in section.charts:
            body.append(f"<h3>{escape(name)}</h3>")
            body.append(f'<div class="wide">{lines(name, along, found)}</div>')
            names = (
                f'<span><i class="line-{number % LINE_COLOURS}"></i>{escape(line.name)}</span>'
                for number, line in enumerate(found)
            )
            body.append(f'<div class="legend">{"".join(names)}</div>')
        body += [*_grid(section), "</section>"]
    return _page(title, body, version)


def _grid(section: Section) -> Iterator[str]:
    if not section.rows:
        return
    head = "".join(f"<th>{escape(cell)}</th>" for cell in section.head)
    yield f'<div class="wide"><table class="grid-table"><thead><tr>{head}</tr></thead><tbody>'
    for row in section.rows:
        kinds = (" class='verdict'" if n == section.strong else "" for n in range(len(row)))
        cells = (f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"


def _page(title: str, body: Sequence[str], version: str) -> str:
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(_cut(title, _TAB))}</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        "<main>",
        *body,
        f"<footer>made by mmpl {escape(version)}</footer>",
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of a MIME type as a source."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def inline_picture(path: str | os.PathLike[str]) -> str:
    """A PNG file as a source: as it is while it is small, else reduced to a JPEG.

    Raises InputError for a file that is missing or damaged.
    """
    pixels_HWC = read_image(path)  # as a check too
    data = Path(path).read_bytes()
    if len(data) <= _SMALL_BYTES:
        return data_uri(data, "image/png")
    image = Image.fromarray(pixels_HWC)
    image.thumbnail((_WIDTH, _WIDTH), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return data_uri(file.getvalue(), "image/jpeg")


def link(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> str:
    """A file as seen from a page in `folder`."""
    relative = os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
    return quote(relative.encode("utf-8", "surrogateescape"))


def _head(report: Report, prompt: str) -> Iterator[str]:
    yield '<header><p class="eyebrow">film report</p>'
    yield f"<h1>{escape(_cut(prompt, _HEADING))}</h1>"
    if report.facts:
        facts = "".join(f"<li>{escape(fact)}</li>" for fact in report.facts)
        yield f'<ul class="facts">{facts}</ul>'
    whole = report.script[0][1] if report.script else ""
    if len(report.script) == 1 and prompt != _cut(prompt, _HEADING):
        yield (
            "<details><summary>the whole prompt</summary>"
            f'<p class="whole">{escape(whole)}</p></details>'
        )
    yield "</header>"


def _film(report: Report) -> Iterator[str]:
    yield '<section class="film">'
    yield (
        f'<video controls playsinline preload="metadata" src="{escape(report.film_source)}">'
        "</video>"
    )
    yield f'<p class="note"><a href="{escape(report.film_link)}">open the film</a></p></section>'


def _script(report: Report) -> Iterator[str]:
    if len(report.script) < 2:
        return
    yield '<section><h2>Script</h2><ol class="script">'
    for moment, prompt in report.script:
        yield f"<li><time>{escape(moment)}</time><span>{escape(prompt)}</span></li>"
    yield "</ol></section>"


def _stills(report: Report) -> Iterator[str]:
    if not report.stills:
        return
    yield '<section><h2>Storyboard</h2><p class="note">The keyframes that were planned first.</p>'
    for text, pictures in report.stills:
        yield f'<h3>{escape(text)}</h3><div class="stills">'
        for picture in pictures:
            yield (
                f'<figure><a href="{escape(picture.link)}">'
                f'<img src="{escape(picture.source)}" alt="still at {escape(picture.text)}" '
                f'loading="lazy"></a><figcaption>{escape(picture.text)}</figcaption></figure>'
            )
        yield "</div>"
    yield "</section>"


def _gantt(report: Report) -> Iterator[str]:
    spent = totals(report.gantt)
    if not spent:
        return
    yield f'<section><h2>Who did what when</h2><p class="note">{escape(report.gantt_note)}</p>'
    legend = "".join(
        f'<span><i class="kind-{number}"></i>{kind} <b>{duration(spent.get(kind, 0.0))}</b></span>'
        for number, kind in enumerate(KINDS)
    )
    yield f'<div class="legend">{legend}</div><div class="wide">{gantt(report.gantt)}</div>'
    yield "</section>"


def _drift(report: Report) -> Iterator[str]:
    if not report.drift:
        return
    yield f'<section><h2>Drift</h2><p class="note">{escape(report.drift_note)}</p>'
    yield from _charts(report.drift)
    yield "</section>"


def _charts(curves: Sequence[Curve]) -> Iterator[str]:
    yield '<div class="charts">'
    for data in curves:
        last = next((value for value in reversed(data.values) if value is not None), None)
        shown = "no colour" if last is None else f"{last:.{data.digits}f}"
        if last is not None and data.start:
            shown += f"<small>{last - data.start:+.{data.digits}f}</small>"
        yield (
            f'<div><h3>{escape(data.name)}</h3><p class="figure">{shown}</p>{curve(data)}'
            f'<p class="note">{escape(data.text)}</p></div>'
        )
    yield "</div>"


def _command(report: Report) -> Iterator[str]:
    yield '<section><h2>The same film again</h2><p class="note">One click selects all of it.</p>'
    yield f"<pre><code>{escape(report.command)}</code></pre></section>"


def _tables(heading: str, tables: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    if not tables:
        return
    columns = ' class="tables"' if len(tables) > 1 else ""  # a lone table takes the whole width
    yield f"<section><h2>{escape(heading)}</h2><div{columns}>"
    for name, table in tables.items():
        yield f"<div><h3>{escape(name)}</h3><table><tbody>"
        for key, value in table.items():
            text = "–" if value in ("", None) else str(value)
            yield f"<tr><th>{escape(key)}</th><td>{escape(text)}</td></tr>"
        yield "</tbody></table></div>"
    yield "</div></section>"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"
