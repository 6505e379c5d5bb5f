"""The reader against rendered ground truth: clean, and blurred and noisy like a small model's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmpl.errors import ArgumentError
from mmpl.eval.motion import read_motion
from mmpl.eval.reader import NONE, classify, label, read_backgrounds, read_film
from mmpl.train.clips import ClipSpec, draw_spec, render, track

CLIPS = 60
# Gaussian blur in pixels and noise as a share of the full range; the clips take turns.
GRADES = ((0.0, 0.0), (0.8, 0.02), (1.2, 0.02))


def test_reads_rendered_clips_almost_perfectly() -> None:
    right = {name: 0 for name in ("shape", "hue_bin", "motion", "one_object")}
    for seed in range(CLIPS):
        spec = draw_spec(90_000 + seed, held_out=None)
        reading = classify(_film(spec, (0, 81), *GRADES[seed % len(GRADES)], seed=seed))
        right["shape"] += reading.shape == spec.shape
        right["hue_bin"] += reading.hue_bin == spec.hue_bin
        right["motion"] += reading.motion == spec.motion
        right["one_object"] += reading.one_object
    print(f"reader on {CLIPS} rendered clips:", right)
    assert min(right.values()) >= 0.97 * CLIPS, right


@pytest.mark.parametrize("size", [64, 128])
def test_position_area_and_hue_are_measured_exactly(size: int) -> None:
    for seed in range(4):
        spec = draw_spec(seed)
        film = read_film(_film(spec, (0, 3), 0.0, 0.0, size=size))
        path = track(spec, (0, 3))
        assert [len(blobs) for blobs in film] == [1, 1, 1]
        for i, (blob,) in enumerate(film):
            assert blob.x == pytest.approx(path.x[i], abs=0.3)
            assert blob.y == pytest.approx(path.y[i], abs=0.3)
            assert blob.area == pytest.approx(3.1 * path.size[i] ** 2, rel=0.12)
            assert abs((blob.hue - spec.hue + 180.0) % 360.0 - 180.0) < 2.0


def test_the_background_is_read_behind_the_object() -> None:
    frames = np.full((2, 64, 64, 3), (90, 60, 30), np.uint8)
    frames[1] = 120
    frames[:, 10:40, 20:50] = (0, 0, 255)
    coloured, grey = read_backgrounds(frames)
    assert coloured.rgb == pytest.approx((90 / 255, 60 / 255, 30 / 255), abs=0.01)
    assert coloured.hue == pytest.approx(30, abs=1)
    assert (grey.rgb, grey.hue) == (pytest.approx((120 / 255,) * 3, abs=0.01), None)


def test_nothing_is_read_from_an_empty_film() -> None:
    spec = draw_spec(5)
    frames = _film(spec, (0, 9), 0.0, 0.02)
    frames[:] = frames[:, :1, :1]
    reading = classify(frames)
    assert (reading.shape, reading.hue_bin, reading.motion) == (NONE, NONE, NONE)
    assert set(reading.objects_per_frame) == {0}
    assert not reading.one_object


def test_two_objects_are_two() -> None:
    left, right = np.zeros((6, 64, 64, 3), np.uint8), np.zeros((6, 64, 64, 3), np.uint8)
    left[:, 10:24, 10:24] = (255, 0, 0)
    right[:, 40:56, 40:56] = (0, 80, 255)
    assert classify(left).one_object
    both = classify(left + right)
    assert both.objects_per_frame == (2,) * 6
    assert not both.one_object
    assert both.hue_bin == "blue"


def test_a_smear_is_no_recognisable_object() -> None:
    frames = np.full((6, 64, 64, 3), 30, np.uint8)
    frames[:, 28:36, 8:52] = (240, 200, 0)
    reading = classify(frames)
    assert reading.objects_per_frame == (1,) * 6
    assert not reading.one_object


def test_a_wrong_clip_is_read_as_what_it_shows() -> None:
    """The answer follows the pixels: change one thing, and only that reading changes."""
    spec = next(s for s in map(draw_spec, range(99)) if s.motion == "right" and s.hue_bin == "blue")
    before = classify(_film(spec, (0, 81), 0.8, 0.02))
    mirrored = classify(_film(spec, (0, 81), 0.8, 0.02)[::-1])
    assert (before.motion, mirrored.motion) == ("right", "left")
    assert (mirrored.shape, mirrored.hue_bin) == (before.shape, before.hue_bin)
    other = "square" if spec.shape != "square" else "star"
    assert classify(_film(replace(spec, shape=other), (0, 9), 0.8, 0.02)).shape == other


def test_motion_survives_an_early_turn_and_single_misreadings() -> None:
    way = np.concatenate([np.linspace(10, 45, 60), np.linspace(45, 32, 21)])
    flat = np.full(81, 30.0)
    assert read_motion(way, flat, flat) == "right"
    way[20], flat[50] = 0.0, 60.0
    assert read_motion(way, flat, flat) == "right"
    assert read_motion(flat, way, flat) == "down"
    assert read_motion(flat, flat, np.linspace(90, 300, 81)) == "grows"


def test_label_joins_what_touches() -> None:
    mask = np.array([[1, 0, 1, 0, 1], [1, 0, 1, 0, 0], [1, 1, 1, 0, 1], [0, 0, 0, 1, 1]], bool)
    expected = [[1, 0, 1, 0, 2], [1, 0, 1, 0, 0], [1, 1, 1, 0, 3], [0, 0, 0, 3, 3]]
    assert label(mask).tolist() == expected
    assert label(np.zeros((3, 3), bool)).max() == 0


def test_frames_must_be_bytes() -> None:
    with pytest.raises(ArgumentError, match="uint8"):
        read_film(np.zeros((1, 8, 8, 3)))  # type: ignore[arg-type]


def _film(
    spec: ClipSpec,
    frames: tuple[int, int],
    blur: float,
    noise: float,
    *,
    seed: int = 0,
    size: int = 64,
) -> NDArray[np.uint8]:
    """The clip as uint8 [F, H, W, 3] after a Gaussian blur (pixels) and noise (of full range)."""
    x_CFHW = render(spec, frames, size=size)
    if blur:
        taps = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / (2.0 * blur**2))
        taps = taps / taps.sum()
        x_FCHW = torch.nn.functional.pad(x_CFHW.transpose(0, 1), (4, 4, 4, 4), mode="replicate")
        kernel = torch.outer(taps, taps).expand(3, 1, -1, -1)
        x_CFHW = torch.nn.functional.conv2d(x_FCHW, kernel, groups=3).transpose(0, 1)
    generator = torch.Generator().manual_seed(seed)
    x_CFHW = x_CFHW + 2.0 * noise * torch.randn(x_CFHW.shape, generator=generator)
    return ((x_CFHW.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
