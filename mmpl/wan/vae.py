"""The causal 3-D VAE: pixels <-> latents, one-shot or streamed by the same functions.

`encode` and `decode` take and return an explicit state: the last input frames of every temporal
convolution, in the order they run. State None means the clip starts here. Inside, both go through
a clip in pieces of as many latent frames as keep activations small, by the same means.
Activations lie channels last: norms are over channels, and convolutions are faster so.
Source: Wan2.1 wan/modules/vae.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.wan.config import VAEConfig
from mmpl.wan.params import Gamma
from mmpl.wan.vae_params import Attention, Conv, Decoder, Encoder, Head, Resample, Residual
from mmpl.wan.vae_params import VAEParams as VAEParams
from mmpl.wan.vae_params import shown_dtype as shown_dtype
from mmpl.wan.vae_params import vae_cast as vae_cast
from mmpl.wan.vae_params import vae_from_flat as vae_from_flat
from mmpl.wan.vae_params import vae_shapes as vae_shapes

State = tuple[Tensor, ...]

_EPS = 1e-12  # of the norms
_LAYOUT = torch.channels_last_3d
_PIECE_BYTES = 2**24  # of the largest activation of a piece


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
    z_BCTHW = (mu_BCTHW - mean) * (1 / std)
    return z_BCTHW.contiguous(), state  # the network's layout is its own affair


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
    tails = _Tails(state)
    dtype = params.conv1.weight.dtype
    step = stride * latents_at_once(config, video_BCFHW.shape[0], rows, columns, dtype)
    sizes = _sizes(video_BCFHW.shape[2], step, step - stride + 1 if first else step)
    parts = [_encoder(params.encoder, config, x, tails) for x in video_BCFHW.split(sizes, 2)]
    return _joined(parts), tails.state()


def decode(
    params: VAEParams, config: VAEConfig, z_BCTHW: Tensor, state: State | None = None
) -> tuple[Tensor, State]:
    """Pixels [B, 3, F, H*stride, W*stride] (about [-1, 1], not clamped) and the state.

    Without a state the clip starts here: T latents give 1 + 4(T-1) frames. With a state, 4T. Who
    keeps no state given has only one of the two in memory. Computed in the format of the weights,
    and the pixels are in it.
    """
    mean, std = _statistics(config, z_BCTHW)
    dtype = params.conv2.weight.dtype
    z_BCTHW = (z_BCTHW / (1 / std) + mean).to(dtype).contiguous(memory_format=_LAYOUT)
    x_BCTHW = _conv3d(z_BCTHW, params.conv2.weight, params.conv2.bias)
    tails, stride = _Tails(state), config.spatial_stride
    del state  # the tails have it
    batch, _, _, rows, columns = z_BCTHW.shape
    step = latents_at_once(config, batch, rows * stride, columns * stride, dtype)
    parts = [_decoder(params.decoder, config, x, tails) for x in x_BCTHW.split(step, 2)]
    return _joined(parts), tails.state()


def latents_at_once(
    config: VAEConfig, batch: int, rows: int, columns: int, dtype: torch.dtype = torch.float32
) -> int:
    """Latent frames of a piece, for frames of `rows` x `columns` pixels computed in `dtype`."""
    pixels = batch * config.temporal_stride * rows * columns // config.patch_size**2
    return max(1, _PIECE_BYTES // (dtype.itemsize * config.dim * pixels))


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
    pixels_BCFHW = decode(params, config, z_BCTHW)[0]  # its state is gone before the encoder runs
    return encode(params, config, pixels_BCFHW[:, :, slice(*frames)].clamp(-1, 1))[0]


def _encoder(net: Encoder, config: VAEConfig, video_BCFHW: Tensor, tails: _Tails) -> Tensor:
    x = _fold(video_BCFHW, config.patch_size).contiguous(memory_format=_LAYOUT)
    x = _causal_conv(net.conv1, x, tails)
    for layer in net.downsamples:
        x = _downsample(layer, x, tails) if isinstance(layer, Resample) else _mix(layer, x, tails)
    for layer in net.middle:
        x = _mix(layer, x, tails)
    x = _head(net.head, x, tails)
    tails.turn()
    return x


def _decoder(net: Decoder, config: VAEConfig, x: Tensor, tails: _Tails) -> Tensor:
    x = _causal_conv(net.conv1, x, tails)
    for layer in net.middle:
        x = _mix(layer, x, tails)
    for layer in net.upsamples:
        x = _upsample(layer, x, tails) if isinstance(layer, Resample) else _mix(layer, x, tails)
    x = _unfold(_head(net.head, x, tails), config.patch_size)
    tails.turn()
    return x


def _sizes(frames: int, step: int, first: int) -> list[int]:
    """`frames` in pieces of `step`, of which the first is shorter."""
    sizes = [min(first, frames)]
    while (rest := frames - sum(sizes)) > 0:
        sizes.append(min(step, rest))
    return sizes


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


class _Tails:
    """Walks a state in execution order, piece after piece: gives each temporal convolution its
    tail, and keeps the new."""

    def __init__(self, state: State | None) -> None:
        self.first = state is None
        self._old = deque(state or ())
        self._new: list[Tensor] = []

    def turn(self) -> None:
        """A piece is done: its ends are what the next one starts from."""
        self.first, self._old, self._new = False, deque(self._new), []

    def extend(self, x: Tensor, frames: int) -> Tensor:
        """`x` behind the `frames` frames before it, zeros at the start; remembers its end."""
        batch, channels, length, *size = x.shape
        if self.first:
            before = x.new_zeros(batch, frames, *size, channels).movedim(-1, 1)
        else:
            before = self._old.popleft()
        extended = torch.cat([before, x], dim=2) if length else before
        self.keep(extended, frames)
        return extended

    def room(self, like: Tensor, frames: int) -> Tensor:
        """What `extend` gives, for the caller to write `x` into, which is shaped as `like`."""
        batch, channels, length, *size = like.shape
        room = like.new_empty(batch, frames + length, *size, channels).movedim(-1, 1)
        tail = room[:, :, :frames]
        tail.zero_() if self.first else tail.copy_(self._old.popleft())
        return room

    def last_frame(self, x: Tensor) -> Tensor:
        """`x` behind the one frame before it, if there is one; remembers its last frame."""
        extended = x if self.first else torch.cat([self._old.popleft(), x], dim=2)
        self.keep(x, 1)
        return extended

    def keep(self, x: Tensor, frames: int) -> None:
        """Remembers the end of `x`: a copy, as a view would keep all of it alive."""
        self._new.append(x[:, :, -frames:].clone())

    def state(self) -> State:
        """Of the clip so far, between two pieces."""
        return tuple(self._old)


def _causal_conv(p: Conv, x: Tensor, tails: _Tails) -> Tensor:
    return _padded_conv(p, tails.extend(x, p.weight.shape[2] - 1))


def _padded_conv(p: Conv, extended: Tensor) -> Tensor:
    """The convolution of frames that have those before them already."""
    pad = p.weight.shape[3] // 2
    return _conv3d(extended, p.weight, p.bias, padding=(0, pad, pad))


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


def _rms(x: Tensor) -> Tensor:
    """Root mean square over the channels, a little above zero."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return torch.rsub(length, _EPS, alpha=-1 / sqrt(x.shape[1]))  # eps + length / sqrt(channels)


