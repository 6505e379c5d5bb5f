"""The plan is made of the true shapes, and what it says of autograd is what autograd keeps."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch

from mmpl.cli.training import tuning_engine
from mmpl.layout.presets import mmpl_t2v
from mmpl.train.memory import counting_saved, memory_plan
from mmpl.train.recompute import checkpointed
from mmpl.train.teacher_forcing import lesson
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit import (
    DiTParams,
    Engine,
    Positions,
    block,
    dit,
    dit_from_flat,
    dit_shapes,
    encode_context,
)
from mmpl.wan.ops import BFLOAT16, FLOAT32, Precision
from tests.checkpoint.worlds import random_state
from tests.parity import golden
from tests.small import CONFIGS

WAN_14B = DiTConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
WHOLE = lesson(mmpl_t2v())
FRAMES = Positions((*WHOLE.clean, *WHOLE.noisy), pieces=WHOLE.pieces)
SMALL = replace(CONFIGS.dit, num_layers=4)


@pytest.mark.parametrize(("name", "config"), [("1.3b", DiTConfig()), ("14b", WAN_14B)])
def test_weights_are_those_of_the_model(name: str, config: DiTConfig) -> None:
    tensors = golden.document(f"manifest_dit_t2v_{name}")["tensors"]
    numbers = sum(prod(shape) for shape in tensors.values())
    names = set(tensors)
    plan = memory_plan(config, names, Positions((0,)), (1, 4, 4))
    assert (plan.weights, plan.gradients, plan.optimizer, plan.ema, plan.gathered) == (
        *(4 * numbers, 4 * numbers, 8 * numbers, 4 * numbers),
        0,
    )
    frozen = memory_plan(config, (), Positions((0,)), (1, 4, 4), shards=8)
    assert 2 * numbers / 8 <= frozen.weights <= 2.01 * numbers / 8
    assert frozen.optimizer == 0 < frozen.gathered < 2 * numbers


def measured(trained: set[str], precision: Precision, *, checkpointing: bool) -> int:
    """Bytes kept by a real pass: all the way through, and then inside one block."""
    flat = random_state(dit_shapes(SMALL), 0, scale=0.1)
    flat = {n: t if n in trained else t.bfloat16() for n, t in flat.items()}
    for name in trained:
        flat[name].requires_grad_()
    params = dit_from_flat(flat, SMALL)
    inside: list[int] = []

    def watched(*given: Any) -> torch.Tensor:
        known = [*flat.values(), given[2], given[4].k_BSNK, given[4].v_BSNK]
        with counting_saved([*known, given[3].e_BT6D, given[3].rope_L1C2]) as count:
            made = block(*given)
        inside.append(count())
        return made

    block_fn = checkpointed(block) if checkpointing else block
    with counting_saved(flat.values()) as count:
        one_pass(params, Engine(precision, block_fn=block_fn))
        total = count()
    if checkpointing:
        one_pass(params, Engine(precision, block_fn=watched))
        total += inside[-1]
    return total


def one_pass(params: DiTParams, engine: Engine) -> None:
    context = encode_context(params, SMALL, [torch.ones(3, SMALL.text_dim)], engine=engine)
    given = torch.ones(1, SMALL.in_dim, len(FRAMES.positions), 4, 4)
    t_BT = torch.ones(1, len(FRAMES.positions))
    dit(params, SMALL, given, t_BT, context, frames=FRAMES, engine=engine)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("part", ["", "self_attn"], ids=["all", "self-attention"])
def test_activations_are_what_autograd_keeps(
    part: str, precision: Precision, checkpointing: bool
) -> None:
    trained = {name for name in dit_shapes(SMALL) if part in name}
    plan = memory_plan(
        SMALL, trained, FRAMES, (1, 4, 4), precision=precision, checkpointing=checkpointing
    )
    found = measured(trained, precision, checkpointing=checkpointing)
    assert plan.activations == pytest.approx(found, rel=0.2)


def test_a_tuning_computes_blocks_again_if_it_is_asked_to() -> None:
    flat = random_state(dit_shapes(SMALL), 0, scale=0.1)
    for leaf in flat.values():
        leaf.requires_grad_()
    kept = []
    for checkpointing in (False, True):
        engine = tuning_engine("cpu", torch.float32, checkpointing=checkpointing)
        with counting_saved(flat.values()) as count:
            one_pass(dit_from_flat(flat, SMALL), engine)
            kept.append(count())
    assert kept[1] < kept[0] / 3


def test_what_the_paper_trained_fits_its_cards() -> None:
    """Wan 14B at 832x480, self-attention alone, on 32 cards of 80 GB, one clip each."""
    trained = {name for name in dit_shapes(WAN_14B) if ".self_attn." in name}
    plan = memory_plan(WAN_14B, trained, FRAMES, (1, 60, 104), shards=32)
    assert plan.total < 0.9 * 80e9
    assert plan.lines()[-1] == f"total       {plan.total / 2**30:9.2f} GiB"
    kept = memory_plan(WAN_14B, trained, FRAMES, (1, 60, 104), shards=32, checkpointing=False)
    assert kept.total > 80e9
