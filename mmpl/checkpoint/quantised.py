"""Weights stored in 8 bits with scales beside them: which tensors belong together. No torch.

A layer `L` is `L.weight` and, where that is scaled, `L.scale_weight` (ComfyUI, Kijai, musubi) or
`L.weight_scale` (LightX2V): one number, one per row [out, 1], or one per row and equal part of it
[out, parts, 1]. `L.scale_input` is for activations that are quantised with a scale fixed in
advance, which is not done here: it is checked and then not used. A tensor `scaled_fp8` says by its
format which fp8 the scaled weights are in. fp8 without scales is a plain cast. Newer files of
ComfyUI say in `L.comfy_quant`, JSON as bytes, how that one layer is stored. Names are official.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NoReturn

from mmpl.checkpoint.files import TensorInfo
from mmpl.errors import CheckpointError

FLOATS = ("F64", "F32", "F16", "BF16")
FP8 = ("F8_E4M3", "F8_E5M2")
INT8 = "I8"
EIGHT_BIT = (*FP8, INT8)

WEIGHT = ".weight"
SCALES = (".scale_weight", ".weight_scale")
INPUT_SCALES = (".scale_input", ".input_scale")
MARKER = "scaled_fp8"
NOTE = ".comfy_quant"
_UNSCALED = ("token_embedding.weight",)  # a table and no matrix: cast alone in scaled files too
_FORMATS = {"float8_e4m3fn": FP8[0], "float8_e5m2": FP8[1]}
_NOTED = ("format", "full_precision_matrix_mult")  # the second is about how to multiply
_LONGEST_NOTE = 1024
_TODO = "ask its publisher for a whole file, or for one in bfloat16"


def companion(name: str) -> bool:
    """Whether a tensor of this name only says how others are stored."""
    return name == MARKER or name.endswith((*SCALES, *INPUT_SCALES, NOTE))


def require_note(note: bytes, stored: str, *, where: str, name: str) -> None:
    """Raises CheckpointError unless the `comfy_quant` called `name` says of its layer only that the
    weight, `stored` in a header's words, is to be multiplied with its scale."""
    try:
        said = json.loads(note)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not set(said) <= set(_NOTED):
        _refuse("a layer is quantised in an unknown way", where, f"{name}: {note[:80]!r}", "fp8")
    if _FORMATS.get(str(said.get("format"))) != stored:
        _refuse("a layer is not stored as is said of it", where, f"{name}: {note[:80]!r}", stored)


def layer_scales(names: Mapping[str, object], *, where: str) -> dict[str, str]:
    """The name of each scaled weight -> that of its scale. Raises CheckpointError for a scale
    without a weight and a weight with two scales."""
    found: dict[str, str] = {}
    for name in names:
        ending = next((e for e in (*SCALES, *INPUT_SCALES, NOTE) if name.endswith(e)), None)
        if ending is None:
            continue
        weight = name.removesuffix(ending) + WEIGHT
        if weight not in names:
            _refuse("a scale has no weight that it belongs to", where, name, weight)
        if ending in (*INPUT_SCALES, NOTE):
            continue
        if weight in found:
            _refuse("a weight has two scales", where, f"{found[weight]} and {name}", "one")
        found[weight] = name
    return found


def weight_shapes(entries: Mapping[str, TensorInfo], *, where: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the weights among `entries`, whose companions all fit them.

    Raises CheckpointError for number formats that are not read, and for scales that are missing,
    left over or of a shape that fits no weight.
    """
    scales = layer_scales(entries, where=where)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, info in entries.items():
        if companion(name):
            if name.endswith(NOTE):
                _require_bytes(name, info, where)
            elif name != MARKER:
                _require_scale(entries, name, where)
            continue
        if info.dtype not in (*FLOATS, *EIGHT_BIT):
            raise CheckpointError(
                "weights of this number format cannot be read",
                where=where,
                got=f"{_shown(name)} of {info.dtype}",
                wanted="one of " + " ".join((*FLOATS, *EIGHT_BIT)),
            )
        is_scaled = bool(scales) or MARKER in entries
        needs_one = info.dtype == INT8 or (info.dtype in FP8 and is_scaled)
        if needs_one and name not in scales and name not in _UNSCALED:
            wanted = " or ".join(name.removesuffix(WEIGHT) + ending for ending in SCALES)
            _refuse("a quantised weight has no scale", where, f"{name} of {info.dtype}", wanted)
        shapes[name] = info.shape
    _require_marked(entries, scales, where)
    return shapes


def _require_bytes(name: str, info: TensorInfo, where: str) -> None:
    short = len(info.shape) == 1 and info.shape[0] <= _LONGEST_NOTE
    if info.dtype != "U8" or not short:
        _refuse("a note is not a few bytes", where, f"{name}: {info.dtype} {info.shape}", "U8")


def _require_scale(entries: Mapping[str, TensorInfo], name: str, where: str) -> None:
    info = entries[name]
    weight = entries[name.rpartition(".")[0] + WEIGHT]
    if info.dtype not in FLOATS:
        _refuse("a scale is not a number", where, f"{name} of {info.dtype}", " ".join(FLOATS))
    per_tensor = info.shape in ((), (1,))
    if not (per_tensor or (name.endswith(SCALES) and _fits_rows(info.shape, weight.shape))):
        wanted = "(1,)" if name.endswith(INPUT_SCALES) else f"(1,) or a row's for {weight.shape}"
        _refuse("a scale does not fit its weight", where, f"{name} of {info.shape}", wanted)


def _fits_rows(scale: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether the shape is [out, 1], or [out, parts, 1] with parts of one length."""
    if len(weight) != 2 or len(scale) not in (2, 3) or (scale[0], scale[-1]) != (weight[0], 1):
        return False
    return len(scale) == 2 or (scale[1] > 0 and weight[1] % scale[1] == 0)


def _require_marked(
    entries: Mapping[str, TensorInfo], scales: Mapping[str, str], where: str
) -> None:
    """The marker names the format of the scaled weights; a float stands for the usual one."""
    marker = entries.get(MARKER)
    if marker is None:
        return
    if marker.dtype not in (*FLOATS, *FP8):
        _refuse("the mark of scaled fp8 says nothing known", where, marker.dtype, " ".join(FP8))
    said = marker.dtype if marker.dtype in FP8 else FP8[0]
    for name in scales:
        stored = entries[name].dtype
        if stored in EIGHT_BIT and stored != said:
            _refuse(f"the mark of scaled fp8 says {said}", where, f"{name} of {stored}", said)


def _refuse(what: str, where: str, got: str, wanted: str) -> NoReturn:
    raise CheckpointError(what, where=where, got=_shown(got), wanted=_shown(wanted), todo=_TODO)


def _shown(text: str) -> str:
    return ascii(text)[1:-1][:120]
