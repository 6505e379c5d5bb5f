"""Which model the flags mean: a folder, checked, and the files in it. No torch here."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmpl.checkpoint.folder import ModelFolder, check_folder
from mmpl.checkpoint.hub import fetch, is_repository
from mmpl.checkpoint.search import FLAGS
from mmpl.errors import CheckpointError

EMBEDDED_MODEL = Path(__file__).resolve().parents[2] / "weights" / "tiny"
PARTS = ("checkpoint", "vae", "text_encoder", "tokenizer")  # flags that replace a part of a model
MODEL_FLAGS = ("model_path", *PARTS, "lora")


def model_folder(settings: Mapping[str, Any]) -> tuple[ModelFolder, dict[str, str]]:
    """The checked folder with the LoRAs for it, and the flags that name all that it is made of."""
    model = {name: settings[name] for name in MODEL_FLAGS if name in settings}
    require_embedded(model)
    folder = located(settings)
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


def located(settings: Mapping[str, Any]) -> str | Path:
    """Where the model is that the flags name; one of the hub is fetched unless it is there, but
    for what other flags replace. Raises CheckpointError."""
    path = settings.get("model_path", EMBEDDED_MODEL)
    if not isinstance(path, str) or not is_repository(path):
        return path
    told = [role for role, flag in FLAGS.items() if flag.removeprefix("--") in settings]
    aloud = "quiet" not in settings and "json_progress" not in settings
    return fetch(path, without=told, shows=aloud and sys.stderr is not None and sys.stderr.isatty())


def from_anywhere(model: Mapping[str, str], folder: ModelFolder) -> dict[str, str]:
    """The flags that name a model, for use from another folder."""
    moved = {
        name: path if is_repository(path) else os.path.abspath(path)
        for name, path in model.items()
        if name != "lora"
    }
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
