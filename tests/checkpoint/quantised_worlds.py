"""Writers of quantised files as the tools of others make them, at toy size.

Each takes a plain state dict and gives what the file holds and what a reader must make of it, which
is computed here on its own: the stored number times its scale in float32, as bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

State = dict[str, Tensor]
Written = tuple[State, State]  # what the file holds, what the weights are
Writer = Callable[[State], Written]

E4M3, E5M2, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
LARGEST = {E4M3: 448.0, E5M2: 57344.0, INT8: 127.0}


def is_matrix(name: str, tensor: Tensor) -> bool:
    """What such tools quantise: the matrices of the blocks."""
    return "block" in name and name.endswith(".weight") and tensor.ndim == 2


def rounded(scaled: Tensor, dtype: torch.dtype) -> Tensor:
    return (scaled.round() if dtype is INT8 else scaled).to(dtype)


def plain(dtype: torch.dtype) -> Writer:
    """`*_fp8_e4m3fn`: every tensor but the biases and norms cast, without scales."""

    def write(state: State) -> Written:
        stored = {n: t.to(dtype) if is_matrix(n, t) else t for n, t in state.items()}
        return stored, {
            n: t.to(dtype).bfloat16() if is_matrix(n, t) else t for n, t in state.items()
        }

    return write


def scaled(
    dtype: torch.dtype,
    ending: str,
    rows: Callable[[Tensor], Tensor],
    *,
    marker: Tensor | None = None,
    scale_input: bool = False,
) -> Writer:
    """Matrices in 8 bits with the scales that `rows` takes of the largest numbers in a row."""

    def write(state: State) -> Written:
        stored, meant = dict(state), dict(state)
        for name, weight in state.items():
            if not is_matrix(name, weight):
                continue
            layer = name.removesuffix(".weight")
            parts = rows(weight.abs()) / LARGEST[dtype]
            wide = parts
            if parts.ndim == 3:
                wide = parts.squeeze(-1).repeat_interleave(weight.shape[1] // parts.shape[1], 1)
            stored[name] = rounded(weight / wide, dtype)
            stored[layer + ending] = parts
            if scale_input:
                stored[layer + ".scale_input"] = torch.tensor(0.5)
            meant[name] = (stored[name].float() * wide).bfloat16()
        if marker is not None:
            stored["scaled_fp8"] = marker
        return stored, meant

    return write


def noted(writer: Writer, note: str) -> Writer:
    """As ComfyUI's newer files: each scaled layer says in JSON how it is stored."""

    def write(state: State) -> Written:
        stored, meant = writer(state)
        said = torch.frombuffer(bytearray(note.encode()), dtype=torch.uint8)
        layers = [n.removesuffix(".weight_scale") for n in stored if n.endswith(".weight_scale")]
        return stored | {f"{layer}.comfy_quant": said.clone() for layer in layers}, meant

    return write


def whole(weight: Tensor) -> Tensor:
    return weight.amax()


def one(weight: Tensor) -> Tensor:
    return weight.amax().reshape(1)


def per_row(weight: Tensor) -> Tensor:
    return weight.amax(1, keepdim=True)


def in_parts(weight: Tensor) -> Tensor:
    """[out, 4, 1]."""
    return weight.unflatten(1, (4, -1)).amax(2, keepdim=True)


FORMATS: dict[str, Writer] = {
    "fp8_e4m3fn": plain(E4M3),
    "fp8_e5m2": plain(E5M2),
    "comfy_fp8_scaled": scaled(
        E4M3, ".scale_weight", whole, marker=torch.zeros(2).to(E4M3), scale_input=True
    ),
    "comfy_marked_by_a_float": scaled(E4M3, ".scale_weight", whole, marker=torch.zeros(0)),
    "comfy_noted": noted(
        scaled(E4M3, ".weight_scale", whole),
        '{"format": "float8_e4m3fn", "full_precision_matrix_mult": true}',
    ),
    "kijai_fp8_e4m3fn_scaled": scaled(E4M3, ".scale_weight", one, marker=torch.zeros(1).to(E4M3)),
    "kijai_fp8_e5m2_scaled": scaled(E5M2, ".scale_weight", one, marker=torch.zeros(1).to(E5M2)),
    "lightx2v_fp8": scaled(E4M3, ".weight_scale", per_row),
    "lightx2v_int8": scaled(INT8, ".weight_scale", per_row),
    "musubi_tensor": scaled(E4M3, ".scale_weight", one),
    "musubi_rows": scaled(E4M3, ".scale_weight", per_row),
    "musubi_parts": scaled(E4M3, ".scale_weight", in_parts),
}
