"""Weights that a training begins with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpl.errors import ArgumentError
from mmpl.train.start import deepened
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit import Positions, dit, dit_from_flat, dit_shapes, encode_context
from tests.checkpoint.worlds import random_state
from tests.small import CONFIGS


def computed(flat: dict[str, torch.Tensor], config: DiTConfig) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x_BCTHW = torch.randn(1, config.in_dim, 2, 4, 4, generator=generator)
    text = torch.randn(3, config.text_dim, generator=generator)
    params = dit_from_flat(flat, config)
    context = encode_context(params, config, [text])
    t_BT = torch.full((1, 2), 500.0)
    return dit(params, config, x_BCTHW, t_BT, context, frames=Positions((0, 1)))


@given(depth=st.integers(1, 4), more=st.integers(0, 5))
@settings(max_examples=10, deadline=None)
def test_a_deeper_network_computes_the_same(depth: int, more: int) -> None:
    config = replace(CONFIGS.dit, num_layers=depth)
    flat = random_state(dit_shapes(config), 0, scale=0.3)
    deep = deepened(flat, depth + more, "blocks")
    larger = replace(config, num_layers=depth + more)
    torch.testing.assert_close(computed(deep, larger), computed(flat, config))


def test_a_network_loses_no_blocks() -> None:
    config = replace(CONFIGS.dit, num_layers=3)
    flat = random_state(dit_shapes(config), 0)
    with pytest.raises(ArgumentError, match="cannot lose blocks; got 3; wanted at most 2"):
        deepened(flat, 2, "blocks")
