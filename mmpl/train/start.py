"""Starting weights of networks trained from nothing.

The VAE starts as a smoothing codec: resampling averages and repeats, residual blocks add nothing,
and constant channels keep the norms before both heads nearly linear, so that training begins at a
blurred picture and not at the mean colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.wan.config import VAEConfig
from mmpl.wan.params import Shapes
from mmpl.wan.vae import vae_shapes

_SPREAD = 0.01  # of the usual random spread, where a layer starts as an identity
_COPIES = ("resample", "time_conv", "shortcut", "conv1.weight", "conv2.weight", "head.2.weight")
_CONSTANT = 1.0  # value of the constant channels
_OUTPUTS = ("self_attn.o.", "cross_attn.o.", "ffn.2.")  # of a block, into the residual stream


def start_vae(config: VAEConfig, seed: int) -> dict[str, Tensor]:
    """Weights of a small VAE in official keys."""
    generator = torch.Generator().manual_seed(seed)
    flat = {name: _scaled(shape, generator) for name, shape in vae_shapes(config).items()}
    # Norm and SiLU behind half of constant channels shrink small values by about this much.
    head_gain = 2 * _CONSTANT / math.sqrt(2)
    for name, tensor in flat.items():
        if name.endswith(".gamma"):
            tensor.fill_(1.0)
        elif name.endswith(".bias") or ".residual.6." in name or ".proj." in name:
            tensor.zero_()
        elif any(part in name for part in _COPIES):
            _add_identity_(tensor.mul_(_SPREAD), head_gain if "head" in name else 1.0)
        if tensor.dim() == 5 and tensor.shape[3] > 1:
            tensor[:, :, :-1] = 0.0  # no frame looks back yet: single frames are learned first
    pixels = 3 * config.patch_size**2
    last = max(int(n.split(".")[2]) for n in flat if ".resample." in n and "decoder" in n)
    flat["encoder.conv1.bias"][pixels:] = _CONSTANT
    flat[f"decoder.upsamples.{last}.resample.1.bias"][pixels:] = _CONSTANT
    flat[f"decoder.upsamples.{last}.resample.1.weight"][pixels:] *= _SPREAD
    return flat


def start_transformer(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Weights of a small DiT or text encoder: head closed, norms neutral, modulation small and
    the same at every timestep, attention of the text encoder (which has no scale) flat."""
    generator = torch.Generator().manual_seed(seed)
    flat = {name: _scaled(shape, generator) for name, shape in shapes.items()}
    for name, tensor in flat.items():
        if name.endswith(".bias") or name.startswith(("head.head", "time_projection")):
            tensor.zero_()
        elif name.endswith(".attn.q.weight"):
            tensor.mul_(0.25)
        elif name.endswith("modulation"):
            tensor.normal_(0, tensor.shape[-1] ** -0.5, generator=generator)
        elif "norm" in name:
            tensor.fill_(1.0)
        elif "embedding.weight" in name and tensor.dim() == 2:
            tensor.normal_(0, 1.0 if "token" in name else 0.02, generator=generator)
    return flat


def deepened(flat: Mapping[str, Tensor], layers: int, blocks: str) -> dict[str, Tensor]:
    """The weights of a transformer with more blocks, named `blocks`.0 and on, that computes the
    same: new blocks, spread evenly, are copies of the one before with closed outputs. Raises
    ArgumentError when it has more than `layers` of them."""
    depth = 1 + max(_block_of(name, blocks) for name in flat)
    if depth > layers:
        raise ArgumentError("a network cannot lose blocks", got=depth, wanted=f"at most {layers}")
    sources = [layer * depth // layers for layer in range(layers)]
    deep = {name: tensor for name, tensor in flat.items() if _block_of(name, blocks) < 0}
    for layer, source in enumerate(sources):
        is_new = source in sources[:layer]
        for name, tensor in flat.items():
            if _block_of(name, blocks) == source:
                rest = name.removeprefix(f"{blocks}.{source}.")
                closed = is_new and rest.startswith(_OUTPUTS)
                deep[f"{blocks}.{layer}.{rest}"] = torch.zeros_like(tensor) if closed else tensor
    return deep


def _block_of(name: str, blocks: str) -> int:
    """Which block a weight belongs to; -1 if none."""
    return int(name[len(blocks) + 1 :].split(".")[0]) if name.startswith(f"{blocks}.") else -1


def _scaled(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    inputs = math.prod(shape[1:]) or 1
    return torch.randn(shape, generator=generator) / math.sqrt(inputs)


def _add_identity_(weight: Tensor, gain: float) -> None:
    """Adds a map that averages what the kernel covers and copies or pairs channels."""
    outputs, inputs = weight.shape[:2]
    kernel = weight.shape[2:]
    tap = torch.zeros(kernel)
    if len(kernel) == 2 and outputs == inputs:
        # Stride 2 with one row and column of padding behind: the 2x2 block at the start.
        tap[:2, :2] = 0.25
    elif len(kernel) == 2:
        tap[1, 1] = 1.0
    else:
        tap[(-1, *(size // 2 for size in kernel[1:]))] = 1.0
    for index in range(max(outputs, inputs)):
        if outputs == 2 * inputs or index < min(outputs, inputs):
            weight[index % outputs, index % inputs] += gain * tap
