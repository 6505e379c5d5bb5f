"""A film that can be watched while it grows: mp4 in fragments, each frame on the disk at once.

Made for a player at the same time, not to be kept: no checks, no durable name.
"""

from __future__ import annotations

import os
from contextlib import suppress
from fractions import Fraction
from typing import Self

import av
from av.error import FFmpegError

from mmpl.media.image import Pixels
from mmpl.media.video import add_stream, frame_rate, output_errors, to_yuv


class PreviewWriter:
    """`with PreviewWriter(path, width, height, fps) as preview: preview.write(frames_FHWC)`.

    After each `write` the file at `path` holds all frames but the last one, whose end nobody knows
    yet, and any player can open it. What was at `path` is replaced at once. Raises `OutputError`.
    """

    def __init__(
        self, path: str | os.PathLike[str], width: int, height: int, fps: float | Fraction
    ) -> None:
        self.path, self.width, self.height = os.fspath(path), width, height
        self._rate, self._frames = frame_rate(fps), 0

    def __enter__(self) -> Self:
        with output_errors(self.path):
            self._container = av.open(
                f"file:{self.path}",
                "w",
                format="mp4",
                options={
                    "movflags": "+frag_every_frame+empty_moov+default_base_moof",
                    "flush_packets": "1",
                },
            )
            quick = {"preset": "veryfast", "tune": "zerolatency"}
            self._stream = add_stream(self._container, self.width, self.height, self._rate, quick)
            self._container.start_encoding()  # opens the file and writes its header
        return self

    def write(self, frames_FHWC: Pixels) -> None:
        """Append frames, FHWC uint8 RGB of the film's size."""
        for pixels_HWC in frames_FHWC:
            frame = to_yuv(pixels_HWC)
            frame.pts, frame.time_base = self._frames, 1 / self._rate
            with output_errors(self.path):
                self._container.mux(self._stream.encode(frame))
            self._frames += 1

    def __exit__(self, *_: object) -> None:
        with suppress(FFmpegError, OSError):
            self._container.close()
