"""Files as they come from the world that cannot be used: each is one line of `InputError`, soon,
and in little memory."""

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
from typing import Any

import av
import pytest

import mmpl
from mmpl.errors import InputError
from mmpl.media import clip, source
from mmpl.media.clip import read_clip, read_end
from mmpl.media.image import read_image
from tests.media.corpus import (
    HEIGHT,
    WIDTH,
    Video,
    drawn,
    enlarged_mpeg2,
    jpeg,
    jpeg_of,
    motion_jpeg,
    png_of,
    sound,
    still,
    subtitles,
    webp_of,
)
from tests.media.good_files import QUIET, STILLS, TURNED, VIDEOS, read_both


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
