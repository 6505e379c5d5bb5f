"""What each strategy of Table 3 trains, in Wan's own sizes."""

from __future__ import annotations

from math import prod

import pytest

from mmpl.errors import ArgumentError
from mmpl.train.trainable import TRAINS, trained
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit_params import dit_shapes

SIZES = {
    "1.3B": DiTConfig(),
    "14B": DiTConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
}
# size, strategy -> tensors, numbers
WANTED = {
    ("1.3B", "self-attention"): (300, 30 * (4 * (1536 * 1536 + 1536) + 2 * 1536)),
    ("14B", "self-attention"): (400, 40 * (4 * (5120 * 5120 + 5120) + 2 * 5120)),
    ("1.3B", "qk"): (120, 30 * 2 * (1536 * 1536 + 1536)),
    ("14B", "qk"): (160, 40 * 2 * (5120 * 5120 + 5120)),
    ("1.3B", "all"): (825, 1_418_996_800),
    ("14B", "all"): (1095, 14_288_491_584),
    ("1.3B", "none"): (0, 0),
    ("14B", "none"): (0, 0),
}


@pytest.mark.parametrize(("size", "trains"), WANTED)
def test_counts(size: str, trains: str) -> None:
    shapes = dit_shapes(SIZES[size])
    names = trained(trains, shapes)
    assert (len(names), sum(prod(shapes[name]) for name in names)) == WANTED[size, trains]
    assert list(names) == [name for name in shapes if name in names]


def test_what_they_are() -> None:
    shapes = dit_shapes(DiTConfig(num_layers=1))
    chosen = set(trained("self-attention", shapes))
    assert all(".self_attn." in name for name in chosen)
    assert not any(".self_attn." in name for name in set(shapes) - chosen)
    assert trained("qk", shapes) == tuple(
        f"blocks.0.self_attn.{part}.{word}" for part in "qk" for word in ("weight", "bias")
    )
    assert set(WANTED) == {(size, trains) for size in SIZES for trains in TRAINS}
    with pytest.raises(ArgumentError, match="got everything; wanted self-attention, qk, all"):
        trained("everything", shapes)
