"""Times of several sides, in turns in one run: whatever else the machine does hits them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from mmpl.wan.attention import sdpa
from mmpl.wan.ops import Precision
from tests.bench.cases import Row

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Taken:
    """Medians over the rounds, in seconds."""

    cpu_s: float
    wall_s: float


def in_turns(sides: dict[str, Call], rounds: int, *, in_a_row: int = 1) -> dict[str, Taken]:
    """The time of one call of each side, after one turn that is not counted. A turn is so many
    calls `in_a_row`: for what is short and in use follows itself, not another side."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, call in sides.items():
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(in_a_row):
                call()
            spent = time.process_time() - cpu, time.perf_counter() - wall
            if number:
                taken[name].append((spent[0] / in_a_row, spent[1] / in_a_row))
    return {
        name: Taken(*(statistics.median(column) for column in zip(*found, strict=True)))
        for name, found in taken.items()
    }


@torch.no_grad()
def floor_call(row: Row, precision: Precision) -> Call:
    """The products and the attention of a forward of `row` and nothing else: what is left if all
    the rest were free. Text keys and values are among them, as in `cases.forward_call`."""
    D, L, dtype = row.dim, row.tokens, precision.compute
    text_len, heads = row.config.text_len, (row.heads, row.dim // row.heads)
    shapes = (L, D), (text_len, D), (L, row.ffn)
    x, text, hidden = (torch.randn(1, *shape).to(dtype) for shape in shapes)
    square, bias = torch.randn(D, D).to(dtype), torch.randn(D).to(dtype)
    wide, narrow = torch.randn(row.ffn, D).to(dtype), torch.randn(D, row.ffn).to(dtype)
    wide_bias = torch.randn(row.ffn).to(dtype)

    @torch.no_grad()
    def call() -> None:
        for _ in range(row.layers):
            q, k, v = (F.linear(x, square, bias).unflatten(-1, heads) for _ in range(3))
            F.linear(sdpa(q, k, v).flatten(2), square, bias)
            q = F.linear(x, square, bias).unflatten(-1, heads)
            k, v = (F.linear(text, square, bias).unflatten(-1, heads) for _ in range(2))
            F.linear(sdpa(q, k, v).flatten(2), square, bias)
            F.linear(x, wide, wide_bias)
            F.linear(hidden, narrow, bias)

    return call
