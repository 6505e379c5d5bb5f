"""Small real videos whose frames tell their number by their grey."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mmpl.media.image import Pixels
from mmpl.media.video import add_stream, to_yuv

SIDE = 32
DARKEST, STEP = 10, 5  # grey of frame 0, and from one frame to the next


def greys(frames: int, width: int = SIDE, height: int = SIDE) -> Pixels:
    """FHWC; up to 48 frames can be told apart."""
    levels = (DARKEST + STEP * (np.arange(frames) % 48)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3))


def numbers(pixels_FHWC: Pixels) -> list[int]:
    """Which frames of `greys` these are."""
    means = pixels_FHWC.reshape(len(pixels_FHWC), -1).mean(axis=1)
    return [round((mean - DARKEST) / STEP) for mean in means]


def write_video(
    path: Path,
    pictures_FHWC: Pixels,
    *,
    unit: Fraction = Fraction(1, 16),
    times: Sequence[int] | None = None,
) -> Path:
    """The pictures at `times` (by default one after the other) in `unit` seconds."""
    frames, height, width, _ = pictures_FHWC.shape
    with av.open(str(path), "w") as output:
        codec = {"crf": "1", "preset": "ultrafast"}
        stream = add_stream(output, width, height, 1 / unit, codec)
        for pixels_HWC, time in zip(pictures_FHWC, times or range(frames), strict=True):
            frame = to_yuv(pixels_HWC)
            frame.pts, frame.time_base = time, unit
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path
