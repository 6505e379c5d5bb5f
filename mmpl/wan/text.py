"""The umT5 text encoder as functions over explicit parameters.

Unlike T5, every layer has its own table of relative position biases; and as in T5, attention is
not scaled by the head width. Knows nothing of files, films or the diffusion model; differentiable.
Source: Wan2.1 wan/modules/t5.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.wan.config import TextConfig
from mmpl.wan.params import Flat, Shapes, Weight, from_flat, key
from mmpl.wan.tokenizer import Tokenizer, clean_prompt

FP16_HEADROOM = 1000.0  # how far below float16's largest number an overflow is put back


@dataclass(frozen=True, slots=True, eq=False)
class TextAttention:
    q: Weight
    k: Weight
    v: Weight
    o: Weight


@dataclass(frozen=True, slots=True, eq=False)
class TextFFN:
    gate: Weight = key("gate.0")
    fc1: Weight = key("fc1")
    fc2: Weight = key("fc2")


@dataclass(frozen=True, slots=True, eq=False)
class TextBlock:
    norm1: Weight
    attn: TextAttention
    norm2: Weight
    ffn: TextFFN
    pos_embedding: Weight = key("pos_embedding.embedding")


@dataclass(frozen=True, slots=True, eq=False)
class TextParams:
    token_embedding: Weight
    blocks: tuple[TextBlock, ...]
    norm: Weight


Walk = Callable[[Sequence[TextBlock]], Iterator[TextBlock]]


def text_shapes(config: TextConfig) -> Shapes:
    """Shape of every tensor of the encoder, by its official name."""
    dim, inner, hidden = config.dim, config.dim_attn, config.dim_ffn
    shapes: Shapes = {"token_embedding.weight": (config.vocab_size, dim)}
    for index in range(config.num_layers):
        block: Shapes = {
            "norm1": (dim,),
            "attn.q": (inner, dim),
            "attn.k": (inner, dim),
            "attn.v": (inner, dim),
            "attn.o": (dim, inner),
            "norm2": (dim,),
            "ffn.gate.0": (hidden, dim),
            "ffn.fc1": (hidden, dim),
            "ffn.fc2": (dim, hidden),
            "pos_embedding.embedding": (config.num_buckets, config.num_heads),
        }
        shapes |= {f"blocks.{index}.{name}.weight": shape for name, shape in block.items()}
    return shapes | {"norm.weight": (dim,)}


def text_from_flat(flat: Flat, config: TextConfig, *, where: str = "text weights") -> TextParams:
    """The parameter tree from a flat official-name state dict; CheckpointError if it differs."""
    return from_flat(TextParams, flat, text_shapes(config), where=where)


def encode_prompts(
    params: TextParams,
    config: TextConfig,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    text_len: int,
    *,
    walk: Walk = iter,
) -> list[Tensor]:
    """One unpadded embedding [J, dim] per prompt: cleaned, cut to `text_len` tokens, encoded.

    Each prompt goes through the encoder alone and without pads, so its bits depend on no other
    prompt. An empty prompt gives one row. Pads never change the rows before them. `walk`: see
    `encode_text`.
    """
    device = params.norm.weight.device
    embeddings = []
    for prompt in prompts:
        ids = tokenizer.encode(clean_prompt(prompt), text_len)
        if max(ids) >= config.vocab_size:
            raise ArgumentError(
                "the tokenizer does not belong to the text encoder",
                got=f"token {max(ids)}",
                wanted=f"below {config.vocab_size}",
            )
        ids_BJ = torch.tensor([ids], device=device)
        mask_BJ = torch.ones_like(ids_BJ)
        embeddings.append(encode_text(params, config, ids_BJ, mask_BJ, walk=walk)[0])
    return embeddings


def encode_text(
    params: TextParams,
    config: TextConfig,
    ids_BJ: Tensor,
    mask_BJ: Tensor,
    *,
    walk: Walk = iter,
) -> Tensor:
    """The encoder's output [B, J, dim], in the dtype of the weights.

    `mask_BJ` is non-zero at tokens and 0 at pads. The rows of pads are computed too and are not
    zero: see `zero_pads`. `walk` brings the layers to the device, which is that of the last norm;
    the table of tokens may lie elsewhere.
    """
    if ids_BJ.ndim != 2 or ids_BJ.shape != mask_BJ.shape:
        raise ArgumentError(
            "ids and mask of a text",
            got=f"shapes {tuple(ids_BJ.shape)} and {tuple(mask_BJ.shape)}",
            wanted="two equal shapes [B, J]",
        )
    buckets_JJ = position_buckets(config, ids_BJ.shape[1]).to(ids_BJ.device)
    pad_BNJJ = (mask_BJ == 0)[:, None, None, :]
    table = params.token_embedding.weight
    x_BJD = F.embedding(ids_BJ.to(table.device), table).to(ids_BJ.device)
    for block in walk(params.blocks):
        bias_NJJ = position_bias(block, buckets_JJ)
        # At a pad the bias is replaced, not lowered.
        bias_BNJJ = bias_NJJ[None].masked_fill(pad_BNJJ, torch.finfo(bias_NJJ.dtype).min)
        normed = _norm(block.norm1, x_BJD, config.eps)
        x_BJD = _bounded(x_BJD + _attention(block.attn, config, normed, bias_BNJJ))
        x_BJD = _bounded(x_BJD + _ffn(block.ffn, _norm(block.norm2, x_BJD, config.eps)))
    return _norm(params.norm, x_BJD, config.eps)


def zero_pads(x_BJD: Tensor, mask_BJ: Tensor) -> Tensor:
    """The encoder's output with zeros at pads, as the diffusion model pads it."""
    return x_BJD.masked_fill((mask_BJ == 0)[..., None], 0.0)


