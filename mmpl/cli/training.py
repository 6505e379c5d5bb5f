"""What the commands that train have in common: device, compiled blocks, a line of progress."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmpl.errors import ArgumentError
from mmpl.train.origin import Origin, begin

if TYPE_CHECKING:
    import torch

    from mmpl.checkpoint.bundle import Transformer
    from mmpl.checkpoint.folder import ModelFolder
    from mmpl.train.loop import Progress
    from mmpl.wan.dit import Engine


def require_device(name: str) -> str:
    """The name of a device, "cpu" or "cuda". Raises ArgumentError where there is none."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ArgumentError(
            "there is no GPU, or torch cannot use it", got="--device cuda", todo="use --device cpu"
        )
    return name


def engine(*, compiled: bool) -> Engine:
    """Plain arithmetic, or blocks compiled once for every shape of a pass."""
    from mmpl.wan.compiled import compiled_block
    from mmpl.wan.dit import DEFAULT_ENGINE, Engine

    return Engine(block_fn=compiled_block()) if compiled else DEFAULT_ENGINE


def tuning_engine(device: str, dtype: torch.dtype, *, checkpointing: bool) -> Engine:
    """That of a Wan model's training: the device's attention, and blocks that are computed again
    for the gradient, to save memory, if `checkpointing`."""
    from mmpl.train.recompute import checkpointed
    from mmpl.wan.attention import resolve_attention
    from mmpl.wan.dit import Engine, block

    _, attention = resolve_attention("auto", device, dtype)
    return Engine(attention=attention, block_fn=checkpointed(block) if checkpointing else block)


def begun(runs: Path, folder: ModelFolder, files: Mapping[str, str], trains: str) -> Transformer:
    """The transformer that a training of a Wan model begins with, on record in its run folder.
    `files`: the flags that named parts of the model. Raises what loading and `origin.begin` do."""
    from mmpl.checkpoint.bundle import load_transformer

    transformer = load_transformer(folder)
    checkpoint = os.path.abspath(files["checkpoint"]) if "checkpoint" in files else None
    begin(runs, Origin(os.path.abspath(folder.path), checkpoint, transformer.digest, trains))
    return transformer


def line(progress: Progress) -> str:
    """Steps, losses, pace and time left."""
    metrics = " ".join(f"{key} {value:.4f}" for key, value in progress.metrics.items())
    return (
        f"{progress.step}/{progress.steps} loss {progress.loss:.4f} {metrics} "
        f"{progress.seconds_per_step:.2f} s/step, {progress.eta_s / 60:.0f} min left"
    )
