"""What a LoRA file says about all of its low-rank pairs: in its metadata, or in PEFT's
adapter_config.json beside it. No torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpl.checkpoint import files
from mmpl.errors import CheckpointError

CONFIG_FILE = "adapter_config.json"
DIFFUSERS_KEY = "lora_adapter_metadata"  # a JSON text in the metadata; names as below, prefixed


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """`alpha` of pairs that have none of their own; None for their rank. `by_root`: divided by the
    root of the rank instead of by the rank."""

    alpha: float | None = None
    by_root: bool = False

    def scale(self, rank: int) -> float:
        """The factor of a pair's product."""
        alpha = rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(rank) if self.by_root else rank)

    def marks(self) -> list[tuple[str, float]]:
        """What tells them from the usual ones; nothing for those."""
        return [] if self == LoraSettings() else [(f"alpha {self.by_root}", self.alpha or 0.0)]


def of_file(path: Path, metadata: Mapping[str, str], ranks: Sequence[int]) -> LoraSettings:
    """The settings of the LoRA at `path`, with pairs of these ranks. Raises CheckpointError.

    A config file beside it counts where it is of a LoRA of one of these ranks: folders hold files
    of several.
    """
    if DIFFUSERS_KEY in metadata:
        return _settings(_unprefixed(metadata[DIFFUSERS_KEY], str(path)), str(path))
    if "lora_alpha" in metadata:
        return _settings(metadata, str(path))
    beside = path.parent / CONFIG_FILE
    if not os.path.isfile(beside):
        return LoraSettings()
    config = files.read_json(beside)
    return _settings(config, str(beside)) if config.get("r") in ranks else LoraSettings()


def _settings(given: Mapping[str, Any], where: str) -> LoraSettings:
    if given.get("alpha_pattern"):
        raise CheckpointError(
            "a LoRA with an alpha for each module in its config is not supported",
            where=where,
            got=f"alpha_pattern {ascii(given['alpha_pattern'])[:60]}",
            todo="save it with an alpha tensor beside each pair",
        )
    alpha = given.get("lora_alpha")
    if alpha is None:
        return LoraSettings(None, given.get("use_rslora") in (True, "true", "True"))
    try:
        value = float(alpha)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise CheckpointError("lora_alpha is not a number", where=where, got=ascii(alpha)[:60])
    return LoraSettings(value, given.get("use_rslora") in (True, "true", "True"))


def _unprefixed(text: str, where: str) -> dict[str, Any]:
    """The entries of a JSON text for the transformer, without the part of a pipeline they name."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CheckpointError("the LoRA's metadata are not a JSON object", where=where)
    return {name.removeprefix("transformer."): entry for name, entry in value.items()}
