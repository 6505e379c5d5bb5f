"""The diffusion transformer's parameters, under the official key names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

from mmpl.wan.config import DiTConfig
from mmpl.wan.ops import Precision, cast, natural_precision
from mmpl.wan.params import (
    Linear,
    QuantisedLinear,
    Shapes,
    Weight,
    from_flat,
    key,
    tree_map,
)
from mmpl.wan.quantise import STORED, quantised

Tree = TypeVar("Tree")


@dataclass(frozen=True, slots=True, eq=False)
class AttentionParams:
    """Projections of one attention layer; the norms span all heads together."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    norm_q: Weight
    norm_k: Weight


@dataclass(frozen=True, slots=True, eq=False)
class BlockParams:
    """One block. `modulation` [1, 6, D]; `norm3` (gain and bias) precedes cross-attention."""

    modulation: Tensor
    self_attn: AttentionParams
    cross_attn: AttentionParams
    norm3: Linear
    ffn_in: Linear = key("ffn.0")
    ffn_out: Linear = key("ffn.2")


@dataclass(frozen=True, slots=True, eq=False)
class HeadParams:
    """Output layer. `modulation` [1, 2, D]."""

    modulation: Tensor
    head: Linear


@dataclass(frozen=True, slots=True, eq=False)
class DiTParams:
    """The whole network."""

    patch_embedding: Linear
    blocks: tuple[BlockParams, ...]
    head: HeadParams
    text_in: Linear = key("text_embedding.0")
    text_out: Linear = key("text_embedding.2")
    time_in: Linear = key("time_embedding.0")
    time_out: Linear = key("time_embedding.2")
    time_projection: Linear = key("time_projection.1")


def dit_shapes(config: DiTConfig) -> Shapes:
    """Official key names and shapes of the network's tensors."""
    D, ffn = config.dim, config.ffn_dim
    shapes: Shapes = {
        "patch_embedding.weight": (D, config.in_dim, *config.patch_size),
        "patch_embedding.bias": (D,),
        "head.modulation": (1, 2, D),
    }
    linears = {
        "text_embedding.0": (D, config.text_dim),
        "text_embedding.2": (D, D),
        "time_embedding.0": (D, config.freq_dim),
        "time_embedding.2": (D, D),
        "time_projection.1": (6 * D, D),
        "head.head": (config.out_dim * prod(config.patch_size), D),
    }
    for block_name in (f"blocks.{i}" for i in range(config.num_layers)):
        shapes |= {f"{block_name}.modulation": (1, 6, D)}
        shapes |= {f"{block_name}.norm3.{part}": (D,) for part in ("weight", "bias")}
        linears |= {f"{block_name}.ffn.0": (ffn, D), f"{block_name}.ffn.2": (D, ffn)}
        for layer in (f"{block_name}.self_attn", f"{block_name}.cross_attn"):
            linears |= {f"{layer}.{part}": (D, D) for part in "qkvo"}
            shapes |= {f"{layer}.norm_{part}.weight": (D,) for part in "qk"}
    for name, (rows, columns) in linears.items():
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    return shapes


def dit_from_flat(flat: Mapping[str, Tensor], config: DiTConfig) -> DiTParams:
    """Parameters from an official state dict; CheckpointError unless it fits exactly."""
    return from_flat(DiTParams, flat, dit_shapes(config), where="DiT weights")


def dit_cast(params: DiTParams, precision: Precision) -> DiTParams:
    """The same parameters stored in the formats `precision` reads them in.

    Changes no result, as `dit` rounds a weight on use anyway; it saves doing so in every pass.
    Quantised matrices and their scales stay as they are.
    """

    def narrowed(leaf: Tensor | QuantisedLinear) -> Tensor | QuantisedLinear:
        if isinstance(leaf, QuantisedLinear):
            return replace(leaf, bias=cast(leaf.bias, precision.compute))
        return cast(leaf, precision.compute)

    def island(tree: Tree) -> Tree:
        return tree_map(lambda x: cast(x, precision.island), tree)

    def attention(layer: AttentionParams, stored: AttentionParams) -> AttentionParams:
        return replace(layer, norm_q=island(stored.norm_q), norm_k=island(stored.norm_k))

    def block(narrow: BlockParams, stored: BlockParams) -> BlockParams:
        return replace(
            narrow,
            modulation=island(stored.modulation),
            norm3=island(stored.norm3),
            self_attn=attention(narrow.self_attn, stored.self_attn),
            cross_attn=attention(narrow.cross_attn, stored.cross_attn),
        )

    narrow = tree_map(narrowed, params, leaves=(Tensor, QuantisedLinear))
    return replace(
        narrow,
        blocks=tuple(block(n, stored) for n, stored in zip(narrow.blocks, params.blocks)),
        head=island(params.head),
        time_in=island(params.time_in),
        time_out=island(params.time_out),
        time_projection=island(params.time_projection),
    )


def dit_quantised(params: DiTParams, kind: str) -> DiTParams:
    """The same network with the matrices of its blocks in 8 bits of `kind`, fp8 or int8.

    What is around the blocks, norms and modulation keep their formats. Raises ArgumentError.
    """

    def block(stored: BlockParams) -> BlockParams:
        return tree_map(lambda linear: quantised(linear, kind), stored, leaves=(Linear,))

    return replace(params, blocks=tuple(block(stored) for stored in params.blocks))


def dit_held(params: DiTParams, dtype: torch.dtype | None, kind: str | None) -> DiTParams:
    """The same network as a model holds it: its blocks' matrices in 8 bits of `kind`, the rest as
    products in `dtype` read it; None leaves each as it is stored. Raises ArgumentError."""
    if kind is not None:
        params = dit_quantised(params, kind)
    return params if dtype is None else dit_cast(params, natural_precision(dtype))


def compute_dtype(params: DiTParams) -> torch.dtype:
    """The format that the stored network's products are computed in: that of its matrices, or of
    their biases where they are quantised."""
    linear = params.blocks[0].ffn_in
    return (linear.bias if isinstance(linear, QuantisedLinear) else linear.weight).dtype


def quantised_kind(params: DiTParams) -> str | None:
    """fp8 or int8 where the blocks' matrices are quantised."""
    linear = params.blocks[0].ffn_in
    if not isinstance(linear, QuantisedLinear):
        return None
    return next(kind for kind, dtype in STORED.items() if dtype is linear.weight.dtype)
