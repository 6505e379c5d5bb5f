"""What the commands that train have in common: device, compiled blocks, a line of progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmpl.errors import ArgumentError

if TYPE_CHECKING:
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


def line(progress: Progress) -> str:
    """Steps, losses, pace and time left."""
    metrics = " ".join(f"{key} {value:.4f}" for key, value in progress.metrics.items())
    return (
        f"{progress.step}/{progress.steps} loss {progress.loss:.4f} {metrics} "
        f"{progress.seconds_per_step:.2f} s/step, {progress.eta_s / 60:.0f} min left"
    )
