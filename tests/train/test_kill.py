"""A training that is killed for real, at any moment, goes on as if it had not been."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

import torch
from torch import Tensor

from mmpl.train.loop import Loss, Recipe, Weights, averaged_weights, train

RECIPE = Recipe(steps=40, learning_rate=0.01, matrix_rate=0.01, warmup=5, ema_decay=0.9)


def loss_of(weights: Weights) -> Loss:
    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        x_BC = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        value = (torch.tanh(x_BC @ weights["a.weight"]) @ weights["b.weight"] - 1).square().mean()
        return value, {"half": value.item() / 2}

    return loss


def run_all(folder: Path, pause_s: float = 0.0) -> None:
    """`pause_s` after every step, so that a kill can come at any place of one."""
    start = {"a.weight": torch.eye(8), "b.weight": torch.ones(8, 2)}
    for _ in train(start, loss_of, RECIPE, folder, save_every=7, report_every=1):
        time.sleep(pause_s)


def killed_at(folder: Path, lines: int, later_s: float) -> None:
    """Runs the training in a process of its own and kills it (SIGKILL) a moment after its log has
    so many lines."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmpl.train.loop"])
    process = context.Process(target=run_all, args=(folder, 0.002), daemon=True)
    process.start()
    log = folder / "log.jsonl"
    while process.is_alive() and (not log.exists() or log.read_bytes().count(b"\n") < lines):
        time.sleep(0.001)
    time.sleep(later_s)
    process.kill()
    process.join()


def test_the_log_and_the_weights_of_a_killed_run_are_the_same(tmp_path: Path) -> None:
    run_all(tmp_path / "whole")
    chance = random.Random()  # another moment every time
    moments = sorted(chance.sample(range(1, RECIPE.steps - 5), 2))
    for lines in moments:
        killed_at(tmp_path / "cut", lines, chance.random() * 0.01)
    assert (tmp_path / "cut" / "log.jsonl").stat().st_size, moments
    run_all(tmp_path / "cut")
    for name in ("log.jsonl", "log.csv", "curve.svg"):
        whole, cut = ((tmp_path / run / name).read_bytes() for run in ("whole", "cut"))
        assert whole == cut, (name, moments)
    (whole, _), (cut, _) = (averaged_weights(tmp_path / run) for run in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole), moments
