"""Pictures and clips that a film is made from, as the flags name them. No torch here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmpl.cli.flags import DURATION
from mmpl.cli.job import Record
from mmpl.cli.shell import printable
from mmpl.errors import ArgumentError, InputError
from mmpl.film.pictures import Pictures
from mmpl.film.pins import landing
from mmpl.film.settings import Film
from mmpl.layout.timeline import film_frame

if TYPE_CHECKING:  # takes a moment to import
    from mmpl.media.clip import End
    from mmpl.media.image import Pixels

FLAGS = ("image", "keyframe", "last_frame", "video", "fit", "only_new")
_SHOWN = ("image", "keyframe", "last_frame", "video")  # what names a file


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip that a film goes on from: its frames at the rate and size of the film."""

    path: str
    frames: int
    film: Film
    fit: str

    def read(self) -> Iterator[Pixels]:
        """The frames, one HWC after the other. Raises InputError."""
        from mmpl.media.clip import read_clip

        film = self.film
        return read_clip(
            self.path, fps=film.fps, width=film.width, height=film.height, fit=self.fit
        )


def named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that name pictures and what is done with them, as far as there are any.

    Raises ArgumentError for those that do not go together.
    """
    some = any(name in settings for name in _SHOWN)
    if "only_new" in settings and "video" not in settings:
        raise ArgumentError("--only_new means nothing without --video")
    if "image" in settings and "video" in settings:
        raise ArgumentError("a film begins once", got="--image and --video", wanted="one of them")
    return {name: settings[name] for name in FLAGS if name in settings} if some else {}


def settings_of(record: Record, given: Mapping[str, Any], *, goes_on: bool) -> dict[str, Any]:
    """The settings of a record, as far as the flags `given` leave them: other pictures replace its
    own, which are read again unless a job folder, that is gone on with, has them."""
    if named(given):
        return {n: value for n, value in record.settings.items() if n not in ("given", "lead")}
    return {**record.settings, **({} if goes_on else record.inputs)}


def require_recorded(pins: str, recorded: str | None, inputs: Mapping[str, Any]) -> None:
    """Raises InputError unless the pictures are those of the record that they are named in."""
    if recorded is not None and pins != recorded:
        raise InputError(
            "these are not all the pictures that the film was made from",
            got=", ".join(f"--{name} {value}".strip() for name, value in inputs.items()),
            todo="give others on the command line, or go on in its job folder, which keeps them",
        )


def absolute(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The flags for use from another folder."""
    moved = dict(inputs)
    for name in ("image", "last_frame", "video"):
        if name in moved:
            moved[name] = os.path.abspath(moved[name])
    if "keyframe" in moved:
        moved["keyframe"] = "\n".join(map(os.path.abspath, moved["keyframe"].splitlines()))
    return moved


def load(inputs: Mapping[str, Any], film: Film) -> tuple[Pictures, list[str]]:
    """The pictures that `inputs` name, of the size of `film`, and for people where each lands
    and how a clip is read.

    Raises InputError for a file that is no picture, ArgumentError for a moment that is none.
    """
    stills, said = [], []
    for path, frame in _moments(inputs, film):
        stills.append((frame, _still(path, inputs, film)))
        lead = film.chain.overlap if "video" in inputs else 0
        segment, latent = landing(film.chain, film.frames, lead, frame)
        own = film_frame(film.chain, segment, film.chain.temporal_stride * latent) - lead
        frame = min(own, film.frames - 1)  # the last that the latent frame shows
        said.append(
            f"{printable(path)} lands on {frame / film.fps:.3f} s, frame {frame} "
            f"(segment {segment + 1}, latent frame {latent})"
        )
    if "video" not in inputs:
        return Pictures(tuple(stills), None), said
    end = _end(inputs, film)
    if end.frames < film.chain.overlap:
        raise InputError(
            "this clip is too short to go on from",
            where=inputs["video"],
            got=f"{end.frames} frames at {film.fps} fps",
            wanted=f"at least {film.chain.overlap}",
        )
    said.append(f"{printable(inputs['video'])} is gone on from: {_pace(end, film)}")
    return Pictures(tuple(stills), end.last_FHWC), said


def clip_of(inputs: Mapping[str, Any], film: Film) -> Clip | None:
    """The clip that is to stand before the film in the output."""
    if "video" not in inputs or "only_new" in inputs:
        return None
    return Clip(inputs["video"], _end(inputs, film).frames, film, _fit(inputs))


def _moments(inputs: Mapping[str, Any], film: Film) -> Iterator[tuple[str, int]]:
    """(file, film frame) of each still."""
    if "image" in inputs:
        yield inputs["image"], 0
    for text in inputs.get("keyframe", "").splitlines():
        path, at, time = text.rpartition("@")
        try:
            seconds = DURATION["read"](time) if at and re.match(r"[\d.]", time) else -1.0
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            raise ArgumentError(
                "--keyframe has a wrong value",
                got=ascii(text)[:60],
                wanted="a picture and a time, as in still.png@12.5s",
            )
        frame = round(seconds * film.fps)
        if frame >= film.frames:
            raise ArgumentError(
                "a picture after the end of the film",
                got=ascii(text)[:60],
                wanted=f"at most {(film.frames - 1) / film.fps:g} s",
            )
        yield path, frame
    if "last_frame" in inputs:
        yield inputs["last_frame"], film.frames - 1


def _still(path: str, inputs: Mapping[str, Any], film: Film) -> Pixels:
    from mmpl.media.fit import fit  # takes a moment to import
    from mmpl.media.image import read_image

    return fit(read_image(path), film.width, film.height, _fit(inputs))


def _pace(end: End, film: Film) -> str:
    """How long a clip is, and what its own rate is where that is not the film's."""
    long = f"{end.frames / film.fps:.3f} s, {end.frames} frames at {film.fps} fps"
    pace = end.pace
    if pace.varies:
        low, high = (
            f"{float(1 / gap):.4g}" if gap else "many" for gap in (pace.longest, pace.shortest)
        )
        return f"{long}, by the times of its frames, whose rate varies from {low} to {high} fps"
    own = 1 / pace.longest if pace.longest else film.fps
    if abs(own - film.fps) < film.fps / 50:
        return long
    return f"{long}, by the times of its frames, which come at {float(own):.4g} fps"


def _end(inputs: Mapping[str, Any], film: Film) -> End:
    """The end of the clip at the film's rate: as many frames as segments overlap."""
    from mmpl.media.clip import read_end

    return read_end(
        inputs["video"],
        film.chain.overlap,
        fps=film.fps,
        width=film.width,
        height=film.height,
        fit=_fit(inputs),
    )


def _fit(inputs: Mapping[str, Any]) -> str:
    return inputs.get("fit", "cover")
