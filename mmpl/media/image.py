"""Stills: read one untrusted PNG, JPEG or WebP, write a PNG, tile frames into a contact sheet.

Pixels are HWC uint8 RGB. A file given as input is never trusted: it is decoded straight from its
bytes by the decoder that its first bytes name, under a limit on pixels, and any damage refuses it.
"""

import io
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray
from PIL import Image

from mmpl.errors import ArgumentError, InputError
from mmpl.media import durable

Pixels = NDArray[np.uint8]

# The flags that make swscale's colours right to a level or two, and the same on every processor.
EXACT = (
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.FULL_CHR_H_INT
)
MAX_PIXELS = 50_000_000
_MAX_BYTES = 1 << 28
_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
_WEBP_ANIMATED = 2  # flag in a VP8X header
_TIFF = rb"(?=MM\0\*|II\*\0)"
_EXIF = {  # what stands before the EXIF data, which are a TIFF file
    "mjpeg": rb"Exif\0\0" + _TIFF,
    "png": rb"eXIf" + _TIFF,
    "webp": rb"(?s:EXIF....)(?:Exif\0\0)?" + _TIFF,
}
_ORIENTATION_TAG = 0x0112
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"


def readable_file(path: str | os.PathLike[str]) -> Path:
    """`path`, checked to be an ordinary, non-empty, readable file. Raises `InputError`."""
    where = os.fspath(path)
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise InputError(
            f"cannot read: {error.strerror or error}", where=where, todo="check the path"
        ) from error
    except ValueError as error:  # a zero byte, or a character that no file name can hold
        raise InputError("not a file name", got=repr(where), todo="check the path") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError("not an ordinary file", where=where, todo="check the path")
    if status.st_size == 0:
        raise InputError("the file is empty", where=where, todo="check the path")
    return Path(path)


def frame_rgb(frame: av.VideoFrame) -> Pixels:
    """The pixels of a decoded frame, HWC uint8 RGB. The frame's own colour tags are obeyed; YUV
    without a tag is taken for BT.709."""
    return _convert(frame, "rgb24")


def read_image(
    path: str | os.PathLike[str],
    *,
    background: tuple[int, int, int] = (255, 255, 255),
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """The image in a PNG, JPEG or WebP file: HWC uint8 RGB, turned upright as its EXIF data say.

    Transparency is laid over `background`, 16 bits become 8, CMYK becomes RGB without its colour
    profile, of an animation the first frame counts. Raises `InputError` where the file is missing,
    of another kind, cut, damaged, or larger than `max_pixels`, the last before anything is decoded.
    """
    path = readable_file(path)
    if path.stat().st_size > _MAX_BYTES:
        raise InputError("the file is too large for an image", where=str(path))
    data = path.read_bytes()
    codec = _codec(data, path)
    if codec == "webp" and data[12:16] == b"VP8X" and data[20:21] and data[20] & _WEBP_ANIMATED:
        pixels = _first_of_webp(data, path, max_pixels)
    else:
        pixels = _pixels(_decode(data, codec, path, max_pixels))
    if pixels.shape[2] == 4:
        pixels = _over(pixels, background)
    return np.ascontiguousarray(_upright(pixels, _orientation(data, codec)))


def write_png(path: str | os.PathLike[str], image_HWC: Pixels) -> None:
    """Write HWC uint8 RGB as a PNG file, whole or not at all. The same pixels give the same bytes.

    Raises `ArgumentError` for anything but HWC uint8 RGB, and `OutputError`.
    """
    _check_rgb("image", image_HWC)
    write_png_bands(path, [image_HWC], image_HWC.shape[0], image_HWC.shape[1])


def write_png_bands(
    path: str | os.PathLike[str], bands_HWC: Iterable[Pixels], height: int, width: int
) -> None:
    """`write_png` of a picture that comes in bands from the top, of which one at a time is held.

    Raises `ArgumentError` where the bands are not HWC uint8 RGB of `width` or do not add up to
    `height`, and `OutputError`.
    """
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB

    def write(file: BinaryIO) -> None:
        file.write(b"\x89PNG\r\n\x1a\n")
        _write_chunk(file, b"IHDR", header)
        squeeze, above, rows = zlib.compressobj(6), np.zeros((1, width, 3), np.uint8), 0
        for band in bands_HWC:
            _check_rgb("band", band)
            if band.shape[1] != width:
                raise ArgumentError("a band of another width", got=band.shape[1], wanted=width)
            # Filter 2 of the PNG standard: each row minus the one above, modulo 256.
            lines = np.diff(band, axis=0, prepend=above).reshape(len(band), -1)
            filtered = np.concatenate([np.full((len(band), 1), 2, np.uint8), lines], axis=1)
            if body := squeeze.compress(filtered.tobytes()):
                _write_chunk(file, b"IDAT", body)
            above, rows = band[-1:], rows + len(band)
        if rows != height:
            raise ArgumentError("bands of another height", got=rows, wanted=height)
        _write_chunk(file, b"IDAT", squeeze.flush())
        _write_chunk(file, b"IEND", b"")

    durable.put(path, write)


def _write_chunk(file: BinaryIO, kind: bytes, body: bytes) -> None:
    checksum = zlib.crc32(kind + body)
    file.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum))


