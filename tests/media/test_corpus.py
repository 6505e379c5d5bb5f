"""Over a hundred files as they come from the world. The good ones hold what was drawn into them;
each bad one is one line of `InputError`, soon, and in little memory."""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from PIL import Image

import mmpl
from mmpl.errors import ArgumentError, InputError
from mmpl.media import clip, source
from mmpl.media.clip import read_clip, read_end
from mmpl.media.fit import FITS, fit
from mmpl.media.image import Pixels, read_image
from tests.media.corpus import (
    HEIGHT,
    WIDTH,
    Video,
    clear,
    differ,
    drawn,
    enlarged_mpeg2,
    exif,
    jpeg,
    jpeg_of,
    mode,
    motion_jpeg,
    png_of,
    sound,
    still,
    stored,
    subtitles,
    webp_of,
)

# ------------------------------------------------------------------------------- good stills


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


@pytest.mark.parametrize("name", STILLS)
def test_a_good_still_shows_what_was_drawn(tmp_path: Path, name: str):
    make, wanted, level = STILLS[name]
    path = tmp_path / "still.txt"  # names mean nothing
    path.write_bytes(make())
    assert differ(read_image(path), wanted()) <= level


# ------------------------------------------------------------------------------- good videos

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


@pytest.mark.parametrize(
    ("video", "fps", "varies"),
    [
        (Video(), (16, 16), False),
        (Video("matroska", unit=Fraction(1, 30)), (29, 31), False),  # in milliseconds
        (Video(unit=Fraction(1, 100), times=(0, 10, 20, 24, 34, 44, 54, 64)), (10, 25), True),
        (Video(frames=1), None, False),
    ],
)
def test_how_a_file_is_paced(
    tmp_path: Path, video: Video, fps: tuple[float, float] | None, varies: bool
):
    path = tmp_path / "video"
    path.write_bytes(video.encode())
    pace = read_end(path, 5, fps=16, width=WIDTH, height=HEIGHT, fit="cover").pace
    assert pace.varies is varies
    if fps is None:
        assert pace.longest == 0
    else:
        assert fps[0] <= 1 / pace.longest <= 1 / pace.shortest <= fps[1]


@pytest.mark.parametrize("name", VIDEOS)
def test_a_good_video_shows_what_was_drawn(tmp_path: Path, name: str):
    video, fps, numbers = VIDEOS[name]
    path = tmp_path / "video.txt"
    path.write_bytes(video.encode())
    wanted = [drawn(number, *video.size) for number in numbers]
    frames = read_both(path, fps, wanted[0])
    assert len(frames) == len(wanted)
    assert max(map(differ, frames, wanted)) <= 16 + 4 * (video.codec == "libvpx")


@pytest.mark.parametrize("name", TURNED)
def test_a_video_is_seen_upright_and_undistorted(tmp_path: Path, name: str):
    video, seen = TURNED[name]
    path = tmp_path / "video"
    path.write_bytes(video.encode())
    wanted = [seen(drawn(number)) for number in EIGHT]
    assert max(map(differ, read_both(path, 16, wanted[0]), wanted)) <= 16


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize("fps", [7, 16, 30])
def test_uneven_times_are_kept(tmp_path: Path, container: str, fps: int):
    """By the words of the promise: the last frame that has begun by n / fps."""
    path, unit = tmp_path / "video", Fraction(1, 600)
    path.write_bytes(Video(container, unit=unit, times=UNEVEN).encode())
    frames = read_both(path, fps, drawn())
    begun = [
        max(
            i
            for i, time in enumerate(UNEVEN)
            if time * unit <= Fraction(n, fps) + Fraction(1, 1000)
        )
        for n in range(len(frames))
    ]
    assert max(map(differ, frames, map(drawn, begun))) <= 16
    assert len(frames) == fps + 1  # the next would be behind the end, at about 611 / 600


def test_frames_without_times_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, decode = tmp_path / "video", source.decode
    path.write_bytes(Video().encode())

    def untimed(*arguments: Any) -> Iterator[av.VideoFrame]:
        for number, frame in enumerate(decode(*arguments)):
            if number not in (3, 4):
                frame.pts = None
            yield frame

    monkeypatch.setattr(source, "decode", untimed)
    assert list(map(differ, read_both(path, 16, drawn()), map(drawn, EIGHT))) < [16] * 8


