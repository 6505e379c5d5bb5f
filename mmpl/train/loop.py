"""One resumable training loop for every network here: Muon for matrices, AdamW for the rest,
warm-up and cosine, EMA, atomic checkpoints, progress with ETA.

A batch depends on (seed, step) alone, and the checkpoint holds everything else, so a run that was
killed and resumed gives the same weights as one that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmpl.errors import ArgumentError, NumericError
from mmpl.media import durable
from mmpl.train.muon import is_matrix, muon_step_

Weights = dict[str, Tensor]
Loss = Callable[[int], tuple[Tensor, dict[str, float]]]  # step -> value to minimise, metrics
LossOf = Callable[[Weights], Loss]
STATE_FILE = "state.safetensors"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What makes two runs equal. `matrix_rate` is Muon's for weight matrices, `learning_rate`
    AdamW's for all other weights; both rise for `warmup` steps, then fall as a cosine to
    `final_fraction` at `steps`. `ema_decay` is reached gradually, so that the average forgets the
    first steps."""

    steps: int
    learning_rate: float
    matrix_rate: float
    warmup: int = 100
    final_fraction: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.99
    momentum: float = 0.95
    weight_decay: float = 0.0
    ema_decay: float = 0.999
    seed: int = 0

    def __post_init__(self) -> None:
        rates = (self.learning_rate, self.matrix_rate)
        if not (self.steps > 0 and all(0 < r < 1 for r in rates) and 0 <= self.ema_decay < 1):
            raise ArgumentError(
                "the recipe is out of range",
                got=f"steps {self.steps}, rates {rates}, ema_decay {self.ema_decay}",
                wanted="steps > 0, rates in (0, 1), ema_decay in [0, 1)",
            )

    def share_at(self, step: int) -> float:
        """The share of the full rates at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.final_fraction + (1 - self.final_fraction) * cosine


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


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """All that a checkpoint holds."""

    weights: Weights
    ema: Weights
    momenta: Weights
    optimizer: torch.optim.Optimizer


def train(
    start: Weights,
    loss_of: LossOf,
    recipe: Recipe,
    run: Path,
    *,
    setting: Mapping[str, object] = MappingProxyType({}),
    save_every: int = 100,
    report_every: int = 20,
) -> Iterator[Progress]:
    """Trains `start`, on its device, in the folder `run`, resuming what is there; yields progress.

    `loss_of(weights)` is called once; the loss it returns must depend on these weights, which are
    updated in place, and on the step alone. `setting` names whatever else the result depends on
    (networks, data), as values whose `repr` says all of it. The folder gets recipe.json (recipe
    and setting), log.jsonl and one state file (weights, EMA, optimizer, step), replaced
    atomically. A run may go on with another number of steps: its rates then follow the new cosine
    from where it stands. Raises ArgumentError when the folder belongs to another recipe or setting,
    NumericError on a non-finite loss (the last good state stays).
    """
    durable.make_folder(run)
    _check_recipe(run, recipe, setting)
    state = _begin(start, recipe)
    step = _restore(run, state)
    loss = loss_of(state.weights)
    recent: dict[str, list[float]] = {"loss": []}
    since = time.monotonic()
    while step < recipe.steps:
        value, metrics = loss(step)
        for weight in state.weights.values():
            weight.grad = None
        value.backward()
        number = value.item()
        if not math.isfinite(number):
            raise NumericError(
                "the loss is not finite",
                where=f"step {step}",
                got=number,
                todo=f"the state of the last checkpoint is kept in {run}",
            )
        _update_(state, recipe, step)
        step += 1
        for name, part in {"loss": number, **metrics}.items():
            recent.setdefault(name, []).append(part)
        if step % save_every == 0 or step == recipe.steps:
            _save(run, state, step)
        if step % report_every == 0 or step == recipe.steps:
            means = {name: sum(parts) / len(parts) for name, parts in sorted(recent.items())}
            pace = (time.monotonic() - since) / len(recent["loss"])
            _log(run, step, means)
            yield Progress(step, recipe.steps, means.pop("loss"), means, pace)
            recent, since = {"loss": []}, time.monotonic()


def averaged_weights(run: Path) -> tuple[Weights, int]:
    """The EMA weights of a run's last checkpoint and its step. Raises ArgumentError if none."""
    path = run / STATE_FILE
    if not path.exists():
        raise ArgumentError("no checkpoint in this run folder", where=str(run))
    with safe_open(path, framework="pt") as file:
        names = [name[4:] for name in file.keys() if name.startswith("ema.")]  # noqa: SIM118
        return {name: file.get_tensor(f"ema.{name}") for name in names}, _steps_done(run)


