"""What a decode and an encode cost, counted, beside what the official module was counted at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmpl.wan import vae
from tests.bench.counter import count
from tests.bench.vae import Case, our_calls

CASE = Case(dim=16, width=104, height=64, frames=17)
# `python -m tests.bench.vae --official PATH --dim 16 --size 104x64`
OFFICIAL_DECODE_KERNELS, OFFICIAL_DECODE_GB = 1845, 1.62


def test_a_decode_takes_less_than_the_official_one() -> None:
    with torch.no_grad():
        counts = count(our_calls(CASE)["decode"])
    assert counts.total <= OFFICIAL_DECODE_KERNELS / 2
    assert counts.other_bytes <= 0.6 * OFFICIAL_DECODE_GB * 1e9


@pytest.mark.parametrize("name", ["decode", "encode"])
def test_pieces_and_the_path_with_gradients_give_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = our_calls(Case(dim=8, width=32, height=16, frames=13))[name]
    with torch.no_grad():
        whole = call()
    with torch.enable_grad():
        torch.testing.assert_close(call(), whole, rtol=0, atol=1e-5)
    monkeypatch.setattr(vae, "_PIECE_BYTES", 1)
    with torch.no_grad():
        pieces = call()
    assert not torch.equal(pieces, torch.zeros_like(pieces))
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("piece_bytes", [1, 2**30])
@pytest.mark.parametrize("name", ["decode", "encode"])
def test_clips_lie_channels_last_before_every_convolution(
    name: str, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's convolutions would turn others round, and every norm behind them would read them so.
    One frame alone lies both ways."""
    astray: list[tuple[int, ...]] = []
    convolve = vae._conv3d

    def watched(x: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
        if x.shape[2] > 1 and not x.is_contiguous(memory_format=torch.channels_last_3d):
            astray.append((*x.shape, *weight.shape[2:]))
        return convolve(x, weight, bias, **options)

    monkeypatch.setattr(vae, "_PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(vae, "_conv3d", watched)
    with torch.no_grad():
        our_calls(Case(dim=8, width=32, height=16, frames=13))[name]()
    assert astray == []
