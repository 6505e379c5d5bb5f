"""Pictures brought to the size of a film: scaled without distortion, then cropped or framed."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from PIL import Image

from mmpl.errors import ArgumentError
from mmpl.media.image import Pixels

FITS = ("cover", "letterbox")
# Very large pictures are first averaged down to at least three times what is wanted: much faster,
# and nobody can see it.
_REDUCING_GAP = 3.0


def check_fit(width: int, height: int, mode: str) -> None:
    """Raise `ArgumentError` unless a picture can be fitted so: a size of 1x1 or more, a mode of
    `FITS`."""
    if mode not in FITS:
        raise ArgumentError("way to fit a picture", got=repr(mode), wanted=" or ".join(FITS))
    if width < 1 or height < 1:
        raise ArgumentError("size to fit to", got=f"{width}x{height}", wanted="1x1 or more")


def fit(
    pixels_HWC: Pixels, width: int, height: int, mode: str, *, pixel_aspect: Fraction | int = 1
) -> Pixels:
    """Pixels, HWC uint8 RGB, at `width` x `height`: a new array.

    "cover" fills the size and crops the centre; "letterbox" shows the whole picture between black
    bars. `pixel_aspect` is how wide a source pixel is to be shown, in heights of a pixel. Lanczos
    filtering, wide enough that nothing aliases when made smaller; a picture that has the size
    already keeps every value. Raises `ArgumentError`.
    """
    check_fit(width, height, mode)
    if pixels_HWC.dtype != np.uint8 or pixels_HWC.shape[2:] != (3,) or pixels_HWC.size == 0:
        raise ArgumentError(
            "picture to fit",
            got=f"{pixels_HWC.dtype} {pixels_HWC.shape}",
            wanted="uint8 (height, width, 3)",
        )
    if pixel_aspect <= 0:
        raise ArgumentError("shape of a pixel", got=pixel_aspect, wanted="above 0")
    # The scales at which the picture fills the width, and the height.
    across = Fraction(width, pixels_HWC.shape[1]) / pixel_aspect
    down = Fraction(height, pixels_HWC.shape[0])
    if mode == "cover":
        scale = max(across, down)  # of which the smaller one's direction shows only a part
        return _scaled(pixels_HWC, _part(pixels_HWC, across / scale, down / scale), width, height)
    scale = min(across, down)
    inner_width = max(1, round(width * scale / across))
    inner_height = max(1, round(height * scale / down))
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    framed = np.zeros((height, width, 3), np.uint8)
    inner = framed[top : top + inner_height, left : left + inner_width]
    inner[:] = _scaled(pixels_HWC, _part(pixels_HWC), inner_width, inner_height)
    return framed


def _part(
    pixels_HWC: Pixels, across: Fraction | int = 1, down: Fraction | int = 1
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of this share of the picture, from its middle."""
    height, width = pixels_HWC.shape[:2]
    # Whole pixels at the left and the top, so that nothing is resampled where nothing is scaled.
    left, top = math.floor(width * (1 - across) / 2), math.floor(height * (1 - down) / 2)
    return left, top, float(left + width * across), float(top + height * down)


def _scaled(
    pixels_HWC: Pixels, box: tuple[float, float, float, float], width: int, height: int
) -> Pixels:
    resized = Image.fromarray(pixels_HWC).resize(
        (width, height), Image.Resampling.LANCZOS, box, _REDUCING_GAP
    )
    return np.array(resized)
