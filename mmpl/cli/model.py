"""Which model the flags mean: a folder, checked, and the files in it. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpl.checkpoint.folder import ModelFolder, check_folder
from mmpl.errors import CheckpointError

EMBEDDED_MODEL = Path(__file__).resolve().parents[2] / "weights" / "tiny"


def model_folder(settings: Mapping[str, Any]) -> tuple[ModelFolder, dict[str, str]]:
    """The checked folder, and the flags that name it and its checkpoint."""
    model = {name: settings[name] for name in ("model_path", "checkpoint") if name in settings}
    require_embedded(model)
    folder = model.get("model_path", EMBEDDED_MODEL)
    if "checkpoint" in model and not os.path.lexists(model["checkpoint"]):
        beside = os.path.join(folder, model["checkpoint"])
        if os.path.lexists(beside):  # people keep checkpoints in the folder they belong to
            model["checkpoint"] = beside
    return check_folder(folder, checkpoint=model.get("checkpoint")), model


def require_embedded(model: Mapping[str, Any]) -> None:
    if "model_path" not in model and not EMBEDDED_MODEL.is_dir():
        raise CheckpointError(
            "the embedded model is not there",
            where=str(EMBEDDED_MODEL),
            todo="run from a whole checkout, or give --model_path",
        )
