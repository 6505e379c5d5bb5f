"""What mmpl-gen shows of a film being made: header, progress with the time left, summary.

Follows the events of `mmpl.generate`; makes nothing itself.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from mmpl import __version__
from mmpl.cli.shell import Console, printable
from mmpl.film.script import start_s
from mmpl.film.settings import Film, steps_text
from mmpl.generate import Event, Frames, Model, Planned, Stepped

PHASES: tuple[str, ...] = ("plan", "populate", "decode", "write")
LINE_EVERY_S = 5.0  # where there is no terminal to draw bars on
_TOLD_EVERY_S = 0.2
_MB = 1e6


@dataclass(frozen=True, slots=True)
class View:
    """One moment of the making. `segment` counts from 1; `left_s` is None while unknown."""

    phase: str
    segment: int
    segments: int
    part: str
    done: int
    total: int
    work_done: int
    work: int
    elapsed_s: float
    left_s: float | None

    @property
    def where(self) -> str:
        """The phase, the segment, and the group where that says more than the phase."""
        group = "" if self.part in ("", self.phase) else f", {self.part}"
        return f"{self.phase} segment {self.segment} of {self.segments}{group}"

    @property
    def times(self) -> str:
        left = "" if self.left_s is None else f", about {clock_time(self.left_s)} left"
        return f"{clock_time(self.elapsed_s)}{left}"


class Meter:
    """Seconds spent in each phase, and from them the seconds left of the whole film.

    Each phase goes at its own rate. Populating is taken to go at the rate of planning, and
    decoding to take no time, until they have begun. The first step does not count for the rate:
    reading the prompt and warming up are in its time.
    """

    def __init__(self, film: Film, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._film, self._clock = film, clock
        self._start = self._last = clock()
        self._steps = dict.fromkeys(PHASES, 0)  # frame-steps done of plan and populate
        self._first: dict[str, tuple[int, float]] = {}  # the first step's, and its seconds
        self._work_done = self._work = self._frames = 0
        self._phase, self._segment = "plan", 0
        self._group, self._step, self._total = "", 0, 0

    def see(self, event: Event) -> None:
        """Counts the time since the last event as spent on this one."""
        match event:
            case Stepped():
                self._phase, self._segment, self._group = event.phase, event.segment, event.group
                self._step, self._total = event.step, event.steps
                self._steps[event.phase] += event.work_done - self._work_done
                self._work_done, self._work = event.work_done, event.work
                self.lap(event.phase)
                if not self._first:
                    self._first[event.phase] = event.work_done, self.seconds[event.phase]
            case Planned():
                self.lap("plan")
            case Frames():
                start, stop = self._film.kept(event.segment)
                first = event.first_frame - self._film.first_frame(event.segment)
                self._segment, self._group = event.segment, "decode"
                self._step, self._total = first + len(event.pixels_FHWC), stop - start
                self._frames += len(event.pixels_FHWC)
                self.lap("decode")

    def lap(self, phase: str) -> None:
        """Counts the time since the last lap as spent on `phase`."""
        now = self._clock()
        self.seconds[phase] += now - self._last
        self._last = now

    @property
    def left_s(self) -> float | None:
        first_steps, first_seconds = self._first.get(self._phase, (0, 0.0))
        steps = self._steps[self._phase] - first_steps
        if not steps:
            return None
        rate = (self.seconds[self._phase] - first_seconds) / steps
        left = (self._work - self._work_done) * rate
        if self._frames:
            spent = self.seconds["decode"] + self.seconds["write"]
            left += (self._film.frames - self._frames) * spent / self._frames
        return left

    @property
    def watch_in_s(self) -> float | None:
        """In how many seconds to begin to watch, so that the rest is always there in time;
        segments are taken to come evenly."""
        if self.left_s is None:
            return None
        film = self._film
        return max(0.0, self.left_s - film.first_frame(film.segments - 1) / film.fps)

    def view(self) -> View:
        return View(
            phase="decode" if self._group == "decode" else self._phase,
            segment=self._segment + 1,
            segments=self._film.segments,
            part=self._group,
            done=self._step,
            total=self._total,
            work_done=self._work_done,
            work=self._work,
            elapsed_s=self._last - self._start,
            left_s=self.left_s,
        )


class Bars:
    """Two bars on a terminal: the whole film, and the steps or frames in hand."""

    def __init__(self) -> None:
        options: dict[str, Any] = {
            "file": sys.stderr, "leave": False, "dynamic_ncols": True, "miniters": 0
        }  # fmt: skip
        self._film = tqdm(bar_format="{desc} |{bar}| {percentage:3.0f}%", total=1, **options)
        self._part = tqdm(bar_format="{desc} |{bar}| {n_fmt}/{total_fmt}", position=1, **options)

    def show(self, view: View) -> None:
        texts = (f"film  {view.times}", view.where)
        width = max(map(len, texts))
        for bar, text, done, total in (
            (self._film, texts[0], view.work_done, view.work),
            (self._part, texts[1], view.done, view.total),
        ):
            bar.total = total
            bar.set_description_str(text.ljust(width), refresh=False)
            bar.update(done - bar.n)

    def close(self) -> None:
        self._part.close()
        self._film.close()


class Lines:
    """One line every few seconds: for logs, and where stderr is no terminal."""

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._clock = write, clock
        self._last = clock()

    def show(self, view: View) -> None:
        if self._clock() - self._last < LINE_EVERY_S:
            return
        self._last = self._clock()
        share = 100 * view.work_done // max(1, view.work)
        self._write(f"  {view.where} {view.done}/{view.total}, {share}% of all steps, {view.times}")

    def close(self) -> None:
        pass


class Told:
    """The views as events for programs, a few a second."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._last = -_TOLD_EVERY_S

    def show(self, view: View) -> None:
        if self._clock() - self._last >= _TOLD_EVERY_S:
            self._last = self._clock()
            self._console.tell("progress", **asdict(view))

    def close(self) -> None:
        pass


