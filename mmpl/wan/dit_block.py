"""One block of the diffusion transformer, the function that is worth compiling.

Everything it needs comes in as an argument, so all layers share the compiled code. It is the only
place that writes to the K/V cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mmpl.wan import ops
from mmpl.wan.attention import AttentionBackend, Visible, attend
from mmpl.wan.cache import LayerKV, Rows, kv_read, kv_write_
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit_params import AttentionParams, BlockParams
from mmpl.wan.ops import Precision, cast, linear
from mmpl.wan.params import Linear, Weight
from mmpl.wan.rope import rope
from mmpl.wan.ulysses import Ulysses


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """What all blocks of one pass have in common. `e_BT6D` has a 1 added to its scales, and T is 1
    where all frames have one timestep. `eps`: that of the config, which the host hands over sooner
    as a tensor. With `ulysses` a rank has a part of the `tokens` tokens of the pass."""

    e_BT6D: Tensor
    rope_L1C2: Tensor
    visible: Visible
    write: slice | None
    read: Rows | None
    precision: Precision
    attention: AttentionBackend
    ulysses: Ulysses | None
    tokens: int
    eps: Tensor


class BlockFn(Protocol):
    """`block`, or a compiled version of it."""

    def __call__(
        self,
        params: BlockParams,
        config: DiTConfig,
        x_BLD: Tensor,
        shared: Shared,
        text: LayerKV,
        cached: LayerKV | None,
        /,
    ) -> Tensor: ...


class TextFn(Protocol):
    """`text_kv`, or another way to it."""

    def __call__(
        self, params: BlockParams, config: DiTConfig, y_BJD: Tensor, precision: Precision, /
    ) -> LayerKV: ...


def block(
    params: BlockParams,
    config: DiTConfig,
    x_BLD: Tensor,
    shared: Shared,
    text: LayerKV,
    cached: LayerKV | None,
) -> Tensor:
    """One transformer block: self-attention, cross-attention, feed-forward.

    Writes to `cached` in place. Compile this function, not `dit`: parameters and tensors are its
    inputs, so all layers share the compiled code.
    """
    precision = shared.precision
    m_BT6D = cast(params.modulation, precision.island) + shared.e_BT6D
    shift_sa, scale_sa, gate_sa, shift_ffn, scale_ffn, gate_ffn = ops.modulation(m_BT6D)

    # What a function is given has no name here, so that it can be let go of there.
    y_BLD = self_attention(
        params.self_attn,
        config,
        cast(ops.modulated_norm(x_BLD, shift_sa, scale_sa, config.eps), precision.compute),
        shared,
        cached,
    )
    x_BLD = ops.gated_add(x_BLD, y_BLD, gate_sa)
    del y_BLD

    normed_BLD = ops.affine_norm(params.norm3, x_BLD, config.eps)
    x_BLD = x_BLD + cross_attention(params.cross_attn, config, normed_BLD, shared, text)
    del normed_BLD

    y_BLD = ops.mlp(
        params.ffn_in,
        params.ffn_out,
        cast(ops.modulated_norm(x_BLD, shift_ffn, scale_ffn, config.eps), precision.compute),
        precision.compute,
    )
    return ops.gated_add(x_BLD, y_BLD, gate_ffn)


def self_attention(
    params: AttentionParams,
    config: DiTConfig,
    y_BLD: Tensor,
    shared: Shared,
    cached: LayerKV | None,
) -> Tensor:
    """Attention between tokens, y_BLD in the compute format: of the pass alone, or of the pass and
    the cache."""
    precision = shared.precision
    table_L1C2, eps = shared.rope_L1C2, shared.eps
    q_BLNK = rope(normed_heads(params.q, params.norm_q, config, y_BLD, precision, eps), table_L1C2)
    q_BLNK = cast(q_BLNK, precision.compute)
    k_BLNK = rope(normed_heads(params.k, params.norm_k, config, y_BLD, precision, eps), table_L1C2)
    v_BLNK = heads(linear(params.v, y_BLD, precision.compute), config)
    del y_BLD
    if shared.write is None or shared.ulysses is not None:  # else rounded when it is stored
        k_BLNK = cast(k_BLNK, precision.compute)
    if shared.ulysses is not None:
        together = torch.cat((q_BLNK, k_BLNK, v_BLNK))
        q_BLNK, k_BLNK, v_BLNK = shared.ulysses.to_heads(together, shared.tokens).chunk(3)
    own = [v_BLNK, k_BLNK]  # taken out to be given: a pass without slots joins one by one
    del k_BLNK, v_BLNK
    k_BSNK, v_BSNK = _seen(own, shared, cached)
    o_BLNK = attend(shared.attention, q_BLNK, k_BSNK, v_BSNK, shared.visible)
    del q_BLNK, k_BSNK, v_BSNK
    if shared.ulysses is not None:
        o_BLNK = shared.ulysses.to_tokens(o_BLNK)
    return linear(params.o, o_BLNK.flatten(2), precision.compute)


def cross_attention(
    params: AttentionParams, config: DiTConfig, y_BLD: Tensor, shared: Shared, text: LayerKV
) -> Tensor:
    """Attention to the text, its padding included."""
    precision = shared.precision
    q_BLNK = normed_heads(params.q, params.norm_q, config, y_BLD, precision, shared.eps)
    o_BLNK = shared.attention(cast(q_BLNK, precision.compute), text.k_BSNK, text.v_BSNK)
    return linear(params.o, o_BLNK.flatten(2), precision.compute)


def text_kv(params: BlockParams, config: DiTConfig, y_BJD: Tensor, precision: Precision) -> LayerKV:
    """Keys and values of text tokens y_BJD for a block's cross-attention."""
    layer = params.cross_attn
    eps = ops.epsilon(config.eps, precision, y_BJD.device)
    k_BJNK = normed_heads(layer.k, layer.norm_k, config, y_BJD, precision, eps)
    v_BJNK = heads(linear(layer.v, y_BJD, precision.compute), config)
    return LayerKV(cast(k_BJNK, precision.compute), v_BJNK)


def normed_heads(
    matrix: Linear,
    gain: Weight,
    config: DiTConfig,
    y_BLD: Tensor,
    precision: Precision,
    eps: Tensor,
) -> Tensor:
    """Queries or keys [B, L, N, K], normed over all heads together, in the island format."""
    projected = linear(matrix, y_BLD, precision.compute)
    return heads(ops.rms_norm_(gain, projected, eps, precision.island), config)


def heads(x_BLD: Tensor, config: DiTConfig) -> Tensor:
    """The heads side by side, as x_BLNK."""
    return torch.unflatten(x_BLD, -1, (config.num_heads, -1))


def _seen(own: list[Tensor], shared: Shared, cached: LayerKV | None) -> tuple[Tensor, Tensor]:
    """The keys and values that the queries attend to; stores those of the pass, values first in
    `own` and gone from there, in the cache if the pass writes."""
    if cached is None or shared.read is None:
        return own.pop(), own.pop()
    if shared.write is not None:
        kv_write_(cached, own.pop(), own.pop(), shared.write)
        return kv_read(cached, shared.read)
    past_k_BSNK, past_v_BSNK = kv_read(cached, shared.read)
    k_BSNK = torch.cat((past_k_BSNK, own.pop()), dim=1)
    return k_BSNK, torch.cat((past_v_BSNK, own.pop()), dim=1)
