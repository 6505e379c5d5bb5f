"""The recorded tiny transformer, shared by the parity tests."""

from dataclasses import fields
from typing import Any

from torch import Tensor

from mmpl.wan.config import DiTConfig
from mmpl.wan.dit import DiTParams, dit_from_flat
from tests.parity import golden

WEIGHTS = "dit_tiny.weights"


def config() -> DiTConfig:
    """The config in the weights' metadata."""
    return config_from(golden.metadata(WEIGHTS)["config"])


def config_from(stored: dict[str, Any]) -> DiTConfig:
    """A config from a stored one, which holds more than we read."""
    names = {f.name for f in fields(DiTConfig)}
    values: dict[str, Any] = {name: stored[name] for name in stored if name in names}
    values["patch_size"] = tuple(stored["patch_size"])
    return DiTConfig(**values)


def params(override: dict[str, Tensor] | None = None) -> DiTParams:
    """The parameters, some of them replaced."""
    return dit_from_flat(golden.load(WEIGHTS) | (override or {}), config())
