"""What a decoder returns, as pixels. Needs no library of files or pictures, which take long to
import."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mmpl.errors import NumericError


def to_uint8(frames_CFHW: Tensor) -> NDArray[np.uint8]:
    """Decoded frames in [-1, 1], CFHW of any float type and device, as FHWC uint8 pixels.

    As Wan does it: clamped, (x + 1) / 2 * 255, truncated, not rounded. Raises `NumericError` for
    NaN or infinity, which would become black without a word.
    """
    x_CFHW = frames_CFHW.detach().float()
    if not x_CFHW.isfinite().all():
        raise NumericError("decoded frames hold NaN or infinity")
    pixels_CFHW = x_CFHW.clamp(-1, 1).add(1).div(2).mul(255).byte()
    return pixels_CFHW.permute(1, 2, 3, 0).contiguous().cpu().numpy()
