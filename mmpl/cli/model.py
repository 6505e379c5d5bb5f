"""Which model the flags mean: a folder, checked, and the files in it. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmpl.checkpoint.folder import ModelFolder, check_folder
from mmpl.errors import CheckpointError

EMBEDDED_MODEL = Path(__file__).resolve().parents[2] / "weights" / "tiny"
PARTS = ("checkpoint", "vae", "text_encoder", "tokenizer")  # flags that replace a part of a model
MODEL_FLAGS = ("model_path", *PARTS, "lora")


def model_folder(settings: Mapping[str, Any]) -> tuple[ModelFolder, dict[str, str]]:
    """The checked folder with the LoRAs for it, and the flags that name all that it is made of."""
    model = {name: settings[name] for name in MODEL_FLAGS if name in settings}
    require_embedded(model)
    folder = model.get("model_path", EMBEDDED_MODEL)
    parts: dict[str, str] = {}
    for name in PARTS:
        if name not in model:
            continue
        beside = os.path.join(folder, model[name])
        if not os.path.lexists(model[name]) and os.path.lexists(beside):
            model[name] = beside  # people keep checkpoints in the folder they belong to
        parts[name] = model[name]
    found = check_folder(folder, **parts)
    if "lora" in model:
        from mmpl.cli.lora import (
            lora_files,
            lora_text,
        )  # takes a moment that --help need not wait for

        found = replace(found, loras=lora_files(model["lora"], found))
        model["lora"] = lora_text(found.loras)
    return found, model


def from_anywhere(model: Mapping[str, str], folder: ModelFolder) -> dict[str, str]:
    """The flags that name a model, for use from another folder."""
    moved = {name: os.path.abspath(path) for name, path in model.items() if name != "lora"}
    if folder.loras:
        from mmpl.cli.lora import lora_text

        moved["lora"] = lora_text(folder.loras, absolute=True)
    return moved


def require_embedded(model: Mapping[str, Any]) -> None:
    if "model_path" not in model and not EMBEDDED_MODEL.is_dir():
        raise CheckpointError(
            "the embedded model is not there",
            where=str(EMBEDDED_MODEL),
            todo="run from a whole checkout, or give --model_path",
        )
