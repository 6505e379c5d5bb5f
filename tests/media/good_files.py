"""The good files of `test_good_files`: how each is made, and what it must show."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmpl.media.clip import read_clip, read_end
from mmpl.media.image import Pixels
from tests.media.corpus import (
    Video,
    clear,
    drawn,
    exif,
    jpeg,
    mode,
    still,
    stored,
)


def over_white(alpha: int) -> Pixels:
    return ((drawn().astype(int) * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def grey() -> Pixels:
    return np.asarray(mode("L").convert("RGB"))


def deep() -> bytes:
    values = np.arange(512, dtype=np.uint16).reshape(16, 32) * 128
    return still("PNG", Image.fromarray(values))


def turned(kind: str, orientation: int) -> bytes:
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    picture = Image.fromarray(stored(orientation))
    return still(kind, picture, exif=exif(orientation), **options)


MORE = [Image.fromarray(drawn(5))]
# Name: how it is made, what it shows, and by how much a level may differ.
STILLS: dict[str, tuple[Callable[[], bytes], Callable[[], Pixels], int]] = {
    "png": (lambda: still("PNG"), drawn, 0),
    "png behind other bytes": (lambda: still("PNG") + b"more", drawn, 0),
    "png, best compression": (lambda: still("PNG", optimize=True), drawn, 0),
    "png grey": (lambda: still("PNG", mode("L")), grey, 0),
    "png grey and alpha": (lambda: still("PNG", mode("LA")), grey, 0),
    "png alpha": (lambda: still("PNG", clear(128)), lambda: over_white(128), 1),
    "png all clear": (lambda: still("PNG", clear(0)), lambda: over_white(0), 0),
    "png palette": (lambda: still("PNG", mode("RGB").quantize(16)), drawn, 0),
    "png palette of 2 bits": (lambda: still("PNG", mode("RGB").quantize(4), bits=2), drawn, 0),
    "png 1 bit": (
        lambda: still("PNG", mode("1")),
        lambda: np.asarray(mode("1").convert("RGB")),
        0,
    ),
    "png 16 bits": (
        deep,
        lambda: (
            np.rint(np.arange(512) * 128 / 257).astype(np.uint8).reshape(16, 32, 1).repeat(3, 2)
        ),
        1,
    ),
    "apng": (lambda: still("PNG", save_all=True, append_images=MORE), drawn, 0),
    "jpeg": (jpeg, drawn, 4),
    "jpeg 4:4:4": (lambda: jpeg(subsampling=0), drawn, 3),
    "jpeg progressive": (lambda: jpeg(progressive=True), drawn, 4),
    "jpeg with restarts": (lambda: jpeg(restart_marker_rows=1), drawn, 4),
    "jpeg of RGB": (lambda: jpeg(keep_rgb=True), drawn, 3),
    "jpeg grey": (lambda: jpeg(mode("L")), grey, 2),
    "jpeg CMYK": (lambda: jpeg(mode("CMYK")), drawn, 4),
    "jpeg before other bytes": (lambda: jpeg() + b"\0" * 500, drawn, 4),
    "mpo": (lambda: still("MPO", quality=98, save_all=True, append_images=MORE), drawn, 4),
    "webp": (lambda: still("WEBP", quality=100), drawn, 12),
    "webp lossless": (lambda: still("WEBP", lossless=True), drawn, 0),
    "webp alpha": (
        lambda: still("WEBP", clear(128), lossless=True, exact=True),
        lambda: over_white(128),
        1,
    ),
    "webp animated": (
        lambda: still("WEBP", lossless=True, save_all=True, append_images=MORE),
        drawn,
        0,
    ),
    **{
        f"{kind} orientation {o}": (lambda kind=kind, o=o: turned(kind, o), drawn, level)
        for kind, level in (("JPEG", 3), ("PNG", 0), ("WEBP", 0))
        for o in (range(1, 9) if kind == "JPEG" else (3, 5, 6))
    },
}


QUIET = {"x265-params": "log-level=none:crf=8"}
EIGHT = list(range(8))
PAL = Fraction(1, 25)
UNEVEN = (0, 30, 45, 190, 200, 370, 380, 610)  # in 1/600 s, of which one is how long the last stays
# Name: the file, the frame rate it is read at, and the number of the drawing in each frame.
VIDEOS: dict[str, tuple[Video, float | Fraction, list[int]]] = {
    "mp4": (Video(), 16, EIGHT),
    "mp4 faststart": (Video(container_options={"movflags": "+faststart"}), 16, EIGHT),
    "mp4 fragmented": (
        Video(container_options={"movflags": "frag_keyframe+empty_moov"}, options={"g": "3"}),
        16,
        EIGHT,
    ),
    "mp4 with sound": (Video(sound=True), 16, EIGHT),
    "mp4 of one frame": (Video(frames=1), 16, [0]),
    "mp4 without B-frames": (Video(options={"bf": "0"}), 16, EIGHT),
    "mp4 long group": (Video(options={"g": "250", "bf": "3"}), 16, EIGHT),
    "mp4 of key frames": (Video(options={"g": "1"}), 16, EIGHT),
    "mp4 half the rate": (Video(), 8, [0, 2, 4, 6]),
    "mp4 twice the rate": (Video(frames=3), 32, [0, 0, 1, 1, 2, 2]),
    "mp4 24 to 16": (Video(unit=Fraction(1, 24), frames=7), 16, [0, 1, 3, 4, 6]),
    "mp4 10 to 16": (Video(unit=Fraction(1, 10), frames=4), 16, [0, 0, 1, 1, 2, 3, 3]),
    "mp4 late start": (Video(times=range(100, 108)), 16, EIGHT),
    "mp4 odd size": (Video(size=(31, 17), pixel_format="yuv444p"), 16, EIGHT),
    "mp4 tall": (Video(size=(16, 48)), 16, EIGHT),
    "mp4 10 bits": (Video(pixel_format="yuv420p10le"), 16, EIGHT),
    "mp4 4:2:2": (Video(pixel_format="yuv422p"), 16, EIGHT),
    "mp4 full range": (Video(pixel_format="yuvj420p"), 16, EIGHT),
    "mp4 hevc": (Video(codec="libx265", options=QUIET), 16, EIGHT),
    "mp4 hevc 10 bits": (
        Video(codec="libx265", options=QUIET, pixel_format="yuv420p10le"),
        16,
        EIGHT,
    ),
    "mov prores": (Video("mov", "prores_ks", "yuv422p10le"), 16, EIGHT),
    "3gp h263": (
        Video("mov", "h263", size=(128, 96), unit=Fraction(1001, 30000)),
        Fraction(30000, 1001),
        EIGHT,
    ),
    "mkv h264": (Video("matroska"), 16, EIGHT),
    "mkv at 30, in milliseconds": (Video("matroska", unit=Fraction(1, 30)), 30, EIGHT),
    "mkv at 23.976": (
        Video("matroska", unit=Fraction(1001, 24000)),
        Fraction(24000, 1001),
        EIGHT,
    ),
    "mkv ffv1": (Video("matroska", "ffv1", "yuv444p"), 16, EIGHT),
    "webm vp9": (Video("webm", "libvpx-vp9", options={"crf": "10", "b": "0"}), 16, EIGHT),
    "webm vp9 alpha": (Video("webm", "libvpx-vp9", "yuva420p"), 16, EIGHT),
    "webm vp8": (Video("webm", "libvpx", options={"crf": "4", "b": "4M"}), 16, EIGHT),
    "webm, live": (Video("webm", "libvpx-vp9", container_options={"live": "1"}), 16, EIGHT),
    "avi mpeg4": (Video("avi", "mpeg4", options={"qmin": "1", "qmax": "2"}), 16, EIGHT),
    "avi mpeg4 B-frames": (
        Video("avi", "mpeg4", options={"qmin": "1", "qmax": "2", "bf": "2"}),
        16,
        EIGHT,
    ),
    "avi h264": (Video("avi"), 16, EIGHT),
    "avi mjpeg": (
        Video("avi", "mjpeg", "yuvj422p", options={"qmin": "1", "qmax": "2"}),
        16,
        EIGHT,
    ),
    "ts h264": (Video("mpegts"), 16, EIGHT),
    "ts mpeg2 interlaced": (
        Video(
            "mpegts",
            "mpeg2video",
            unit=PAL,
            options={"flags": "+ildct+ilme", "qmin": "1", "qmax": "2"},
        ),
        25,
        EIGHT,
    ),
}
# Name: the file, and how its pictures are seen.
TURNED: dict[str, tuple[Video, Callable[[Pixels], Pixels]]] = {
    "90": (Video(turn=(90, False, False)), np.rot90),
    "180": (Video(turn=(180, False, False)), lambda p: np.rot90(p, 2)),
    "270": (Video(turn=(-90, False, False)), lambda p: np.rot90(p, 3)),
    "mov 90": (Video("mov", turn=(90, False, False)), np.rot90),
    "mirrored": (Video(turn=(0, True, False)), lambda p: p[:, ::-1]),
    "upside down": (Video(turn=(0, False, True)), lambda p: p[::-1]),
    "wide pixels": (Video(aspect=Fraction(2)), lambda p: p.repeat(2, 1)),
    "narrow pixels": (Video(aspect=Fraction(1, 2)), lambda p: p.repeat(2, 0)),
    "wide pixels, mkv": (Video("matroska", aspect=Fraction(2)), lambda p: p.repeat(2, 1)),
    "wide pixels, ts": (Video("mpegts", aspect=Fraction(2)), lambda p: p.repeat(2, 1)),
    "wide pixels, turned": (
        Video(aspect=Fraction(2), turn=(90, False, False)),
        lambda p: np.rot90(p.repeat(2, 1)),
    ),
}


def read_both(path: Path, fps: float | Fraction, like: Pixels, last: int = 3) -> list[Pixels]:
    """All frames, at the size of `like`; the other way to read must agree with them."""
    height, width, _ = like.shape
    # A wrong shape would show as bars.
    wanted: dict[str, Any] = {"fps": fps, "width": width, "height": height, "fit": "letterbox"}
    frames = list(read_clip(path, **wanted))
    end = read_end(path, last, **wanted)
    assert end.frames == len(frames)
    np.testing.assert_array_equal(end.last_FHWC, np.stack(frames[-last:]))
    return frames
