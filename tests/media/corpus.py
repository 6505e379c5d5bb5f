"""Files as they come from the world, good and bad, drawn and encoded for `good_files` and
`test_bad_files`."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from mmpl.media.image import EXACT, Pixels

WIDTH, HEIGHT = 32, 16  # JPEG's blocks of 8 keep the quarters apart


def drawn(number: int = 0, width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """Quarters of red, green and blue, which tell up and left, and of a grey that tells the
    number, 0 to 9: HWC."""
    picture = np.full((height, width, 3), 20 + 25 * number, np.uint8)
    top, left = height // 2, width // 2
    picture[:top, :left], picture[:top, left:], picture[top:, :left] = (
        (220, 30, 30),
        (30, 200, 30),
        (30, 30, 220),
    )
    return picture


def differ(got: Pixels, wanted: Pixels) -> int:
    """The largest difference in the middles of the quarters; 256 for another size."""
    if got.shape != wanted.shape:
        return 256
    height, width, _ = wanted.shape
    rows, columns = [height // 4, height * 3 // 4], [width // 4, width * 3 // 4]
    at = np.ix_(rows, columns)
    return int(abs(got[at].astype(int) - wanted[at]).max())


# ------------------------------------------------------------------------------------ stills


def still(kind: str, picture: Image.Image | None = None, **options: Any) -> bytes:
    """A picture, the drawn one unless given, as Pillow writes it."""
    file = io.BytesIO()
    (picture or Image.fromarray(drawn())).save(file, kind, **options)
    return file.getvalue()


def jpeg(picture: Image.Image | None = None, **options: Any) -> bytes:
    return still("JPEG", picture, quality=98, **options)


def mode(name: str) -> Image.Image:
    return Image.fromarray(drawn()).convert(name)


def clear(alpha: int) -> Image.Image:
    picture = mode("RGBA")
    picture.putalpha(alpha)
    return picture


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def stored(orientation: int) -> Pixels:
    """The pixels that a camera held so stores, by the EXIF standard's words for where their row 0
    and column 0 are seen."""
    row, column = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "lt", 6: "rt", 7: "rb", 8: "lb"}[
        orientation
    ]
    pixels = drawn()
    if "b" in (row, column):
        pixels = pixels[::-1]
    if "r" in (row, column):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels if row in "tb" else pixels.swapaxes(0, 1))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG that says to be of this size, whatever is in it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(body))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def jpeg_of(width: int, height: int) -> bytes:
    """The drawn JPEG, made to say that it is of this size."""
    data = bytearray(jpeg())
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


def webp_of(width: int, height: int, *, animated: bool) -> bytes:
    """The drawn WebP with a canvas that it says to be of this size."""
    more = [Image.fromarray(drawn(5))]
    data = bytearray(still("WEBP", lossless=True, save_all=True, append_images=more))
    data[20] = 2 if animated else 0
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


# ------------------------------------------------------------------------------------ videos


@dataclass(frozen=True)
class Video:
    """How to encode drawn pictures. `times` in `unit` seconds, one for each frame."""

    container: str = "mp4"
    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    frames: int = 8
    unit: Fraction = Fraction(1, 16)
    times: Sequence[int] = ()
    size: tuple[int, int] = (WIDTH, HEIGHT)
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    turn: tuple[float, bool, bool] = (0, False, False)  # anticlockwise, mirrored, upside down
    aspect: Fraction | None = None
    transfer: int | None = None
    sound: bool = False

    def encode(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "video")
            self._write(path)
            return path.read_bytes()

    def _write(self, path: Path) -> None:
        options = self.container_options
        with av.open(str(path), "w", format=self.container, options=options) as output:
            stream = output.add_stream(self.codec, options=self.options)
            assert isinstance(stream, av.VideoStream)
            (stream.width, stream.height), stream.pix_fmt = self.size, self.pixel_format
            encoder = stream.codec_context
            encoder.thread_count, encoder.time_base = 1, self.unit
            encoder.framerate = 1 / self.unit
            full = self.pixel_format.startswith("yuvj")
            encoder.color_range = ColorRange.JPEG if full else ColorRange.MPEG
            if self.transfer is not None:
                encoder.color_trc = self.transfer
            if self.aspect is not None:
                encoder.sample_aspect_ratio = stream.sample_aspect_ratio = self.aspect
            if self.turn != (0, False, False):
                stream.set_display_rotation(*self.turn)
            if self.sound:
                self._add_sound(output)
            output.start_encoding()
            for number in range(self.frames):
                frame = self._frame(number, full)
                frame.pts = self.times[number] if self.times else number
                frame.time_base = self.unit
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))

    def _frame(self, number: int, full: bool) -> av.VideoFrame:
        frame = av.VideoFrame.from_ndarray(drawn(number, *self.size), format="rgb24")
        return frame.reformat(
            format=self.pixel_format,
            # JPEG and VP8 know no other, and are read so.
            dst_colorspace=(
                Colorspace.ITU601 if self.codec in ("mjpeg", "libvpx") else Colorspace.ITU709
            ),
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
            interpolation=EXACT,
            threads=1,
        )

    def _add_sound(self, output: OutputContainer) -> None:
        stream = output.add_stream("aac", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.rate, silence.pts = 8000, 0
        output.mux(stream.encode(silence))
        output.mux(stream.encode(None))


def sound(container: str = "mp4", *, cover: bool = False) -> bytes:
    """A file of sound, and perhaps a picture of its record."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("aac" if container == "mp4" else "pcm_s16le", rate=8000)
        picture = output.add_stream("mjpeg") if cover else None
        if isinstance(picture, av.VideoStream):
            picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
            picture.disposition = Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.rate, silence.pts = 8000, 0
        if container != "mp4":
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), "s16", "mono")
            silence.rate, silence.pts = 8000, 0
        output.mux(stream.encode(silence))
        output.mux(stream.encode(None))
        if picture is not None:
            packet = av.Packet(jpeg())
            packet.stream, packet.pts, packet.dts = picture, 0, 0
            output.mux(packet)
    return file.getvalue()


def motion_jpeg(pictures: Sequence[bytes], container: str = "avi") -> bytes:
    """JPEG files as the frames of a video, 16 a second."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("mjpeg", rate=16)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        for number, picture in enumerate(pictures):
            packet = av.Packet(picture)
            packet.stream, packet.time_base = stream, Fraction(1, 16)
            packet.pts = packet.dts = number
            packet.is_keyframe = True
            output.mux(packet)
    return file.getvalue()


def subtitles() -> bytes:
    """Matroska with words and nothing else."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_mux_stream("subrip")
        packet = av.Packet(b"a red circle")
        packet.stream, packet.time_base = stream, Fraction(1, 1000)
        packet.pts, packet.dts, packet.duration = 0, 0, 1000
        output.mux(packet)
    return file.getvalue()


def enlarged_mpeg2() -> bytes:
    """An MPEG transport stream whose sequence header says 16383 x 16383."""
    data = bytearray(Video("mpegts", "mpeg2video", unit=Fraction(1, 25)).encode())
    at = data.index(b"\0\0\1\xb3") + 4
    data[at : at + 3] = b"\xff\xff\xff"  # the low 12 bits of both
    at = data.index(b"\0\0\1\xb5") + 4
    data[at + 1] |= 0x01  # and the high 2
    data[at + 2] |= 0xE0
    return bytes(data)
