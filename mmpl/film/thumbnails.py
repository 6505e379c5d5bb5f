"""What latents show, roughly and at once: a linear map from latents to colours, no decoder.

The map is measured on keyframes whose pixels are known, so it fits whatever VAE there is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def palette_of(examples: Sequence[tuple[Tensor, NDArray[np.uint8]]]) -> Tensor:
    """The map [C + 1, 3] that takes latents, and 1, to colours in [0, 255], by least squares.

    `examples`: latents z_BCHW, one each, and the pixels HWC that they decode to.
    """
    rows, colours = [], []
    for z_BCHW, pixels_HWC in examples:
        height, width = z_BCHW.shape[-2:]
        rows.append(_with_one(z_BCHW[0].float().cpu()))
        image_CHW = torch.from_numpy(pixels_HWC).float().permute(2, 0, 1)
        small_CHW = torch.nn.functional.adaptive_avg_pool2d(image_CHW, (height, width))
        colours.append(small_CHW.flatten(1).T)
    # Few examples leave directions of the latents unseen: a little regularity keeps them quiet.
    x, y = torch.cat(rows).double(), torch.cat(colours).double()
    gram = x.T @ x
    gram += 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram, x.T @ y).float()


def thumbnails(palette: Tensor, z_BCTHW: Tensor) -> NDArray[np.uint8]:
    """Latents as uint8 RGB pictures of their own size, THWC. Of the first of the batch."""
    pictures = []
    for z_CHW in z_BCTHW[0].float().cpu().unbind(1):
        colours = (_with_one(z_CHW) @ palette).clamp(0, 255).round()
        pictures.append(colours.view(*z_CHW.shape[1:], 3).byte().numpy())
    return np.stack(pictures)


def _with_one(z_CHW: Tensor) -> Tensor:
    flat = z_CHW.flatten(1).T
    return torch.cat([flat, torch.ones(len(flat), 1)], dim=1)
