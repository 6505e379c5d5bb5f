"""Both branches of guidance as one batch, where that is faster and gives the same bits.

At small sizes much of a pass is what each kernel costs before it does any arithmetic, so one pass
of two clips beats two passes. On a CPU the rows of a matrix product come out the same however many
there are, if its library works so; that is looked at, not believed, as ranks that share out the
branches have to get the same bits.
"""

from __future__ import annotations

import torch

from mmpl.wan.dit import CrossKV
from mmpl.wan.dit_params import DiTParams, compute_dtype
from mmpl.wan.ops import linear, natural_precision
from mmpl.wan.params import Linear

MOST_TOKENS = 512  # of a pass; beyond, arithmetic is nearly all of it and memory counts


def together(params: DiTParams, tokens: tuple[int, ...]) -> bool:
    """Whether passes of these numbers of tokens take both branches at once."""
    return (
        params.head.head.weight.device.type == "cpu"
        and max(tokens) <= MOST_TOKENS
        and all(rows_stand_alone(params, rows) for rows in set(tokens))
    )


@torch.no_grad()
def rows_stand_alone(params: DiTParams, rows: int) -> bool:
    """Whether every matrix of the network makes of `rows` rows the same bits alone and beside as
    many others."""
    precision = natural_precision(compute_dtype(params))
    patches, block = params.patch_embedding, params.blocks[0]
    matrices = [
        (Linear(patches.weight.flatten(1), patches.bias), precision.compute),
        (block.self_attn.q, precision.compute),
        (block.ffn_in, precision.compute),
        (block.ffn_out, precision.compute),
        (params.head.head, precision.island),
    ]
    generator = torch.Generator().manual_seed(0)
    for matrix, dtype in matrices:
        x = torch.randn(2, rows, matrix.weight.shape[1], generator=generator)
        both = linear(matrix, x, dtype)
        if not all(torch.equal(linear(matrix, x[i : i + 1], dtype)[0], both[i]) for i in (0, 1)):
            return False
    return True


def joined(texts: tuple[CrossKV, ...]) -> CrossKV:
    """The texts of all branches as one batch."""
    k_IBJNK = torch.cat([text.k_IBJNK for text in texts], dim=1)
    return CrossKV(k_IBJNK, torch.cat([text.v_IBJNK for text in texts], dim=1))
