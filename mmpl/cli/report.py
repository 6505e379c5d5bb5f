"""The report of a film in its job folder: what happened while it was made, to be looked at."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mmpl import __version__
from mmpl.cli.order import Order
from mmpl.cli.shell import Console, printable
from mmpl.cli.storyboard import segment_label, time_code
from mmpl.errors import RankError
from mmpl.eval.drift import HUE_BINS, Drift, Look
from mmpl.film.exchange import gathered
from mmpl.film.job import KEYFRAMES, REPORT
from mmpl.film.script import start_s
from mmpl.film.settings import Film, steps_text
from mmpl.generate import Event, Frames, Made, Ranks, Resumed
from mmpl.layout.work import Task
from mmpl.media import durable
from mmpl.media.charts import Bar, Curve
from mmpl.media.report import Picture, Report, data_uri, inline_picture, link, report_html

INLINE_FILM = 4_000_000  # bytes of a film that is put into the page; larger ones are linked
INLINE_STILLS = 16_000_000  # the same of all stills together
_STILL = re.compile(r"segment_(\d+)\.frame_(\d+)\.png")

Times = dict[Task, tuple[float, float]]


class Notes:
    """What is known of the making of a film: when each part was made, and how each segment looks.

    Every rank follows its own events; those that end well know the times of all ranks.
    """

    def __init__(self, film: Film) -> None:
        self.drift = Drift(film.fps)
        self.times: list[Times] = []  # of each rank, in seconds of one clock
        self.done, self.tasks = 0, 0  # what earlier runs had finished
        self._film = film

    def follow(self, events: Iterator[Event], ranks: Ranks | None) -> Iterator[Event]:
        """The events, each noted as it passes."""
        own: Times = {}
        self.times = [own]
        for event in events:
            match event:
                case Made():
                    own[event.task] = event.start_s, event.stop_s
                case Frames():
                    self.drift.see(event.segment, event.pixels_FHWC)
                case Resumed():
                    self.done, self.tasks = event.done, event.tasks
            yield event
        if ranks is not None:
            self.times = _of_all(own, self._film.work.tasks, ranks)

    def bars(self) -> list[tuple[str, list[Bar]]]:
        """What each rank did, in seconds from when the first began."""
        planning = set(self._film.work.planning)
        begin = min((start for times in self.times for start, _ in times.values()), default=0.0)
        return [
            (
                f"rank {rank}",
                [
                    Bar(_kind(task, planning), task.group, task.segment + 1, a - begin, b - begin)
                    for task, (a, b) in times.items()
                ],
            )
            for rank, times in enumerate(self.times)
        ]

    def rows(self) -> list[list[dict[str, Any]]]:
        """The same as data, for programs."""
        return [[asdict(bar) for bar in bars] for _, bars in self.bars()]


def write_report(
    order: Order, notes: Notes, made_with: Mapping[str, Any], command: str, console: Console
) -> None:
    """Writes the report of a finished film into its job folder; programs are told what each process
    did when. A report that cannot be written is told, and no reason for the film to fail."""
    assert order.job_dir is not None
    console.tell("times", ranks=notes.rows())
    path = Path(order.job_dir, REPORT)
    try:
        page = report_html(_report(order, notes, made_with, command)).encode("utf-8", "replace")
        durable.put(path, lambda file: file.write(page))
    except Exception as error:  # noqa: BLE001  whatever it is
        console.warn(f"the film is whole, but there is no report of it: {error}")
    else:
        console.say(f"  report   {printable(str(path))}")


def _report(order: Order, notes: Notes, made_with: Mapping[str, Any], command: str) -> Report:
    film, folder = order.film, Path(order.job_dir or "")
    settings = {name: value for name, value in made_with["settings"].items() if name != "prompt"}
    files = {
        part: f"{file['name']}, {file['bytes'] / 1000:,.0f} kB"
        for part, file in made_with["files"].items()
    }
    first = notes.drift.first
    return Report(
        facts=_facts(film),
        script=_script(film),
        film_source=_film_source(order.output, folder),
        film_link=link(order.output, folder),
        stills=list(_stills(film, folder)),
        gantt=notes.bars(),
        gantt_note=_gantt_note(notes),
        drift=[] if first is None else _curves(first, list(notes.drift.segments().values())),
        drift_note=f"Each segment beside the first {min(film.fps, film.frames)} frames of the film "
        "(dashed): an even look stays on that line.",
        tables={
            "settings": settings,
            "model": {"model_path": order.folder.path, **made_with["model"], **files},
            "versions": made_with["versions"],
            "SHA-256 of the weights": made_with["weights"],
        },
        command=command,
        version=__version__,
    )


def _of_all(own: Times, tasks: tuple[Task, ...], ranks: Ranks) -> list[Times]:
    """The times of every rank, on the clock that machines share; the own alone if a rank is gone:
    the film is made by then."""
    offset = time.time() - time.monotonic()
    none = (math.nan, math.nan)
    rows = [own.get(task, none) for task in tasks]
    try:
        found = gathered(
            torch.tensor(rows, dtype=torch.float64) + offset, ranks.group, on_wait=ranks.on_wait
        )
    except RankError:
        return [own]
    return [
        {
            task: (start, stop)
            for task, (start, stop) in zip(tasks, times.tolist(), strict=True)
            if not math.isnan(start)
        }
        for times in found
    ]


def _kind(task: Task, planning: set[Task]) -> str:
    """What a task is called in the chart."""
    if task.kind == "make":
        return "plan" if task in planning else "populate"
    return task.kind.replace("_", "-")


def _facts(film: Film) -> list[str]:
    segments = f"{film.segments} segment{'' if film.segments == 1 else 's'}"
    return [
        f"{film.frames / film.fps:.2f} s",
        f"{film.frames} frames at {film.fps} fps",
        f"{film.width} × {film.height}",
        segments,
        f"seed {film.seed}",
        steps_text(film.steps, film.populate_steps),
    ]


def _script(film: Film) -> list[tuple[str, str]]:
    prompts = {cue.segment: cue.prompt for cue in film.script}
    script = []
    for segment in sorted({*prompts, *film.cuts}):
        moment = round(start_s(segment, film.chain, film.made_frames, film.fps) * film.fps)
        what = prompts.get(segment, "") + (" (cut)" if segment in film.cuts else "")
        script.append((time_code(moment, film.fps), what.strip()))
    return script


def _film_source(output: str, folder: Path) -> str:
    path = Path(output)
    if path.stat().st_size > INLINE_FILM:
        return link(path, folder)
    return data_uri(path.read_bytes(), "video/mp4")


def _stills(film: Film, folder: Path) -> Iterator[tuple[str, list[Picture]]]:
    """The keyframes in the folder, segment by segment; once too many bytes are in the page, the
    rest are links."""
    left = INLINE_STILLS
    rows: dict[int, list[Picture]] = {}
    for path in sorted((folder / KEYFRAMES).glob("segment_*.png")):
        name = _STILL.fullmatch(path.name)
        if name is None:
            continue
        segment, frame = map(int, name.groups())
        if not (1 <= segment <= film.segments and frame < film.frames):
            continue  # of somebody else
        there = link(path, folder)
        source = inline_picture(path) if left > 0 else there
        left -= len(source)
        rows.setdefault(segment, []).append(Picture(time_code(frame, film.fps), source, there))
    for segment, pictures in sorted(rows.items()):
        yield segment_label(film, segment - 1), pictures


def _gantt_note(notes: Notes) -> str:
    note = (
        "Measured. A number is the segment; decoding takes in writing the frames; gaps are the "
        "drawing of the storyboard, or waiting."
    )
    if notes.done:
        note += f" {notes.done} of {notes.tasks} parts were finished before this run."
    return note


def _curves(first: Look, looks: list[Look]) -> list[Curve]:
    return [
        Curve(
            "Hue",
            f"L1 between the histograms of hues ({HUE_BINS} bins, by chroma): "
            "0 alike, 2 nothing in common.",
            [look.hue_l1 for look in looks],
            start=0.0,
            least=0.2,
        ),
        Curve(
            "Brightness",
            "Mean luma, 0 black to 1 white.",
            [look.brightness for look in looks],
            start=first.brightness,
            least=0.1,
        ),
        Curve(
            "Saturation",
            "Mean saturation, 0 grey to 1 pure colours.",
            [look.saturation for look in looks],
            start=first.saturation,
            least=0.1,
        ),
    ]
