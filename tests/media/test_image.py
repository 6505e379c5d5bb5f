"""Stills: PNG written is PNG read, every kind of input is right or refused, never half right."""

import io
import itertools
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import av
import numpy as np
import pytest

import mmpl
from mmpl.errors import ArgumentError, InputError
from mmpl.media import image


def noise(*shape: int, seed: int = 0) -> image.Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG file from its filtered rows."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + chunk(b"IEND", b"")


def encoded(pixels: image.Pixels, codec: str, container: str, pixel_format: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=1, options={"qmin": "1", "qmax": "1"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = pixel_format
        output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


def jpeg(pixels: image.Pixels) -> bytes:
    return encoded(pixels, "mjpeg", "image2pipe", "yuvj444p")


def read(path: Path, data: bytes) -> image.Pixels:
    path.write_bytes(data)
    return image.read_image(path)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (1, 9), (33, 64)])
def test_png_round_trip(tmp_path: Path, shape: tuple[int, int]):
    pixels, path = noise(*shape, 3), tmp_path / "a.png"
    image.write_png(path, pixels)
    np.testing.assert_array_equal(image.read_image(path), pixels)
    first = path.read_bytes()
    image.write_png(path, np.asfortranarray(pixels))
    assert path.read_bytes() == first
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize(
    "wrong", [noise(4, 4), noise(4, 4, 4), noise(0, 4, 3), np.zeros((4, 4, 3), np.float32)]
)
def test_write_png_refuses(tmp_path: Path, wrong: image.Pixels):
    with pytest.raises(ArgumentError, match="uint8"):
        image.write_png(tmp_path / "a.png", wrong)
    assert os.listdir(tmp_path) == []


def test_png_in_bands(tmp_path: Path):
    pixels = noise(33, 20, 3)
    bands = np.split(pixels, [1, 2, 20])
    image.write_png_bands(tmp_path / "a.png", bands, 33, 20)
    np.testing.assert_array_equal(image.read_image(tmp_path / "a.png"), pixels)
    for wrong in (bands[:-1], [*bands, bands[0]], [pixels[:, :19]]):
        with pytest.raises(ArgumentError, match="band"):
            image.write_png_bands(tmp_path / "b.png", wrong, 33, 20)
    assert os.listdir(tmp_path) == ["a.png"]


def test_kinds_of_png(tmp_path: Path):
    """Gray, 1 bit, alpha over white, 16 bits rounded, palette with transparency."""
    palette = chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0])) + chunk(b"tRNS", bytes([255, 128]))
    half_black = 255 - 128
    cases = [
        (png(3, 1, 8, 0, b"\0\x00\x80\xff"), [0, 128, 255]),
        (png(3, 1, 1, 0, b"\0\xa0"), [255, 0, 255]),
        (png(1, 1, 8, 4, b"\0\x00\x80"), [half_black]),
        (png(1, 1, 8, 6, b"\0\xff\x00\x00\x80"), [(255, half_black, half_black)]),
        (png(1, 1, 16, 2, b"\0\x12\xf0\x00\x7f\xff\xff"), [(19, 0, 255)]),  # 18.9, 0.5, 255
        (png(1, 1, 16, 6, b"\0\x00\x00\x00\x00\x00\x00\x80\x00"), [half_black]),
        (png(2, 1, 8, 3, b"\0\x00\x01", palette), [(255, 0, 0), (half_black, 255, half_black)]),
    ]
    for data, wanted in cases:
        got = read(tmp_path / "a.png", data)[0].tolist()
        assert got == [list(w) if isinstance(w, tuple) else [w] * 3 for w in wanted]
    (tmp_path / "a.png").write_bytes(cases[2][0])
    over_red = image.read_image(tmp_path / "a.png", background=(255, 0, 0))
    assert over_red.tolist() == [[[half_black, 0, 0]]]


