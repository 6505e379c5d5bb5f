"""Floating-point operations of the networks, exactly: a multiplication and an addition count two.

Counted are matrix products, attention and convolutions, as `torch.utils.flop_counter` does.
"""

from __future__ import annotations

from math import prod

import torch
from torch.utils.flop_counter import FlopCounterMode

from mmpl.layout.slots import SlotPlan
from mmpl.wan import vae
from mmpl.wan.config import DiTConfig, VAEConfig


def pass_flops(config: DiTConfig, tokens: int, keys: int) -> int:
    """A forward of one branch over a cache: `tokens` queries see `keys` keys, their own among
    them. The text's keys and values, made once a film, are not in it; the time embedding is."""
    D, L, patch = config.dim, tokens, prod(config.patch_size)
    products = 6 * D * D + 2 * D * config.ffn_dim  # q, k, v, o; q and o of the text; two of the FFN
    attention = 2 * D * (keys + config.text_len)
    around = D * patch * (config.in_dim + config.out_dim)
    time = config.freq_dim * D + 7 * D * D
    return 2 * (config.num_layers * L * (products + attention) + L * around + time)


def group_tokens(slots: SlotPlan, group: str, frame_tokens: int) -> tuple[int, int]:
    """Tokens of a group's pass, and keys that they see."""
    step = slots.pass_of(group)
    seen = len(step.gather) if step.gather is not None else step.read[1] - step.read[0]
    return len(step.frames) * frame_tokens, seen * frame_tokens


def decode_flops(config: VAEConfig, latents: int, size: tuple[int, int]) -> int:
    """A decode of a clip whose latent frames are of `size` rows and columns."""
    one, two = (_counted(config, frames, size) for frames in (1, 2))
    return one + (latents - 1) * (two - one)


@torch.no_grad()
def _counted(config: VAEConfig, latents: int, size: tuple[int, int]) -> int:
    shapes = vae.vae_shapes(config).items()
    flat = {name: torch.empty(shape, device="meta") for name, shape in shapes}
    params = vae.vae_from_flat(flat, config)
    z_BCTHW = torch.empty(1, config.z_dim, latents, *size, device="meta")
    with FlopCounterMode(display=False) as counter:
        vae.decode(params, config, z_BCTHW)
    return counter.get_total_flops()
