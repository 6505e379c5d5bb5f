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
    frames_CFHW = frames_CFHW.detach()
    if not frames_CFHW.isfinite().all():
        raise NumericError("decoded frames hold NaN or infinity")
    x_CFHW = frames_CFHW.clamp(-1, 1).float()  # a copy, which may be written to
    pixels_CFHW = x_CFHW.add_(1).div_(2).mul_(255).byte()
    return pixels_CFHW.permute(1, 2, 3, 0).contiguous().cpu().numpy()
