"""Flow matching: noise schedules, ODE solvers, few-step sampling and the training targets.

A sample at noise level sigma is x = (1 - sigma) x0 + sigma noise; the model predicts the velocity
v = noise - x0, so x0 = x - sigma v. Everything here is a pure function of its arguments: scalars
are Python floats in double precision, a solver's memory is a value handed back, and noise comes
from the caller. Knows nothing of networks or frames.
Sources: Wan2.1 wan/utils/fm_solvers*.py, Self-Forcing utils/scheduler.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.wan.choices import SOLVERS

Level = TypeVar("Level", float, Tensor)

# velocity(x, timestep, index) -> v, of x's shape; timestep is on the model's 0..1000 scale.
Velocity = Callable[[Tensor, float, int], Tensor]

# noise(index) -> the fresh Gaussian that makes the input of step index (1, 2, ...) of few_step.
Renoise = Callable[[int], Tensor]

TRAIN_TIMESTEPS = 1000  # time scale of the Wan family: the model is told 1000 * sigma
UNIPC_SIGMA_MAX = 0.9990000128746033  # float32(1 - 1/1000), from which UniPC's grid starts
EULER_SIGMA_MIN = 0.003 / 1.002  # where the flow-match scheduler's own default grid ends


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps of one sampling run.

    `timesteps[i]` is what the model is told at step i; step i goes from noise level `sigmas[i]` to
    `sigmas[i + 1]`, the last of which is 0.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.timesteps or len(self.sigmas) != len(self.timesteps) + 1:
            raise ArgumentError(
                "a schedule has one sigma more than it has timesteps",
                got=f"{len(self.sigmas)} sigmas, {len(self.timesteps)} timesteps",
            )
        if any(a <= b for a, b in zip(self.sigmas, self.sigmas[1:], strict=False)):
            raise ArgumentError("the sigmas of a schedule must fall", got=self.sigmas)


@dataclass(frozen=True, slots=True)
class FlowTable:
    """The noise levels a model was trained on, from pure noise down, and each one's loss weight."""

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SolverState:
    """What a solver remembers between steps. A run starts from `SolverState()`.

    `x0s` are the latest predictions of the clean sample, newest last; `corrected` is the sample
    UniPC's previous step started from, after its correction.
    """

    x0s: tuple[Tensor, ...] = ()
    corrected: Tensor | None = None


# ---------------------------------------------------------------------------------- schedules


def schedule(solver: str, steps: int, shift: float) -> Schedule:
    """The schedule a solver is used with in the Wan family; raises ArgumentError if unknown."""
    if solver == "unipc":
        return unipc_schedule(steps, shift)
    if solver == "dpm++":
        return dpmpp_schedule(steps, shift)
    if solver in ("euler", "few_step"):  # of 4 steps: 1000, 750, 500, 250, then shifted
        return euler_schedule(steps, shift)
    raise _unknown(solver)


def shifted(sigma: Level, shift: float) -> Level:
    """Noise levels in 0..1 moved towards 1, both ends kept: a number or a tensor of any shape."""
    return shift * sigma / (1.0 + (shift - 1.0) * sigma)


def unipc_schedule(steps: int, shift: float) -> Schedule:
    """Wan2.1's default: from 0.999 before the shift, whole timesteps (fm_solvers_unipc.py)."""
    _check(steps, shift)
    return _whole_timesteps(_linspace(UNIPC_SIGMA_MAX, 0.0, steps + 1)[:-1], shift)


def dpmpp_schedule(steps: int, shift: float) -> Schedule:
    """The DPM++ grid: from 1 exactly, whole timesteps (fm_solvers.py)."""
    _check(steps, shift)
    return _whole_timesteps(_linspace(1.0, 0.0, steps + 1)[:-1], shift)


