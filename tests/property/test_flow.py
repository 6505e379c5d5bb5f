"""Schedules are well formed and solvers exact where they must be, whatever the numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.wan import flow
from mmpl.wan.choices import SOLVERS

solvers = st.sampled_from(SOLVERS)
step_counts = st.integers(1, 100)
shifts = st.floats(0.5, 20.0)


def gaussian(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator, dtype=torch.float64)


X, OTHER = gaussian(7, 1), gaussian(7, 2)
ODE_SOLVERS = tuple(solver for solver in SOLVERS if solver != "few_step")


def fresh(index: int) -> Tensor:
    """What few_step noises its prediction with before step `index`."""
    return gaussian(7, 100 + index)


@given(solver=solvers, steps=step_counts, shift=shifts)
def test_sigmas_fall_to_zero(solver: str, steps: int, shift: float) -> None:
    made = flow.schedule(solver, steps, shift)
    assert len(made.timesteps) == steps == len(made.sigmas) - 1
    assert all(a > b for a, b in zip(made.sigmas, made.sigmas[1:], strict=False))
    assert made.sigmas[-1] == 0.0
    assert 0.99 < made.sigmas[0] <= 1.0
    assert all(a >= b for a, b in zip(made.timesteps, made.timesteps[1:], strict=False))
    for timestep, sigma in zip(made.timesteps, made.sigmas, strict=False):
        if solver in ("euler", "few_step"):
            assert timestep == 1000.0 * sigma
        else:
            assert timestep == math.floor(1000.0 * sigma)


@given(steps=step_counts, shift=shifts)
def test_where_schedules_start(steps: int, shift: float) -> None:
    assert flow.dpmpp_schedule(steps, shift).timesteps[0] == 1000.0
    assert flow.euler_schedule(steps, shift).timesteps[0] == 1000.0
    assert flow.unipc_schedule(steps, shift).sigmas[0] < 1.0


def test_literal_schedule() -> None:
    """Shift 5 with four steps, as recorded in the reference."""
    assert flow.unipc_schedule(4, 5.0).timesteps == (999.0, 937.0, 833.0, 624.0)
    assert flow.dpmpp_schedule(4, 5.0).timesteps == (1000.0, 937.0, 833.0, 625.0)
    assert flow.euler_schedule(4, 5.0).sigmas == pytest.approx((1, 0.9375, 5 / 6, 0.625, 0))


@given(steps=st.integers(1, 50), shift=shifts)
def test_few_steps_are_evenly_spaced_before_the_shift(steps: int, shift: float) -> None:
    """1000, 750, 500, 250 of 4 steps, warped as Self-Forcing does."""
    points = [1000 * (steps - i) / steps for i in range(steps)]
    warped = flow.warp([int(p) for p in points if p == int(p)], flow.flow_table(shift))
    made = dict(zip(points, flow.schedule("few_step", steps, shift).timesteps, strict=True))
    assert [made[p] for p in points if p == int(p)] == pytest.approx(warped)


@given(solver=st.sampled_from(ODE_SOLVERS), steps=step_counts, shift=shifts)
def test_constant_velocity_is_exact(solver: str, steps: int, shift: float) -> None:
    made = flow.schedule(solver, steps, shift)
    got = flow.sample(lambda x, timestep, index: OTHER, X, solver, made)
    assert torch.allclose(got, X - made.sigmas[0] * OTHER, rtol=0.0, atol=1e-9)


@given(solver=solvers, steps=step_counts, shift=shifts)
def test_a_single_clean_sample_is_found(solver: str, steps: int, shift: float) -> None:
    """If all data is one point, every x0 is that point, and no history may move it."""
    made = flow.schedule(solver, steps, shift)
    got = flow.sample(
        lambda x, timestep, index: (x - OTHER) / made.sigmas[index], X, solver, made, noise=fresh
    )
    assert torch.allclose(got, OTHER, rtol=0.0, atol=1e-9)


def gaussian_data_error(solver: str, steps: int) -> float:
    """Relative error of a run on data N(0, 1/4), whose flow is known: x goes as its deviation."""
    made, spread = flow.schedule(solver, steps, 3.0), 0.5

    def deviation(sigma: float) -> float:
        return math.hypot((1.0 - sigma) * spread, sigma)

    def velocity(x: Tensor, timestep: float, index: int) -> Tensor:
        sigma = made.sigmas[index]
        x0 = (1.0 - sigma) * (spread / deviation(sigma)) ** 2 * x
        return (x - x0) / sigma

    wanted = X * spread / deviation(made.sigmas[0])
    return ((flow.sample(velocity, X, solver, made) - wanted).norm() / wanted.norm()).item()


def test_multistep_solvers_are_of_higher_order() -> None:
    euler, dpmpp, unipc = (gaussian_data_error(s, 40) for s in ("euler", "dpm++", "unipc"))
    assert dpmpp < euler / 3
    assert unipc < euler / 3
    assert gaussian_data_error("euler", 80) < 0.6 * euler
    assert gaussian_data_error("unipc", 80) < unipc


@given(solver=solvers, steps=st.integers(1, 9))
def test_one_model_call_a_step(solver: str, steps: int) -> None:
    made = flow.schedule(solver, steps, 5.0)
    calls: list[tuple[float, int]] = []
    shown: list[int] = []

    def velocity(x: Tensor, timestep: float, index: int) -> Tensor:
        calls.append((timestep, index))
        return x

    flow.sample(
        velocity, X, solver, made, noise=fresh, on_step=lambda index, x: shown.append(index)
    )
    assert calls == list(zip(made.timesteps, range(steps), strict=True))
    assert shown == list(range(steps))


@pytest.mark.parametrize("solver", ODE_SOLVERS)
def test_half_precision_is_rounded_only_between_steps(solver: str) -> None:
    made = flow.schedule(solver, 5, 5.0)
    x, v = X.bfloat16(), OTHER.bfloat16()
    half, whole = flow.SolverState(), flow.SolverState()
    for index in range(5):
        wide, whole = flow.step(solver, made, index, v.float(), x.float(), whole)
        x, half = flow.step(solver, made, index, v, x, half)
        assert x.dtype == torch.bfloat16
        assert torch.equal(x, wide.bfloat16())


def test_films_and_few_step_do_the_same() -> None:
    """`few_step` meets recorded rollouts (test_causal_rollout); films step through `step`."""
    made, table = flow.schedule("few_step", 4, 5.0), flow.flow_table(5.0)
    wanted = flow.few_step(lambda x, t, _: torch.sin(x + t), X, made.timesteps, table, fresh)
    got = flow.sample(lambda x, t, _: torch.sin(x + t), X, "few_step", made, noise=fresh)
    assert torch.allclose(got, wanted, rtol=0.0, atol=1e-12)


def test_few_step_predicts_and_noises_again() -> None:
    made = flow.schedule("few_step", 2, 3.0)
    x0 = X - made.sigmas[0] * OTHER
    x = (1 - made.sigmas[1]) * x0 + made.sigmas[1] * fresh(1)
    wanted = x - made.sigmas[1] * OTHER
    got = flow.sample(lambda x, t, index: OTHER, X, "few_step", made, noise=fresh)
    assert torch.allclose(got, wanted, rtol=0.0, atol=1e-12)
    single = flow.schedule("few_step", 1, 3.0)
    assert torch.equal(flow.sample(lambda x, t, index: OTHER, X, "few_step", single), X - OTHER)


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_inputs_are_left_alone(solver: str) -> None:
    made, x = flow.schedule(solver, 4, 5.0), X.clone()
    state = flow.SolverState()
    for index in range(4):
        kept = x.clone()
        moved, state = flow.step(solver, made, index, OTHER, x, state)
        assert torch.equal(x, kept)
        x = moved


def test_misuse_is_refused() -> None:
    made, fresh = flow.schedule("unipc", 4, 5.0), flow.SolverState()
    wrong = ("unipc", 1), ("dpm++", 2), ("unipc", 4), ("euler", -1), ("heun", 0), ("few_step", 0)
    for solver, index in wrong:
        with pytest.raises(ArgumentError):
            flow.step(solver, made, index, X, X, fresh)
    for solver, steps, shift in (("heun", 4, 5.0), ("unipc", 0, 5.0), ("euler", 4, 0.0)):
        with pytest.raises(ArgumentError):
            flow.schedule(solver, steps, shift)
    for sigmas in ((1.0, 0.5, 0.5, 0.0), (1.0, 0.0)):
        with pytest.raises(ArgumentError):
            flow.Schedule((1000.0, 500.0, 300.0), sigmas)
    with pytest.raises(ArgumentError):
        flow.euler_schedule(4, 5.0, sigma_min=0.0, extra_one_step=False)
    with pytest.raises(ArgumentError):
        flow.warp([1001], flow.flow_table(5.0))
    with pytest.raises(ArgumentError, match="too small"):
        flow.flow_table(5.0, 1)
    with pytest.raises(ArgumentError):
        flow.few_step(lambda x, t, i: x, X, (), flow.flow_table(5.0), lambda i: X)


@given(shift=shifts, timesteps=st.lists(st.floats(0.0, 1000.0), min_size=1, max_size=5))
def test_lookups_agree(shift: float, timesteps: list[float]) -> None:
    table = flow.flow_table(shift, 100)
    index = flow.nearest(table, torch.tensor(timesteps, dtype=torch.float64))
    assert [table.sigmas[i] for i in index.tolist()] == [
        flow.sigma_at(table, timestep) for timestep in timesteps
    ]


def test_of_two_equally_near_the_first_is_taken() -> None:
    table = flow.FlowTable((4.0, 2.0, 0.0), (0.4, 0.2, 0.0), (1.0, 1.0, 1.0))
    assert flow.nearest(table, torch.tensor([3.0, 1.0])).tolist() == [0, 1]
    assert (flow.sigma_at(table, 3.0), flow.sigma_at(table, 1.0)) == (0.4, 0.2)


@given(shift=shifts, size=st.integers(100, 1000))
def test_loss_weights_average_to_one(shift: float, size: int) -> None:
    weights = flow.flow_table(shift, size).weights
    assert min(weights) == 0.0
    assert sum(weights) == pytest.approx(size)


@given(steps=st.lists(st.integers(1, 1000), min_size=1, max_size=5), shift=shifts)
def test_few_step_is_the_loop_it_says(steps: list[int], shift: float) -> None:
    table = flow.flow_table(shift)
    timesteps = flow.warp(steps, table)
    asked: list[int] = []

    def noise(index: int) -> Tensor:
        asked.append(index)
        return gaussian(len(X), 10 + index)

    got = flow.few_step(lambda x, t, i: torch.tanh(x + t / 1000), X, timesteps, table, noise)
    assert asked == list(range(1, len(steps)))

    x = X
    for index, timestep in enumerate(timesteps):
        # A warped timestep is an entry of the table, where sigma is the timestep over 1000.
        x = x - timestep / 1000 * torch.tanh(x + timestep / 1000)
        if index + 1 < len(timesteps):
            sigma = timesteps[index + 1] / 1000
            x = (1 - sigma) * x + sigma * gaussian(len(X), 10 + index + 1)
    assert torch.allclose(got, x, rtol=0.0, atol=1e-9)


def test_the_table_never_reaches_zero() -> None:
    assert flow.sigma_at(flow.flow_table(5.0), 0.0) == pytest.approx(0.00498, abs=1e-5)


def test_warp_serves_zero() -> None:
    assert flow.warp([1000, 0], flow.flow_table(8.0)) == (1000.0, 0.0)


def test_guidance() -> None:
    assert torch.allclose(flow.guided(X, OTHER, 1.0), X)
    assert torch.equal(flow.guided(X, OTHER, 0.0), OTHER)
    assert torch.allclose(flow.guided(X, OTHER, 5.0), 5.0 * X - 4.0 * OTHER)


def test_noising_and_x0_are_inverse_and_differentiable() -> None:
    table = flow.flow_table(5.0)
    timesteps = torch.tensor([[999.0], [250.0]])
    clean = torch.stack([X, OTHER]).requires_grad_()
    noise = torch.stack([OTHER, X])
    x = flow.add_noise(clean, noise, timesteps, table)
    sigma = flow.look_up(table.sigmas, flow.nearest(table, timesteps))
    got = flow.x0_from_flow(flow.flow_target(clean, noise), x, sigma)
    assert torch.allclose(got, clean)
    x.sum().backward()
    assert clean.grad is not None
    assert torch.allclose(clean.grad, (1.0 - sigma).double().expand_as(clean))
