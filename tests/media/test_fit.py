"""Pictures fitted into another size."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from mmpl.errors import ArgumentError
from mmpl.media.clip import read_clip, read_end
from mmpl.media.fit import FITS, fit
from mmpl.media.image import Pixels
from tests.media.corpus import (
    differ,
    drawn,
)


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
