"""The time left, the bars and the lines, with a clock of our own."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from mmpl.checkpoint.defaults import Defaults
from mmpl.cli import progress
from mmpl.cli.progress import Lines, Meter, Progress, View, clock_time
from mmpl.cli.shell import Console
from mmpl.film.settings import Film, Request, resolve
from mmpl.generate import Event, Frames, Planned, Stepped


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def film_of(segments: int) -> Film:
    request = Request("a red circle", 1, segments=segments, steps=2)
    return resolve(request, Defaults(), temporal_stride=4, pixel_step=16)


def steps(film: Film) -> Iterator[tuple[str, int, str, int, int]]:
    """(phase, segment, group, step, frame-steps done): all steps of a film, in order."""
    done = 0
    for phase, groups_of in (("plan", film.planning), ("populate", film.populating)):
        for segment in range(film.segments):
            for group in groups_of(segment):
                if segment and group.name == "init":
                    continue
                for step in range(1, film.steps + 1):
                    done += len(group.frames)
                    yield phase, segment, group.name, step, done


def make(film: Film, meter: Meter, clock: Clock) -> Iterator[float | None]:
    """Goes through a film that takes 1 s per planned frame-step, 2 s per populated one, 0.5 s to
    decode a frame and 0.25 s to write it; yields the seconds left after every step."""
    work = [done for *_, done in steps(film)][-1]
    before = 0
    clock.now += 1000  # reading the prompt
    for phase, segment, group, step, done in steps(film):
        clock.now += (done - before) * (1 if phase == "plan" else 2)
        meter.see(Stepped(phase, segment, group, step, film.steps, done, work))
        before = done
        yield meter.left_s
        if group == "plan" and step == film.steps:
            meter.see(Planned(segment, {}))
        if group == "fill_tail" and step == film.steps:
            start, stop = film.kept(segment)
            clock.now += 0.5 * (stop - start)
            pixels = np.zeros((stop - start, 1, 1, 3), np.uint8)
            meter.see(Frames(segment, segment * film.chain.step + start, pixels))
            clock.now += 0.25 * (stop - start)
            meter.lap("write")


def test_seconds_per_phase_and_left() -> None:
    film, clock = film_of(2), Clock()
    meter = Meter(film, clock)
    assert meter.left_s is None
    left = list(make(film, meter, clock))
    planned, populated, frames = 2 * (9 + 7), 2 * 24, 157
    assert meter.seconds == {
        "plan": 1000 + planned,
        "populate": 2 * populated,
        "decode": 0.5 * frames,
        "write": 0.25 * frames,
    }
    assert left[0] is None
    assert left[1] == planned + populated - 4  # populating is taken to be as fast, so far
    assert left[-1] == 0.75 * 76  # all steps done; one segment of frames to decode and write
    assert meter.left_s == 0


def test_view_counts_segments_from_one() -> None:
    film, clock = film_of(2), Clock()
    meter = Meter(film, clock)
    steps_of_film = make(film, meter, clock)
    next(steps_of_film)
    view = meter.view()
    assert view.where == "plan segment 1 of 2, init"
    assert (view.done, view.total, view.work_done, view.elapsed_s) == (1, 2, 2, 1002.0)
    list(steps_of_film)
    view = meter.view()
    assert view.where == "decode segment 2 of 2"
    assert (view.done, view.total, view.work_done) == (76, 76, view.work)


def test_one_line_every_few_seconds() -> None:
    written: list[str] = []
    clock = Clock()
    lines = Lines(written.append, clock)
    view = View("plan", 1, 3, "init", 1, 20, 5, 50, 8.0, 75.0)
    for _ in range(30):
        clock.now += 0.5
        lines.show(view)
    assert (
        written == ["  plan segment 1 of 3, init 1/20, 10% of all steps, 0:08, about 1:15 left"] * 3
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("quiet", [False, True])
def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, quiet: bool) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    console = Console("x")
    console.quiet = quiet
    film = film_of(2)
    work = [done for *_, done in steps(film)][-1]
    with Progress(film, console) as shown:
        for phase, segment, group, step, done in steps(film):
            shown.see(Stepped(phase, segment, group, step, film.steps, done, work))
            for bar in () if quiet else shown._shown[0].__dict__.values():
                bar.refresh()
    drawn = terminal.getvalue()
    assert ("populate segment 2 of 2, fill_tail" in drawn) is not quiet
    assert ("film  0:00" in drawn) is not quiet
    assert ("100%" in drawn) is not quiet


def test_an_error_says_where_it_was() -> None:
    event: Event = Stepped("populate", 1, "fill_head", 1, 2, 50, 80)
    stop = KeyboardInterrupt()
    shown = Progress(film_of(2), Console("x"))
    shown.see(event)
    shown.__exit__(KeyboardInterrupt, stop, None)
    assert stop.__notes__ == ["at populate segment 2 of 2, fill_head"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (3723, "1:02:03")]
)
def test_clock_time(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def test_peak_memory_is_plausible() -> None:
    assert 20e6 < progress.peak_bytes() < 100e9