def position_buckets(config: TextConfig, length: int) -> Tensor:
    """int64 [J, J]: which entry of the bias table holds for query row, key column."""
    reach = length - 1
    by_distance = torch.tensor([bucket(config, rel) for rel in range(-reach, reach + 1)])
    place = torch.arange(length)
    return by_distance[place[None, :] - place[:, None] + reach]


def bucket(config: TextConfig, rel: int) -> int:
    """Bucket of a key `rel` places after the query (before it, if negative).

    One half of the buckets is for keys after the query. Of each half, one half again is for single
    distances n, the rest for steps of equal ratio up to `max_distance`: n falls into step
    floor(span log(n / exact) / log(max_distance / exact)), found here in whole numbers because a
    rounded logarithm could fall on either side of a border.
    """
    half = config.num_buckets // 2
    exact = half // 2
    span = half - exact
    n = abs(rel)
    place = n
    if n >= exact:
        borders = range(1, span)
        place = exact + sum(
            n**span * exact**k >= config.max_distance**k * exact**span for k in borders
        )
    return place + (half if rel > 0 else 0)


def position_bias(block: TextBlock, buckets_JJ: Tensor) -> Tensor:
    """The layer's bias [N, J, J] on its attention logits, before pads are masked."""
    return F.embedding(buckets_JJ, block.pos_embedding.weight).permute(2, 0, 1)


def _attention(p: TextAttention, config: TextConfig, x_BJD: Tensor, bias_BNJJ: Tensor) -> Tensor:
    q, k, v = (
        F.linear(x_BJD, w.weight).unflatten(-1, (config.num_heads, -1)).transpose(1, 2)
        for w in (p.q, p.k, p.v)
    )
    logits = q @ k.transpose(-1, -2) + bias_BNJJ
    weights = logits.float().softmax(-1).to(logits.dtype)
    return F.linear((weights @ v).transpose(1, 2).flatten(2), p.o.weight)


def _ffn(p: TextFFN, x: Tensor) -> Tensor:
    gate = F.gelu(F.linear(x, p.gate.weight), approximate="tanh")
    return F.linear(F.linear(x, p.fc1.weight) * gate, p.fc2.weight)


def _norm(p: Weight, x: Tensor, eps: float) -> Tensor:
    """RMS norm in float32 without a mean; rounded to half precision before the gain."""
    normed = x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    if p.weight.dtype in (torch.float16, torch.bfloat16):
        normed = normed.to(p.weight.dtype)
    return normed * p.weight


def _bounded(x: Tensor) -> Tensor:
    """float16 only: if anything overflowed, everything is clamped, without asking the device."""
    if x.dtype != torch.float16:
        return x
    bound = torch.finfo(x.dtype).max - FP16_HEADROOM
    return torch.where(x.isinf().any(), x.clamp(-bound, bound), x)
