"""The loop of a distillation: a critic follows the generator, several updates for each of its own.

What a step draws depends on (seed, step) alone, and the checkpoint holds everything else, so a run
that was killed and resumed gives the same weights as one that was not.
Sources: DMD2 and Self-Forcing; paper Table 8.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmpl.errors import ArgumentError, NumericError
from mmpl.media import durable
from mmpl.train.loop import Progress
from mmpl.train.recipe import new_record, write_record
from mmpl.train.state import STATE_FILE, Weights, steps_done

Metrics = dict[str, float]
_PARTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class DistilRecipe:
    """Rates of a distillation; the values here are those of paper Table 8 and Self-Forcing.

    `steps` are updates of the generator, each after `critic_updates` of the critic. `most_norm`:
    gradients are scaled down to this norm. `ema_decay` holds from step `ema_from` on; before it the
    average is the generator itself.
    """

    steps: int
    generator_rate: float = 2e-6
    critic_rate: float = 4e-7
    critic_updates: int = 5
    beta1: float = 0.0
    beta2: float = 0.999
    weight_decay: float = 0.01
    most_norm: float = 10.0
    ema_decay: float = 0.99
    ema_from: int = 200

    def __post_init__(self) -> None:
        rates = self.generator_rate, self.critic_rate
        counts = self.steps > 0 and self.critic_updates > 0 and self.most_norm > 0
        if not (counts and all(0 < rate < 1 for rate in rates) and 0 <= self.ema_decay < 1):
            raise ArgumentError(
                "the recipe is out of range",
                got=f"steps {self.steps}, critic_updates {self.critic_updates}, rates {rates}, "
                f"most_norm {self.most_norm}, ema_decay {self.ema_decay}",
                wanted="counts and norm above 0, rates in (0, 1), ema_decay in [0, 1)",
            )


@dataclass(frozen=True, slots=True)
class Turn:
    """One step: `critic(update)` is the critic's loss, then `generator()` the generator's. Each
    depends on the weights of both as they are when it is called."""

    critic: Callable[[int], Tensor]
    generator: Callable[[], tuple[Tensor, Metrics]]


TurnsOf = Callable[[Weights, Weights], Callable[[int], Turn]]  # generator, critic -> step -> Turn


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """Weights and their optimizer."""

    name: str
    weights: Weights
    optimizer: torch.optim.Optimizer


def distil(
    generator: Weights,
    critic: Weights,
    turns_of: TurnsOf,
    recipe: DistilRecipe,
    run: Path,
    *,
    setting: Mapping[str, object] = MappingProxyType({}),
    save_every: int = 10,
    report_every: int = 5,
) -> Iterator[Progress]:
    """Distils into the folder `run`, resuming what is there; yields progress.

    `turns_of` is called once, with the weights that are updated in place. The folder gets
    recipe.json (recipe and `setting`, by `repr`), log.jsonl and one state file, replaced
    atomically, of which `mmpl.train.loop.averaged_weights` reads the generator's average. A run may
    go on with another number of steps. Raises ArgumentError when the folder belongs to another
    recipe or setting, NumericError on a non-finite loss (the last good state stays).
    """
    durable.make_folder(run)
    record = new_record(run, recipe, setting, done=steps_done(run))
    if record is not None:
        write_record(run, record)
    sides = (
        _side("generator", generator, recipe, recipe.generator_rate),
        _side("critic", critic, recipe, recipe.critic_rate),
    )
    ema = {name: tensor.detach().clone() for name, tensor in sides[0].weights.items()}
    step = _restore(run, sides, ema)
    turns = turns_of(sides[0].weights, sides[1].weights)
    recent: dict[str, list[float]] = {"loss": []}
    since = time.monotonic()
    while step < recipe.steps:
        for name, number in _step(sides, turns(step), recipe, run, step).items():
            recent.setdefault(name, []).append(number)
        _average_(ema, sides[0].weights, recipe, step)
        step += 1
        if step % save_every == 0 or step == recipe.steps:
            _save(run, sides, ema, step)
        if step % report_every == 0 or step == recipe.steps:
            means = {name: sum(parts) / len(parts) for name, parts in sorted(recent.items())}
            pace = (time.monotonic() - since) / len(recent["loss"])
            _log(run, step, means)
            yield Progress(step, recipe.steps, means.pop("loss"), means, pace)
            recent, since = {"loss": []}, time.monotonic()


def _step(
    sides: tuple[_Side, _Side], turn: Turn, recipe: DistilRecipe, run: Path, step: int
) -> Metrics:
    generator, critic = sides
    errors = []
    for update in range(recipe.critic_updates):
        value = turn.critic(update)
        errors.append(_descend(critic, value, recipe, run, step))
    value, metrics = turn.generator()
    loss = _descend(generator, value, recipe, run, step)
    return {"loss": loss, "critic": sum(errors) / len(errors), **metrics}


def _descend(side: _Side, value: Tensor, recipe: DistilRecipe, run: Path, step: int) -> float:
    """One update of one side."""
    number = value.item()
    if not math.isfinite(number):
        raise NumericError(
            f"the loss of the {side.name} is not finite",
            where=f"step {step}",
            got=number,
            todo=f"the state of the last checkpoint is kept in {run}",
        )
    side.optimizer.zero_grad(set_to_none=True)
    value.backward()
    torch.nn.utils.clip_grad_norm_(side.weights.values(), recipe.most_norm)
    side.optimizer.step()
    return number


@torch.no_grad()
def _average_(ema: Weights, weights: Weights, recipe: DistilRecipe, step: int) -> None:
    decay = recipe.ema_decay if step >= recipe.ema_from else 0.0
    for name, average in ema.items():
        average.lerp_(weights[name], 1 - decay)


def _side(name: str, start: Weights, recipe: DistilRecipe, rate: float) -> _Side:
    weights = {key: tensor.detach().clone().requires_grad_() for key, tensor in start.items()}
    optimizer = torch.optim.AdamW(
        weights.values(),
        lr=rate,
        betas=(recipe.beta1, recipe.beta2),
        weight_decay=recipe.weight_decay,
    )
    return _Side(name, weights, optimizer)


def _save(run: Path, sides: tuple[_Side, _Side], ema: Weights, step: int) -> None:
    tensors: Weights = {f"ema.{name}": tensor for name, tensor in ema.items()}
    for side in sides:
        for name, tensor in side.weights.items():
            tensors[f"{side.name}.{name}"] = tensor.detach()
            for part, value in side.optimizer.state.get(tensor, {}).items():
                tensors[f"{side.name}_optimizer.{part}.{name}"] = value
    with durable.replacing(run / STATE_FILE) as temporary:
        save_file(tensors, temporary, metadata={"mmpl": json.dumps({"step": step})})


@torch.no_grad()
def _restore(run: Path, sides: tuple[_Side, _Side], ema: Weights) -> int:
    path = run / STATE_FILE
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        stored = set(file.keys())
        for name, average in ema.items():
            average.copy_(file.get_tensor(f"ema.{name}"))
        for side in sides:
            for name, tensor in side.weights.items():
                tensor.copy_(file.get_tensor(f"{side.name}.{name}"))
                prefix = f"{side.name}_optimizer"
                # A weight that no loss has touched yet has no optimizer state.
                if f"{prefix}.step.{name}" in stored:
                    side.optimizer.state[tensor] = {
                        part: file.get_tensor(f"{prefix}.{part}.{name}").to(
                            "cpu" if part == "step" else tensor.device
                        )
                        for part in _PARTS
                    }
        return int(json.loads(file.metadata()["mmpl"])["step"])


def _log(run: Path, step: int, means: Metrics) -> None:
    line = {"step": step} | {name: round(mean, 6) for name, mean in means.items()}
    with (run / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