class Progress:
    """`with Progress(film, console) as progress:` shows each event that `see` is given."""

    def __init__(self, film: Film, console: Console) -> None:
        self.meter = Meter(film)
        on_terminal = sys.stderr is not None and sys.stderr.isatty() and not console.quiet
        # The log gets lines in any case; `say` writes to the log as well.
        self._shown: tuple[Bars | Lines | Told, ...] = (Lines(console.say),)
        if console.as_json:
            self._shown = Told(console), Lines(console.log)
        elif on_terminal:
            self._shown = Bars(), Lines(console.log)

    def see(self, event: Event) -> None:
        self.meter.see(event)
        if isinstance(event, Stepped | Frames):
            for shown in self._shown:
                shown.show(self.meter.view())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for shown in self._shown:
            shown.close()
        if error is not None:
            error.add_note(f"at {self.meter.view().where}")


def header(
    film: Film, model: Model, engine: Mapping[str, Any], *, source: str, ranks: int = 1
) -> str:
    """What will be made, by what. `engine`: the machine's settings that were taken."""
    dit = model.dit_config
    held = "" if engine["quantize"] == "none" else f" in {engine['quantize']}"
    rows = {
        "model": f"{source}, transformer of {dit.num_layers} layers, {dit.dim} wide",
        "machine": f"{engine['device']}, {engine['dtype']}{held}, {engine['attention']} attention, "
        + ("compiled, " if engine["compile"] == "yes" else "")
        + (f"frames in {engine['vae_dtype']}, " if engine["vae_dtype"] != "float32" else "")
        + _counted(engine["threads"], "thread")
        + (f", {ranks} processes with as much each" if ranks > 1 else ""),
        "film": f"{film.frames} frames of {film.width}x{film.height} at {film.fps} fps "
        f"({film.frames / film.fps:.2f} s) in {_counted(film.segments, 'segment')}",
        "planning": f"{film.layout.name}, {film.seeding} seeding, noise {film.noise}",
        "sampling": f"{film.solver}, {steps_text(film.steps, film.populate_steps)}, "
        f"shift {film.shift:g}, guidance {film.guidance_scale:g}",
        "seed": str(film.seed),
    }
    lines = [f"mmpl {__version__}", *(f"  {name:9}{text}" for name, text in rows.items())]
    lines[2:2] = [f"  lora     {line}" for merge in model.loras for line in merge.lines()]
    return "\n".join(map(printable, [*lines, *_script(film)]))


def _script(film: Film) -> Iterator[str]:
    """What the film shows when, and its cuts."""
    if len(film.script) == 1 and not film.cuts:
        yield f"  prompt   {film.prompt[:500]}"
        return
    prompts = {cue.segment: cue.prompt for cue in film.script}
    for segment in sorted({*prompts, *film.cuts}):
        at_s = start_s(segment, film.chain, film.made_frames, film.fps)
        what = prompts.get(segment, "")[:500] + (" (cut)" if segment in film.cuts else "")
        yield f"  {at_s:7.2f} s {what.strip()}"


def summary(
    seconds: Mapping[str, float], *, bytes_written: int, gpu_bytes: int | None, command: str
) -> str:
    """Where the time and the memory went, and how to make the film again. `seconds` per phase."""
    spent = ", ".join(f"{phase} {value:.1f}" for phase, value in seconds.items())
    memory = f"{peak_bytes() / _MB:.0f} MB"
    if gpu_bytes is not None:
        memory += f", {gpu_bytes / _MB:.0f} MB on the GPU"
    rows = {
        "seconds": f"{spent}, together {sum(seconds.values()):.1f}",
        "memory": f"{memory} at most",
        "file": f"{bytes_written / 1000:.0f} kB, decoded again and whole",
        "again": command,
    }
    return "\n".join(f"  {name:9}{text}" for name, text in rows.items())


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def clock_time(seconds: float) -> str:
    """0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
