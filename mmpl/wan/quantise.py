"""Matrices kept in 8 bits with one scale per row: made from others, and multiplied with.

`weight[o, i]` is about `stored[o, i] * scale[o]`; the largest number of a row falls on the largest
of the format. Half the memory of bfloat16, and other results: README.md says how far off.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.wan.choices import QUANTISED
from mmpl.wan.params import Linear, QuantisedLinear

STORED = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
_LARGEST = {"fp8": 448.0, "int8": 127.0}
_SMALLEST_SCALE = 2.0**-100  # of a row of zeros
_FP8_PRODUCTS = (8, 9)  # CUDA compute capability from which cards multiply fp8
_MULTIPLE = 16  # of both sides of a matrix, for that product


def quantised_rows(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """A matrix [out, in] in 8 bits of `kind` (fp8 or int8), and the scales [out, 1] of its rows in
    float32. An int8 is off by at most half a scale. Raises ArgumentError for other kinds."""
    if kind not in STORED:
        raise ArgumentError("unknown quantisation", got=repr(kind), wanted=" or ".join(QUANTISED))
    rows = weight.float()
    scale = rows.abs().amax(1, keepdim=True).clamp_min(_SMALLEST_SCALE) / _LARGEST[kind]
    steps = (rows / scale).clamp(-_LARGEST[kind], _LARGEST[kind])
    return (steps.round() if kind == "int8" else steps).to(STORED[kind]), scale


def quantised(linear: Linear, kind: str) -> Linear:
    """The same linear map with its matrix in 8 bits; one that is so already is left as it is."""
    if isinstance(linear, QuantisedLinear) or linear.weight.ndim != 2:
        return linear
    stored, scale = quantised_rows(linear.weight, kind)
    return QuantisedLinear(stored, linear.bias, scale)


def dequantise(stored: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`stored * scale`, multiplied in float32."""
    return (stored.float() * scale).to(dtype)


def quantised_linear(params: QuantisedLinear, x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x @ weight.T + bias` in `dtype`: in fp8 where the card can, else of the plain matrix, which
    is made for this product alone. `x` is in `dtype`."""
    bias = params.bias.to(dtype)
    if _in_fp8(params, x, dtype):
        return fp8_product(params, x) + bias
    return F.linear(x, dequantise(params.weight, params.weight_scale, dtype), bias)


def fp8_product(params: QuantisedLinear, x: Tensor) -> Tensor:
    """`x @ weight.T` in bfloat16 of an fp8 matrix and `x` rounded to fp8 with a scale per row."""
    steps, scale = quantised_rows(x.flatten(0, -2), "fp8")
    product = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        steps,
        params.weight.t(),
        scale_a=scale,
        scale_b=params.weight_scale.t(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return product.unflatten(0, x.shape[:-1])


def _in_fp8(params: QuantisedLinear, x: Tensor, dtype: torch.dtype) -> bool:
    fits = (
        dtype is torch.bfloat16
        and params.weight.dtype is STORED["fp8"]
        and not any(side % _MULTIPLE for side in params.weight.shape)
    )
    if not fits or x.device.type != "cuda":
        return fits and x.is_meta  # where memory is planned: this way takes more of it
    return torch.cuda.get_device_capability(x.device) >= _FP8_PRODUCTS
