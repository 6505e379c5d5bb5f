"""Finds and reads the recorded numbers. The folder is MMPL_GOLDEN, by default tests/golden."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

FOLDER = Path(os.environ.get("MMPL_GOLDEN", Path(__file__).parents[1] / "golden"))


def load(name: str) -> dict[str, Tensor]:
    """All tensors of `name`.safetensors."""
    with safe_open(FOLDER / f"{name}.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def metadata(name: str) -> dict[str, Any]:
    """The file's metadata, values decoded from JSON where they are JSON."""
    with safe_open(FOLDER / f"{name}.safetensors", framework="pt") as file:
        return {key: _decoded(value) for key, value in (file.metadata() or {}).items()}


def document(name: str) -> Any:
    """The decoded `name`.json."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def cases(keys: dict[str, Tensor], prefix: str) -> list[str]:
    """The distinct first parts of keys that start with `prefix`: case0, case1, ..."""
    return sorted({key.split(".")[0] for key in keys if key.startswith(prefix)})


def under(flat: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries below `prefix.`, with it removed."""
    return {k[len(prefix) + 1 :]: v for k, v in flat.items() if k.startswith(prefix + ".")}


def worst(got: Tensor, wanted: Tensor) -> float:
    """Largest absolute difference; raises when the shapes differ."""
    if got.shape != wanted.shape:
        raise AssertionError(f"shape {tuple(got.shape)}, recorded {tuple(wanted.shape)}")
    return (got.double() - wanted.double()).abs().max().item()


def relative(got: Tensor, wanted: Tensor) -> float:
    """Largest absolute difference over the largest absolute recorded value."""
    return worst(got, wanted) / max(wanted.double().abs().max().item(), torch.finfo().tiny)


def _decoded(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