def test_pictures_of_several_sizes_and_turns(tmp_path: Path):
    """Each by itself; PyAV fails to list what belongs to a frame with EXIF data."""
    path = tmp_path / "video"
    path.write_bytes(
        motion_jpeg(
            [
                jpeg(subsampling=0),
                jpeg(Image.fromarray(drawn(3, 64, 32)), subsampling=0),
                jpeg(Image.fromarray(stored(6)), exif=exif(6), subsampling=0),
                jpeg(Image.fromarray(stored(3)), exif=exif(3), subsampling=0),
            ]
        )
    )
    wanted = [drawn(number) for number in (0, 3, 0, 0)]
    assert max(map(differ, read_both(path, 16, drawn()), wanted)) <= 4


def test_fewer_frames_than_asked_for(tmp_path: Path):
    path = tmp_path / "video"
    path.write_bytes(Video(frames=2).encode())
    assert len(read_both(path, 16, drawn(), last=5)) == 2


# ------------------------------------------------------------------------------- bad files


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("film.mp4", b"a red circle")
    return file.getvalue()


def without_moov() -> bytes:
    data = Video().encode()
    return data[: data.index(b"moov") - 4]


def without_samples() -> bytes:
    return Video(frames=0, container_options={"movflags": "frag_keyframe+empty_moov"}).encode()


def emptied() -> bytes:
    """An mp4 whose pictures are zeros."""
    data = Video().encode()
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    return data[:start] + bytes(end - start) + data[end:]


def cut(data: bytes, share: float) -> bytes:
    return data[: min(int(len(data) * share), len(data) - 1)]


