"""A resumed training is the uninterrupted one, bit for bit; mistakes keep what is good."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmpl.errors import ArgumentError, NumericError
from mmpl.train.loop import Loss, Recipe, Weights, averaged_weights, train
from mmpl.train.muon import orthogonalised

RECIPE = Recipe(
    steps=9, learning_rate=0.1, matrix_rate=0.02, warmup=2, ema_decay=0.9, weight_decay=0.1
)


def start() -> Weights:
    return {"a.weight": torch.ones(3, 2), "b": torch.ones(2), "late": torch.ones(2)}


def loss_of(weights: Weights) -> Loss:
    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(step)
        value = (
            (weights["a.weight"] @ (weights["b"] * torch.randn(2, generator=generator)))
            .square()
            .mean()
        )
        if step > 4:  # a weight that gets its first gradient late
            value = value + weights["late"].square().sum()
        return value, {"metric": float(step)}

    return loss


def run_all(folder: Path, recipe: Recipe = RECIPE) -> Weights:
    for _ in train(start(), loss_of, recipe, folder, save_every=2, report_every=1):
        pass
    return averaged_weights(folder)[0]


@pytest.mark.parametrize("stop_after", [1, 2, 3, 6, 8])
def test_resuming_gives_the_same_bits(tmp_path: Path, stop_after: int) -> None:
    whole = run_all(tmp_path / "whole")
    for progress in train(start(), loss_of, RECIPE, tmp_path / "cut", save_every=2, report_every=1):
        if progress.step == stop_after:
            break
    resumed = run_all(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_training_moves_and_averages(tmp_path: Path) -> None:
    averaged = run_all(tmp_path)
    assert not torch.equal(averaged["a.weight"], start()["a.weight"])
    assert averaged_weights(tmp_path)[1] == RECIPE.steps


def test_a_run_of_another_recipe_is_refused(tmp_path: Path) -> None:
    run_all(tmp_path)
    with pytest.raises(ArgumentError, match=r"got learning_rate 0\.2.* wanted learning_rate 0\.1"):
        run_all(tmp_path, replace(RECIPE, learning_rate=0.2))


@pytest.mark.parametrize("later", [{"data": "more"}, {}, {"data": "some", "network": 3}])
def test_a_run_of_another_setting_is_refused(tmp_path: Path, later: dict[str, object]) -> None:
    def begin(setting: dict[str, object]) -> None:
        next(train(start(), loss_of, RECIPE, tmp_path, setting=setting, report_every=1))

    begin({"data": "some"})
    begin({"data": "some"})
    with pytest.raises(ArgumentError, match="another recipe"):
        begin(later)


def test_a_run_may_go_on_with_another_number_of_steps(tmp_path: Path) -> None:
    run_all(tmp_path)
    run_all(tmp_path, replace(RECIPE, steps=RECIPE.steps + 4))
    assert averaged_weights(tmp_path)[1] == RECIPE.steps + 4
    noted = json.loads((tmp_path / "recipe.json").read_text())
    assert noted["restarts"] == [{"steps": RECIPE.steps, "until": RECIPE.steps}]
    run_all(tmp_path, replace(RECIPE, steps=RECIPE.steps + 4))
    assert json.loads((tmp_path / "recipe.json").read_text()) == noted


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    def spoiled(weights: Weights) -> Loss:
        good = loss_of(weights)

        def loss(step: int) -> tuple[Tensor, dict[str, float]]:
            value, metrics = good(step)
            return (value * float("nan") if step == 5 else value), metrics

        return loss

    with pytest.raises(NumericError, match="step 5"):
        list(train(start(), spoiled, RECIPE, tmp_path, save_every=2))
    weights, step = averaged_weights(tmp_path)
    assert step == 4
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())


def test_an_empty_run_has_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no checkpoint"):
        averaged_weights(tmp_path)


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"learning_rate": 0.0}, {"matrix_rate": 1.0}, {"ema_decay": 1.0}]
)
def test_recipes_out_of_range_are_refused(change: dict) -> None:
    with pytest.raises(ArgumentError, match="out of range"):
        replace(RECIPE, **change)


def test_the_rate_rises_and_falls() -> None:
    shares = [RECIPE.share_at(step) for step in range(RECIPE.steps + 1)]
    assert shares[1] == max(shares) == 1
    assert shares[-1] == pytest.approx(RECIPE.final_fraction)


def test_orthogonalised_updates_have_equal_singular_values() -> None:
    for shape in ((5, 9), (9, 5)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonalised(matrix))
        assert values.min() > 0.6
        assert values.max() < 1.3