def _check_rgb(name: str, image: NDArray[Any]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ArgumentError(
            name, got=f"{image.dtype} {image.shape}", wanted="uint8 (height, width, 3)"
        )


def _codec(data: bytes, path: Path) -> str:
    """The decoder for the image, from its first bytes; its name plays no part."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith(b"\xff\xd8\xff"):
        # A cut JPEG decodes without complaint if little is missing, so look for its end marker
        # after its last scan; there may be other data behind it.
        if data.find(_END_OF_IMAGE, data.rfind(_START_OF_SCAN)) < 0:
            raise InputError("the image is cut short", where=str(path), todo="use an intact file")
        return "mjpeg"
    raise InputError("not an image this program reads", where=str(path), wanted="PNG, JPEG or WebP")


def _decode(data: bytes, codec: str, path: Path, max_pixels: int) -> av.VideoFrame:
    # Not through av.open: that decodes once by itself to find out the size, without any limit.
    decoder = cast(VideoCodecContext, av.CodecContext.create(codec, "r"))
    decoder.options = {"err_detect": "crccheck+explode", "max_pixels": str(max_pixels)}
    decoder.thread_count = 1
    try:
        frames = decoder.decode(av.Packet(data)) or decoder.decode(None)
    except FFmpegError as error:
        raise InputError(
            "the image is damaged or too large",
            where=str(path),
            wanted=f"an intact file of at most {max_pixels:,} pixels",
        ) from error
    if not frames or frames[0].is_corrupt:
        raise InputError("the image is damaged", where=str(path), todo="use an intact file")
    return frames[0]


def _first_of_webp(data: bytes, path: Path, max_pixels: int) -> Pixels:
    """The first frame of an animated WebP, HWC RGBA, which libav does not decode."""
    # Before Pillow opens it: that allocates the canvas at once.
    width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    if width * height > max_pixels:
        raise InputError(
            "the image is too large",
            where=str(path),
            got=f"{width}x{height}",
            wanted=f"at most {max_pixels:,} pixels",
        )
    try:
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as picture:
            return np.array(picture.convert("RGBA"))
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise InputError(
            "the image is damaged", where=str(path), todo="use an intact file"
        ) from error


def _pixels(frame: av.VideoFrame) -> Pixels:
    """HWC RGB, or RGBA where there may be transparency."""
    parts = frame.format.components
    alpha = frame.format.has_palette or any(part.is_alpha for part in parts)
    if any(part.bits > 8 for part in parts):
        return _to_8_bits(_convert(frame, "rgba64le" if alpha else "rgb48le"))
    return _convert(frame, "rgba" if alpha else "rgb24")


def _convert(frame: av.VideoFrame, format: str) -> NDArray[Any]:
    """The pixels of a frame as an RGB format of packed bytes or words, HWC."""
    untagged = frame.colorspace == _UNSPECIFIED
    return frame.reformat(
        format=format,
        src_colorspace=Colorspace.ITU709 if untagged else None,
        dst_color_range=ColorRange.JPEG,
        interpolation=EXACT,
        threads=1,
    ).to_ndarray()


def _to_8_bits(pixels: NDArray[np.uint16]) -> Pixels:
    """Rounded v / 257 in 16-bit integers (swscale would dither)."""
    return ((pixels - (pixels >> 8) + 128) >> 8).astype(np.uint8)


def _over(pixels_rgba: Pixels, background: tuple[int, int, int]) -> Pixels:
    over = np.empty((*pixels_rgba.shape[:2], 3), np.uint8)
    behind = np.array(background, np.uint16)
    for y, row in enumerate(pixels_rgba):  # by rows: the products take twice the memory
        colour, alpha = row[:, :3].astype(np.uint16), row[:, 3:].astype(np.uint16)
        over[y] = (colour * alpha + behind * (255 - alpha) + 127) // 255
    return over


def _orientation(data: bytes, codec: str) -> int:
    """The EXIF orientation of an image, 1 to 8; 1, upright, if it has none. Read here because PyAV
    tells turns but not mirrorings."""
    # Of a JPEG at its start only: behind there may be other images.
    found = re.search(_EXIF[codec], data[: 1 << 16] if codec == "mjpeg" else data)
    if found is None:
        return 1
    tiff = data[found.end() : found.end() + (1 << 16)]
    order = ">" if tiff.startswith(b"MM") else "<"
    try:
        (folder,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, folder)
        for entry in range(entries):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, folder + 2 + 12 * entry)
            if tag == _ORIENTATION_TAG and 1 <= value <= 8:
                return value
    except struct.error:  # nonsense in the EXIF block leaves the pixels as good as they were
        return 1
    return 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """HWC pixels stored with an EXIF orientation, as they should be seen."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    vertical = -1 if orientation in (3, 4, 7, 8) else 1
    horizontal = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::vertical, ::horizontal]