CUT = {
    "mp4": Video(),
    "mp4 faststart": VIDEOS["mp4 faststart"][0],
    "mp4 fragmented": VIDEOS["mp4 fragmented"][0],
    "mkv": Video("matroska"),
    "webm": VIDEOS["webm vp9"][0],
    "avi": VIDEOS["avi mpeg4"][0],
    "avi mjpeg": VIDEOS["avi mjpeg"][0],
    "mov prores": VIDEOS["mov prores"][0],
}
SHARES = (0.1, 0.5, 0.8, 0.95, 1)  # 1: of all but the last byte
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><rect width="9"/></svg>'
M3U8 = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://localhost/a.ts\n#EXT-X-ENDLIST\n"
# Refused as a still and as a video.
NEITHER: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "one byte": lambda: b"\x89",
    "zeros": lambda: bytes(5000),
    "random bytes": lambda: random.Random(7).randbytes(5000),
    "text": lambda: b"a red circle",
    "svg": lambda: SVG,
    "html": lambda: b"<!doctype html><video src='film.mp4'></video>",
    "m3u8": lambda: M3U8,
    "m3u8 of files": lambda: M3U8.replace(b"http://localhost/a.ts", b"file:///dev/zero"),
    "mpd": lambda: b'<?xml version="1.0"?><MPD><BaseURL>http://localhost/</BaseURL></MPD>',
    "ffconcat": lambda: b"ffconcat version 1.0\nfile /dev/zero\n",
    "concat script": lambda: b"file '/etc/passwd'\nduration 1\n",
    "sdp": lambda: b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n",
    "srt": lambda: b"1\n00:00:00,000 --> 00:00:01,000\na red circle\n",
    "zip": zipped,
    "elf": lambda: Path(sys.executable).read_bytes()[:20_000],
    "pdf": lambda: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n%%EOF\n",
    "gif": lambda: still("GIF"),
    "bmp": lambda: still("BMP"),
    "tiff": lambda: still("TIFF"),
    "avif": lambda: still("AVIF"),
    "wav": lambda: sound("wav"),
    "sound only": sound,
    "sound with a cover": lambda: sound(cover=True),
    "subtitles only": subtitles,
    "asf": lambda: Video("asf", "wmv2").encode(),
    "a rare codec": lambda: Video("avi", "cinepak", "rgb24").encode(),
    "a wrong box": lambda: b"\0\0\0\x20ftypisom" + bytes(20) + b"\xff\xff\xff\xffmoov" + bytes(64),
    "no end of boxes": lambda: struct.pack(">I4s", 8, b"free") * 20_000,
    "riff of nothing": lambda: b"RIFF\4\0\0\0AVI ",
    "half a signature": lambda: b"\x1a\x45\xdf",
    "a matroska header": lambda: b"\x1a\x45\xdf\xa3\x01" + b"\xff" * 7,
    "mp4 without moov": without_moov,
    "mp4 without frames": without_samples,
}
BAD_VIDEOS: dict[str, Callable[[], bytes]] = {
    **{
        f"{name} cut at {share}": lambda video=video, share=share: cut(video.encode(), share)
        for name, video in CUT.items()
        for share in SHARES
        # The last twentieth of these is a list of the fragments, which nobody needs.
        if (name, share) != ("mp4 fragmented", 0.95)
    },
    "ts cut": lambda: cut(Video("mpegts").encode(), 0.1),
    "png": lambda: still("PNG"),
    "jpeg": jpeg,
    "webp animated": STILLS["webp animated"][0],
    "mp4 of zeros": emptied,
    "PQ": lambda: Video(pixel_format="yuv420p10le", transfer=16).encode(),
    "HLG": lambda: Video(pixel_format="yuv420p10le", transfer=18).encode(),
    "PQ, hevc": lambda: Video(
        codec="libx265", options=QUIET, pixel_format="yuv420p10le", transfer=16
    ).encode(),
    "turned by 30 degrees": lambda: Video(turn=(30, False, False)).encode(),
    "twelve days": lambda: Video("matroska", frames=2, times=(0, 1 << 24)).encode(),
}
BAD_STILLS: dict[str, Callable[[], bytes]] = {
    **{
        f"{name} cut at {share}": lambda make=make, share=share: cut(make(), share)
        for name, make in {
            "png": STILLS["png"][0],
            "jpeg": jpeg,
            "jpeg progressive": STILLS["jpeg progressive"][0],
            "webp": STILLS["webp"][0],
            "webp lossless": STILLS["webp lossless"][0],
            "webp animated": STILLS["webp animated"][0],
        }.items()
        for share in SHARES
    },
    "mp4": Video().encode,
    "png of no size": lambda: png_of(0, 0),
    "png without rows": lambda: png_of(WIDTH, HEIGHT),
}
BOMBS_STILL: dict[str, Callable[[], bytes]] = {
    "png of 100,000 squared": lambda: png_of(100_000, 100_000),
    "png of 16,000 squared": lambda: png_of(16_000, 16_000, bytes(1000)),
    "jpeg of 65,500 squared": lambda: jpeg_of(65_500, 65_500),
    "webp of 16,384 squared": lambda: webp_of(16_384, 16_384, animated=True),
    "webp of 16,777,216 squared": lambda: webp_of(1 << 24, 1 << 24, animated=True),
    "webp that is not animated after all": lambda: webp_of(16_384, 16_384, animated=False),
}
BOMBS_VIDEO: dict[str, Callable[[], bytes]] = {
    "avi of a jpeg of 65,500 squared": lambda: motion_jpeg([jpeg_of(65_500, 65_500)]),
    "mov of a jpeg of 16,000 squared": lambda: motion_jpeg([jpeg_of(16_000, 16_000)], "mov"),
    "mkv of a large jpeg behind a small one": lambda: motion_jpeg(
        [jpeg(), jpeg_of(65_500, 65_500)], "matroska"
    ),
    "ts of 16,383 squared": enlarged_mpeg2,
}
NAMES = (
    *("missing.mp4", "missing/film.mp4", "a\0b.mp4", "a" * 300, ""),
    *("http://localhost:9/a.mp4", "https://localhost:9/a.png", "rtmp://localhost/a", "pipe:0"),
    *("concat:a.mp4|b.mp4", "data:image/png;base64,iVBORw0KGgo=", "file:///etc/passwd", "-"),
    *("subfile,,start,0,end,9,,:/etc/passwd", "crypto:/etc/passwd", "/dev/zero", "/dev/stdin", "."),
)


