"""Rotary position embedding over (time, row, column), exact to float32 rounding.

Neighbouring channels (2i, 2i+1) of a head form a complex number that is turned by an angle; time,
row and column each own a share of the channels with their own frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmpl.wan.config import DiTConfig
from mmpl.wan.ops import cast


def axis_angles(positions: Tensor, dims: int, theta: float = 10000.0) -> Tensor:
    """float64 angles [len(positions), dims / 2]: position times `theta ** (-2j / dims)`."""
    exponents = torch.arange(0, dims, 2, dtype=torch.float64, device=positions.device) / dims
    return torch.outer(positions.double(), torch.pow(theta, -exponents))


def rope_table(
    config: DiTConfig,
    positions: Sequence[int],
    rows: int,
    columns: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Cosine and sine [L, 1, K/2, 2] for the tokens of `len(positions)` frames of `rows x columns`.

    `positions` are the frames' places in time; they need not be sorted and may repeat. Angles,
    cosines and sines are made in float64 and rounded once to `dtype`: an angle rounded to float32
    would be wrong by far more than the rotation itself.
    """
    axes = (torch.tensor(positions, device=device), *_ranges(rows, columns, device=device))
    time, row, column = (axis_angles(axis, d) for axis, d in zip(axes, config.rope_dims))
    grid = (len(positions), rows, columns, -1)
    parts = (time[:, None, None], row[None, :, None], column[None, None, :])
    angles = torch.cat([part.expand(grid) for part in parts], dim=-1).flatten(0, 2)
    return torch.stack((angles.cos(), angles.sin()), dim=-1).to(dtype)[:, None]


def rope(x_BLNK: Tensor, table_L1C2: Tensor) -> Tensor:
    """`x` turned by the angles of `table`, computed in the table's format, which is returned."""
    x_BLNK = cast(x_BLNK, table_L1C2.dtype)
    if torch.compiler.is_compiling():  # it fuses real numbers only, and those of whole rows best
        channel = torch.arange(x_BLNK.shape[-1], device=x_BLNK.device)
        even, other = channel % 2 == 0, channel ^ 1
        table_L1K = table_L1C2.flatten(-2)
        other_L1K = table_L1K[..., other]
        cos_L1K = torch.where(even, table_L1K, other_L1K)
        sin_L1K = torch.where(even, -other_L1K, table_L1K)
        return x_BLNK * cos_L1K + x_BLNK[..., other] * sin_L1K
    turns_L1C = torch.view_as_complex(table_L1C2)
    if not torch.is_grad_enabled():  # numbers seen in another format have no gradient
        return (x_BLNK.view(turns_L1C.dtype) * turns_L1C).view(x_BLNK.dtype)
    turned = torch.view_as_complex(torch.unflatten(x_BLNK, -1, (-1, 2))) * turns_L1C
    return torch.view_as_real(turned).flatten(-2)


def _ranges(*sizes: int, device: torch.device | str | None) -> list[Tensor]:
    return [torch.arange(size, device=device) for size in sizes]
