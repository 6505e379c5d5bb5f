"""The diffusion transformer: one stateless function for every way it is used.

Bidirectional clips, teacher forcing under a mask, and group-by-group passes over a K/V cache differ
only in the `Positions` value and the cache given to `dit`. Parameters
carry the official key names. Knows nothing of groups, samplers or films.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.wan import ops
from mmpl.wan.attention import (
    AttentionBackend,
    Masked,
    Piece,
    Visible,
    additive_mask,
    sdpa,
    token_pieces,
)
from mmpl.wan.cache import KVCache, LayerKV, Rows, SlotView, check_view, read_rows, write_rows
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit_block import BlockFn, Shared, TextFn, text_kv
from mmpl.wan.dit_block import block as block
from mmpl.wan.dit_params import BlockParams, HeadParams, compute_dtype
from mmpl.wan.dit_params import DiTParams as DiTParams
from mmpl.wan.dit_params import dit_cast as dit_cast
from mmpl.wan.dit_params import dit_from_flat as dit_from_flat
from mmpl.wan.dit_params import dit_shapes as dit_shapes
from mmpl.wan.ops import Precision, cast, linear
from mmpl.wan.params import Linear
from mmpl.wan.rope import rope_table
from mmpl.wan.ulysses import Ulysses

# ------------------------------------------------------------------------ what a pass is given


@dataclass(frozen=True, slots=True, eq=False)
class CrossKV:
    """Text keys and values of every block: made once per prompt, never changed."""

    k_IBJNK: Tensor
    v_IBJNK: Tensor

    @property
    def clips(self) -> int:
        """How many clips it is for."""
        return self.k_IBJNK.shape[1]

    def layer(self, index: int) -> LayerKV:
        """A view of one block's keys and values."""
        return LayerKV(self.k_IBJNK[index], self.v_IBJNK[index])


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """Where the T latent frames of a pass stand in time and what they see.

    `positions`: temporal RoPE positions, in the order of the frames; they may repeat. `slots`: the
    cache slots written and read, for a pass over a cache. Without a cache, tokens see each other
    unless hidden by `mask_LL` (boolean; rows are queries, true is visible), or by `pieces` or a
    `masked` kernel, which say the same faster. `rope_L1C2`: the table that `rope_table` makes of
    `positions`, for callers that run the same frames many times.
    """

    positions: tuple[int, ...]
    slots: SlotView | None = None
    mask_LL: Tensor | None = None
    pieces: tuple[Piece, ...] = ()
    masked: Masked | None = None
    rope_L1C2: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Time:
    """What a timestep is to the network: `e_BTD` for its head and `e_BT6D` for its blocks, with 1
    added to the scales. B is 1 where all clips have the same, T where all frames have."""

    e_BTD: Tensor
    e_BT6D: Tensor


# ------------------------------------------------------------------------------- whole network


class Walk(Protocol):
    """The way through the blocks of a pass: each with its part of the cache, where there is one,
    both on the device by the time they are given. `write`, `read`: the cache's rows of the pass."""

    def __call__(
        self,
        blocks: Sequence[BlockParams],
        cache: KVCache | None,
        write: slice | None,
        read: Rows | None,
        /,
    ) -> Iterator[tuple[BlockParams, LayerKV | None]]: ...


def in_place(
    blocks: Sequence[BlockParams], cache: KVCache | None, write: slice | None, read: Rows | None
) -> Iterator[tuple[BlockParams, LayerKV | None]]:
    """The walk through what is on the device already."""
    for index, block_params in enumerate(blocks):
        yield block_params, None if cache is None else cache.layer(index)


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """How the arithmetic is done. `precision=None` computes in the format of the stored weights,
    with islands of at least float32. Only `block_fn` and `text_fn` touch what is in a block.
    `ulysses`: the ranks that share every pass; such passes have one timestep for all frames, a
    cache of a rank's own heads, and no mask. `walk` brings the blocks to the device."""

    precision: Precision | None = None
    attention: AttentionBackend = sdpa
    block_fn: BlockFn = block
    text_fn: TextFn = text_kv
    ulysses: Ulysses | None = None
    walk: Walk = in_place

    @property
    def ranks(self) -> int:
        """How many ranks share a pass."""
        return 1 if self.ulysses is None else self.ulysses.size


DEFAULT_ENGINE = Engine()


def encode_context(
    params: DiTParams,
    config: DiTConfig,
    context: Sequence[Tensor],
    *,
    engine: Engine = DEFAULT_ENGINE,
) -> CrossKV:
    """Keys and values of the text for every block, one batch entry per item of `context`.

    Items are unpadded [J, text_dim], J <= text_len. They are padded with zeros before the text
    MLP, which turns the padding into a constant that attention does see. ArgumentError for other
    shapes.
    """
    precision = _precision(params, engine)
    for text in context:
        ops.check_shape("context", text, (None, config.text_dim))
        if len(text) > config.text_len:
            raise ArgumentError("context is too long", got=len(text), wanted=config.text_len)
    padded = [F.pad(text, (0, 0, 0, config.text_len - len(text))) for text in context]
    y_BJD = text_embedding(params, torch.stack(padded), precision)
    walk = engine.walk(params.blocks, None, None, None)
    layers = [engine.text_fn(b, config, y_BJD, precision) for b, _ in walk]
    k, v = [layer.k_BSNK for layer in layers], [layer.v_BSNK for layer in layers]
    return CrossKV(torch.stack(k), torch.stack(v))


