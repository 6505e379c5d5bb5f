"""FlexAttention: a mask between latent frames as one sparse kernel, for training on GPUs.

The mask is known frame by frame, so which 128 x 128 blocks of tokens are computed follows from
sums over that small table: nothing here is of the size tokens x tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask, flex_attention

from mmpl.wan.attention import Piece

_BLOCK = 128  # tokens a side, the kernel's own


class Kernel(Protocol):
    """`flex_attention`, or a compiled version of it, for heads before tokens."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, block_mask: BlockMask) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class FlexMask:
    """A mask over `tokens` tokens and the kernel that attends under it: a `Masked`."""

    tokens: int
    blocks: BlockMask
    kernel: Kernel

    def attend(self, q_BLNK: Tensor, k_BLNK: Tensor, v_BLNK: Tensor) -> Tensor:
        """Attention under the mask."""
        q, k, v = (x.transpose(1, 2) for x in (q_BLNK, k_BLNK, v_BLNK))
        return self.kernel(q, k, v, block_mask=self.blocks).transpose(1, 2)


def flex_mask(
    pieces: tuple[Piece, ...],
    frames: int,
    frame_tokens: int,
    device: torch.device | str,
    *,
    kernel: Kernel | None = None,
) -> FlexMask:
    """The mask that `pieces` make between `frames` latent frames of `frame_tokens` tokens.

    Make it once for many passes: the kernel, by default `flex_attention` compiled for a GPU, is
    compiled once for each. On the CPU, where torch has no gradient of it, the same mask is written
    out and given to plain attention: tokens x tokens, so only for tests.
    """
    seen_TT = torch.zeros(frames, frames, dtype=torch.bool)
    for piece in pieces:
        for start, stop in piece.keys:
            seen_TT[slice(*piece.queries), start:stop] = True
    device = torch.device(device)
    if kernel is None and device.type == "cpu":
        kernel = _dense
    elif kernel is None:
        kernel = cast("Kernel", torch.compile(flex_attention, dynamic=False))
    tokens = frames * frame_tokens
    return FlexMask(tokens, block_mask(seen_TT.to(device), frame_tokens), kernel)


def block_mask(seen_TT: Tensor, frame_tokens: int) -> BlockMask:
    """The blocks of tokens that are computed where frame `q` sees frame `k` if `seen_TT[q, k]`."""
    tokens = len(seen_TT) * frame_tokens
    starts = torch.arange(0, tokens, _BLOCK, device=seen_TT.device)
    first = starts // frame_tokens
    stop = ((starts + _BLOCK).clamp(max=tokens) - 1) // frame_tokens + 1
    # Pairs of frames that see each other in the rectangle of every two blocks.
    sums = F.pad(seen_TT.long().cumsum(0).cumsum(1), (1, 0, 1, 0))
    rows = sums[stop] - sums[first]
    pairs = rows[:, stop] - rows[:, first]
    span, whole = stop - first, starts + _BLOCK <= tokens
    # A block that the end cuts short is never taken for a full one.
    full = (pairs == span[:, None] * span) & whole[:, None] & whole
    some = (pairs > 0) & ~full

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return seen_TT[query // frame_tokens, key // frame_tokens]

    return BlockMask.from_kv_blocks(
        *_listed(some),
        *_listed(full),
        BLOCK_SIZE=_BLOCK,
        mask_mod=sees,
        seq_lengths=(tokens, tokens),
    )


def _listed(chosen_QK: Tensor) -> tuple[Tensor, Tensor]:
    """For every row how many columns are chosen, and the columns, the chosen ones first."""
    columns = chosen_QK.byte().argsort(dim=-1, descending=True, stable=True)
    return chosen_QK.sum(-1).int()[None, None], columns.int()[None, None]


def _dense(q: Tensor, k: Tensor, v: Tensor, *, block_mask: BlockMask) -> Tensor:
    mask = create_mask(
        block_mask.mask_mod, None, None, q.shape[2], k.shape[2], device=q.device.type
    )
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
