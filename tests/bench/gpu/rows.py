"""The rows of the GPU bench, the most important first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from tests.bench.gpu.lab import Lab
from tests.bench.gpu.record import Figure, Row


def measure(name: str, **given: Any) -> Callable[[Lab], Iterator[Figure]]:
    """`module.function` of this package with these arguments. Its module is imported when its turn
    has come, so that a package that is not installed stops no row but those that need it."""
    module, function = name.split(".")

    def measured(lab: Lab) -> Iterator[Figure]:
        return getattr(import_module(f"tests.bench.gpu.{module}"), function)(lab, **given)

    return measured


ROWS = (
    Row("matmul", 5, measure("passes.matmul")),
    Row("14B passes", 30, measure("passes.passes", size="14B")),
    Row("14B passes compiled", 100, measure("passes.passes", size="14B", compiled=True)),
    Row("1.3B passes", 10, measure("passes.passes", size="1.3B")),
    Row("VAE decode", 35, measure("pixels.decode", size="14B")),
    Row("VAE hand-over", 6, measure("pixels.hand_overs", size="14B")),
    Row(
        "1.3B few-step film compiled",
        50,
        measure("films.few_steps", size="1.3B", segments=3, compiled=True),
    ),
    Row("14B inside a stage", 60, measure("passes.stage", size="14B", steps=3, compiled=True)),
    Row("14B memory of a pass", 40, measure("films.pass_memory", size="14B")),
    Row("14B beside official", 50, measure("beside.transformers", size="14B")),
    Row("1.3B passes compiled", 60, measure("passes.passes", size="1.3B", compiled=True)),
    Row("1.3B beside official", 40, measure("beside.transformers", size="1.3B")),
    Row("1.3B few-step film", 25, measure("films.few_steps", size="1.3B", segments=3)),
    Row("1.3B inside a stage", 15, measure("passes.stage", size="1.3B", steps=4)),
    Row("VAE pieces", 35, measure("pixels.pieces", size="14B")),
    Row("14B other attention", 35, measure("passes.others", size="14B")),
    Row("14B offload", 60, measure("films.offloads", size="14B")),
    Row("VAE beside official", 40, measure("beside.decoders", size="14B")),
    Row("14B in 8 bits", 60, measure("beside.quantised", size="14B")),
    Row("1.3B memory of a pass", 25, measure("films.pass_memory", size="1.3B")),
)
