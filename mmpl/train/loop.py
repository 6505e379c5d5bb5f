"""One resumable training loop for every network here, in one process or in several.

A batch depends on (seed, step) alone, and the checkpoint holds everything else, so a run that was
killed and resumed gives the same weights, and the same log, as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from mmpl.errors import NumericError
from mmpl.media import durable
from mmpl.train import log, state
from mmpl.train.curve import write_curve
from mmpl.train.recipe import Recipe as Recipe
from mmpl.train.recipe import new_record, write_record
from mmpl.train.state import STATE_FILE as STATE_FILE
from mmpl.train.state import State, Weights
from mmpl.train.state import averaged_weights as averaged_weights
from mmpl.train.world import ALONE, World

Loss = Callable[[int], tuple[Tensor, dict[str, float]]]  # step -> value to minimise, metrics
LossOf = Callable[[Weights], Loss]
SamplesOf = Callable[[int], Sequence[str]]  # step -> names of what it learns from


@dataclass(frozen=True, slots=True)
class Progress:
    """One step done. `metrics` are averages since the last report."""

    step: int
    steps: int
    loss: float
    metrics: dict[str, float]
    seconds_per_step: float

    @property
    def eta_s(self) -> float:
        return (self.steps - self.step) * self.seconds_per_step


def train(  # noqa: PLR0913
    start: Weights,
    loss_of: LossOf,
    recipe: Recipe,
    run: Path,
    *,
    setting: Mapping[str, object] = MappingProxyType({}),
    save_every: int = 100,
    report_every: int = 20,
    samples_of: SamplesOf | None = None,
    world: World = ALONE,
) -> Generator[Progress, None, None]:
    """Trains `start`, on its device, in the folder `run`, resuming what is there; yields progress.

    `loss_of(weights)` is called once; the loss it returns must depend on these weights, which are
    updated in place, and on the step alone. `setting` names whatever else the result depends on
    (networks, data), as values whose `repr` says all of it. The folder gets recipe.json (recipe
    and setting), log.jsonl (every step), one state (weights, EMA, optimizer, step), replaced
    atomically, and with every state log.csv and curve.svg. A run may go on with another number of
    steps: its rates then follow the new cosine from where it stands.

    In several processes each calls this with its own `world` and a loss of its own share of the
    batch; gradients, losses and metrics are averaged. Weights that are DTensors (see
    `mmpl.train.parallel`) stay sharded and are trained in place, all others are replicated.

    Raises ArgumentError when the folder belongs to another recipe or setting, or is in use,
    InputError for a damaged state, OutputError, and NumericError on a loss, gradient or weight that
    is not finite, naming the step's samples where `samples_of` knows them; the last good state
    stays.
    """
    durable.make_folder(run)
    with durable.locked(run) if world.leads else nullcontext():
        now = state.begin(start, recipe)
        record = new_record(run, recipe, setting, done=state.steps_done(run))
        step = state.restore(run, now, world)
        state.tidy(run, world)
        if world.leads:
            if record is not None:
                write_record(run, record)
            log.cut(run, step)
            _publish(run)
        course = _Course(now, loss_of(now.weights), recipe, run, samples_of, world)
        recent: dict[str, list[float]] = {"loss": []}
        since = time.monotonic()
        while step < recipe.steps:
            told = course.step_(step)
            step += 1
            for name, value in told.items():
                recent.setdefault(name, []).append(value)
            if step % save_every == 0 or step == recipe.steps:
                course.save(step)
            if step % report_every == 0 or step == recipe.steps:
                means = {name: sum(parts) / len(parts) for name, parts in sorted(recent.items())}
                pace = (time.monotonic() - since) / len(recent["loss"])
                yield Progress(step, recipe.steps, means.pop("loss"), means, pace)
                recent, since = {"loss": []}, time.monotonic()


@dataclass(frozen=True, slots=True, eq=False)
class _Course:
    """A training under way."""

    state: State
    loss: Loss
    recipe: Recipe
    run: Path
    samples_of: SamplesOf | None
    world: World

    def step_(self, step: int) -> dict[str, float]:
        """Does a step, logs it, and returns its loss and metrics."""
        weights = list(self.state.weights.values())
        for weight in weights:
            weight.grad = None
        value, metrics = self.loss(step)
        value.backward()
        self.world.average_gradients_(weights)
        told = self.world.mean({"loss": value.item(), **metrics})
        self._require_finite("loss", told["loss"], step)
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        size = state.norm(gradients)
        self._require_finite("gradient", size, step)
        if 0 < self.recipe.clip_norm < size:
            for gradient in gradients:
                gradient.mul_(self.recipe.clip_norm / size)
        state.update_(self.state, self.recipe, step)
        if self.world.leads:
            rate = self.recipe.learning_rate * self.recipe.share_at(step)
            log.append(self.run, step + 1, {**told, "rate": rate, "gradient_norm": size})
        return told

    def save(self, step: int) -> None:
        """Writes the state, unless it is spoiled, and what is drawn from the log."""
        size = state.norm([weight.detach() for weight in self.state.weights.values()])
        self._require_finite("norm of the weights", size, step - 1)
        if self.world.leads:
            log.settle(self.run)  # before the state, so that no step of a state is missing in it
        state.save(self.run, self.state, step, self.world)
        if self.world.leads:
            _publish(self.run)

    def _require_finite(self, what: str, number: float, step: int) -> None:
        if math.isfinite(number):
            return
        samples = "" if self.samples_of is None else f", samples {', '.join(self.samples_of(step))}"
        raise NumericError(
            f"the {what} is not finite",
            where=f"step {step}{samples}",
            got=number,
            todo=f"the state of the last checkpoint is kept in {self.run}",
        )


def _publish(run: Path) -> None:
    told = log.rows(run)
    log.write_table(run, told)
    write_curve(run, told)
