"""A resumed training is the uninterrupted one, bit for bit; mistakes keep what is good."""

from __future__ import annotations

import csv
import json
import resource
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmpl.errors import ArgumentError, InputError, NumericError, OutputError
from mmpl.train import state
from mmpl.train.curve import curve, smoothed
from mmpl.train.log import rows
from mmpl.train.loop import STATE_FILE, Loss, LossOf, Recipe, Weights, averaged_weights, train
from mmpl.train.muon import orthogonalised
from mmpl.train.recipe import TEACHER_FORCING

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


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_resumed_run_logs_every_step_once_and_the_same(tmp_path: Path) -> None:
    run_all(tmp_path / "whole")
    for stop_after in (3, 4, 7):  # saved at 2, 4 and 6
        begun = train(start(), loss_of, RECIPE, tmp_path / "cut", save_every=2, report_every=1)
        for progress in begun:
            if progress.step == stop_after:
                break
        begun.close()
        with (tmp_path / "cut" / "log.jsonl").open("a") as file:
            file.write('{"step": 8, "lo')  # as a kill leaves it
    run_all(tmp_path / "cut")
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")
    told = rows(tmp_path / "cut")
    assert [row["step"] for row in told] == list(range(1, RECIPE.steps + 1))
    with (tmp_path / "cut" / "log.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [{name: float(text) for name, text in line.items()} for line in table] == told
    assert list(table[0]) == ["step", "loss", "gradient_norm", "metric", "rate"]
    assert told[4]["rate"] == RECIPE.learning_rate * RECIPE.share_at(4)


def test_a_run_of_before_recipes_had_more_fields_goes_on(tmp_path: Path) -> None:
    whole = run_all(tmp_path / "whole")
    next(train(start(), loss_of, RECIPE, tmp_path / "cut", save_every=1, report_every=1))
    path = tmp_path / "cut" / "recipe.json"
    old = json.loads(path.read_text())
    for name in ("eps", "clip_norm", "ema_start"):
        assert old.pop(name) == next(f.default for f in fields(Recipe) if f.name == name)
    path.write_text(json.dumps(old))
    resumed = run_all(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert json.loads(path.read_text()) == old
    with pytest.raises(ArgumentError, match=r"got clip_norm 1\.0; wanted clip_norm 0\.0"):
        run_all(tmp_path / "cut", replace(RECIPE, clip_norm=1.0))


def spoiled(at: int, spoil: Callable[[Tensor], Tensor]) -> LossOf:
    def of(weights: Weights) -> Loss:
        good = loss_of(weights)

        def loss(step: int) -> tuple[Tensor, dict[str, float]]:
            value, metrics = good(step)
            return (spoil(value) if step == at else value), metrics

        return loss

    return of


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda value: value * float("nan"), "loss"),
        (lambda value: value + float("inf"), "loss"),
        # As attention over nothing does: a sound number, and a gradient that is not.
        (lambda value: value + (value - value.detach()).sqrt(), "gradient"),
    ],
    ids=["nan", "inf", "gradient"],
)
def test_what_is_not_finite_keeps_the_last_checkpoint(
    tmp_path: Path, spoil: Callable[[Tensor], Tensor], what: str
) -> None:
    begun = train(
        *(start(), spoiled(5, spoil), RECIPE, tmp_path),
        save_every=2,
        samples_of=lambda step: [f"clip-{step}", "cat"],
    )
    with pytest.raises(
        NumericError, match=rf"step 5, samples clip-5, cat: the {what} is not finite"
    ):
        list(begun)
    weights, step = averaged_weights(tmp_path)
    assert step == 4
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5]


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    def of(weights: Weights) -> Loss:
        good = loss_of(weights)

        def loss(step: int) -> tuple[Tensor, dict[str, float]]:
            if step == 5:  # nothing that the loss or its gradient would tell
                weights["late"].detach().fill_(float("inf"))
            return good(step) if step < 5 else (weights["b"].square().sum(), {"metric": 0.0})

        return loss

    with pytest.raises(NumericError, match="step 5: the norm of the weights is not finite"):
        list(train(start(), of, RECIPE, tmp_path, save_every=2))
    assert averaged_weights(tmp_path)[1] == 4


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:-7],
    "empty": lambda data: b"",
    "header": lambda data: data[:12] + b"?" + data[13:],
    "other": lambda data: data.replace(b"ema.late", b"ema.soon"),
    "shape": lambda data: data.replace(b'"shape":[3,2]', b'"shape":[2,3]'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    run_all(tmp_path, replace(RECIPE, steps=4))
    path = tmp_path / STATE_FILE
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    assert path.read_bytes() != whole
    with pytest.raises(InputError, match=r"state\.safetensors: the state .* is damaged") as error:
        run_all(tmp_path)
    assert "\n" not in str(error.value)


def test_a_damaged_recipe_is_refused_in_one_line(tmp_path: Path) -> None:
    run_all(tmp_path)
    (tmp_path / "recipe.json").write_text('{"steps": 9, ')
    with pytest.raises(InputError, match=r"recipe\.json"):
        run_all(tmp_path)


def test_a_state_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    large = {**start(), "late": torch.ones(9000)}  # larger than the curve
    list(train(large, loss_of, replace(RECIPE, steps=4), tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / STATE_FILE).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 100, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"state\.safetensors.*size limit"):
            list(train(large, loss_of, RECIPE, tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert averaged_weights(tmp_path)[1] == 4
    assert not list(tmp_path.glob(".*.part"))


def test_two_trainings_do_not_share_a_folder(tmp_path: Path) -> None:
    first = train(start(), loss_of, RECIPE, tmp_path, report_every=1)
    next(first)
    with pytest.raises(ArgumentError, match="another process is at work"):
        run_all(tmp_path)
    first.close()
    run_all(tmp_path)


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    left = state.durable.begin(tmp_path / STATE_FILE).temporary
    run_all(tmp_path)
    assert not left.exists()


ADAMW = replace(TEACHER_FORCING, steps=6, learning_rate=0.1, eps=1e-3, ema_decay=0.9)


def test_adamw_alone_is_torchs(tmp_path: Path) -> None:
    """All weights, constant rate, gradients clipped, each as written down by hand."""
    recipe = replace(ADAMW, clip_norm=0.5, ema_start=RECIPE.steps)
    found = run_all(tmp_path, recipe)
    weights = {name: tensor.clone().requires_grad_() for name, tensor in start().items()}
    optimizer = torch.optim.AdamW(
        weights.values(), lr=0.1, betas=(0.0, 0.999), eps=1e-3, weight_decay=0.01
    )
    loss, clipped = loss_of(weights), 0
    for step in range(recipe.steps):
        optimizer.zero_grad()
        loss(step)[0].backward()
        clipped += torch.nn.utils.clip_grad_norm_(weights.values(), 0.5).item() > 0.5
        optimizer.step()
    assert 0 < clipped < recipe.steps
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight.detach(), rtol=1e-4, atol=1e-5)


def test_the_average_begins_where_it_is_told(tmp_path: Path) -> None:
    def last(ema_start: int) -> tuple[Weights, Weights]:
        folder = tmp_path / str(ema_start)
        average = run_all(folder, replace(ADAMW, ema_start=ema_start))
        return average, run_all(tmp_path / "plain", replace(ADAMW, ema_start=ADAMW.steps))

    late, weights = last(ADAMW.steps - 1)
    early, _ = last(0)
    distance = [(a["b"] - weights["b"]).norm().item() for a in (late, early)]
    assert 0 < distance[0] < distance[1]
    assert replace(RECIPE, ema_start=4).decay_at(3) == 0 < RECIPE.decay_at(0)


def test_nothing_to_train_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no weights"):
        next(train({}, loss_of, RECIPE, tmp_path))


def test_the_paper_s_recipe_is_table_8() -> None:
    table = TEACHER_FORCING
    assert (table.steps, table.learning_rate, table.matrix_rate) == (8000, 1e-5, None)
    assert (table.beta1, table.beta2, table.eps, table.weight_decay) == (0.0, 0.999, 1e-8, 0.01)
    assert {table.share_at(step) for step in (0, 1, 4000, 7999)} == {1.0}


def test_the_curve_shows_the_log() -> None:
    told = [{"step": step, "loss": 2.0**-step, "rate": 0.1} for step in range(1, 2001)]
    svg = ElementTree.fromstring(curve(told))
    lines = {
        line.get("class"): [tuple(map(float, p.split(","))) for p in line.get("points", "").split()]
        for line in svg.iter("{http://www.w3.org/2000/svg}polyline")
    }
    assert set(lines) == {"raw", "smooth", "rate"}
    assert all(len(points) <= 600 for points in lines.values())
    heights = [y for _, y in lines["raw"]]
    assert heights == sorted(heights), "a falling loss falls"
    assert len({y for _, y in lines["rate"]}) == 1
    assert smoothed([(1, 3.0), (2, 3.0)])[-1] == (2, pytest.approx(3.0))
    assert ElementTree.fromstring(curve([])) is not None


def test_an_empty_run_has_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no checkpoint"):
        averaged_weights(tmp_path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("steps", (0,)),
        ("learning_rate", (0.0, -1e-5, 1.0, float("nan"))),
        ("matrix_rate", (0.0, 1.0)),
        ("ema_decay", (1.0, -0.1)),
        ("beta1", (1.0, -0.1)),
        ("beta2", (1.0,)),
        ("momentum", (1.0,)),
        ("eps", (0.0, float("nan"))),
        ("weight_decay", (-0.1, float("inf"))),
        ("clip_norm", (-1.0, float("inf"), float("nan"))),
        ("final_fraction", (-0.1, 1.1)),
        ("warmup", (-1,)),
        ("ema_start", (-1,)),
    ],
)
def test_recipes_out_of_range_are_refused(name: str, values: tuple[float, ...]) -> None:
    for value in values:
        with pytest.raises(ArgumentError, match=f"{name} is out of range"):
            replace(RECIPE, **{name: value})


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
