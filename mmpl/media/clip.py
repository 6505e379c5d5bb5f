"""A video to be extended, from any camera: read as frames of a film's rate and size.

Times, turns and the shape of pixels are as the file says; memory does not grow with its length.
"""

from __future__ import annotations

import math
import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from typing import cast

import av
import numpy as np
from av.error import FFmpegError
from av.sidedata.sidedata import SideData, Type
from av.video.reformatter import ColorTrc
from av.video.stream import VideoStream

from mmpl.errors import ArgumentError, InputError
from mmpl.media import source
from mmpl.media.fit import check_fit
from mmpl.media.fit import fit as fitted
from mmpl.media.image import Pixels, frame_rgb
from mmpl.media.video import frame_rate

LONGEST = 250_000  # frames, both of the file and of what it becomes: more than four hours at 16 fps
_BACKWARDS = 1  # seconds by which times may fall back: more is two recordings in one
_HDR: dict[int, str] = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}
_TURNS = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))  # anticlockwise


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    """A decoded frame, and how wide its pixels are shown, in heights of a pixel."""

    frame: av.VideoFrame
    pixel_aspect: Fraction


@dataclass(slots=True)
class Pace:
    """How far apart the frames of a file are, in seconds; 0 for a single frame."""

    shortest: Fraction = field(default_factory=Fraction)
    longest: Fraction = field(default_factory=Fraction)
    mean: Fraction = field(default_factory=Fraction)
    _gaps: int = 0

    def see(self, gap: Fraction) -> None:
        self._gaps += 1
        self.mean += (gap - self.mean) / self._gaps
        self.shortest = min(self.shortest or gap, gap)
        self.longest = max(self.longest, gap)

    @property
    def varies(self) -> bool:
        """By more than the rounding of times to milliseconds, which many files do."""
        return self.longest - self.shortest > Fraction(2, 1000)


@dataclass(frozen=True, slots=True, eq=False)
class End:
    """How many frames `read_clip` yields, the last of them, and how the file itself is paced."""

    frames: int
    last_FHWC: Pixels
    pace: Pace


def read_clip(
    path: str | os.PathLike[str], *, fps: float | Fraction, width: int, height: int, fit: str
) -> Iterator[Pixels]:
    """The frames of a video at a constant rate, HWC uint8 RGB of `width` x `height`.

    Frame n is what the video shows n / `fps` seconds after its first frame: the last frame that has
    begun by then (frames without a time follow each other at the stream's average rate). The video
    ends where its last frame does. Frames are turned upright, brought to square pixels and fitted
    (see `fit.FITS`); transparency is ignored; interlaced frames stay as they are. Where a frame is
    shown again, the same array comes again.

    Raises `ArgumentError` at the call and `InputError` on the way: for a file that is missing, no
    video, cut, damaged, of high dynamic range, too large (50 million pixels a frame) or longer than
    `LONGEST` frames.
    """
    rate = frame_rate(fps)
    check_fit(width, height, fit)
    return _fitted(_shown(path, rate), path, width, height, fit)


def read_end(
    path: str | os.PathLike[str],
    last: int,
    *,
    fps: float | Fraction,
    width: int,
    height: int,
    fit: str,
) -> End:
    """How many frames `read_clip` yields, and the last `last` of them (all, where there are
    fewer). In one pass that holds `last` decoded frames and converts no others."""
    if last < 1:
        raise ArgumentError("frames from the end of a video", got=last, wanted="1 or more")
    rate = frame_rate(fps)
    check_fit(width, height, fit)
    count, kept, pace = 0, deque[_Picture](maxlen=last), Pace()
    for picture in _shown(path, rate, pace):
        count += 1
        kept.append(picture)
    return End(count, np.stack(list(_fitted(iter(kept), path, width, height, fit))), pace)


def read_windows(
    path: str | os.PathLike[str],
    starts: Sequence[int],
    frames: int,
    *,
    fps: float | Fraction,
    width: int,
    height: int,
    fit: str,
) -> Iterator[Pixels]:
    """Of what `read_clip` yields, `frames` frames from each of `starts` on, FHWC.

    In one pass that converts no others and ends with the last window; `starts` ascend and no two
    windows overlap. Raises as `read_clip`, and `InputError` where the video ends within a window.
    """
    rate = frame_rate(fps)
    check_fit(width, height, fit)
    wanted = (
        picture
        for number, picture in enumerate(_shown(path, rate))
        if any(start <= number < start + frames for start in starts)
    )
    shown = _fitted(wanted, path, width, height, fit)
    for _ in starts:
        window = list(islice(shown, frames))
        if len(window) < frames:
            raise InputError("the video is too short", where=os.fspath(path))
        yield np.stack(window)