def refused(read: Callable[[], object]) -> InputError:
    with pytest.raises(InputError) as caught:
        read()
    assert caught.value.exit_code == 3
    assert str(caught.value).isprintable()  # no line break either
    return caught.value


def refused_as_video(path: Path | str) -> InputError:
    """By both ways to read it, with the same words."""
    wanted: dict[str, Any] = {"fps": 16, "width": 32, "height": 16, "fit": "letterbox"}
    error = refused(lambda: list(read_clip(path, **wanted)))
    assert str(refused(lambda: read_end(path, 5, **wanted))) == str(error)
    return error


@pytest.mark.parametrize("name", [*NEITHER, *BAD_STILLS, *BOMBS_STILL])
def test_a_bad_still_is_refused(tmp_path: Path, name: str):
    path = tmp_path / "still.png"
    path.write_bytes((NEITHER | BAD_STILLS | BOMBS_STILL)[name]())
    refused(lambda: read_image(path))


@pytest.mark.parametrize("name", [*NEITHER, *BAD_VIDEOS, *BOMBS_VIDEO])
def test_a_bad_video_is_refused(tmp_path: Path, name: str):
    path = tmp_path / "video.mp4"
    path.write_bytes((NEITHER | BAD_VIDEOS | BOMBS_VIDEO)[name]())
    error = refused_as_video(path)
    if name.startswith(("PQ", "HLG")):
        assert "tone-map" in str(error)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    refused(lambda: read_image(name))
    refused_as_video(name)


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "dangling link", "link to itself"])
def test_what_is_no_ordinary_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    if kind == "folder":
        os.mkdir("it")
    elif kind == "pipe":
        os.mkfifo("it")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("it")
    else:
        os.symlink("it" if kind == "link to itself" else "nowhere", "it")
    refused(lambda: read_image("it"))
    refused_as_video("it")


def test_a_video_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of its own frames, of what they become, or of one frame that stays and stays."""
    path = tmp_path / "video"
    path.write_bytes(Video().encode())
    monkeypatch.setattr(clip, "LONGEST", 8)
    assert len(read_both(path, 16, drawn())) == 8
    for fps in (2, 17):
        monkeypatch.setattr(clip, "LONGEST", 8 if fps > 16 else 7)
        wanted: dict[str, Any] = {"fps": fps, "width": 32, "height": 16, "fit": "cover"}
        with pytest.raises(InputError, match="too long"):
            read_end(path, 5, **wanted)


def test_nothing_is_decoded_without_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither while a file is opened, nor beyond the limit on pixels after that."""
    path = tmp_path / "video"
    path.write_bytes(Video("mpegts").encode())
    with source.open_video(path) as (_, stream):
        assert stream.codec_context.pix_fmt is None  # which only a decoder can tell
    monkeypatch.setattr(source, "MAX_PIXELS", 16 * WIDTH * HEIGHT)  # decoders round sides up
    assert len(read_both(path, 16, drawn())) == 8
    monkeypatch.setattr(source, "MAX_PIXELS", WIDTH * HEIGHT - 1)
    refused_as_video(path)


def test_times_that_fall_back_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, decode = tmp_path / "video", source.decode
    path.write_bytes(Video(unit=Fraction(1, 4)).encode())

    def back(*arguments: Any) -> Iterator[av.VideoFrame]:
        for number, frame in enumerate(decode(*arguments)):
            if number == 6:
                frame.pts = 0
            yield frame

    monkeypatch.setattr(source, "decode", back)
    assert "fall back" in str(refused_as_video(path))


READ = """
import resource, sys
from mmpl.errors import InputError
from mmpl.media.clip import read_end
from mmpl.media.image import read_image
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
for path in sys.argv[1:]:
    try:
        if path.endswith("still"): read_image(path)
        else: read_end(path, 5, fps=16, width=32, height=16, fit="cover")
        print("read", path)
    except InputError: pass
print("torch" in sys.modules, (peak() - before) // 1024)
"""