def dit(
    params: DiTParams,
    config: DiTConfig,
    x_BCTHW: Tensor,
    t_BT: Tensor | Time,
    context: CrossKV,
    cache: KVCache | None = None,
    *,
    frames: Positions,
    engine: Engine = DEFAULT_ENGINE,
) -> Tensor:
    """The flow velocity v_BCTHW = noise - x0 of latents `x_BCTHW`, in the island format.

    `t_BT`: timestep of every latent frame on the 0..1000 scale, with B or T 1 for one for all, or
    what `time_of` makes of it, for callers with several passes at one time. `context` comes from
    `encode_context`. With a cache, `frames.slots` says what is written and read; the pass must then
    run under `torch.no_grad()` if it writes. Without one the pass is differentiable. Raises
    ArgumentError for shapes or slots that do not fit.
    """
    precision = _precision(params, engine)
    _check_inputs(config, x_BCTHW, t_BT, context, frames)
    write, read = _cache_rows(config, x_BCTHW, cache, frames, precision, engine.ranks)
    rope_L1C2 = _rope(config, x_BCTHW, frames, precision)
    x_BLD, tokens = patch_embedding(params, config, x_BCTHW, precision), len(rope_L1C2)
    if engine.ulysses is not None:
        own = engine.ulysses.rows(tokens)
        # Split again, so that a first block is given the strides that all the others are.
        x_BLD = x_BLD[:, own].flatten(0, 1).unflatten(0, (len(x_BLD), -1))
        rope_L1C2 = rope_L1C2[own]
    time = t_BT if isinstance(t_BT, Time) else time_of(params, config, t_BT, engine=engine)
    shared = Shared(
        e_BT6D=time.e_BT6D,
        rope_L1C2=rope_L1C2,
        visible=_visible(config, x_BCTHW, frames, precision),
        write=write,
        read=read,
        precision=precision,
        attention=engine.attention,
        ulysses=engine.ulysses,
        tokens=tokens,
        eps=ops.epsilon(config.eps, precision, x_BLD.device),
    )
    tokens_BLD = [x_BLD]
    del x_BLD
    for index, (block_params, cached) in enumerate(engine.walk(params.blocks, cache, write, read)):
        text = context.layer(index)
        # Taken out to be given: what went into a block need not outlive it.
        tokens_BLD.append(
            engine.block_fn(block_params, config, tokens_BLD.pop(), shared, text, cached)
        )
    y_BLC = head(params.head, config, tokens_BLD.pop(), time.e_BTD, precision)
    if engine.ulysses is not None:
        y_BLC = engine.ulysses.gather(y_BLC, tokens)
    return unpatchify(config, y_BLC, x_BCTHW.shape[2:])


def patch_embedding(
    params: DiTParams, config: DiTConfig, x_BCTHW: Tensor, precision: Precision
) -> Tensor:
    """Tokens x_BLD, column fastest: the patch convolution, whose stride is its size, as a matrix
    product."""
    pt, ph, pw = config.patch_size
    x_BCTtHhWw = x_BCTHW.unflatten(4, (-1, pw)).unflatten(3, (-1, ph)).unflatten(2, (-1, pt))
    patches_BLC = x_BCTtHhWw.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
    stored = params.patch_embedding
    matrix = Linear(stored.weight.flatten(1), stored.bias)
    return cast(linear(matrix, patches_BLC, precision.compute), precision.island)


def time_of(
    params: DiTParams, config: DiTConfig, t_BT: Tensor, *, engine: Engine = DEFAULT_ENGINE
) -> Time:
    """What `dit` makes of its timesteps, by itself."""
    if engine.ulysses is not None:  # the tokens of a rank are of any frames, all at one time
        t_BT = t_BT[:, :1]
    e_BTD, e_BT6D = time_embedding(params, config, t_BT, _precision(params, engine))
    e_BT6D[:, :, 1::3] += 1  # of shift, scale, gate, twice
    return Time(e_BTD, e_BT6D)