def _fitted(
    pictures: Iterator[_Picture],
    path: str | os.PathLike[str],
    width: int,
    height: int,
    fit: str,
) -> Iterator[Pixels]:
    before, pixels_HWC = None, np.empty(0, np.uint8)
    for picture in pictures:
        if picture is not before:
            before = picture
            try:
                full_HWC, aspect = _upright(picture, path)
            except FFmpegError as error:
                raise InputError(
                    "a frame cannot be converted",
                    where=os.fspath(path),
                    got=picture.frame.format.name,
                ) from error
            pixels_HWC = fitted(full_HWC, width, height, fit, pixel_aspect=aspect)
        yield pixels_HWC


def _shown(
    path: str | os.PathLike[str], rate: Fraction, pace: Pace | None = None
) -> Iterator[_Picture]:
    """What is shown at 0, 1 / rate, 2 / rate ... seconds; `pace` sees how the file has it."""
    # Many files round times to milliseconds; a frame that is this late is on time.
    slack = min(Fraction(1, 1000), 1 / (4 * rate))
    count, shown, before = 0, None, Fraction(0)
    for read, (time, picture) in enumerate(_timed(path)):
        if pace is not None and shown is not None and picture is not None:
            pace.see(time - before)
        before = time
        # n / rate + slack < time holds for n from 0 to this, without it.
        until = math.ceil((time - slack) * rate)
        if picture is None:
            until = max(until, 1)  # the end, but there is one frame however short
        if max(read, until) > LONGEST:
            raise InputError(
                "the video is too long",
                where=os.fspath(path),
                wanted=f"at most {LONGEST:,} frames",
                todo="cut it: only its end is gone on from",
            )
        if shown is not None:
            for _ in range(count, until):
                yield shown
            count = max(count, until)
        shown = picture


def _timed(path: str | os.PathLike[str]) -> Iterator[tuple[Fraction, _Picture | None]]:
    """The frames of a file with the seconds from the first one to each; at last the end of the
    last one, and None."""
    now = length = Fraction(0)
    origin: Fraction | None = None
    with source.open_video(path) as (container, stream):
        usual = 1 / Fraction(stream.average_rate) if stream.average_rate else Fraction(0)
        # AVI has no time of showing: those of reordered frames are guesses, and wrong for H.264.
        guessed = container.format.name == "avi"
        for frame in source.decode(container, stream, path):
            _check_range(frame, path)
            time = now + length
            stamp, unit = frame.dts if guessed else frame.pts, frame.time_base or Fraction(0)
            if stamp is not None:
                origin = stamp * unit - time if origin is None else origin
                time = stamp * unit - origin
            if time < now - _BACKWARDS:
                raise InputError(
                    "the times of the video fall back",
                    where=os.fspath(path),
                    todo="join its parts properly, or give one of them",
                )
            now, length = max(now, time), frame.duration * unit or usual
            yield now, _Picture(frame, _pixel_aspect(stream))
    yield now + length, None


def _check_range(frame: av.VideoFrame, path: str | os.PathLike[str]) -> None:
    if frame.color_trc in _HDR:
        raise InputError(
            "the video is of high dynamic range",
            where=os.fspath(path),
            got=_HDR[frame.color_trc],
            wanted="standard dynamic range",
            todo="tone-map it to BT.709 first",
        )


def _pixel_aspect(stream: VideoStream) -> Fraction:
    """The container's word before the codec's; square where neither has one."""
    for told in (stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio):
        if told is not None and told > 0:
            return Fraction(told)
    return Fraction(1)


def _upright(picture: _Picture, path: str | os.PathLike[str]) -> tuple[Pixels, Fraction]:
    """The pixels as they should be seen, HWC, and their aspect."""
    pixels_HWC, aspect = frame_rgb(picture.frame), picture.pixel_aspect
    a, b, c, d = _display_matrix(picture.frame)
    # Row vectors: (x, y) is shown at (a x + c y, b x + d y), y counted downwards.
    turned = (a, d) == (0, 0)
    if turned:
        pixels_HWC, aspect = pixels_HWC.swapaxes(0, 1), 1 / aspect
        a, d = c, b
    elif (b, c) != (0, 0):
        raise InputError(
            "the video is turned by an odd angle",
            where=os.fspath(path),
            wanted="0, 90, 180 or 270 degrees",
        )
    return pixels_HWC[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1], aspect


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """The part of the display matrix that turns and mirrors, in 1/65536."""
    try:
        parts = cast(Iterable[SideData], frame.side_data)  # which its annotation is wrong about
        found = [bytes(part) for part in parts if part.type == Type.DISPLAYMATRIX]
    except ValueError:  # a kind of side data newer than this PyAV, which still tells turns
        return _TURNS[round(frame.rotation / 90) % 4]
    if not found:
        return _TURNS[0]
    a, b, _, c, d, *_ = struct.unpack("9i", found[0])
    small = max(map(abs, (a, b, c, d))) // 64
    if small == 0:  # of no size: nonsense, which players ignore
        return _TURNS[0]
    a, b, c, d = (0 if abs(part) <= small else part for part in (a, b, c, d))
    return a, b, c, d