def _active(norm: Gamma, x: Tensor, conv: Conv, tails: _Tails) -> Tensor:
    """SiLU of the norm of `x`, behind the frames before it that `conv` reaches back to."""
    frames = conv.weight.shape[2] - 1
    if torch.is_grad_enabled():
        return tails.extend(F.silu(x / _rms(x) * norm.gamma), frames)
    room = tails.room(x, frames)  # the same in one buffer, with as few passes as can be
    active = torch.div(x, _rms(x), out=room[:, :, frames:])
    F.silu(active.mul_(norm.gamma), inplace=True)
    tails.keep(room, frames)
    return room


def _mix(layer: Residual | Attention, x: Tensor, tails: _Tails) -> Tensor:
    if isinstance(layer, Attention):
        return _attention(layer, x)
    p = layer.shortcut
    shortcut = x if p is None else _conv3d(x, p.weight, p.bias)
    # What is done with is given back before the next convolution.
    x = _active(layer.norm1, x, layer.conv1, tails)
    x = _padded_conv(layer.conv1, x)
    x = _active(layer.norm2, x, layer.conv2, tails)
    x = _padded_conv(layer.conv2, x)
    return x.add_(shortcut)


def _attention(p: Attention, x_BCTHW: Tensor) -> Tensor:
    """Every pixel attends to all pixels of its own frame, with one head."""
    frames, size = x_BCTHW.shape[2], x_BCTHW.shape[3:]
    x_nCHW = x_BCTHW.transpose(1, 2).flatten(0, 1)  # n is B and T
    qkv_nCHW = F.conv2d(x_nCHW / _rms(x_nCHW) * p.norm.gamma, p.to_qkv.weight, p.to_qkv.bias)
    qkv_nLC = qkv_nCHW.permute(0, 2, 3, 1).flatten(1, 2)
    q, k, v = (part_nLC.unsqueeze(1) for part_nLC in qkv_nLC.chunk(3, dim=-1))
    out_nLC = F.scaled_dot_product_attention(q, k, v).squeeze(1)
    out_nCHW = out_nLC.transpose(1, 2).unflatten(2, size)
    out_nCHW = x_nCHW + F.conv2d(out_nCHW, p.proj.weight, p.proj.bias)
    return out_nCHW.unflatten(0, (-1, frames)).transpose(1, 2)


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
            twice_B2CTHW = doubled.unflatten(1, (2, -1))
            rest_BFHWC = twice_B2CTHW.permute(0, 3, 1, 4, 5, 2).flatten(1, 2)
            rest = rest_BFHWC.contiguous().movedim(-1, 1)
        # Joined with nothing, frames would no longer lie channels last.
        x = _joined([part for part in (start, rest) if part.shape[2]])
    return _conv3d(_doubled(x), p.conv.weight[:, :, None], p.conv.bias, padding=(0, 1, 1))


def _doubled(x: Tensor) -> Tensor:
    """Twice the rows and columns. As pictures: of clips that lie channels last, torch for CUDA
    makes a copy that does not, and another of the result."""
    frames = x.shape[2]
    pictures = x.permute(0, 2, 3, 4, 1).flatten(0, 1).movedim(-1, 1)
    doubled = F.interpolate(pictures, scale_factor=2.0, mode="nearest")
    return doubled.movedim(1, -1).unflatten(0, (-1, frames)).movedim(-1, 1)


def _head(p: Head, x: Tensor, tails: _Tails) -> Tensor:
    return _padded_conv(p.conv, _active(p.norm, x, p.conv, tails))


def _fold(x: Tensor, patch: int) -> Tensor:
    if patch == 1:
        return x
    x_BCFHpWq = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))
    return x_BCFHpWq.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def _unfold(x: Tensor, patch: int) -> Tensor:
    if patch == 1:
        return x
    x_BCqpFHW = x.unflatten(1, (-1, patch, patch))
    return x_BCqpFHW.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


def _statistics(config: VAEConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(config.latent_mean, dtype=like.dtype, device=like.device)
    std = torch.tensor(config.latent_std, dtype=like.dtype, device=like.device)
    return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)
