"""Schedules, solvers and training tables against recorded runs of the reference."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmpl.wan import flow
from mmpl.wan.choices import SOLVERS
from tests.parity import golden

TOLERANCE = 1e-5  # relative
RECORDED = golden.load("samplers")
RUNS = sorted({key.rsplit(".", 1)[0] for key in RECORDED if ".traj_" in key})
TABLES = sorted({key.rsplit(".", 1)[0] for key in RECORDED if ".train.shift" in key})
MASKS = sorted(path.stem for path in golden.FOLDER.glob("mmpl_training_mask*.safetensors"))


def test_there_are_recordings() -> None:
    assert {solver_of(run) for run in RUNS} == set(SOLVERS) - {"few_step"}  # test_causal_rollout
    assert TABLES
    assert MASKS


def parts(run: str) -> re.Match[str]:
    """Solver, shift, steps and variant of a recorded run."""
    found = re.search(r"(unipc|dpm\+\+|euler)\.shift([\d.]+?)\.n(\d+)(?:\.(\w+))?$", run)
    assert found, f"cannot read the name of the recorded run {run}"
    return found


def solver_of(run: str) -> str:
    return parts(run)[1]


def schedule_of(run: str) -> flow.Schedule:
    solver, shift, steps, variant = parts(run).groups()
    if variant == "default":
        return flow.euler_schedule(
            int(steps), float(shift), sigma_min=flow.EULER_SIGMA_MIN, extra_one_step=False
        )
    return flow.schedule(solver, int(steps), float(shift))


def affine(x: Tensor, timestep: float) -> Tensor:
    """A x + b t / 1000 over channels."""
    bias = (RECORDED["b"] * timestep / 1000).reshape(1, -1, *[1] * (x.ndim - 2))
    return torch.einsum("ij,bj...->bi...", RECORDED["A"], x) + bias


MODELS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "linear": lambda x, timestep, index: affine(x, 1000.0),
    "tanh": lambda x, timestep, index: torch.tanh(affine(x, timestep)),
}


@pytest.mark.parametrize("run", RUNS)
def test_schedule(run: str) -> None:
    recorded = golden.under(RECORDED, run)
    made = schedule_of(run)
    timesteps, sigmas = recorded["timesteps"], recorded["sigmas"]
    assert golden.relative(torch.tensor(made.timesteps), timesteps) < TOLERANCE
    # Euler's recordings leave out the closing 0.
    assert golden.relative(torch.tensor(made.sigmas[: len(sigmas)]), sigmas) < TOLERANCE
    if not timesteps.is_floating_point():
        assert list(made.timesteps) == timesteps.tolist()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("run", RUNS)
def test_trajectory(run: str, model: str) -> None:
    recorded = RECORDED[f"{run}.traj_{model}"]
    xs = [recorded[0]]
    last = flow.sample(
        MODELS[model],
        recorded[0],
        solver_of(run),
        schedule_of(run),
        on_step=lambda index, x: xs.append(x),
    )
    assert len(xs) == len(recorded)
    assert torch.equal(last, xs[-1])
    assert max(map(golden.relative, xs, recorded)) < TOLERANCE


@pytest.mark.parametrize("name", TABLES)
def test_training_table(name: str) -> None:
    recorded = golden.under(RECORDED, name)
    table = flow.flow_table(float(name.split(".shift")[1]), len(recorded["sigmas"]))
    for field in ("timesteps", "sigmas", "weights"):
        assert golden.relative(torch.tensor(getattr(table, field)), recorded[field]) < TOLERANCE
    warped = torch.tensor(flow.warp(recorded["unwarped"].tolist(), table))
    assert golden.relative(warped, recorded["warped"]) < TOLERANCE

    clean, noise, timesteps = recorded["clean"], recorded["noise"], recorded["noise_q_t"]
    index = flow.nearest(table, timesteps)
    assert torch.equal(index, recorded["sigma_index"])
    spread = timesteps.reshape(-1, *[1] * (clean.ndim - 1))
    noised = flow.add_noise(clean, noise, spread, table)
    assert golden.relative(noised, recorded["noised"]) < TOLERANCE
    assert golden.relative(flow.flow_target(clean, noise), recorded["target"]) < TOLERANCE
    if "train_weight" in recorded:
        weight = flow.loss_weight(timesteps, table)
        assert golden.relative(weight, recorded["train_weight"]) < TOLERANCE


@pytest.mark.parametrize("name", TABLES)
def test_x0_from_flow(name: str) -> None:
    recorded = golden.under(RECORDED, name)
    table = flow.flow_table(float(name.split(".shift")[1]), len(recorded["sigmas"]))
    for row, timestep in enumerate(recorded["noise_q_t"].tolist()):
        sigma = flow.sigma_at(table, timestep)
        x0 = flow.x0_from_flow(recorded["flow"][row], recorded["noised"][row], sigma)
        assert golden.relative(x0, recorded["x0_from_flow"][row]) < TOLERANCE


@pytest.mark.parametrize("name", MASKS)
def test_weights_of_mmpl_training(name: str) -> None:
    recorded = golden.load(name)
    sigmas = recorded["train_sigmas"]
    middle = sigmas[len(sigmas) // 2].item()  # s = 1/2, where sigma = shift / (shift + 1)
    table = flow.flow_table(round(middle / (1.0 - middle), 3), len(sigmas))
    for field in ("timesteps", "sigmas", "weights"):
        made = torch.tensor(getattr(table, field))
        assert golden.relative(made, recorded[f"train_{field}"]) < TOLERANCE
    index = flow.nearest(table, recorded["probe_t"])
    assert golden.relative(flow.look_up(table.sigmas, index), recorded["probe_sigma"]) < TOLERANCE
    weight = flow.loss_weight(recorded["probe_t"], table)
    assert golden.relative(weight, recorded["probe_weight"]) < TOLERANCE
