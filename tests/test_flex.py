"""The blocks that FlexAttention computes, from sums over frames, are those of the whole mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from mmpl.errors import ArgumentError
from mmpl.layout.mask import released_i2v_mask, training_mask
from mmpl.layout.presets import by_name
from mmpl.wan.attention import Piece
from mmpl.wan.dit import Positions, dit, encode_context
from mmpl.wan.flex import block_mask, flex_mask
from tests.small import CONFIGS, small_dit

MASKS = {
    "mmpl_t2v": training_mask(by_name("mmpl_t2v")),
    "chunked_1": training_mask(by_name("chunked_1")),
    "released": released_i2v_mask(),
}


def blocks(mask: BlockMask) -> list[list[set[int]]]:
    """Per row the blocks that are computed under the mask, and those that are computed whole."""
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    pairs = (
        (mask.kv_num_blocks, mask.kv_indices),
        (mask.full_kv_num_blocks, mask.full_kv_indices),
    )
    return [
        [set(row[:count].tolist()) for count, row in zip(counts[0, 0].tolist(), indices[0, 0])]
        for counts, indices in pairs
    ]


@pytest.mark.parametrize("frame_tokens", [1, 15, 64, 100])
@pytest.mark.parametrize("name", MASKS)
def test_blocks(name: str, frame_tokens: int) -> None:
    seen_TT = torch.tensor(MASKS[name], dtype=torch.bool)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return seen_TT[query // frame_tokens, key // frame_tokens]

    tokens = len(seen_TT) * frame_tokens
    got = block_mask(seen_TT, frame_tokens)
    wanted = create_block_mask(sees, None, None, tokens, tokens, device="cpu")
    assert blocks(got) == blocks(wanted)
    assert got.seq_lengths == wanted.seq_lengths


def test_a_whole_clip_of_480p_is_small() -> None:
    """65520 tokens: the mask written out would have 4.3 billion entries."""
    got = block_mask(torch.tensor(MASKS["mmpl_t2v"], dtype=torch.bool), 1560)
    assert got.kv_indices.shape == (1, 1, 512, 512)
    assert got.sparsity() == pytest.approx(100 * (1 - 542 / 42**2), abs=3)


def test_a_mask_of_another_length_is_refused() -> None:
    params, config = small_dit(), CONFIGS.dit
    x_BCTHW = torch.zeros(1, config.in_dim, 2, 4, 4)
    context = encode_context(params, config, [torch.zeros(1, config.text_dim)])
    masked = flex_mask((Piece((0, 2), ((0, 2),)),), 2, 3, "cpu")
    with pytest.raises(ArgumentError, match="mask is of another length; got 6; wanted 8"):
        dit(
            params,
            config,
            x_BCTHW,
            torch.zeros(1, 2),
            context,
            frames=Positions((0, 1), masked=masked),
        )
