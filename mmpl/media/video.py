"""Films as mp4 files: written frame by frame, read back, and checked by decoding.

H.264, yuv420p, BT.709 in its values and in its tags, the settings as JSON in the `comment` tag.
Pixels are FHWC uint8 RGB. Knows nothing of models.
"""

import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.container import OutputContainer
from av.error import FFmpegError
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream

from mmpl.errors import ArgumentError, InputError, OutputError
from mmpl.media import durable
from mmpl.media.image import EXACT, MAX_PIXELS, Pixels, frame_rgb
from mmpl.media.source import decode, open_video

_MAX_SIDE = 16384  # of the x264 encoder
_MAX_FPS = 1000
_CRF_RANGE = (1, 51)  # 0 is lossless, in a profile that most players refuse
# x264's weighing of frames (mbtree) reads memory nobody wrote in its AVX-512 form, and the same
# frames are then encoded otherwise each time. This form gives the same bytes each time, at 1.1
# times the time; its instructions are those of x86-64-v2, of about 2011.
_SAME_BYTES = {"x264-params": "asm=MMX2,SSE2Fast,SSSE3,SSE42"}
_X86 = ("x86_64", "AMD64")


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video file really holds. `frames` are those that decode; `bt709` says that the
    matrix, the primaries and the transfer curve are all tagged BT.709, with limited range."""

    frames: int
    width: int
    height: int
    fps: Fraction
    codec: str
    pixel_format: str
    bt709: bool


def check_size(width: int, height: int) -> None:
    """Raise `ArgumentError` unless a film of this size can be encoded and read back: width and
    height even, 2 to 16384, and at most 50 million pixels together."""
    legal = all(2 <= side <= _MAX_SIDE and side % 2 == 0 for side in (width, height))
    if legal and width * height <= MAX_PIXELS:
        return
    near_width, near_height = (min(max(2, side - side % 2), _MAX_SIDE) for side in (width, height))
    raise ArgumentError(
        "size of the film",
        got=f"{width}x{height}",
        wanted=f"even width and height from 2 to {_MAX_SIDE}, at most {MAX_PIXELS:,} pixels",
        todo=f"try {near_width}x{near_height}" if near_width * near_height <= MAX_PIXELS else "",
    )


class VideoWriter:
    """`with VideoWriter(path, width, height, fps) as writer: writer.write(frames_FHWC)`, any
    number of times. Memory does not grow with the length.

    When the block ends, the file is finished under a temporary name, decoded again to see that
    all frames are there, made durable and renamed to `path`, in place of any file there. When the
    block raises, nothing remains and what was at `path` is unchanged. The same frames and settings
    give the same bytes, however they are divided among calls.

    `fps` in frames per second; `crf` is x264's quality, lower is better; `metadata` is anything
    JSON can hold and is stored in the file; `threads` of the encoder change the bytes.
    Raises `ArgumentError` at construction, `OutputError` later.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        width: int,
        height: int,
        fps: float | Fraction,
        *,
        crf: float = 17,
        metadata: Mapping[str, Any] | None = None,
        threads: int = 1,
    ) -> None:
        check_size(width, height)
        if not _CRF_RANGE[0] <= crf <= _CRF_RANGE[1]:
            raise ArgumentError("crf", got=crf, wanted=f"{_CRF_RANGE[0]} to {_CRF_RANGE[1]}")
        if threads < 1:
            raise ArgumentError("encoder threads", got=threads, wanted="1 or more")
        self.path, self.width, self.height = os.fspath(path), width, height
        self.frames = 0
        self._rate = frame_rate(fps)
        self._crf, self._threads = crf, threads
        self._comment = None if metadata is None else _to_json(metadata)

    def __enter__(self) -> Self:
        self._pending = durable.begin(self.path)
        try:
            with output_errors(self.path):
                self._container = av.open(
                    f"file:{self._pending.temporary}",
                    "w",
                    format="mp4",
                    options={"movflags": "+faststart"},
                )
                if self._comment is not None:
                    self._container.metadata["comment"] = self._comment
                options = {"crf": f"{self._crf}"}
                self._stream = add_stream(
                    self._container, self.width, self.height, self._rate, options, self._threads
                )
        except BaseException:
            durable.discard(self._pending)
            raise
        return self

    def write(self, frames_FHWC: Pixels) -> None:
        """Append frames, FHWC uint8 RGB of the film's size. Raises `ArgumentError` for another
        shape or type, and `OutputError`."""
        wanted = (self.height, self.width, 3)
        if frames_FHWC.dtype != np.uint8 or frames_FHWC.shape[1:] != wanted:
            raise ArgumentError(
                "frames of the film",
                got=f"{frames_FHWC.dtype} {frames_FHWC.shape}",
                wanted=f"uint8 (any number, {self.height}, {self.width}, 3)",
            )
        for pixels_HWC in frames_FHWC:
            frame = to_yuv(pixels_HWC)
            frame.pts, frame.time_base = self.frames, 1 / self._rate
            with output_errors(self.path):
                self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            # Both do nothing after success; on failure the first error is the one to report. The
            # name goes first, so that closing cannot start to rearrange a long film for nothing.
            durable.discard(self._pending)
            with suppress(FFmpegError, OSError):
                self._container.close()

    def _finish(self) -> None:
        if self.frames == 0:
            raise OutputError("no frames were written", where=self.path)
        with output_errors(self.path):
            self._container.mux(self._stream.encode(None))
            self._container.close()
        # libav does not report a failure of its last write, so only reading back can tell.
        _verify(self._pending.temporary, self.frames, self.width, self.height, self.path)
        durable.commit(self._pending)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings stored in a film by `VideoWriter`. Raises `InputError` where the file is no
    video or holds none."""
    with open_video(path) as (container, _):
        comment = container.metadata.get("comment", "")
    try:
        metadata = json.loads(comment)
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise InputError(
            "no settings in this file", where=os.fspath(path), wanted="a film made by this program"
        )
    return metadata


def iter_frames(path: str | os.PathLike[str]) -> Iterator[Pixels]:
    """The frames of a video one by one, HWC uint8 RGB, by the file's own colour tags (BT.709
    where it has none). Rotation tags are not applied. Raises `InputError`, also on the way, for a
    file that is missing, no video, cut or damaged."""
    with open_video(path) as (container, stream):
        for frame in decode(container, stream, path):
            yield frame_rgb(frame)


def read_frames(path: str | os.PathLike[str]) -> Pixels:
    """All frames of a video, FHWC uint8 RGB; see `iter_frames`."""
    return np.stack(list(iter_frames(path)))


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """What a video holds, found by decoding all of it. Raises `InputError`."""
    with open_video(path) as (container, stream):
        frames, sizes = 0, set()
        for frame in decode(container, stream, path):
            frames += 1
            sizes.add((frame.width, frame.height))
        if len(sizes) != 1:
            raise InputError("the size changes on the way", where=os.fspath(path), got=sizes)
        width, height = sizes.pop()
        decoder, rate = stream.codec_context, stream.average_rate
        tags = (decoder.colorspace, decoder.color_primaries, decoder.color_trc, decoder.color_range)
        wanted = (Colorspace.ITU709, ColorPrimaries.BT709, ColorTrc.BT709, ColorRange.MPEG)
        return VideoInfo(
            frames=frames,
            width=width,
            height=height,
            fps=Fraction(rate.numerator, rate.denominator) if rate else Fraction(0),
            codec=decoder.name,
            pixel_format=decoder.pix_fmt or "",
            bt709=tags == wanted,
        )


def probe_rate(path: str | os.PathLike[str]) -> Fraction:
    """The average frame rate that a video states. Raises `InputError` where it is no video or
    states none."""
    with open_video(path) as (_, stream):
        rate = stream.average_rate
    if not rate:
        raise InputError("the video states no frame rate", where=os.fspath(path))
    return Fraction(rate.numerator, rate.denominator)


def verify(path: str | os.PathLike[str], frames: int, width: int, height: int) -> None:
    """Raise `OutputError` unless the file decodes to exactly these frames of this size."""
    _verify(path, frames, width, height, os.fspath(path))


def _verify(path: str | os.PathLike[str], frames: int, width: int, height: int, shown: str) -> None:
    wanted = f"{frames} frames of {width}x{height}"
    todo = "check the disk and run again"
    try:
        info = probe(path)
    except InputError as error:
        raise OutputError(
            f"the film does not read back ({error.what})", where=shown, wanted=wanted, todo=todo
        ) from error
    if (info.frames, info.width, info.height) != (frames, width, height):
        got = f"{info.frames} frames of {info.width}x{info.height}"
        raise OutputError(
            "the film is not what was promised", where=shown, got=got, wanted=wanted, todo=todo
        )


def frame_rate(fps: float | Fraction) -> Fraction:
    """Frames per second as a film has them. Raises `ArgumentError` unless above 0, at most 1000."""
    if math.isfinite(fps):
        rate = Fraction(fps).limit_denominator(1001)  # 30000/1001 is the finest in use
        if 0 < rate <= _MAX_FPS:
            return rate
    raise ArgumentError("fps", got=fps, wanted=f"above 0, at most {_MAX_FPS}")


def _to_json(metadata: Mapping[str, Any]) -> str:
    try:
        # Plain ASCII: prompts may hold characters that a metadata tag cannot.
        return json.dumps(dict(metadata), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"metadata cannot be written as JSON: {error}") from error


def add_stream(
    container: OutputContainer,
    width: int,
    height: int,
    rate: Fraction,
    options: dict[str, str],
    threads: int = 1,
) -> VideoStream:
    """A stream of H.264, yuv420p and BT.709; `options` are x264's."""
    if platform.machine() in _X86:
        options = _SAME_BYTES | options
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    encoder = stream.codec_context
    encoder.thread_count = threads
    encoder.time_base = 1 / rate
    encoder.colorspace = Colorspace.ITU709
    encoder.color_primaries = ColorPrimaries.BT709
    encoder.color_trc = ColorTrc.BT709
    encoder.color_range = ColorRange.MPEG
    return stream


def to_yuv(pixels_HWC: Pixels) -> av.VideoFrame:
    """HWC uint8 RGB as yuv420p with the values of BT.709."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HWC), format="rgb24")
    return frame.reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,  # the default would be the values of BT.601
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
        interpolation=EXACT,
        threads=1,
    )


@contextmanager
def output_errors(path: str) -> Iterator[None]:
    """Turn what libav raises while writing into `OutputError`."""
    try:
        yield
    except OSError as error:  # most libav errors with an errno are OSErrors as well
        raise durable.output_error(path, error) from error
    except FFmpegError as error:
        raise OutputError(f"cannot write: {error.strerror}", where=path) from error