def euler_schedule(
    steps: int, shift: float, sigma_min: float = 0.0, extra_one_step: bool = True
) -> Schedule:
    """The flow-match Euler grid, fractional timesteps.

    With `extra_one_step` the grid is cut into `steps` equal parts and `sigma_min` itself is left
    out, as Self-Forcing and CausVid do. Without it the grid ends on `sigma_min`, which must then
    be positive; the scheduler's own default is EULER_SIGMA_MIN.
    """
    _check(steps, shift)
    if not 0.0 <= sigma_min < 1.0 or (sigma_min == 0.0 and not extra_one_step):
        raise ArgumentError(
            "sigma_min does not give a falling schedule",
            got=sigma_min,
            wanted="0 <= sigma_min < 1, and above 0 without extra_one_step",
        )
    points = _linspace(1.0, sigma_min, steps + extra_one_step)[:steps]
    sigmas = [shifted(s, shift) for s in points]
    return Schedule(tuple(TRAIN_TIMESTEPS * s for s in sigmas), (*sigmas, 0.0))


def flow_table(shift: float, size: int = TRAIN_TIMESTEPS) -> FlowTable:
    """The table of training noise levels with bell-shaped loss weights.

    With n = `size` entries the weight is exp(-2 ((timestep - n/2) / n)^2), lowered until the least
    is 0 and scaled to 1 on average. Raises ArgumentError if `size` is so small that all are equal.
    """
    grid = euler_schedule(size, shift)
    bell = [math.exp(-2.0 * ((t - size / 2) / size) ** 2) for t in grid.timesteps]
    lowest = min(bell)
    lowered = [y - lowest for y in bell]
    total = sum(lowered)
    if total == 0.0:
        raise ArgumentError("table of noise levels too small for loss weights", got=size)
    weights = tuple(y * size / total for y in lowered)
    return FlowTable(grid.timesteps, grid.sigmas[:-1], weights)


def warp(timesteps: Sequence[int], table: FlowTable) -> tuple[float, ...]:
    """Few-step lists written on the unshifted scale, moved onto the table's shifted one.

    Entry n becomes the table's timestep number size - n, and 0 stays 0.
    """
    size = len(table.timesteps)
    for n in timesteps:
        if not 0 <= n <= size or n != int(n):
            raise ArgumentError("timestep to warp", got=n, wanted=f"a whole number, 0 to {size}")
    scale = (*table.timesteps, 0.0)
    return tuple(scale[size - int(n)] for n in timesteps)


# ------------------------------------------------------------------------------------ solvers


