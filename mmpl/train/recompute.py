"""Gradient checkpointing: a block keeps its input alone and is computed again for its gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmpl.wan.cache import LayerKV
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit_block import BlockFn, Shared
from mmpl.wan.dit_params import BlockParams


def checkpointed(block_fn: BlockFn) -> BlockFn:
    """`block_fn` with the same results and gradients, for an `Engine`: a third more arithmetic in
    training, and the memory of one block instead of all."""

    def block(
        params: BlockParams,
        config: DiTConfig,
        x_BLD: Tensor,
        shared: Shared,
        text: LayerKV,
        cached: LayerKV | None,
    ) -> Tensor:
        given = (params, config, x_BLD, shared, text, cached)
        if not torch.is_grad_enabled():
            return block_fn(*given)
        made = checkpoint(block_fn, *given, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(made, Tensor)
        return made

    return block
