"""Gradient checkpointing keeps less and changes nothing; a step in bfloat16 trains as well."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpl.train.log import rows
from mmpl.train.loop import Loss, LossOf, Recipe, Weights, train
from mmpl.train.memory import counting_saved
from mmpl.train.recompute import checkpointed
from mmpl.wan.dit import Engine, Positions, block, dit, dit_from_flat, dit_shapes, encode_context
from mmpl.wan.ops import BFLOAT16, FLOAT32
from tests.checkpoint.worlds import random_state
from tests.small import CONFIGS

CONFIG = CONFIGS.dit


def start() -> Weights:
    return random_state(dit_shapes(CONFIG), 1, scale=0.2)


def loss_with(engine: Engine) -> LossOf:
    """The flow towards one clip."""
    generator = torch.Generator().manual_seed(0)
    clip_BCTHW = torch.randn(1, CONFIG.in_dim, 3, 4, 4, generator=generator)
    text_JC = torch.randn(3, CONFIG.text_dim, generator=generator)

    def of(weights: Weights) -> Loss:
        params = dit_from_flat(weights, CONFIG)

        def loss(step: int) -> tuple[Tensor, dict[str, float]]:
            context = encode_context(params, CONFIG, [text_JC], engine=engine)
            t_BT = torch.full((1, 3), 500.0)
            frames = Positions((0, 1, 2))
            flow = dit(params, CONFIG, clip_BCTHW, t_BT, context, frames=frames, engine=engine)
            return F.mse_loss(flow, clip_BCTHW), {}

        return loss

    return of


def backward(engine: Engine) -> tuple[Weights, int]:
    """Gradients, and bytes kept for them."""
    weights = {name: tensor.requires_grad_() for name, tensor in start().items()}
    with counting_saved(weights.values()) as count:
        value, _ = loss_with(engine)(weights)(0)
    kept = count()
    value.backward()
    return {n: w.grad for n, w in weights.items() if w.grad is not None}, kept


def test_gradients_are_equal_and_less_is_kept() -> None:
    plain, much = backward(Engine(FLOAT32))
    thrifty, little = backward(Engine(FLOAT32, block_fn=checkpointed(block)))
    assert plain.keys() == thrifty.keys() == dit_shapes(CONFIG).keys()
    assert all(torch.equal(plain[name], thrifty[name]) for name in plain)
    assert little < 0.4 * much


def test_nothing_is_kept_without_gradients() -> None:
    weights = start()
    with torch.no_grad(), counting_saved(weights.values()) as count:
        loss_with(Engine(FLOAT32, block_fn=checkpointed(block)))(weights)(0)
    assert count() == 0


def test_bfloat16_trains_float32_weights_as_float32_does(tmp_path: Path) -> None:
    recipe = Recipe(steps=6, learning_rate=3e-3, matrix_rate=None, warmup=0, eps=1e-3)
    curves = {}
    for precision in (FLOAT32, BFLOAT16):
        folder = tmp_path / str(precision.compute)
        for _ in train(start(), loss_with(Engine(precision)), recipe, folder):
            pass
        curves[precision] = torch.tensor([row["loss"] for row in rows(folder)])
    fallen = curves[FLOAT32][0] - curves[FLOAT32][-1]
    assert fallen > 0.1 * curves[FLOAT32][0]
    assert not torch.equal(curves[FLOAT32], curves[BFLOAT16])
    assert (curves[FLOAT32] - curves[BFLOAT16]).abs().max() < 0.1 * fallen
