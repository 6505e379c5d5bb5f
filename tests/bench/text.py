"""The text encoder beside the official one, which pads every prompt to 512 tokens: CPU time of one
thread, in turns.

    python -m tests.bench.text [--official PATH] [--tokens 64] [--dim 512] [--layers 6]

Without a checkout the other side is the same encoder over padded tokens.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from mmpl.wan.config import TextConfig
from mmpl.wan.text import encode_text, text_from_flat, text_shapes
from tests.bench.official import module
from tests.bench.vae import seconds

PADDED = 512


def weights(config: TextConfig) -> dict[str, Tensor]:
    """Random ones under the official names, of sizes that keep activations at 1."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        for name, shape in text_shapes(config).items()
    }


def official_call(checkout: Path, config: TextConfig, ids: Tensor, mask: Tensor) -> Any:
    """The official encoder's output for padded tokens."""
    tokenizers: Any = ModuleType("official_wan.tokenizers")  # not needed, but imported there
    tokenizers.HuggingfaceTokenizer = None
    sys.modules[tokenizers.__name__] = tokenizers
    # A default argument there asks for a GPU.
    device = patch("torch.cuda.current_device", lambda: 0)
    with device, warnings.catch_warnings(action="ignore"):
        network = module(checkout, "t5").T5Encoder(
            vocab=config.vocab_size,
            dim=config.dim,
            dim_attn=config.dim_attn,
            dim_ffn=config.dim_ffn,
            num_heads=config.num_heads,
            num_layers=config.num_layers,
            num_buckets=config.num_buckets,
            shared_pos=False,
        )
    network.load_state_dict(weights(config))
    network = network.eval().requires_grad_(False)
    return lambda: network(ids, mask)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--official", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = TextConfig(
        vocab_size=1000,
        dim=given.dim,
        dim_attn=given.dim,
        dim_ffn=5 * given.dim // 2,
        num_heads=given.dim // 64,
        num_layers=given.layers,
    )
    params = text_from_flat(weights(config), config)
    tokens = given.tokens
    ids = torch.randint(2, 1000, (1, PADDED), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(PADDED)[None] < tokens).long()
    ids = ids * mask
    calls: list[Callable[[], Tensor]] = [
        lambda: encode_text(params, config, ids[:, :tokens], mask[:, :tokens]),
        lambda: encode_text(params, config, ids, mask),
    ]
    names = ["mmpl", "mmpl padded"]
    if given.official:
        calls.append(official_call(given.official, config, ids, mask))
        names.append("official")
    times = [statistics.median(taken) for taken in seconds(calls, 5)]
    first = calls[0]()
    for name, call, taken in zip(names, calls, times, strict=True):
        apart = (call()[:, :tokens] - first).abs().max().item()
        print(f"{name:12} {taken:.4f} s CPU, {taken / times[0]:5.1f} times; {apart:.1e} apart")


if __name__ == "__main__":
    main()
