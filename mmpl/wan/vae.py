"""The causal 3-D VAE: pixels <-> latents, one-shot or streamed by the same functions.

`encode` and `decode` take and return an explicit state: the last input frames of every temporal
convolution, in the order they run. State None means the clip starts here. A film is decoded
latent by latent in constant memory, with the same numbers as a one-shot decode.
Source: Wan2.1 wan/modules/vae.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.wan.config import VAEConfig
from mmpl.wan.params import Flat, Gamma, Shapes, from_flat, key

State = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Conv:
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    norm1: Gamma = key("residual.0")
    conv1: Conv = key("residual.2")
    norm2: Gamma = key("residual.3")
    conv2: Conv = key("residual.6")
    shortcut: Conv | None = key("shortcut")


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    norm: Gamma
    to_qkv: Conv
    proj: Conv


@dataclass(frozen=True, slots=True, eq=False)
class Resample:
    """Halves or doubles rows and columns; with `time_conv`, frames too."""

    conv: Conv = key("resample.1")
    time_conv: Conv | None = key("time_conv")


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    norm: Gamma = key("0")
    conv: Conv = key("2")


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    conv1: Conv
    downsamples: tuple[Residual | Resample, ...]
    middle: tuple[Residual | Attention, ...]
    head: Head


@dataclass(frozen=True, slots=True, eq=False)
class Decoder:
    conv1: Conv
    middle: tuple[Residual | Attention, ...]
    upsamples: tuple[Residual | Resample, ...]
    head: Head


@dataclass(frozen=True, slots=True, eq=False)
class VAEParams:
    encoder: Encoder
    conv1: Conv
    conv2: Conv
    decoder: Decoder


def vae_shapes(config: VAEConfig) -> Shapes:
    """Official key -> shape of every tensor of the VAE."""
    dims = [config.dim * multiple for multiple in config.dim_mult]
    pixels = 3 * config.patch_size**2
    shapes: Shapes = {}
    _conv_shape(shapes, "encoder.conv1", pixels, config.dim, (3, 3, 3))
    width, index = config.dim, 0
    for level, dim in enumerate(dims):
        for _ in range(config.num_res_blocks):
            _residual_shape(shapes, f"encoder.downsamples.{index}", width, dim)
            width, index = dim, index + 1
        if level < len(dims) - 1:
            name = f"encoder.downsamples.{index}"
            _conv_shape(shapes, f"{name}.resample.1", dim, dim, (3, 3))
            if config.temporal_downsample[level]:
                _conv_shape(shapes, f"{name}.time_conv", dim, dim, (3, 1, 1))
            index += 1
    _middle_shape(shapes, "encoder.middle", width)
    _head_shape(shapes, "encoder.head", width, 2 * config.z_dim)
    _conv_shape(shapes, "conv1", 2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
    _conv_shape(shapes, "conv2", config.z_dim, config.z_dim, (1, 1, 1))
    _conv_shape(shapes, "decoder.conv1", config.z_dim, width, (3, 3, 3))
    _middle_shape(shapes, "decoder.middle", width)
    index = 0
    for level in reversed(range(len(dims))):
        for _ in range(config.num_res_blocks + 1):
            _residual_shape(shapes, f"decoder.upsamples.{index}", width, dims[level])
            width, index = dims[level], index + 1
        if level > 0:
            name = f"decoder.upsamples.{index}"
            _conv_shape(shapes, f"{name}.resample.1", width, width // 2, (3, 3))
            if config.temporal_downsample[level - 1]:
                _conv_shape(shapes, f"{name}.time_conv", width, 2 * width, (3, 1, 1))
            width, index = width // 2, index + 1
    _head_shape(shapes, "decoder.head", width, pixels)
    return shapes


def vae_from_flat(flat: Flat, config: VAEConfig, *, where: str = "VAE weights") -> VAEParams:
    """The parameter tree of a flat official-name state dict. Raises CheckpointError."""
    return from_flat(VAEParams, flat, vae_shapes(config), where=where)


def encode(
    params: VAEParams, config: VAEConfig, video_BCFHW: Tensor, state: State | None = None
) -> tuple[Tensor, State]:
    """Normalised latents [B, z_dim, T, H/stride, W/stride] of pixels in [-1, 1], and the state.

    Without a state the clip starts here: 1 + 4k frames give 1 + k latents, frames that fill no
    latent are dropped. With a state, 4k more frames give k more latents.
    """
    moments_BCTHW, state = encode_moments(params, config, video_BCFHW, state)
    mu_BCTHW = moments_BCTHW[:, : config.z_dim]
    mean, std = _statistics(config, mu_BCTHW)
    return (mu_BCTHW - mean) * (1 / std), state


def encode_moments(
    params: VAEParams, config: VAEConfig, video_BCFHW: Tensor, state: State | None = None
) -> tuple[Tensor, State]:
    """Mean and log-variance [B, 2 z_dim, T, H, W] before normalisation; see `encode`."""
    features_BCTHW, state = encode_features(params, config, video_BCFHW, state)
    return _conv3d(features_BCTHW, params.conv1.weight, params.conv1.bias), state


def encode_features(
    params: VAEParams, config: VAEConfig, video_BCFHW: Tensor, state: State | None = None
) -> tuple[Tensor, State]:
    """Output of the encoder network, before the last 1x1x1 convolution; see `encode`."""
    first, stride = state is None, config.temporal_stride
    frames, rows, columns = video_BCFHW.shape[2:]
    if rows % config.spatial_stride or columns % config.spatial_stride:
        raise ArgumentError(
            "the VAE cannot encode this size",
            got=f"{columns}x{rows} pixels",
            wanted=f"multiples of {config.spatial_stride}",
        )
    if frames < 1 or (not first and frames % stride):
        raise ArgumentError(
            "the VAE cannot encode this number of frames",
            got=frames,
            wanted="at least 1" if first else f"a multiple of {stride} to continue a clip",
        )
    if first:
        video_BCFHW = video_BCFHW[:, :, : 1 + (frames - 1) // stride * stride]
    tails, net = _Tails(state), params.encoder
    x = _fold(video_BCFHW, config.patch_size)
    x = _causal_conv(net.conv1, x, tails)
    for layer in net.downsamples:
        x = _downsample(layer, x, tails) if isinstance(layer, Resample) else _mix(layer, x, tails)
    for layer in net.middle:
        x = _mix(layer, x, tails)
    return _head(net.head, x, tails), tails.state()


def decode(
    params: VAEParams, config: VAEConfig, z_BCTHW: Tensor, state: State | None = None
) -> tuple[Tensor, State]:
    """Pixels [B, 3, F, H*stride, W*stride] (about [-1, 1], not clamped) and the state.

    Without a state the clip starts here: T latents give 1 + 4(T-1) frames. With a state, 4T. Who
    keeps no state given has only one of the two in memory.
    """
    mean, std = _statistics(config, z_BCTHW)
    x = _conv3d(z_BCTHW / (1 / std) + mean, params.conv2.weight, params.conv2.bias)
    tails, net = _Tails(state), params.decoder
    del state  # the tails have it
    x = _causal_conv(net.conv1, x, tails)
    for layer in net.middle:
        x = _mix(layer, x, tails)
    for layer in net.upsamples:
        x = _upsample(layer, x, tails) if isinstance(layer, Resample) else _mix(layer, x, tails)
    return _unfold(_head(net.head, x, tails), config.patch_size), tails.state()


def decode_each(
    params: VAEParams, config: VAEConfig, latents: Iterable[Tensor]
) -> Iterator[Tensor]:
    """The pixels of each z_BCTHW of a clip in turn, as `decode` makes them of all at once, in the
    memory of one."""
    states: list[State | None] = [None]  # taken out to be given: no two at once
    for z_BCTHW in latents:
        video_BCFHW, state = decode(params, config, z_BCTHW, states.pop())
        states.append(state)
        del state
        yield video_BCFHW


def encode_again(
    params: VAEParams, config: VAEConfig, z_BCTHW: Tensor, frames: tuple[int, int]
) -> Tensor:
    """Decodes latents and encodes a half-open range of their frames, as if a clip began there."""
    pixels_BCFHW = torch.cat(list(decode_each(params, config, z_BCTHW.split(1, 2))), 2)
    return encode(params, config, pixels_BCFHW[:, :, slice(*frames)].clamp(-1, 1))[0]


class _Tails:
    """Walks a state in execution order: gives each temporal convolution its tail, keeps the new."""

    def __init__(self, state: State | None) -> None:
        self.first = state is None
        self._old = deque(state or ())  # each goes as soon as it is used
        self._new: list[Tensor] = []

    def extend(self, x: Tensor, frames: int) -> Tensor:
        """`x` behind the `frames` frames before it, zeros at the start; remembers its end."""
        batch, channels, _, *size = x.shape
        zeros = x.new_zeros(batch, channels, frames, *size) if self.first else None
        extended = torch.cat([self._old.popleft() if zeros is None else zeros, x], dim=2)
        self._keep(extended[:, :, -frames:])
        return extended

    def last_frame(self, x: Tensor) -> Tensor:
        """`x` behind the one frame before it, if there is one; remembers its last frame."""
        extended = x if self.first else torch.cat([self._old.popleft(), x], dim=2)
        self._keep(x[:, :, -1:])
        return extended

    def state(self) -> State:
        return tuple(self._new)

    def _keep(self, tail: Tensor) -> None:
        # A clone: a view would keep the whole activation alive.
        self._new.append(tail.clone())


def _causal_conv(p: Conv, x: Tensor, tails: _Tails) -> Tensor:
    frames = p.weight.shape[2] - 1
    pad = p.weight.shape[3] // 2
    return _conv3d(tails.extend(x, frames), p.weight, p.bias, padding=(0, pad, pad))


def _conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int] = (0, 0, 0),
) -> Tensor:
    plain = x.device.type == "cpu" and x.dtype == torch.float32
    if plain and torch.backends.mkldnn.is_available():
        # For one small clip conv3d picks a kernel that is several times slower than this one.
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)
    return F.conv3d(x, weight, bias, stride, padding)


def _norm(p: Gamma, x: Tensor) -> Tensor:
    return F.normalize(x, dim=1) * (p.gamma * sqrt(x.shape[1]))


def _mix(layer: Residual | Attention, x: Tensor, tails: _Tails) -> Tensor:
    if isinstance(layer, Attention):
        return _attention(layer, x)
    p = layer.shortcut
    shortcut = x if p is None else _conv3d(x, p.weight, p.bias)
    x = F.silu(_norm(layer.norm1, x))  # in steps, so that no more of x than needed is alive
    x = _causal_conv(layer.conv1, x, tails)
    x = F.silu(_norm(layer.norm2, x))
    x = _causal_conv(layer.conv2, x, tails)
    return x + shortcut


def _attention(p: Attention, x_BCTHW: Tensor) -> Tensor:
    """Every pixel attends to all pixels of its own frame, with one head."""
    frames, (rows, columns) = x_BCTHW.shape[2], x_BCTHW.shape[3:]
    x = rearrange(x_BCTHW, "B C T H W -> (B T) C H W")
    qkv = F.conv2d(_norm(p.norm, x), p.to_qkv.weight, p.to_qkv.bias)
    q, k, v = rearrange(qkv, "n (three C) H W -> three n 1 (H W) C", three=3)
    out = rearrange(
        F.scaled_dot_product_attention(q, k, v), "n 1 (H W) C -> n C H W", H=rows, W=columns
    )
    out = x + F.conv2d(out, p.proj.weight, p.proj.bias)
    return rearrange(out, "(B T) C H W -> B C T H W", T=frames)


def _downsample(p: Resample, x: Tensor, tails: _Tails) -> Tensor:
    x = _conv3d(F.pad(x, (0, 1, 0, 1)), p.conv.weight[:, :, None], p.conv.bias, stride=(1, 2, 2))
    if p.time_conv is None:
        return x
    start = x[:, :, :1]
    x = tails.last_frame(x)
    if not tails.first:
        return _conv3d(x, p.time_conv.weight, p.time_conv.bias, stride=(2, 1, 1))
    if x.shape[2] == 1:
        return start
    # The clip's first frame passes as it is, not convolved in time.
    rest = _conv3d(x, p.time_conv.weight, p.time_conv.bias, stride=(2, 1, 1))
    return torch.cat([start, rest], dim=2)


def _upsample(p: Resample, x: Tensor, tails: _Tails) -> Tensor:
    if p.time_conv is not None:
        # The clip's first frame is neither doubled nor context of those after it.
        start, rest = (x[:, :, :1], x[:, :, 1:]) if tails.first else (x[:, :, :0], x)
        extended = tails.extend(rest, p.time_conv.weight.shape[2] - 1)
        if rest.shape[2]:
            doubled = _conv3d(extended, p.time_conv.weight, p.time_conv.bias)
            rest = rearrange(doubled, "B (two C) T H W -> B C (T two) H W", two=2)
        x = torch.cat([start, rest], dim=2)
    x = F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest")
    return _conv3d(x, p.conv.weight[:, :, None], p.conv.bias, padding=(0, 1, 1))


def _head(p: Head, x: Tensor, tails: _Tails) -> Tensor:
    return _causal_conv(p.conv, F.silu(_norm(p.norm, x)), tails)


def _fold(x: Tensor, patch: int) -> Tensor:
    if patch == 1:
        return x
    return rearrange(x, "B C F (H p) (W q) -> B (C q p) F H W", p=patch, q=patch)


def _unfold(x: Tensor, patch: int) -> Tensor:
    if patch == 1:
        return x
    return rearrange(x, "B (C q p) F H W -> B C F (H p) (W q)", p=patch, q=patch)


def _statistics(config: VAEConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(config.latent_mean, dtype=like.dtype, device=like.device)
    std = torch.tensor(config.latent_std, dtype=like.dtype, device=like.device)
    return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)


def _conv_shape(
    shapes: Shapes, name: str, inputs: int, outputs: int, kernel: tuple[int, ...]
) -> None:
    shapes[f"{name}.weight"] = (outputs, inputs, *kernel)
    shapes[f"{name}.bias"] = (outputs,)


def _residual_shape(shapes: Shapes, name: str, inputs: int, outputs: int) -> None:
    shapes[f"{name}.residual.0.gamma"] = (inputs, 1, 1, 1)
    _conv_shape(shapes, f"{name}.residual.2", inputs, outputs, (3, 3, 3))
    shapes[f"{name}.residual.3.gamma"] = (outputs, 1, 1, 1)
    _conv_shape(shapes, f"{name}.residual.6", outputs, outputs, (3, 3, 3))
    if inputs != outputs:
        _conv_shape(shapes, f"{name}.shortcut", inputs, outputs, (1, 1, 1))


def _middle_shape(shapes: Shapes, name: str, width: int) -> None:
    _residual_shape(shapes, f"{name}.0", width, width)
    shapes[f"{name}.1.norm.gamma"] = (width, 1, 1)
    _conv_shape(shapes, f"{name}.1.to_qkv", width, 3 * width, (1, 1))
    _conv_shape(shapes, f"{name}.1.proj", width, width, (1, 1))
    _residual_shape(shapes, f"{name}.2", width, width)


def _head_shape(shapes: Shapes, name: str, width: int, outputs: int) -> None:
    shapes[f"{name}.0.gamma"] = (width, 1, 1, 1)
    _conv_shape(shapes, f"{name}.2", width, outputs, (3, 3, 3))
