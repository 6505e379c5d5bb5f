"""LoRA files looked at before anything is loaded. No torch."""

from __future__ import annotations

from pathlib import Path

from mmpl.checkpoint import files, lora_settings
from mmpl.checkpoint.folder import ModelFolder, is_pickle
from mmpl.checkpoint.lora_names import LoraFile, fit, parse, ranks
from mmpl.checkpoint.names import official
from mmpl.checkpoint.shards import read_headers


def check_lora(path: Path, strength: float, folder: ModelFolder) -> LoraFile:
    """The LoRA at `path`, for the model in `folder`, as far as headers tell: of a pickle only that
    it may be one. Raises CheckpointError."""
    size = files.require_file(path)
    if is_pickle(path):
        files.require_pickle(path)
    else:
        shapes = {name: info.shape for name, info in read_headers(path).items()}
        parsed = parse(shapes, where=str(path))
        lora_settings.of_file(path, files.read_metadata(path), ranks(parsed, shapes))
        dit = folder.files["dit"]
        if not is_pickle(dit):
            headers = official("dit", read_headers(dit), where=str(dit))
            model = {name: info.shape for name, info in headers.items()}
            fit(parsed, shapes, model, where=str(path))
    return LoraFile(path, strength, size, files.sha256_of(path))
