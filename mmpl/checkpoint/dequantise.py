"""Tensors of quantised files as plain weights, or as matrices that stay in 8 bits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmpl.checkpoint.files import TensorInfo
from mmpl.checkpoint.quantised import NOTE, WEIGHT, companion, layer_scales, require_note
from mmpl.errors import CheckpointError
from mmpl.wan.params import SCALE
from mmpl.wan.quantise import STORED, dequantise

PLAIN = torch.bfloat16  # what 8 bits become: e4m3, e5m2 and int8 are all exact in it

_WORDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
}


def described(flat: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    """What a header would say of the tensors."""
    return {
        name: TensorInfo(_WORDS.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
        for name, tensor in flat.items()
    }


def plain_weights(
    flat: Mapping[str, Tensor],
    *,
    where: str,
    keep: str | None = None,
) -> dict[str, Tensor]:
    """The weights of a file that `quantised.weight_shapes` found good, without companions.

    Those in 8 bits become `weight * scale`, multiplied in float32 and stored in bfloat16; others
    are the same tensors. With `keep`, fp8 or int8, matrices of the blocks that are stored so stay
    as they are, each with the scales of its rows beside it: what QuantisedLinear is made of.
    Raises CheckpointError for scales that are negative or not finite, and layers that are said to
    be stored in a way that is not known.
    """
    scales = layer_scales(flat, where=where)
    made: dict[str, Tensor] = {}
    for name, tensor in flat.items():
        if name.endswith(NOTE):
            weight = flat[name.removesuffix(NOTE) + WEIGHT]
            require_note(
                tensor.cpu().numpy().tobytes(), _WORDS.get(weight.dtype, ""), where=where, name=name
            )
        if companion(name):
            continue
        scale = _checked(flat, scales[name], where) if name in scales else None
        if scale is None and tensor.dtype.itemsize > 1:
            made[name] = tensor
        elif keep is not None and _stays(name, tensor, scale, STORED.get(keep)):
            made[name] = tensor
            made[name.removesuffix(".weight") + SCALE] = _of_rows(tensor, scale)
        else:
            made[name] = _multiplied(tensor, scale)
    return made


def _stays(name: str, weight: Tensor, scale: Tensor | None, stored: torch.dtype | None) -> bool:
    is_matrix = name.startswith("blocks.") and weight.ndim == 2
    return is_matrix and weight.dtype is stored and (scale is None or scale.ndim < 3)


def _of_rows(weight: Tensor, scale: Tensor | None) -> Tensor:
    factor = torch.ones(1, 1) if scale is None else scale.reshape(-1, 1)
    return factor.expand(len(weight), 1).contiguous()


def _multiplied(weight: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return weight.to(PLAIN)
    if scale.ndim < 3:
        factor = scale.reshape(-1, 1) if scale.ndim == 2 else scale.reshape(())
        return dequantise(weight, factor, PLAIN)
    parts = weight.unflatten(1, (scale.shape[1], -1))
    return dequantise(parts, scale, PLAIN).flatten(1)


def _checked(flat: Mapping[str, Tensor], name: str, where: str) -> Tensor:
    scale = flat[name].float()
    if not (torch.isfinite(scale).all() and (scale >= 0).all()):
        raise CheckpointError(
            "a scale is not a finite, positive number",
            where=where,
            got=ascii(name)[1:-1][:120],
            todo="the file is damaged or was made wrongly: copy it again or take another",
        )
    return scale
