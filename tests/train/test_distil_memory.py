"""The plan of a distillation counts what real tensors take, and the paper's fits its cards."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch

from mmpl.layout.presets import by_name
from mmpl.train.distil_memory import DistilMemory, distil_memory
from mmpl.train.memory import counting_saved
from mmpl.train.recompute import checkpointed
from mmpl.train.rollout import few_steps, open_memory, read, roll_out
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit import Engine, block, dit_from_flat, dit_shapes
from mmpl.wan.flow import schedule
from mmpl.wan.ops import BFLOAT16, FLOAT32
from tests.checkpoint.worlds import random_state
from tests.small import CONFIGS

SIZE = (4, 4)
STUDENT = replace(CONFIGS.dit, num_layers=4)
SMALLER = replace(CONFIGS.dit, num_layers=1)
WAN_14B = DiTConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)


def plan(student: DiTConfig, teacher: DiTConfig, **changes: Any) -> DistilMemory:
    usual = {
        "layouts": [by_name("mmpl_t2v")],
        "latent_size": SIZE,
        "bidirectional": True,
        "shards": 1,
        "precision": FLOAT32,
        "frozen": torch.float32,
        "checkpointing": False,
    }
    return distil_memory(student, teacher, **(usual | changes))


def numbers(config: DiTConfig) -> int:
    return sum(map(prod, dit_shapes(config).values()))


@pytest.mark.parametrize(("name", "checkpointing"), [("mmpl_t2v", False), ("mmpl_i2v", True)])
def test_a_rollout_keeps_what_the_plan_says(name: str, checkpointing: bool) -> None:
    """A small teacher, so that the student's update takes most."""
    layout = by_name(name)
    found = plan(STUDENT, SMALLER, layouts=[layout], checkpointing=checkpointing)
    flat = {n: t.requires_grad_() for n, t in random_state(dit_shapes(STUDENT), 0).items()}
    block_fn = checkpointed(block) if checkpointing else block
    engine, params = Engine(FLOAT32, block_fn=block_fn), dit_from_flat(flat, STUDENT)
    with counting_saved(flat.values()) as count:
        text = torch.ones(STUDENT.text_len, STUDENT.text_dim)
        memory = open_memory(read(params, STUDENT, [text], engine), layout, SIZE)
        cache = memory.cache
        made = roll_out(
            *(memory, layout, layout.groups, {}),
            lambda memory, group: few_steps(
                *(memory, group, schedule("few_step", 2, 5.0)),
                lambda group, _: torch.ones(1, STUDENT.in_dim, len(group.frames), *SIZE),
                exit_step=1,
            ),
        )
        assert made[20].requires_grad
        kept = count()
    if not checkpointing:
        assert found.update["activations"] == pytest.approx(kept, rel=0.2)
    else:  # and one block that is computed again
        assert (
            kept < found.update["activations"] < 0.5 * plan(STUDENT, SMALLER).update["activations"]
        )
    assert found.update["cache"] == cache.k_IBSNK.nbytes + cache.v_IBSNK.nbytes
    assert found.update["gradients"] == 4 * numbers(STUDENT)


def test_what_lasts_is_what_the_networks_hold() -> None:
    small, large = numbers(SMALLER), numbers(STUDENT)
    found = plan(SMALLER, STUDENT)
    assert (found.student, found.critic, found.teacher) == (16 * small, 12 * large, 4 * large)
    assert found.update["gradients"] == 4 * large  # the critic's: it takes most
    assert found.total == found.student + found.critic + found.teacher + sum(found.update.values())
    spread = plan(SMALLER, STUDENT, shards=4)
    for name in ("student", "critic", "teacher"):
        assert getattr(spread, name) == pytest.approx(getattr(found, name) / 4, rel=0.1)
    assert spread.update["gathered"] > 0 == found.update["gathered"]


def test_what_the_paper_distilled_fits_its_cards() -> None:
    """Wan 1.3B from 14B at 832x480, on 32 cards of 80 GB, one clip each (Table 8)."""
    found = plan(
        *(DiTConfig(), WAN_14B),
        latent_size=(60, 104),
        shards=32,
        precision=BFLOAT16,
        frozen=torch.bfloat16,
        checkpointing=True,
    )
    assert found.total < 0.9 * 80e9
    assert found.lines()[-1] == f"total       {found.total / 2**30:9.2f} GiB"
