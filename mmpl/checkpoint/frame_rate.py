"""What SkyReels-V2-DF 1.3B has beyond Wan2.1, turned into weights of Wan2.1.

It embeds the frame rate, 16 or 24 a second, and adds a projection of it to the time's own, the
same for every step and frame: so at one rate it is Wan2.1 with another bias there. (The 14B models
of that family have nothing beyond Wan2.1.) Source: the published inference code.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpl.checkpoint.names import FRAME_RATE

_BIAS = "time_projection.1.bias"
_RATE = 1  # row of the embedding: 0 is 16 frames a second, 1 is 24, what it was made for


def fold_frame_rate(flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same transformer at 24 frames a second, without the entries about the frame rate.

    Official names. Computed in float32, as published. Weights that do not fit together stay as
    they are, for the shape check to name them.
    """
    bias, told = flat.get(_BIAS), {n: t for n, t in flat.items() if n.startswith(FRAME_RATE)}
    if bias is None or bias.dim() != 1 or bias.numel() % 6:
        return dict(flat)
    dim = bias.numel() // 6
    shapes = {
        "fps_embedding.weight": (2, dim),
        "fps_projection.0.weight": (dim, dim),
        "fps_projection.0.bias": (dim,),
        "fps_projection.2.weight": (6 * dim, dim),
        "fps_projection.2.bias": (6 * dim,),
    }
    if shapes != {name: tuple(tensor.shape) for name, tensor in told.items()}:
        return dict(flat)
    rate, first, first_bias, last, last_bias = (told[name].float() for name in shapes)
    with torch.no_grad():
        added = F.linear(F.silu(F.linear(rate[_RATE], first, first_bias)), last, last_bias)
        folded = bias.float() + added
    return {name: tensor for name, tensor in flat.items() if name not in told} | {_BIAS: folded}
