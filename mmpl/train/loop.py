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
from typing import Any, ClassVar, Protocol

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
from mmpl.train.stopping import Wish
from mmpl.train.world import ALONE, World

Loss = Callable[[int], tuple[Tensor, dict[str, float]]]  # step -> value to minimise, metrics
LossOf = Callable[[Weights], Loss]
SamplesOf = Callable[[int], Sequence[str]]  # step -> names of what it learns from
Told = dict[str, float]
Step = Callable[[int], tuple[Told, Told]]  # step -> what it says, what only its log says


class Steps(Protocol):
    """A recipe: a dataclass of plain values, with a number of steps."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def steps(self) -> int: ...


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
    `mmpl.train.parallel`) stay sharded, all others are replicated. Those that require gradients
    already are trained in place, of the others copies.

    Raises ArgumentError when the folder belongs to another recipe or setting, or is in use,
    InputError for a damaged state, OutputError, and NumericError on a loss, gradient or weight that
    is not finite, naming the step's samples where `samples_of` knows them; the last good state
    stays. Ctrl-C and SIGTERM raise what they raise anywhere, but at the end of a step, in all
    processes the same one, which is saved; a second one raises at once.
    """
    now = state.begin(start, recipe)
    side = Side(now, recipe, Guard(run, samples_of), world)

    def steps() -> Step:
        loss = loss_of(now.weights)

        def step_(step: int) -> tuple[Told, Told]:
            told, size = side.descend_(*loss(step), step)
            rate = recipe.learning_rate * recipe.share_at(step)
            return told, {"rate": rate, "gradient_norm": size}

        return step_

    yield from run_steps(
        {"": now},
        steps,
        recipe,
        run,
        setting=setting,
        save_every=save_every,
        report_every=report_every,
        guard=side.guard,
        world=world,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Guard:
    """Stops the training in the folder `run` at the first number that is not finite."""

    run: Path
    samples_of: SamplesOf | None = None

    def require_finite(self, what: str, number: float, step: int) -> None:
        """Raises NumericError, with the samples of the step where they are known."""
        if math.isfinite(number):
            return
        samples = "" if self.samples_of is None else f", samples {', '.join(self.samples_of(step))}"
        raise NumericError(
            f"the {what} is not finite",
            where=f"step {step}{samples}",
            got=number,
            todo=f"the state of the last checkpoint is kept in {self.run}",
        )


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """Weights that move by one recipe. `of`: whose they are, for messages, where there are several
    in one training."""

    state: State
    recipe: Recipe
    guard: Guard
    world: World = ALONE
    of: str = ""

    def descend_(
        self, value: Tensor, metrics: Mapping[str, float], step: int
    ) -> tuple[dict[str, float], float]:
        """Moves the weights against the gradient of `value`; returns loss and metrics, averaged
        over the processes, and the gradient's norm. Raises NumericError."""
        weights = list(self.state.weights.values())
        self.state.drop_gradients()
        value.backward()
        self.world.average_gradients_(weights)
        told = self.world.mean({"loss": value.item(), **metrics})
        self.guard.require_finite(f"loss{self.of}", told["loss"], step)
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        size = state.norm(gradients)
        self.guard.require_finite(f"gradient{self.of}", size, step)
        if 0 < self.recipe.clip_norm < size:
            for gradient in gradients:
                gradient.mul_(self.recipe.clip_norm / size)
        state.update_(self.state, self.recipe, step)
        return told, size


def run_steps(  # noqa: PLR0913
    states: Mapping[str, State],
    steps: Callable[[], Step],
    recipe: Steps,
    run: Path,
    *,
    setting: Mapping[str, object],
    save_every: int,
    report_every: int,
    guard: Guard,
    world: World = ALONE,
) -> Generator[Progress, None, None]:
    """What every training does around its steps, in the folder `run`: its record, resuming, log,
    checkpoints and progress.

    `states`, by what their names in the checkpoint begin with, are filled from it before `steps()`
    makes the function that does a step: it returns what the step says, with its loss, and what
    only the log says. Raises as `train` does.
    """
    wish = Wish()
    durable.make_folder(run)
    with durable.locked(run) if world.leads else nullcontext():
        record = new_record(run, recipe, setting, done=state.steps_done(run))
        step = state.restore(run, states, world)
        state.tidy(run, world)
        if world.leads:
            if record is not None:
                write_record(run, record)
            log.cut(run, step)
            _publish(run)
        step_ = steps()
        recent: dict[str, list[float]] = {"loss": []}
        since = time.monotonic()
        while step < recipe.steps:
            with wish.held():
                for weights in states.values():
                    weights.drop_gradients()  # they would lie beside the next activations
                told, logged = step_(step)
                step += 1
                if world.leads:
                    log.append(run, step, {**told, **logged})
                stops = world.any(bool(wish))
                if stops or step % save_every == 0 or step == recipe.steps:
                    _save(run, states, step, guard, world)
            if stops:
                wish.grant(f"step {step} is saved, the same command goes on from there")
            for name, value in told.items():
                recent.setdefault(name, []).append(value)
            if step % report_every == 0 or step == recipe.steps:
                means = {name: sum(parts) / len(parts) for name, parts in sorted(recent.items())}
                pace = (time.monotonic() - since) / len(recent["loss"])
                yield Progress(step, recipe.steps, means.pop("loss"), means, pace)
                recent, since = {"loss": []}, time.monotonic()


def _save(run: Path, states: Mapping[str, State], step: int, guard: Guard, world: World) -> None:
    """Writes the states, unless one is spoiled, and what is drawn from the log."""
    for one in states.values():
        size = state.norm([weight.detach() for weight in one.weights.values()])
        guard.require_finite("norm of the weights", size, step - 1)
    if world.leads:
        log.settle(run)  # before the state, so that no step of a state is missing in it
    state.save(run, states, step, world)
    if world.leads:
        _publish(run)


def _publish(run: Path) -> None:
    told = log.rows(run)
    log.write_table(run, told)
    write_curve(run, told)
