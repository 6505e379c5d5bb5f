"""All of a training that lasts from one step to the next, and how it lies on disk.

One file, replaced atomically. With sharded weights every process writes one of its own, named by
the step, and the set counts once `state.json`, put last, names that step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmpl.checkpoint.files import read_json
from mmpl.checkpoint.write import put_safetensors
from mmpl.errors import ArgumentError, InputError, MmplError, is_out_of_memory
from mmpl.media import durable
from mmpl.train.muon import is_matrix, muon_step_
from mmpl.train.recipe import Recipe
from mmpl.train.world import World, local

Value = TypeVar("Value")
Weights = dict[str, Tensor]
STATE_FILE = "state.safetensors"
SET_FILE = "state.json"


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What a checkpoint holds of one network. `ema` are plain tensors, of sharded weights this
    process's part; there are none of weights whose average nobody wants."""

    weights: Weights
    ema: Weights
    momenta: Weights
    optimizer: torch.optim.Optimizer

    @property
    def sharded(self) -> bool:
        return any(isinstance(weight, DTensor) for weight in self.weights.values())

    def drop_gradients(self) -> None:
        """Frees the gradients of the last step."""
        for weight in self.weights.values():
            weight.grad = None


def begin(start: Weights, recipe: Recipe, *, averaged: bool = True) -> State:
    """The state before the first step: copies of the weights, but those that require gradients
    already, as sharded ones do, as they are."""
    if not start:
        raise ArgumentError("no weights to train")
    sharded = any(isinstance(weight, DTensor) for weight in start.values())
    if sharded and recipe.matrix_rate is not None:
        raise ArgumentError(
            "Muon needs whole matrices and cannot train sharded weights",
            got=f"matrix_rate {recipe.matrix_rate}",
            todo="use AdamW alone (matrix_rate None), or replicate the weights",
        )
    weights = {
        name: weight if weight.requires_grad else weight.detach().clone().requires_grad_()
        for name, weight in start.items()
    }
    by_muon = recipe.matrix_rate is not None
    momenta = {n: torch.zeros_like(w) for n, w in weights.items() if by_muon and is_matrix(n, w)}
    optimizer = torch.optim.AdamW(
        [{"params": [w for name, w in weights.items() if name not in momenta]}],  # may be none
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
    )
    averages = weights if averaged else {}
    ema = {name: local(weight.detach()).clone() for name, weight in averages.items()}
    return State(weights, ema, momenta, optimizer)


def norm(tensors: list[Tensor]) -> float:
    """Euclidean norm of all of them together, over all processes that hold parts; not finite if any
    number is not."""
    total = torch.nn.utils.get_total_norm(tensors)
    return (total.full_tensor() if isinstance(total, DTensor) else total).item()


def update_(state: State, recipe: Recipe, step: int) -> None:
    """Moves the weights along their gradients, then their average after them."""
    share = recipe.share_at(step)
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.learning_rate * share
    state.optimizer.step()
    if recipe.matrix_rate is not None:
        muon_step_(
            [state.weights[name] for name in state.momenta],
            list(state.momenta.values()),
            rate=recipe.matrix_rate * share,
            momentum=recipe.momentum,
        )
    decay = recipe.decay_at(step)
    with torch.no_grad():
        for name, average in state.ema.items():
            average.lerp_(local(state.weights[name]), 1 - decay)


def save(run: Path, states: Mapping[str, State], step: int, world: World) -> None:
    """Replaces the checkpoint by these states, named by what the names of their tensors begin
    with. Every process must call it. Raises OutputError."""
    if not _sharded(states):
        if world.leads:
            _write(run / STATE_FILE, _tensors(states), step)
        return
    own = run / _part(step, world.rank, world.size)
    _write(own, _tensors(states), step)
    world.wait()
    if world.leads:
        content = json.dumps({"step": step, "processes": world.size}).encode()
        durable.put(run / SET_FILE, lambda file: file.write(content))
    world.wait()
    durable.remove(path for path in _parts_of(run, world) if path != own)


@torch.no_grad()
def restore(run: Path, states: Mapping[str, State], world: World) -> int:
    """Fills the states from the checkpoint, if there is one; returns the steps done. Raises
    InputError for a damaged one, ArgumentError for one of another number of processes."""
    paths, step = _files(run)
    if not paths:
        return 0
    wanted = world.size if _sharded(states) else 0  # parts
    found = 0 if paths[0].name == STATE_FILE else len(paths)
    if found != wanted:
        raise ArgumentError(
            "the checkpoint was written by other processes",
            where=str(run),
            got=_processes(wanted),
            wanted=_processes(found),
            todo="go on as the run was begun",
        )
    path = paths[world.rank if found else 0]
    for prefix, state in states.items():
        _read(path, partial(_fill, state, prefix))
    return step


def tidy(run: Path, world: World) -> None:
    """Removes what killed processes left of checkpoints. Only for who has the folder for itself."""
    kept = {path.name for path in _files(run)[0]}
    durable.remove(path for path in _parts_of(run, world) if path.name not in kept)
    if world.leads:
        durable.sweep_folder(run, "state.*", "log.*", "curve.svg")