def test_16_bits_are_rounded(tmp_path: Path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    got = read(tmp_path / "a.png", png(256, 256, 16, 0, rows))
    np.testing.assert_allclose(got[..., 0], values / 257, atol=0.502)


def test_jpeg_colours(tmp_path: Path):
    for colour in itertools.product([0, 85, 170, 255], repeat=3):
        pixels = np.full((8, 8, 3), colour, np.uint8)
        got = read(tmp_path / "a.jpg", jpeg(pixels))
        assert abs(got.astype(int) - pixels).max() <= 2, colour


def test_exif_orientation(tmp_path: Path):
    """The eight orientations against the EXIF standard's words for where row 0 and column 0 lie."""
    stored = np.zeros((16, 32, 3), np.uint8)  # JPEG's blocks of 8 keep the quarters apart
    stored[:8, :16], stored[:8, 16:], stored[8:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    data = jpeg(stored)
    sides = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "lt", 6: "rt", 7: "rb", 8: "lb"}
    for orientation, (row_side, column_side) in sides.items():
        tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
        body = b"Exif\0\0" + tiff
        segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
        got = read(tmp_path / "a.jpg", data[:2] + segment + data[2:])
        wanted = stored if row_side in "tb" else stored.swapaxes(0, 1)
        wanted = wanted[::-1] if "b" in (row_side, column_side) else wanted
        wanted = wanted[:, ::-1] if "r" in (row_side, column_side) else wanted
        assert got.shape == wanted.shape, orientation
        assert abs(got.astype(int) - wanted).max() <= 2, orientation
    nonsense = b"\xff\xe1\x00\x0cExif\0\0MM\0*"
    assert read(tmp_path / "a.jpg", data[:2] + nonsense + data[2:]).shape == stored.shape


def test_webp_is_read(tmp_path: Path):
    grey = np.full((16, 16, 3), 100, np.uint8)
    got = read(tmp_path / "a.bin", encoded(grey, "libwebp", "webp", "yuv420p"))
    assert abs(got.astype(int) - 100).max() <= 3


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_cut_image_is_refused(tmp_path: Path, kind: str):
    pixels, path = noise(32, 32, 3), tmp_path / "image"
    if kind == "png":
        image.write_png(path, pixels)
        data = path.read_bytes()[:-12]  # the last 12 bytes say only that this is the end
    elif kind == "jpeg":
        data = jpeg(pixels)
    else:
        data = encoded(pixels, "libwebp", "webp", "yuv420p")
    assert read(path, data).shape == pixels.shape
    cuts = {len(data) * percent // 100 for percent in range(100)}
    for cut in sorted(cuts | set(range(len(data) - 20, len(data)))):
        with pytest.raises(InputError) as caught:
            read(path, data[:cut])
        assert caught.value.exit_code == 3


def test_a_hole_in_a_jpeg_is_refused_where_it_shows(tmp_path: Path):
    """JPEG has no checksums: what can be noticed is data that end too early or too late."""
    y, x = np.mgrid[:64, :64]
    data = jpeg(np.stack([4 * x, 255 - 3 * y, x + y], axis=-1).astype(np.uint8))
    refused = 0
    for at in range(700, 1300, 50):
        try:
            read(tmp_path / "a.jpg", data[:at] + data[at + 50 :])
        except InputError:
            refused += 1
    assert refused >= 4


def test_a_flipped_bit_in_a_png_is_refused(tmp_path: Path):
    path = tmp_path / "a.png"
    image.write_png(path, noise(8, 8, 3))
    data = bytearray(path.read_bytes())
    first = data.index(b"IDAT") + 4
    for at in range(first, len(data) - 12):
        data[at] ^= 4
        with pytest.raises(InputError):
            read(path, bytes(data))
        data[at] ^= 4


def test_what_is_no_image_is_refused(tmp_path: Path):
    path = tmp_path / "a.png"
    for data, said in [
        (b"", "empty"),
        (b"a red circle", "not an image"),
        (b"#EXTM3U\nfile:///etc/passwd\n", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"\xff\xd8\xff", "cut short"),
    ]:
        with pytest.raises(InputError, match=said):
            read(path, data)
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing.png", ".", "pipe", "/dev/zero", "a\0b", "http://localhost/a.png"):
        with pytest.raises(InputError) as caught:
            image.read_image(tmp_path / name if "://" not in name else name)
        assert "\n" not in str(caught.value)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path):
    side = 8000  # 192 MB of pixels in 0.8 MB
    packer = zlib.compressobj(1)
    row = bytes(1 + 3 * side)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    bomb = png(side, side, 8, 2, b"").replace(
        chunk(b"IDAT", zlib.compress(b"")), chunk(b"IDAT", body)
    )
    (tmp_path / "bomb.png").write_bytes(bomb)
    code = (
        "import sys\n"
        "from mmpl.errors import InputError\n"
        "from mmpl.media.image import read_image\n"
        "try: read_image(sys.argv[1])\n"
        "except InputError: print(open('/proc/self/status').read())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bomb.png")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(mmpl.__file__).parents[1],
    )
    peak = next(line for line in run.stdout.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 150_000  # kB
    small = tmp_path / "small.png"
    image.write_png(small, noise(64, 64, 3))
    assert image.read_image(small, max_pixels=64 * 64).shape == (64, 64, 3)
    with pytest.raises(InputError):
        image.read_image(small, max_pixels=64 * 64 - 1)
