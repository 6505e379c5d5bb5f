"""What makes two trainings equal: the recipe, as a run's folder records it and holds it to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from mmpl.checkpoint.files import read_json
from mmpl.errors import ArgumentError
from mmpl.media import durable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FILE = "recipe.json"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the weights move.

    `matrix_rate` is Muon's rate for weight matrices, `learning_rate` AdamW's for all other weights;
    with `matrix_rate=None` AdamW moves all of them. Rates rise for `warmup` steps, then fall as a
    cosine to `final_fraction` at `steps`; a `final_fraction` of 1 keeps them constant. Gradients
    are scaled down to a global norm of `clip_norm`; 0 leaves them as they are. The averaged weights
    (EMA) are the weights themselves before step `ema_start`; `ema_decay` is reached gradually from
    there, so that the average forgets its first steps. Raises ArgumentError for numbers out of
    range.
    """

    steps: int
    learning_rate: float
    matrix_rate: float | None
    warmup: int = 100
    final_fraction: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.99
    momentum: float = 0.95
    weight_decay: float = 0.0
    ema_decay: float = 0.999
    seed: int = 0
    eps: float = 1e-8
    clip_norm: float = 0.0
    ema_start: int = 0

    def __post_init__(self) -> None:
        rate, inf = self.learning_rate, math.inf
        ranges: dict[str, tuple[bool, str]] = {  # a comparison with NaN is false
            "steps": (self.steps > 0, "at least 1"),
            "learning_rate": (0 < rate < 1, "between 0 and 1"),
            "matrix_rate": (
                self.matrix_rate is None or 0 < self.matrix_rate < 1,
                "between 0 and 1, or None",
            ),
            "clip_norm": (0 <= self.clip_norm < inf, "at least 0"),
            "weight_decay": (0 <= self.weight_decay <= 1, "from 0 to 1"),
            "eps": (0 < self.eps < 1, "between 0 and 1"),
            "final_fraction": (0 <= self.final_fraction <= 1, "from 0 to 1"),
        }
        for name in ("warmup", "ema_start"):
            ranges[name] = (getattr(self, name) >= 0, "at least 0")
        for name in ("beta1", "beta2", "momentum", "ema_decay"):
            ranges[name] = (0 <= getattr(self, name) < 1, "from 0 to below 1")
        for name, (fits, wanted) in ranges.items():
            if not fits:
                raise ArgumentError(
                    f"the recipe's {name} is out of range", got=getattr(self, name), wanted=wanted
                )

    def share_at(self, step: int) -> float:
        """The share of the full rates at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.final_fraction + (1 - self.final_fraction) * cosine

    def decay_at(self, step: int) -> float:
        """How much of the average stays at a step."""
        since = step - self.ema_start
        return 0.0 if since < 0 else min(self.ema_decay, (2 + since) / (11 + since))


TEACHER_FORCING = Recipe(
    steps=8000,
    learning_rate=1e-5,
    matrix_rate=None,
    warmup=0,
    final_fraction=1.0,
    beta1=0.0,
    beta2=0.999,
    weight_decay=0.01,
    ema_decay=0.99,
)
"""The paper's for Wan (Table 8, left column), which names neither warm-up nor decay; the average is
that of its right column."""


def new_record(
    run: Path, recipe: DataclassInstance, setting: Mapping[str, object], *, done: int
) -> dict[str, object] | None:
    """What the folder must write down about itself, after `done` steps; None if it says so already.

    `recipe` is a `Recipe` or another dataclass of plain values, with a number of `steps`.
    `setting` is recorded as `repr` of its values. Only the number of steps may change from one
    start to the next: `restarts` then says so. A field that the record does not know yet counts as
    having its default. Raises ArgumentError for any other difference, InputError for a damaged
    file.
    """
    wanted: dict[str, object] = asdict(recipe)
    wanted |= {name: repr(value) for name, value in setting.items()}
    path = run / FILE
    if not path.exists():
        return wanted
    defaults = {f.name: f.default for f in fields(recipe) if f.default is not MISSING}
    found: dict[str, object] = defaults | read_json(path)
    restarts = found.pop("restarts", [])
    changed = {n for n in wanted.keys() | found.keys() if found.get(n) != wanted.get(n)}
    if not changed:
        return None
    if changed == {"steps"} and isinstance(restarts, list):
        return wanted | {"restarts": [*restarts, {"steps": found["steps"], "until": done}]}
    raise ArgumentError(
        "this run was started with another recipe",
        where=str(path),
        got=", ".join(f"{n} {_short(wanted, n)}" for n in sorted(changed)),
        wanted=", ".join(f"{n} {_short(found, n)}" for n in sorted(changed)),
        todo="use the old values or another folder",
    )


def write_record(run: Path, record: Mapping[str, object]) -> None:
    """Puts a record into the folder. Raises OutputError."""
    content = (json.dumps(record, indent=1) + "\n").encode()
    durable.put(run / FILE, lambda file: file.write(content))


def _short(values: Mapping[str, object], name: str) -> str:
    text = str(values.get(name, "missing"))
    return text if len(text) <= 60 else f"{text[:57]}..."
