"""Colours of films, judged by the formulas of BT.709 written out here, not by the converter that
made them."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from mmpl.errors import NumericError
from mmpl.media import video
from mmpl.media.image import Pixels
from mmpl.media.pixels import to_uint8
from tests.media.test_video import write


def decode_by_hand(path: Path) -> np.ndarray:
    """Frames as RGB in 0..255, FHWC float, from the planes by the formulas of BT.709."""
    decoded = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            assert frame.format.name == "yuv420p"
            planes, h, w = frame.to_ndarray().astype(float), frame.height, frame.width
            luma = (planes[:h] - 16) / 219
            blue, red = (
                ((plane - 128) / 224).reshape(h // 2, w // 2).repeat(2, 0).repeat(2, 1)
                for plane in (planes[h : h + h // 4], planes[h + h // 4 :])
            )
            r, b = luma + 1.5748 * red, luma + 1.8556 * blue
            g = (luma - 0.2126 * r - 0.0722 * b) / 0.7152
            decoded.append(np.clip(np.stack([r, g, b], axis=-1) * 255, 0, 255))
    return np.stack(decoded)


def patches(colours: Sequence[tuple[int, ...]]) -> Pixels:
    """One frame per colour."""
    return np.array(colours, np.uint8)[:, None, None].repeat(16, 1).repeat(16, 2)


def test_pure_red_is_red(tmp_path: Path):
    frames = patches([(255, 0, 0)] * 3)
    write(tmp_path / "red.mp4", frames)
    assert abs(decode_by_hand(tmp_path / "red.mp4") - frames).max() <= 3
    assert abs(video.read_frames(tmp_path / "red.mp4").astype(int) - frames).max() <= 3


def test_colours_over_the_cube(tmp_path: Path):
    """In values, in the tags that players go by, and in our own reading."""
    colours = list(itertools.product([0, 51, 102, 153, 204, 255], repeat=3))
    frames, path = patches(colours), tmp_path / "cube.mp4"
    write(path, frames, crf=4)
    assert video.probe(path).bt709
    assert abs(decode_by_hand(path) - frames).max() <= 5
    assert abs(video.read_frames(path).astype(int) - frames).max() <= 5
    assert abs(video.read_frames(path).astype(float) - frames).mean() <= 1


@pytest.mark.parametrize(
    ("matrix", "full"), [(1, False), (5, False), (6, False), (2, False), (1, True)]
)
def test_reading_goes_by_the_tags(tmp_path: Path, matrix: int, full: bool):
    """BT.709, BT.601 (both codes), untagged (taken for 709), full range."""
    path, wanted = tmp_path / "a.mp4", np.array([180, 90, 40])
    kr, kb = (0.299, 0.114) if matrix in (5, 6) else (0.2126, 0.0722)
    r, g, b = wanted / 255
    luma = kr * r + (1 - kr - kb) * g + kb * b
    blue, red = (b - luma) / (2 - 2 * kb), (r - luma) / (2 - 2 * kr)
    low, luma_span, span = (0, 255, 255) if full else (16, 219, 224)
    yuv = np.full((24, 16), round(low + luma_span * luma), np.uint8)
    yuv[16:20], yuv[20:] = round(128 + span * blue), round(128 + span * red)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=16, options={"crf": "1"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = 2 if full else 1
        container.mux(stream.encode(av.VideoFrame.from_ndarray(yuv, format="yuv420p")))
        container.mux(stream.encode(None))
    assert abs(video.read_frames(path).astype(int) - wanted).max() <= 3
    assert not video.probe(path).bt709


def test_to_uint8_truncates_as_wan_does():
    values = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 0.999, 1.0, 1.5])
    x_CFHW = values.reshape(1, 2, 2, 2).expand(3, 2, 2, 2).clone()
    x_CFHW[1], x_CFHW[2] = -1, 1
    pixels = to_uint8(x_CFHW)
    assert pixels.shape == (2, 2, 2, 3)
    assert pixels.flags.c_contiguous
    assert pixels[..., 0].ravel().tolist() == [0, 0, 63, 127, 191, 254, 255, 255]
    assert (pixels[..., 1] == 0).all()
    assert (pixels[..., 2] == 255).all()
    half = to_uint8(x_CFHW.bfloat16())
    assert half[..., 0].ravel().tolist() == [0, 0, 63, 127, 191, 255, 255, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_to_uint8_refuses_nan(value: float):
    x_CFHW = torch.zeros(3, 1, 2, 2, requires_grad=True).clone()
    assert to_uint8(x_CFHW).max() == 127
    x_CFHW[0, 0, 1, 1] = value
    with pytest.raises(NumericError):
        to_uint8(x_CFHW)
