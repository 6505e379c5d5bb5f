"""Small operations that every network here shares: casts, linear maps, norms, the time sinusoid.

`linear` is the only function that looks at a stored matrix, so another way of storing one is a
change here and nowhere else. Knows nothing of whole networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.wan.params import Linear, QuantisedLinear, Weight
from mmpl.wan.quantise import quantised_linear


@dataclass(frozen=True, slots=True)
class Precision:
    """Which number format computes what.

    `compute` is for matrix products, attention and the K/V cache; `island` for the time embedding,
    modulation, residual stream, norms and head. Weights may be stored in any format.
    """

    compute: torch.dtype
    island: torch.dtype


FLOAT32 = Precision(torch.float32, torch.float32)
BFLOAT16 = Precision(torch.bfloat16, torch.float32)
"""Wan2.1's mixed precision: bfloat16 products, float32 islands."""
ALL_BFLOAT16 = Precision(torch.bfloat16, torch.bfloat16)
"""Self-Forcing's policy: the whole model in bfloat16, no islands."""


def natural_precision(stored: torch.dtype) -> Precision:
    """Compute in the stored format, with islands of at least float32."""
    return Precision(stored, at_least_float32(stored))


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float32 where that is wider."""
    return dtype if dtype.itemsize >= torch.float32.itemsize else torch.float32


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in `dtype`. Ten times cheaper than `x.to(dtype)` when there is nothing to do."""
    return x if x.dtype is dtype else x.to(dtype)


def linear(params: Linear, x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x @ weight.T + bias`, computed in `dtype`."""
    if isinstance(params, QuantisedLinear):
        return quantised_linear(params, cast(x, dtype), dtype)
    weight, bias = params.weight, params.bias
    if weight.dtype is not dtype or bias.dtype is not dtype:
        weight, bias = weight.to(dtype), bias.to(dtype)
    return F.linear(cast(x, dtype), weight, bias)


def mlp(first: Linear, second: Linear, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Linear, tanh-GELU, Linear, computed in `dtype`."""
    x = linear(first, x, dtype)  # by one name: no three of them in memory at once
    x = gelu(x)
    return linear(second, x, dtype)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, in and out in the format of `x`."""
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    y = cast(x, at_least_float32(x.dtype))
    # (1 + tanh u) / 2 by one exponential: a third of the time of tanh in generated code for CPUs.
    twice_u = math.sqrt(8 / math.pi) * (y + 0.044715 * y * y * y)
    return cast(y * torch.sigmoid(twice_u), x.dtype)


def affine_norm(params: Linear, x: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis with gain and bias, in and out in the format of `x`."""
    weight, bias = cast(params.weight, x.dtype), cast(params.bias, x.dtype)
    return torch.layer_norm(x, x.shape[-1:], weight, bias, eps)


def epsilon(eps: float, precision: Precision, device: torch.device) -> Tensor:
    """`eps` for `rms_norm_`, as a tensor of one number in the format of its statistics."""
    return torch.full((), eps, dtype=at_least_float32(precision.compute), device=device)


def rms_norm_(params: Weight, x: Tensor, eps: Tensor, dtype: torch.dtype) -> Tensor:
    """RMSNorm over the last axis, rounded back to the format of `x`, times the gain in `dtype`.

    In this order, with the statistics in the format of `eps`, which is of `epsilon`: float32 or
    better. Without gradient `x` is overwritten.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=eps.dtype)
    mean_square = torch.addcmul(eps, length, length, value=1 / x.shape[-1])
    if torch.is_grad_enabled():
        return cast(x * mean_square.rsqrt(), x.dtype) * cast(params.weight, dtype)
    return x.mul_(mean_square.rsqrt_()) * cast(params.weight, dtype)


def modulation(m_BTMD: Tensor) -> tuple[Tensor, ...]:
    """The M shifts, scales and gates of `m`, each as `modulated_norm` and `gated_add` want them: D
    numbers where the batch and all latent frames have the same, else [B, T, 1, D]."""
    if m_BTMD.numel() == m_BTMD.shape[2] * m_BTMD.shape[3]:  # rows broadcast by themselves
        return m_BTMD.flatten(0, 2).unbind(0)
    return m_BTMD.unsqueeze(3).unbind(2)


def modulated_norm(x_BLD: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis, times `scale` plus `shift`, each of `modulation`, in and out in
    the format of `x`."""
    if scale.ndim == 1:  # the norm's own gain and bias: one pass over the numbers, not two
        return torch.layer_norm(x_BLD, scale.shape, scale, shift, eps)
    normed_BLD = torch.layer_norm(x_BLD, x_BLD.shape[-1:], None, None, eps)
    normed_BTLD = normed_BLD.unflatten(1, (shift.shape[1], -1))
    return torch.addcmul(shift, normed_BTLD, scale).flatten(1, 2)


def gated_add(x_BLD: Tensor, y_BLD: Tensor, gate: Tensor) -> Tensor:
    """`x + gate * y`, with a gate of `modulation`, in the format of `x`, which is the wider one."""
    if gate.ndim == 1:
        return torch.addcmul(x_BLD, y_BLD, gate)
    x_BTLD, y_BTLD = (z.unflatten(1, (gate.shape[1], -1)) for z in (x_BLD, y_BLD))
    return torch.addcmul(x_BTLD, y_BTLD, gate).flatten(1, 2)


def sinusoid(t: Tensor, dim: int) -> Tensor:
    """float64 [..., dim] embedding of times `t` on the 0..1000 scale: all cosines, then all sines.

    Angle k is `t * 10000 ** (-k / (dim / 2))`.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float64, device=t.device) / half
    angles = t.double()[..., None] * torch.pow(10000.0, -exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def check_shape(name: str, x: Tensor, wanted: tuple[int | None, ...]) -> None:
    """Raises ArgumentError unless `x` has this shape; None stands for any size."""
    fits = x.ndim == len(wanted) and all(w in (None, g) for g, w in zip(x.shape, wanted))
    if not fits:
        shape = ", ".join("any" if size is None else str(size) for size in wanted)
        raise ArgumentError(f"{name} has the wrong shape", got=tuple(x.shape), wanted=f"({shape})")
