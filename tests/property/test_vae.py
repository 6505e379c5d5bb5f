"""Streamed and one-shot coding are one function: any chunks give the same numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpl.errors import ArgumentError, CheckpointError
from mmpl.train.start import start_vae
from mmpl.wan import vae
from mmpl.wan.config import VAEConfig
from tests import small
from tests.checkpoint import worlds

CONFIGS = {"wan": worlds.CONFIGS.vae, "folded": small.CONFIGS.vae}
STRIDE = 16
TOLERANCE = 1e-4  # of pixels in -1..1: convolutions over other lengths round otherwise


def random_params(config: VAEConfig) -> vae.VAEParams:
    generator = torch.Generator().manual_seed(5)
    flat = start_vae(config, seed=4)
    for tensor in flat.values():
        tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return vae.vae_from_flat(flat, config)


PARAMS = {name: random_params(config) for name, config in CONFIGS.items()}
chunks = st.lists(st.integers(1, 3), min_size=1, max_size=4)
names = st.sampled_from(sorted(CONFIGS))


def pixels(frames: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(1, 3, frames, STRIDE, STRIDE, generator=generator) * 2 - 1


@settings(max_examples=20, deadline=None)
@given(name=names, sizes=chunks)
@torch.no_grad()
def test_decode_in_chunks_is_one_decode(name: str, sizes: list[int]) -> None:
    params, config = PARAMS[name], CONFIGS[name]
    z = torch.randn(1, config.z_dim, sum(sizes), 2, 2, generator=torch.Generator().manual_seed(1))
    whole, _ = vae.decode(params, config, z)
    assert whole.shape[2] == config.pixel_frames(sum(sizes))
    state, parts, at = None, [], 0
    for size in sizes:
        part, state = vae.decode(params, config, z[:, :, at : at + size], state)
        parts.append(part)
        at += size
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=0, atol=TOLERANCE)


@settings(max_examples=20, deadline=None)
@given(name=names, sizes=chunks)
@torch.no_grad()
def test_encode_in_chunks_is_one_encode(name: str, sizes: list[int]) -> None:
    params, config = PARAMS[name], CONFIGS[name]
    stride = config.temporal_stride
    ends = [1 + stride * (sum(sizes[: i + 1]) - 1) for i in range(len(sizes))]
    video = pixels(ends[-1])
    whole, _ = vae.encode(params, config, video)
    assert whole.shape[2] == sum(sizes)
    state, parts, at = None, [], 0
    for end in ends:
        part, state = vae.encode(params, config, video[:, :, at:end], state)
        parts.append(part)
        at = end
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", sorted(CONFIGS))
@torch.no_grad()
def test_the_past_never_depends_on_the_future(name: str) -> None:
    params, config = PARAMS[name], CONFIGS[name]
    video = pixels(9)
    changed = torch.cat([video[:, :, :5], -video[:, :, 5:]], dim=2)
    a, b = (vae.encode(params, config, v)[0] for v in (video, changed))
    assert torch.equal(a[:, :, :2], b[:, :, :2])
    assert not torch.equal(a[:, :, 2:], b[:, :, 2:])


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((3, 3, 3), (1, 1, 1), (0, 1, 1)), ((1, 3, 3), (1, 2, 2), (0, 0, 0)),
     ((3, 1, 1), (2, 1, 1), (0, 0, 0)), ((1, 1, 1), (1, 1, 1), (0, 0, 0))],
)  # fmt: skip
def test_the_fast_convolution_is_the_plain_one(
    kernel: tuple[int, int, int], stride: tuple[int, int, int], padding: tuple[int, int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(2, 3, 5, 7, 6, generator=generator)]
    leaves += [torch.randn(4, 3, *kernel, generator=generator), torch.randn(4, generator=generator)]
    results = []
    for convolve in (vae._conv3d, F.conv3d):
        x, weight, bias = (leaf.clone().requires_grad_() for leaf in leaves)
        y = convolve(x, weight, bias, stride=stride, padding=padding)
        y.square().sum().backward()
        results.append((y, x.grad, weight.grad, bias.grad))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


def test_frames_that_fill_no_latent_are_dropped_only_at_the_start() -> None:
    params, config = PARAMS["folded"], CONFIGS["folded"]
    first, state = vae.encode(params, config, pixels(7))
    assert first.shape[2] == 2
    with pytest.raises(ArgumentError, match="multiple of 4 to continue"):
        vae.encode(params, config, pixels(7), state)


def test_sizes_that_the_stride_does_not_divide_are_refused() -> None:
    with pytest.raises(ArgumentError, match="multiples of 8"):
        vae.encode(PARAMS["folded"], CONFIGS["folded"], torch.zeros(1, 3, 1, 12, 16))


def test_weights_of_another_config_are_refused() -> None:
    flat = start_vae(CONFIGS["folded"], seed=0)
    flat["conv1.weight"] = flat["conv1.weight"][:-1]
    del flat["conv2.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing \(conv2.bias\).*1 of another shape"):
        vae.vae_from_flat(flat, CONFIGS["folded"])
