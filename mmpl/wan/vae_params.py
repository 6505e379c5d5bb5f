"""The VAE's parameters: a tree made strictly from a flat official-name state dict.

Source: Wan2.1 wan/modules/vae.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmpl.wan.config import VAEConfig
from mmpl.wan.params import Flat, Gamma, Shapes, from_flat, key, tree_map

_HAS_BFLOAT16 = (8, 0)  # CUDA compute capability from which cards convolve in it


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


def vae_cast(params: VAEParams, dtype: torch.dtype) -> VAEParams:
    """The VAE with weights in `dtype`, those of 3-D convolutions laid as clips are inside; itself
    where they have that format."""
    if params.conv2.weight.dtype is dtype:
        return params

    def cast(leaf: Tensor) -> Tensor:
        leaf = leaf.to(dtype)
        return leaf.contiguous(memory_format=torch.channels_last_3d) if leaf.ndim == 5 else leaf

    return tree_map(cast, params)


def shown_dtype(wanted: torch.dtype | None, device: torch.device) -> torch.dtype:
    """The format in which pixels are decoded that are to be seen, and no more: the one `wanted`, or
    bfloat16 on a GPU that has it and float32 elsewhere."""
    if wanted is not None:
        return wanted
    on_gpu = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _HAS_BFLOAT16
    return torch.bfloat16 if on_gpu else torch.float32


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
