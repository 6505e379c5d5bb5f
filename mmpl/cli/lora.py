"""--lora FILE[:STRENGTH], again and again: as text, one a line, and as files. No torch."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from mmpl.checkpoint.folder import ModelFolder
from mmpl.checkpoint.lora_files import check_lora
from mmpl.checkpoint.lora_names import LoraFile
from mmpl.errors import ArgumentError

MOST = 100.0  # of a strength: what people try is within 2


def lora_files(text: str, folder: ModelFolder) -> tuple[LoraFile, ...]:
    """The LoRAs that the flag names, checked against the model in `folder` as far as headers tell.
    Raises ArgumentError and CheckpointError."""
    named = [_parted(line) for line in text.splitlines()]
    return tuple(check_lora(Path(path), strength, folder) for path, strength in named)


def lora_text(loras: Sequence[LoraFile], *, absolute: bool = False) -> str:
    """The flag that names these files, wherever it is read if `absolute`."""
    return "\n".join(
        f"{os.path.abspath(lora.path) if absolute else lora.path}:{lora.strength!r}"
        for lora in loras
    )


def _parted(text: str) -> tuple[str, float]:
    """Path and strength; a colon before anything but a number belongs to the path."""
    path, _, last = text.rpartition(":")
    try:
        strength = float(last)
    except ValueError:
        return text, 1.0
    if not math.isfinite(strength) or abs(strength) > MOST:
        raise ArgumentError(
            "--lora has a wrong strength", got=last[:40], wanted=f"{-MOST:g} to {MOST:g}"
        )
    return path, strength