def test_bombs_take_no_memory_and_nothing_waits_for_torch(tmp_path: Path):
    paths = []
    for kind, bombs in (
        ("still", BOMBS_STILL),
        ("video", BOMBS_VIDEO | {"long": BAD_VIDEOS["twelve days"]}),
    ):
        for number, make in enumerate(bombs.values()):
            paths.append(tmp_path / f"{number}.{kind}")
            paths[-1].write_bytes(make())
    run = subprocess.run(
        [sys.executable, "-c", READ, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=Path(mmpl.__file__).parents[1],
    )
    torch, megabytes = run.stdout.split()
    assert torch == "False"
    assert int(megabytes) < 100


def test_the_corpus_is_large():
    good = len(STILLS) + len(VIDEOS) + len(TURNED)
    bad = len(NEITHER | BAD_STILLS | BAD_VIDEOS | BOMBS_STILL | BOMBS_VIDEO) + len(NAMES)
    assert good >= 60
    assert bad >= 60


# ------------------------------------------------------------------------------- fitting


def test_cover_crops_the_centre_and_letterbox_adds_bars():
    wide = drawn(width=64)
    assert differ(fit(wide, 32, 16, "cover"), wide[:, 16:48]) == 0
    framed = fit(wide, 32, 32, "letterbox")
    assert not framed[:12].any()
    assert not framed[20:].any()
    assert differ(framed[12:20], drawn(height=8)) <= 4
    assert (
        differ(
            fit(wide, 64, 64, "cover"),
            np.ascontiguousarray(wide.repeat(4, 0)[:, 24:40].repeat(4, 1)),
        )
        <= 1
    )


@pytest.mark.parametrize("mode", FITS)
def test_the_right_size_keeps_every_value(mode: str):
    pixels = np.random.default_rng(0).integers(0, 256, (17, 33, 3), np.uint8)
    np.testing.assert_array_equal(fit(pixels, 33, 17, mode), pixels)
    np.testing.assert_array_equal(fit(pixels, 32, 17, "cover"), pixels[:, :32])
    np.testing.assert_array_equal(fit(pixels[::-1, ::-1], 33, 17, mode), pixels[::-1, ::-1])


@pytest.mark.parametrize("mode", FITS)
@pytest.mark.parametrize("size", [(1, 1), (3, 50), (200, 7), (832, 480)])
@pytest.mark.parametrize("source_size", [(1, 1), (1, 3000), (3000, 1), (33, 17)])
def test_any_size_fits_any_other(mode: str, size: tuple[int, int], source_size: tuple[int, int]):
    grey = np.full((*source_size, 3), 77, np.uint8)
    for aspect in (Fraction(1), Fraction(64, 45), Fraction(1, 65535)):
        fitted = fit(grey, *size, mode, pixel_aspect=aspect)
        assert fitted.shape == (size[1], size[0], 3)
        assert fitted.flags.writeable
        assert set(np.unique(fitted)) <= {77} | ({0} if mode == "letterbox" else set())
        assert 77 in fitted


def test_fine_patterns_become_grey_not_stripes():
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    small = fit(stripes, 90, 90, "cover")[5:-5, 5:-5]
    assert abs(small.astype(int) - 127).max() <= 3


def test_what_cannot_be_fitted_is_an_argument_error(tmp_path: Path):
    for wrong in (
        lambda: fit(drawn(), 8, 8, "stretch"),
        lambda: fit(drawn(), 0, 8, "cover"),
        lambda: fit(drawn(), 8, 8, "cover", pixel_aspect=0),
        lambda: fit(drawn()[..., 0], 8, 8, "cover"),
        lambda: fit(drawn()[:0], 8, 8, "cover"),
        lambda: fit(cast(Pixels, drawn().astype(np.float32)), 8, 8, "cover"),
        lambda: read_clip("missing", fps=0, width=8, height=8, fit="cover"),
        lambda: read_clip("missing", fps=16, width=8, height=8, fit="stretch"),
        lambda: read_end("missing", 0, fps=16, width=8, height=8, fit="cover"),
    ):
        with pytest.raises(ArgumentError):
            wrong()
