"""The storyboard of a film in its job folder: a still of every keyframe, and a sheet of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mmpl.cli.shell import Console
from mmpl.errors import InputError
from mmpl.film.job import KEYFRAMES, STORYBOARD, THUMBNAILS
from mmpl.film.settings import Film
from mmpl.film.storyboard import keyframes
from mmpl.film.thumbnails import palette_of, thumbnails
from mmpl.generate import Made, Model, Planned, Store, read_plan, stills
from mmpl.layout.timeline import film_frame
from mmpl.media import durable
from mmpl.media.image import write_png, write_png_bands
from mmpl.media.storyboard import Row, SheetSize, storyboard

Pixels = NDArray[np.uint8]
_EXAMPLES = 4  # stills that the colours of thumbnails are measured by


class Sheet:
    """Writes the storyboard once, as soon as the plan of the whole film is in the store. `alive` is
    called after each still: there are many in a long film."""

    def __init__(
        self,
        model: Model,
        film: Film,
        store: Store,
        console: Console,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._model, self._film, self._store, self._console = model, film, store, console
        self.glimpses = Glimpses(model, film, store)
        self._alive = alive
        self._current = (store.folder / STORYBOARD).exists()  # of a run that was interrupted

    def see(self, planned: Planned) -> None:
        """Notes that a segment is planned, on this process, in the order of the film."""
        self._current = False
        if planned.segment == self._film.segments - 1:
            self.write()

    def write(self) -> None:
        """All of it, unless it is written. Raises InputError while some of the plan is missing."""
        if self._current:
            return
        film, folder = self._film, self._store.folder
        durable.make_folder(folder / KEYFRAMES)
        shown = keyframes(film)
        size = SheetSize(len(shown), max(map(len, shown.values())), film.height, film.width)
        title = film.prompt if len(film.script) == 1 else ""
        bands = storyboard(size, title, self._rows())
        write_png_bands(folder / STORYBOARD, bands, size.height, size.width)
        self._current = True
        self._console.say(f"  story    {folder / STORYBOARD}")
        self._console.tell("storyboard", path=str(folder / STORYBOARD))

    def _rows(self) -> Iterator[Row]:
        """The stills, each written to a file of its own on the way."""
        film, folder = self._film, self._store.folder / KEYFRAMES
        for planned in read_plan(film, self._store):
            row: list[tuple[str, Pixels]] = []
            for still in stills(self._model, film, planned):
                name = f"segment_{planned.segment + 1:04d}.frame_{still.frame:06d}.png"
                write_png(folder / name, still.pixels_HWC)
                row.append((time_code(still.frame, film.fps), still.pixels_HWC))
                self._alive()
            if row:
                yield Row(segment_label(film, planned.segment), row)


class Glimpses:
    """Thumbnails of each populated group in the job folder, as soon as its latents are final and
    long before they are decoded."""

    def __init__(self, model: Model, film: Film, store: Store) -> None:
        self._model, self._film, self._store = model, film, store
        self._planning = {task.group for task in film.work.planning}
        self._palette: Tensor | None = None

    def see(self, made: Made) -> None:
        """Draws what was made, if that is a populated group."""
        group = made.task.group
        if made.z_BCTHW is None or not group or group in self._planning:
            return
        if self._palette is None:
            self._palette = self._measured()
        if self._palette is None:
            return
        film, segment = self._film, made.task.segment
        words = [
            time_code(max(0, _frame(film, segment, latent)), film.fps)
            for latent in film.layout.group(group).frames
        ]
        pictures = thumbnails(self._palette, made.z_BCTHW)
        row = Row(segment_label(film, segment), list(zip(words, pictures, strict=True)))
        folder = self._store.folder / THUMBNAILS
        durable.make_folder(folder)
        name = f"segment_{segment + 1:04d}.{group}.png"
        size = SheetSize(1, len(pictures), *pictures.shape[1:3])
        bands = storyboard(size, f"{group}, before it is decoded", [row])
        write_png_bands(folder / name, bands, size.height, size.width)

    def _measured(self) -> Tensor | None:
        """By the first keyframes; None while they are not in the store."""
        try:
            planned = next(read_plan(self._film, self._store))
        except InputError:
            return None
        few = islice(stills(self._model, self._film, planned), _EXAMPLES)
        return palette_of([(planned.latents[still.latent], still.pixels_HWC) for still in few])


def _frame(film: Film, segment: int, latent: int) -> int:
    """The film frame that a latent frame ends with."""
    chain = film.chain
    return film_frame(chain, segment, chain.temporal_stride * latent) - film.lead


def segment_label(film: Film, segment: int) -> str:
    """Which segment it is, counted from 1, and what it shows where that changes."""
    label = f"segment {segment + 1} of {film.segments}"
    if len(film.script) > 1:
        label += f": {film.script[film.cue(segment)].prompt}"
    return label + (" (cut)" if segment in film.cuts else "")


def time_code(frame: int, fps: int) -> str:
    """1:02.37"""
    minutes, seconds = divmod(frame / fps, 60)
    return f"{int(minutes)}:{seconds:05.2f}"