def guided(v_cond: Tensor, v_uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: v_uncond + scale (v_cond - v_uncond)."""
    return v_uncond + scale * (v_cond - v_uncond)


def sample(
    velocity: Velocity,
    x: Tensor,
    solver: str,
    schedule: Schedule,
    *,
    noise: Renoise | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Integrates noise `x`, of any shape, down the schedule and returns the clean sample.

    Calls `velocity` exactly once a step. `noise`: as in `step`. `on_step(index, x)` is called
    after each step.
    """
    state = SolverState()
    for index, timestep in enumerate(schedule.timesteps):
        v = velocity(x, timestep, index)
        x, state = step(solver, schedule, index, v, x, state, noise)
        if on_step is not None:
            on_step(index, x)
    return x


def step(
    solver: str,
    schedule: Schedule,
    index: int,
    v: Tensor,
    x: Tensor,
    state: SolverState,
    noise: Renoise | None = None,
) -> tuple[Tensor, SolverState]:
    """One step of a solver, from noise level `sigmas[index]` to the next.

    `v` is the velocity at `x`. Works in float32 or, if x has it, float64; x keeps its dtype. A
    run's steps go in order from `SolverState()`. Only few_step asks for `noise`, and must have it
    if there is another step. Raises ArgumentError for an unknown solver, an index outside the
    schedule, or a state that belongs to another step.
    """
    if not 0 <= index < len(schedule.timesteps):
        raise ArgumentError("no such step", got=index, wanted=f"0 to {len(schedule.timesteps) - 1}")
    if solver == "few_step":
        return _few_step(schedule, index, x0_from_flow(v, x, schedule.sigmas[index]), noise), state
    wide = torch.promote_types(x.dtype, torch.float32)
    x_wide, v_wide = x.to(wide), v.to(wide)
    if solver == "euler":
        move = schedule.sigmas[index + 1] - schedule.sigmas[index]
        return (x_wide + v_wide * move).to(x.dtype), state
    if solver not in SOLVERS:
        raise _unknown(solver)
    if len(state.x0s) != min(index, 2):
        raise ArgumentError(
            f"the state does not belong to step {index}",
            got=f"{len(state.x0s)} earlier predictions",
            wanted=min(index, 2),
        )
    solve = _unipc_step if solver == "unipc" else _dpmpp_step
    x_next, state = solve(schedule, index, x_wide - schedule.sigmas[index] * v_wide, x_wide, state)
    return x_next.to(x.dtype), state


def _few_step(schedule: Schedule, index: int, x0: Tensor, noise: Renoise | None) -> Tensor:
    """The prediction, noised again to the level of the next step, if there is one."""
    if index + 1 == len(schedule.timesteps):
        return x0
    if noise is None:
        raise ArgumentError("few_step needs noise for its next step", got=f"step {index + 1}")
    return renoise(x0, noise(index + 1), schedule.sigmas[index + 1])


def _unipc_step(
    schedule: Schedule, index: int, x0: Tensor, x: Tensor, state: SolverState
) -> tuple[Tensor, SolverState]:
    """UniPC of order 2, variant bh2; first order on the first step and on the step to sigma 0.

    `x0` is the prediction from the uncorrected x.
    """
    if index > 0 and state.corrected is not None:
        x = _unipc_correct(schedule, index, x0, state.corrected, state.x0s)
    x_next = _unipc_predict(schedule, index, x0, x, state.x0s)
    return x_next, SolverState((*state.x0s[-1:], x0), x)


def _unipc_correct(
    schedule: Schedule, index: int, x0: Tensor, before: Tensor, x0s: tuple[Tensor, ...]
) -> Tensor:
    """The sample at step `index`, reached again from `before` now that `x0` is known."""
    sigma_from, sigma = schedule.sigmas[index - 1 : index + 1]
    h = _log_snr(sigma) - _log_snr(sigma_from)
    shrink = math.expm1(-h)
    newest = x0s[-1]
    if index == 1:  # the step corrected here was of first order
        bend = 0.5 * (x0 - newest)
    else:
        r = (_log_snr(schedule.sigmas[index - 2]) - _log_snr(sigma_from)) / h
        g1 = shrink / -h - 1.0
        g2 = g1 / -h - 0.5
        b1, b2 = g1 / shrink, 2.0 * g2 / shrink
        rho_past = (b1 - b2) / (1.0 - r)  # [[1, 1], [r, 1]] rho = [b1, b2]
        bend = rho_past * ((x0s[-2] - newest) / r) + (b1 - rho_past) * (x0 - newest)
    return (sigma / sigma_from) * before - (1.0 - sigma) * shrink * (newest + bend)


def _unipc_predict(
    schedule: Schedule, index: int, x0: Tensor, x: Tensor, x0s: tuple[Tensor, ...]
) -> Tensor:
    """The sample at the next noise level."""
    sigma, sigma_to = schedule.sigmas[index : index + 2]
    if sigma_to == 0.0:
        return x0
    h = _log_snr(sigma_to) - _log_snr(sigma)
    target = x0
    if index > 0:
        r = (_log_snr(schedule.sigmas[index - 1]) - _log_snr(sigma)) / h
        target = x0 + 0.5 * ((x0s[-1] - x0) / r)
    return (sigma_to / sigma) * x - (1.0 - sigma_to) * math.expm1(-h) * target


def _dpmpp_step(
    schedule: Schedule, index: int, x0: Tensor, x: Tensor, state: SolverState
) -> tuple[Tensor, SolverState]:
    """DPM++ 2M, midpoint; first order on the first step and on the step to sigma 0."""
    history = SolverState((*state.x0s[-1:], x0))
    sigma, sigma_to = schedule.sigmas[index : index + 2]
    if sigma_to == 0.0:
        return x0, history
    h = _log_snr(sigma_to) - _log_snr(sigma)
    target = x0
    if index > 0:
        # From pure noise the log-SNR is -inf: r is then inf and the second-order term vanishes.
        r = (_log_snr(sigma) - _log_snr(schedule.sigmas[index - 1])) / h
        target = x0 + 0.5 * ((x0 - state.x0s[-1]) / r)
    return (sigma_to / sigma) * x - (1.0 - sigma_to) * math.expm1(-h) * target, history


# --------------------------------------------------------------------- few steps and training


def few_step(
    velocity: Velocity, x: Tensor, timesteps: Sequence[float], table: FlowTable, noise: Renoise
) -> Tensor:
    """Few-step sampling of a distilled model: predict x0, re-noise to the next level, repeat.

    At any timesteps of a table; `sample` does it at a schedule's. Returns the last x0.
    """
    if not timesteps:
        raise ArgumentError("few-step sampling needs at least one timestep")
    sigmas = [sigma_at(table, timestep) for timestep in timesteps]
    for index, (timestep, sigma) in enumerate(zip(timesteps, sigmas, strict=True)):
        if index > 0:
            x = renoise(x, noise(index), sigma)
        x = x0_from_flow(velocity(x, timestep, index), x, sigma)
    return x


def x0_from_flow(v: Tensor, x: Tensor, sigma: float | Tensor) -> Tensor:
    """The clean sample x - sigma v, computed in float64, in x's dtype. `sigma` broadcasts."""
    return (x.double() - sigma * v.double()).to(x.dtype)


def renoise(x0: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """(1 - sigma) x0 + sigma noise, at least in float32, in noise's dtype. `sigma` broadcasts."""
    wide = torch.promote_types(noise.dtype, torch.float32)
    return ((1.0 - sigma) * x0.to(wide) + sigma * noise.to(wide)).to(noise.dtype)


def add_noise(clean: Tensor, noise: Tensor, timesteps: Tensor, table: FlowTable) -> Tensor:
    """Training input: `clean` noised to the table's level nearest each timestep.

    `timesteps` broadcasts against `clean`, e.g. [B,1,T,1,1] for one level a latent frame.
    """
    return renoise(clean, noise, look_up(table.sigmas, nearest(table, timesteps)))


def flow_target(clean: Tensor, noise: Tensor) -> Tensor:
    """What the model learns to predict: noise - clean."""
    return noise - clean


def loss_weight(timesteps: Tensor, table: FlowTable) -> Tensor:
    """float32 loss weight of each timestep, of the shape of `timesteps`."""
    return look_up(table.weights, nearest(table, timesteps))


def nearest(table: FlowTable, timesteps: Tensor) -> Tensor:
    """int64 index of the table entry nearest each timestep; of two equally near, the first."""
    grid = torch.tensor(table.timesteps, dtype=torch.float64, device=timesteps.device)
    return (grid - timesteps.double().unsqueeze(-1)).abs().argmin(-1)


def look_up(values: Sequence[float], index: Tensor) -> Tensor:
    """float32 `values[index]`, of the shape of `index`."""
    return torch.tensor(values, dtype=torch.float32, device=index.device)[index]


def sigma_at(table: FlowTable, timestep: float) -> float:
    """Noise level of the entry nearest `timestep`, as `nearest`. Never 0, even for timestep 0."""
    gaps = [abs(entry - timestep) for entry in table.timesteps]
    return table.sigmas[gaps.index(min(gaps))]


# ------------------------------------------------------------------------------------ helpers


def _linspace(first: float, last: float, count: int) -> list[float]:
    spacing = (last - first) / (count - 1) if count > 1 else 0.0
    return [first + i * spacing for i in range(count)]


def _whole_timesteps(points: Sequence[float], shift: float) -> Schedule:
    """The model of UniPC and DPM++ is told a truncated timestep; sigma stays unrounded."""
    sigmas = [shifted(s, shift) for s in points]
    return Schedule(tuple(float(int(TRAIN_TIMESTEPS * s)) for s in sigmas), (*sigmas, 0.0))


def _log_snr(sigma: float) -> float:
    """log(1 - sigma) - log(sigma): -inf at pure noise."""
    return -math.inf if sigma >= 1.0 else math.log1p(-sigma) - math.log(sigma)


def _check(steps: int, shift: float) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ArgumentError("number of steps", got=repr(steps), wanted="a whole number above 0")
    if not (math.isfinite(shift) and shift > 0.0):
        raise ArgumentError("shift of the schedule", got=shift, wanted="a number above 0")


def _unknown(solver: str) -> ArgumentError:
    return ArgumentError("unknown solver", got=repr(solver), wanted=", ".join(SOLVERS))