def steps_done(run: Path) -> int:
    """Steps of the last checkpoint, 0 without one. Raises InputError for a damaged one."""
    return _files(run)[1]


def averaged_weights(run: Path) -> tuple[Weights, int]:
    """The EMA weights of a run's last checkpoint, whole, and its step, whoever wrote it. Raises
    ArgumentError if there is none, InputError for a damaged one."""
    return _stored(run, "ema.")


def last_weights(run: Path) -> tuple[Weights, int]:
    """As `averaged_weights`, but the weights themselves."""
    return _stored(run, "weights.")


def _stored(run: Path, prefix: str) -> tuple[Weights, int]:
    paths, step = _files(run)
    if not paths:
        raise ArgumentError("no checkpoint in this run folder", where=str(run))
    parts: dict[str, list[Tensor]] = {}

    def collect(file: safe_open) -> None:
        for name in (name for name in file.keys() if name.startswith(prefix)):  # noqa: SIM118
            parts.setdefault(name.removeprefix(prefix), []).append(file.get_tensor(name))

    for path in paths:
        _read(path, collect)
    # FSDP splits every tensor along its first axis, in the order of the processes.
    return {n: part[0] if len(part) == 1 else torch.cat(part) for n, part in parts.items()}, step


def _part(step: int, rank: int, size: int) -> str:
    return f"state.{step}.rank{rank}of{size}.safetensors"


def _parts_of(run: Path, world: World) -> list[Path]:
    return list(run.glob(f"state.*.rank{world.rank}of{world.size}.safetensors"))


def _processes(parts: int) -> str:
    return f"{parts} processes with sharded weights" if parts else "weights that are not sharded"


def _files(run: Path) -> tuple[list[Path], int]:
    """The files of the last checkpoint, in the order of the processes, and its step."""
    if (run / SET_FILE).exists():
        content = read_json(run / SET_FILE)
        step, size = content.get("step"), content.get("processes")
        if not isinstance(step, int) or not isinstance(size, int):
            raise _damaged(run / SET_FILE, "no step or no number of processes")
        return [run / _part(step, rank, size) for rank in range(size)], step
    path = run / STATE_FILE
    if not path.exists():
        return [], 0
    return [path], _read(path, lambda file: int(json.loads(file.metadata()["mmpl"])["step"]))


def _sharded(states: Mapping[str, State]) -> bool:
    return any(state.sharded for state in states.values())


def _tensors(states: Mapping[str, State]) -> Weights:
    tensors: Weights = {}
    for prefix, state in states.items():
        for name, weight in state.weights.items():
            tensors[f"{prefix}weights.{name}"] = local(weight.detach())
            # A weight that no loss has touched yet has no optimizer state.
            for part, value in state.optimizer.state.get(weight, {}).items():
                tensors[f"{prefix}optimizer.{part}.{name}"] = local(value)
        for kind, kept in (("ema", state.ema), ("momentum", state.momenta)):
            tensors |= {f"{prefix}{kind}.{name}": tensor for name, tensor in kept.items()}
    return tensors


def _fill(state: State, prefix: str, file: safe_open) -> None:
    stored = set(file.keys())

    def take(name: str, like: Tensor) -> Tensor:
        value = file.get_tensor(prefix + name)
        if value.shape != like.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, not {tuple(like.shape)}")
        return value

    for name, weight in state.weights.items():
        own = local(weight)
        own.copy_(take(f"weights.{name}", own))
        if name in state.ema:
            state.ema[name].copy_(take(f"ema.{name}", own))
        if name in state.momenta:
            state.momenta[name].copy_(take(f"momentum.{name}", own))
        elif f"{prefix}optimizer.step.{name}" in stored:
            state.optimizer.state[weight] = {
                "step": file.get_tensor(f"{prefix}optimizer.step.{name}"),  # stays on the CPU
                **{
                    part: _as(weight, take(f"optimizer.{part}.{name}", own).to(own.device))
                    for part in ("exp_avg", "exp_avg_sq")
                },
            }


def _as(weight: Tensor, part: Tensor) -> Tensor:
    """This process's part of something sharded as `weight` is."""
    if not isinstance(weight, DTensor):
        return part
    return DTensor.from_local(
        part, weight.device_mesh, weight.placements, shape=weight.shape, stride=weight.stride()
    )


def _write(path: Path, tensors: Weights, step: int) -> None:
    put_safetensors(path, tensors, {"mmpl": json.dumps({"step": step})})


def _read(path: Path, take: Callable[[safe_open], Value]) -> Value:
    """What `take` makes of an opened state; InputError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return take(file)
    except MmplError:
        raise
    except Exception as error:  # noqa: BLE001  a damaged file raises many types
        if is_out_of_memory(error):
            raise
        raise _damaged(path, str(error).split("\n")[0][:160]) from error


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(
        "the state of the training is damaged",
        where=str(path),
        got=reason,
        todo="put a copy in its place, or begin in another folder",
    )