def _check_recipe(run: Path, recipe: Recipe, setting: Mapping[str, object]) -> None:
    """Writes down what the run is made of, or compares it with what was written.

    Only the number of steps may change from one start to the next: `restarts` then says so.
    """
    path = run / "recipe.json"
    wanted = asdict(recipe) | {name: repr(value) for name, value in setting.items()}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        restarts = found.pop("restarts", [])
        changed = {n for n in wanted.keys() | found.keys() if found.get(n) != wanted.get(n)}
        if changed == {"steps"}:
            restarts.append({"steps": found["steps"], "until": _steps_done(run)})
            wanted["restarts"] = restarts
        elif changed:
            raise ArgumentError(
                "this run was started with another recipe",
                where=str(path),
                got=", ".join(f"{n} {_short(wanted, n)}" for n in sorted(changed)),
                wanted=", ".join(f"{n} {_short(found, n)}" for n in sorted(changed)),
                todo="use the old values or another folder",
            )
        else:
            return
    content = (json.dumps(wanted, indent=1) + "\n").encode()
    durable.put(path, lambda file: file.write(content))


def _steps_done(run: Path) -> int:
    path = run / STATE_FILE
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        return int(json.loads(file.metadata()["mmpl"])["step"])


def _short(values: Mapping[str, object], name: str) -> str:
    text = str(values.get(name, "missing"))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _begin(start: Weights, recipe: Recipe) -> _State:
    weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in start.items()}
    momenta = {name: torch.zeros_like(w) for name, w in weights.items() if is_matrix(name, w)}
    optimizer = torch.optim.AdamW(
        [w for name, w in weights.items() if name not in momenta],
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
        weight_decay=recipe.weight_decay,
    )
    ema = {name: tensor.detach().clone() for name, tensor in weights.items()}
    return _State(weights, ema, momenta, optimizer)


def _update_(state: _State, recipe: Recipe, step: int) -> None:
    """Moves the weights along their gradients, then their average after them."""
    share = recipe.share_at(step)
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.learning_rate * share
    state.optimizer.step()
    muon_step_(
        [state.weights[name] for name in state.momenta],
        list(state.momenta.values()),
        rate=recipe.matrix_rate * share,
        momentum=recipe.momentum,
    )
    decay = min(recipe.ema_decay, (2 + step) / (11 + step))
    with torch.no_grad():
        for name, average in state.ema.items():
            average.lerp_(state.weights[name], 1 - decay)


def _save(run: Path, state: _State, step: int) -> None:
    tensors: Weights = {}
    for name, tensor in state.weights.items():
        tensors[f"weights.{name}"] = tensor.detach()
        tensors[f"ema.{name}"] = state.ema[name]
        # A weight that no loss has touched yet has no optimizer state.
        for part, value in state.optimizer.state.get(tensor, {}).items():
            tensors[f"optimizer.{part}.{name}"] = value
    tensors |= {f"momentum.{name}": tensor for name, tensor in state.momenta.items()}
    with durable.replacing(run / STATE_FILE) as temporary:
        save_file(tensors, temporary, metadata={"mmpl": json.dumps({"step": step})})


@torch.no_grad()
def _restore(run: Path, state: _State) -> int:
    path = run / STATE_FILE
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        stored = set(file.keys())
        for name, tensor in state.weights.items():
            tensor.copy_(file.get_tensor(f"weights.{name}"))
            state.ema[name].copy_(file.get_tensor(f"ema.{name}"))
            if name in state.momenta:
                state.momenta[name].copy_(file.get_tensor(f"momentum.{name}"))
            elif f"optimizer.step.{name}" in stored:
                state.optimizer.state[tensor] = {
                    part: file.get_tensor(f"optimizer.{part}.{name}").to(
                        "cpu" if part == "step" else tensor.device
                    )
                    for part in ("step", "exp_avg", "exp_avg_sq")
                }
    return _steps_done(run)


def _log(run: Path, step: int, means: dict[str, float]) -> None:
    line = {"step": step} | {name: round(mean, 6) for name, mean in means.items()}
    with (run / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
