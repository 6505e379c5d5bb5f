"""Which model the flags mean: a folder, checked, and the files in it. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpl.checkpoint.folder import ModelFolder, check_folder
from mmpl.errors import CheckpointError

EMBEDDED_MODEL = Path(__file__).resolve().parents[2] / "weights" / "tiny"


PARTS = ("checkpoint", "vae", "text_encoder", "tokenizer")  # flags that replace a part of it


def model_folder(settings: Mapping[str, Any]) -> tuple[ModelFolder, dict[str, str]]:
    """The checked folder, and the flags that name it and its parts from elsewhere."""
    model = {name: settings[name] for name in ("model_path", *PARTS) if name in settings}
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
    return check_folder(folder, **parts), model


def require_embedded(model: Mapping[str, Any]) -> None:
    if "model_path" not in model and not EMBEDDED_MODEL.is_dir():
        raise CheckpointError(
            "the embedded model is not there",
            where=str(EMBEDDED_MODEL),
            todo="run from a whole checkout, or give --model_path",
        )
