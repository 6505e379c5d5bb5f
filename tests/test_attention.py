"""Attention backends: names, what is missing, masks and pieces."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmpl.errors import ArgumentError
from mmpl.wan import attention
from mmpl.wan.attention import (
    Piece,
    additive_mask,
    resolve_attention,
    sdpa,
    token_mask,
    token_pieces,
)
from mmpl.wan.choices import BACKENDS


def test_auto_takes_sdpa_on_a_cpu_and_says_so() -> None:
    assert resolve_attention("auto", "cpu", torch.float32) == ("sdpa", sdpa)


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "sdpa"])
def test_a_missing_backend_says_what_to_install(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"{name} is not available.*install"):
        resolve_attention(name, "cpu", torch.bfloat16)


def test_an_unknown_backend_lists_the_names() -> None:
    with pytest.raises(ArgumentError, match="sage.*sdpa"):
        resolve_attention("sage", "cpu", torch.bfloat16)


def test_auto_prefers_the_fastest_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_available", lambda name, *_: name in ("cudnn", "sdpa"))
    name, backend = resolve_attention("auto", "cuda", torch.bfloat16)
    assert name == "cudnn"
    assert backend is attention.cudnn


def test_on_a_gpu_auto_leaves_float32_to_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(attention, "find_spec", lambda _: None)  # no flash-attn
    assert resolve_attention("auto", "cuda", torch.bfloat16)[0] == "cudnn"
    assert resolve_attention("auto", "cuda", torch.float32)[0] == "sdpa"
    with pytest.raises(ArgumentError, match="cudnn is not available.*float32"):
        resolve_attention("cudnn", "cuda", torch.float32)


def test_sdpa_is_softmax_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, 4, generator=generator) for n in (5, 7, 7))
    visible = torch.rand(5, 7, generator=generator) > 0.4
    visible[:, 0] = True
    scores = torch.einsum("blnk,bsnk->bnls", q, k) / 2
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    wanted = torch.einsum("bnls,bsnk->blnk", weights, v)
    got = sdpa(q, k, v, additive_mask(visible, torch.float32))
    assert torch.allclose(got, wanted, atol=1e-6)


def test_cudnn_is_asked_for_by_name_and_without_a_word_to_other_threads() -> None:
    """On the meta device, where all kernels have shapes. Which of them `sdpa` may take is one
    setting for all threads."""
    seen: list[tuple[str, bool]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append((func.overloadpacket.__name__, torch.backends.cuda.flash_sdp_enabled()))
            return func(*args, **(kwargs or {}))

    q, k, v = (torch.empty(1, n, 2, 8, dtype=torch.bfloat16, device="meta") for n in (5, 7, 7))
    with Watch():
        out = attention.cudnn(q, k, v)
    assert ("_scaled_dot_product_cudnn_attention", True) in seen
    assert all(others for _, others in seen)
    assert (out.shape, out.dtype, out.is_contiguous()) == (q.shape, q.dtype, True)
    assert attention.cudnn(q, k, v, torch.zeros(5, 7, device="meta")).shape == q.shape


def test_flash_takes_no_mask() -> None:
    flash = attention._flash(lambda q, k, v: (q, k))
    x = torch.zeros(1, 2, 1, 4)
    assert flash(x, x, x) is x
    with pytest.raises(ArgumentError, match="mask"):
        flash(x, x, x, torch.zeros(2, 2))


def test_token_mask_spreads_frames() -> None:
    got = token_mask(torch.tensor([[True, False], [True, True]]), 2)
    rows = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert torch.equal(got, torch.tensor(rows, dtype=torch.bool))


def test_token_pieces_must_tile_the_frames() -> None:
    good = (Piece((0, 1), ((0, 1),)), Piece((1, 3), ((0, 1), (1, 3))))
    slices = ((slice(0, 2), (slice(0, 2),)), (slice(2, 6), (slice(0, 2), slice(2, 6))))
    assert token_pieces(good, 3, 2) == slices
    for pieces, frames in ((good, 4), (good[1:], 3), (good[::-1], 3)):
        with pytest.raises(ArgumentError, match="follow each other"):
            token_pieces(pieces, frames, 2)
