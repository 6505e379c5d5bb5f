"""Weights are mapped: what is ready takes no memory of its own but for what changes its format."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mmpl.wan.config import DiTConfig
from tests.bench import load

CONFIG = replace(DiTConfig(), dim=512, ffn_dim=2048, num_heads=4, num_layers=6, text_dim=24)
WAYS = ("mmpl, as stored", "mmpl, from float32 to bfloat16", "torch.load")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_loading(tmp_path: Path) -> None:
    """torch.load shows that the instrument sees copies. Each in a process of its own, since what
    one leaves free in the heap the next would not be seen to take."""
    size = load.write(tmp_path, CONFIG)
    rows = [load.together((way,), tmp_path, 1, memory=True)[0][0] for way in WAYS]
    mapped, cast, copied = (row["extra"] / size for row in rows)
    assert mapped < 0.1
    assert 0.5 < cast < 1.05
    assert copied > 0.9