def time_embedding(
    params: DiTParams, config: DiTConfig, t_BT: Tensor, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Vectors e_BTD for the head and e_BT6D for the blocks, in the island format."""
    dtype = precision.island
    waves = ops.sinusoid(t_BT, config.freq_dim)
    e_BTD = linear(params.time_out, F.silu(linear(params.time_in, waves, dtype)), dtype)
    e_BT6D = linear(params.time_projection, F.silu(e_BTD), dtype).unflatten(-1, (6, config.dim))
    return e_BTD, e_BT6D


def text_embedding(params: DiTParams, padded_BJC: Tensor, precision: Precision) -> Tensor:
    """Text tokens of the network's width, from zero-padded encoder output."""
    return ops.mlp(params.text_in, params.text_out, padded_BJC, precision.compute)


def head(
    params: HeadParams, config: DiTConfig, x_BLD: Tensor, e_BTD: Tensor, precision: Precision
) -> Tensor:
    """Output features of every token, channel fastest, in the island format."""
    m_BT2D = cast(params.modulation, precision.island) + e_BTD.unsqueeze(2)
    shift, scale = ops.modulation(m_BT2D)
    y_BLD = ops.modulated_norm(x_BLD, shift, 1 + scale, config.eps)
    return linear(params.head, y_BLD, precision.island)


def unpatchify(config: DiTConfig, y_BLC: Tensor, latent_size: Sequence[int]) -> Tensor:
    """Latents v_BCTHW of size `latent_size` (T, H, W) from output features."""
    grid = tuple(size // p for size, p in zip(latent_size, config.patch_size))
    y_BTHWthwC = y_BLC.unflatten(2, (*config.patch_size, -1)).unflatten(1, grid)
    return y_BTHWthwC.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6).flatten(4, 5).flatten(2, 3)


def _precision(params: DiTParams, engine: Engine) -> Precision:
    return engine.precision or ops.natural_precision(compute_dtype(params))


def _rope(config: DiTConfig, x_BCTHW: Tensor, frames: Positions, precision: Precision) -> Tensor:
    if frames.rope_L1C2 is not None:
        return frames.rope_L1C2
    rows, columns = (size // p for size, p in zip(x_BCTHW.shape[3:], config.patch_size[1:]))
    dtype = ops.at_least_float32(precision.compute)
    return rope_table(config, frames.positions, rows, columns, device=x_BCTHW.device, dtype=dtype)


def _visible(
    config: DiTConfig, x_BCTHW: Tensor, frames: Positions, precision: Precision
) -> Visible:
    """What hides tokens from each other, in the form that every block wants it."""
    given = (frames.slots, frames.mask_LL, frames.pieces or None, frames.masked)
    if sum(one is not None for one in given) > 1:
        raise ArgumentError("Positions takes slots or a mask or pieces, not two of them")
    if frames.masked is not None:
        return frames.masked
    if frames.pieces:
        frame_tokens = config.frame_tokens(*x_BCTHW.shape[3:])
        return token_pieces(frames.pieces, len(frames.positions), frame_tokens)
    return None if frames.mask_LL is None else additive_mask(frames.mask_LL, precision.compute)


def _check_inputs(
    config: DiTConfig, x_BCTHW: Tensor, t_BT: Tensor | Time, context: CrossKV, frames: Positions
) -> None:
    pt, ph, pw = config.patch_size
    T = len(frames.positions)
    ops.check_shape("latents", x_BCTHW, (None, config.in_dim, T * pt, None, None))
    B, _, _, H, W = x_BCTHW.shape
    if H % ph or W % pw:
        raise ArgumentError(
            "latent height and width must be multiples of the patch", got=(H, W), wanted=(ph, pw)
        )
    times = t_BT.e_BTD[:, :, 0] if isinstance(t_BT, Time) else t_BT
    clips, frame_times = 1 if times.shape[:1] == (1,) else B, 1 if times.shape[-1:] == (1,) else T
    ops.check_shape("timesteps", times, (clips, frame_times))
    shape = (config.num_layers, B, config.text_len, config.num_heads, config.head_dim)
    ops.check_shape("context keys", context.k_IBJNK, shape)
    L = T * config.frame_tokens(H, W)
    if frames.mask_LL is not None:
        ops.check_shape("mask", frames.mask_LL, (L, L))
    if frames.masked is not None and frames.masked.tokens != L:
        raise ArgumentError("the mask is of another length", got=frames.masked.tokens, wanted=L)
    if frames.rope_L1C2 is not None:
        ops.check_shape("rope table", frames.rope_L1C2, (L, 1, config.head_dim // 2, 2))


def _cache_rows(
    config: DiTConfig,
    x_BCTHW: Tensor,
    cache: KVCache | None,
    frames: Positions,
    precision: Precision,
    ranks: int,
) -> tuple[slice | None, Rows | None]:
    """Token rows of the cache that the pass writes and reads."""
    if cache is None and frames.slots is None:
        return None, None
    if cache is None or frames.slots is None:
        raise ArgumentError("a cache and Positions.slots go together")
    B, _, _, H, W = x_BCTHW.shape
    shape = (config.num_layers, B, None, config.num_heads // ranks, config.head_dim)
    ops.check_shape("cached keys", cache.k_IBSNK, shape)
    found = (cache.frame_tokens, cache.k_IBSNK.dtype)
    wanted = (config.frame_tokens(H, W), precision.compute)
    if found != wanted:
        raise ArgumentError("the cache was made for other passes", got=found, wanted=wanted)
    check_view(cache, frames.slots, len(frames.positions))
    if frames.slots.write is not None and torch.is_grad_enabled():
        raise ArgumentError(
            "a pass that writes the cache has no gradient",
            todo="run it under torch.no_grad(), or with SlotView.write=None",
        )
    return (
        write_rows(frames.slots, cache.frame_tokens),
        read_rows(frames.slots, cache.frame_tokens, x_BCTHW.device),
    )
