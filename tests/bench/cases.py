"""What is measured: a transformer of random weights at any size, and its calls.

The rows of sizes are those at which the official code was measured before (dim/ffn/heads/layers
over a grid of frames x rows x columns of tokens).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpl.wan import ops
from mmpl.wan.cache import LayerKV, kv_allocate
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit import Engine, Positions, dit, dit_cast, encode_context
from mmpl.wan.dit_block import BlockFn, Shared, block
from mmpl.wan.dit_params import DiTParams, dit_from_flat, dit_shapes
from mmpl.wan.ops import Precision
from mmpl.wan.rope import rope_table


@dataclass(frozen=True, slots=True)
class Row:
    """A size: the network, frames, rows and columns of tokens, and tokens of text."""

    dim: int
    ffn: int
    heads: int
    layers: int
    grid: tuple[int, int, int]
    text: int = 512

    @property
    def config(self) -> DiTConfig:
        """Wan's network at this size; its text is narrower."""
        return DiTConfig(
            dim=self.dim,
            ffn_dim=self.ffn,
            num_heads=self.heads,
            num_layers=self.layers,
            text_dim=64,
            text_len=self.text,
        )

    @property
    def tokens(self) -> int:
        frames, rows, columns = self.grid
        return frames * rows * columns

    def __str__(self) -> str:
        grid = "x".join(map(str, self.grid))
        return f"{self.dim}/{self.ffn}/{self.heads}/{self.layers} {grid}"


def state(config: DiTConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the official names, in float32, of sizes that keep activations at 1."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in dit_shapes(config).items():
        fan_in = shape[-1] if len(shape) == 2 else 1
        scale = fan_in**-0.5 if len(shape) > 1 else 0.02
        found[name] = torch.randn(shape, generator=generator) * scale
        if "norm" in name and name.endswith("weight"):
            found[name] += 1
    found["patch_embedding.weight"] *= 0.1
    return found


def params(config: DiTConfig, precision: Precision) -> DiTParams:
    """Random weights, stored as a model that is run in `precision` has them."""
    return dit_cast(dit_from_flat(state(config), config), precision)


@torch.no_grad()
def block_call(
    row: Row, precision: Precision, *, block_fn: BlockFn = block, cached: bool = True
) -> Callable[[], Tensor]:
    """A pass through all blocks of `row` as fill_tail runs it in the shape of `row.grid`: it writes
    its own keys and values behind as many others and reads both; or sees itself alone."""
    config, weights = row.config, params(row.config, precision)
    generator = torch.Generator().manual_seed(1)
    x_BLD = torch.randn(1, row.tokens, config.dim, generator=generator).to(precision.island)
    shape = (1, config.text_len, config.num_heads, config.head_dim)
    text = LayerKV(*(torch.randn(shape, generator=generator).to(precision.compute),) * 2)
    frames, rows, columns = row.grid
    kv = kv_allocate(
        config, batch=1, slots=2 * frames, frame_tokens=rows * columns, dtype=precision.compute
    )
    own = slice(row.tokens, 2 * row.tokens)
    shared = Shared(
        e_BT6D=torch.randn(1, 1, 6, config.dim, generator=generator).to(precision.island),
        rope_L1C2=rope_table(config, range(frames), rows, columns),
        visible=None,
        write=own if cached else None,
        read=slice(0, 2 * row.tokens) if cached else None,
        precision=precision,
        attention=Engine().attention,
        ulysses=None,
        tokens=row.tokens,
        eps=ops.epsilon(config.eps, precision, x_BLD.device),
    )

    @torch.no_grad()
    def call() -> Tensor:
        y_BLD = x_BLD
        for index, one in enumerate(weights.blocks):
            layer = kv.layer(index) if cached else None
            y_BLD = block_fn(one, config, y_BLD, shared, text, layer)
        return y_BLD

    return call


@torch.no_grad()
def forward_call(
    row: Row, precision: Precision, *, block_fn: BlockFn = block
) -> Callable[[], Tensor]:
    """The whole transformer over a clip that sees itself, its text encoded anew each time."""
    config, weights = row.config, params(row.config, precision)
    x_BCTHW, text = inputs(row)
    frames = Positions(tuple(range(row.grid[0])))
    t_BT = torch.full((1, row.grid[0]), 500.0)
    engine = Engine(precision, block_fn=block_fn)

    @torch.no_grad()
    def call() -> Tensor:
        context = encode_context(weights, config, [text], engine=engine)
        return dit(weights, config, x_BCTHW, t_BT, context, frames=frames, engine=engine)

    return call


def inputs(row: Row) -> tuple[Tensor, Tensor]:
    """Latents x_BCTHW and the text of a clip, in float32."""
    config = row.config
    generator = torch.Generator().manual_seed(2)
    frames, rows, columns = row.grid
    _, height, width = config.patch_size
    size = (1, config.in_dim, frames, rows * height, columns * width)
    text = torch.randn(min(20, config.text_len), config.text_dim, generator=generator)
    return torch.randn(size, generator=generator), text
