"""Two real processes tune a model as one does, with every weight in each or spread over both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mmpl.checkpoint.bundle import Transformer
from mmpl.checkpoint.read import digest
from mmpl.train.loop import Recipe, averaged_weights
from mmpl.train.recompute import checkpointed
from mmpl.train.trainable import trained
from mmpl.train.tuning import Tuning
from mmpl.train.wan_run import Plan, plan_of_memory, tune
from mmpl.train.world import ALONE, World
from mmpl.wan.dit import Engine, block
from mmpl.wan.params import to_flat
from tests.dist.ranks import run_ranks
from tests.small import CONFIGS, small_dit
from tests.train.encoded import FakeClips

# A large eps: Adam's first steps are signs of gradients, which rounding would turn.
RECIPE = Recipe(
    *(2, 1e-2, None), warmup=0, final_fraction=1.0, beta1=0.0, beta2=0.999, eps=1e-2, ema_decay=0.5
)


def transformer() -> Transformer:
    flat = to_flat(small_dit())
    return Transformer(flat, CONFIGS.dit, digest(flat))


def plan(shard: bool = False) -> Plan:
    return Plan("self-attention", Tuning(batch=4), RECIPE, torch.float32, shard=shard)


def tune_in(run: Path, world: World = ALONE, shard: bool = False) -> None:
    engine = Engine(block_fn=checkpointed(block))
    clips = FakeClips(CONFIGS.dit, 5)
    for _ in tune(transformer(), clips, run, plan(shard), engine=engine, world=world):
        pass


def both_ways(rank: int, folder: Path) -> None:
    for shard in (False, True):
        tune_in(folder / str(shard), World(dist.group.WORLD), shard)


def test_two_processes_tune_as_one(tmp_path: Path) -> None:
    tune_in(tmp_path / "alone")
    run_ranks(2, both_ways, tmp_path)
    alone, start = averaged_weights(tmp_path / "alone")[0], transformer().flat
    assert alone.keys() == set(trained("self-attention", start))
    for shard in (False, True):
        together = averaged_weights(tmp_path / str(shard))[0]
        assert together.keys() == alone.keys()
        for name, weight in alone.items():
            moved = (weight - start[name]).abs().max().item()
            assert moved > 1e-6
            assert (together[name] - weight).abs().max().item() < 0.01 * moved


@pytest.mark.parametrize("shards", [1, 4])
def test_the_plan_counts_what_is_trained(shards: int) -> None:
    memory = plan_of_memory(CONFIGS.dit, plan(), (2, 4), shards=shards, checkpointing=True)
    flat = transformer().flat
    moved = sum(4 * flat[name].numel() for name in trained("self-attention", flat))
    assert memory.gradients * shards == pytest.approx(moved, rel=0.1)
    assert memory.optimizer == 2 * memory.gradients
