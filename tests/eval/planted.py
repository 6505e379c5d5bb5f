"""Films of one square over a gradient, made by methods whose drift is planted; and, of those, a
module that stands in for `mmpl.eval.methods`."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from mmpl.train.grammar import HUE_BINS

Pixels = NDArray[np.uint8]
FIRST, STEP, SIZE, SIDE = 81, 76, 32, 12
SEGMENT_JOINT = FIRST + STEP


def colour(hue_deg: float, saturation: float = 0.8, value: float = 0.9) -> Pixels:
    rgb = colorsys.hsv_to_rgb(hue_deg % 360 / 360, saturation, value)
    return np.round(np.array(rgb) * 255).astype(np.uint8)


@dataclass(frozen=True)
class Planted:
    """Degrees that background and object turn at each generation, of which there is one every
    `every` frames; `jump` levels brighter at each segment joint. `lost`: without the object from
    the second segment on; `frames`: shorter than asked."""

    background_deg: float = 0.0
    object_deg: float = 0.0
    every: float = STEP
    jump: int = 0
    lost: bool = False
    frames: int | None = None


@dataclass(frozen=True)
class Shot:
    prompt: str
    seed: int
    segments: int
    steps: int | None = None
    shift: float | None = None
    guidance_scale: float | None = None


@dataclass(frozen=True)
class Method:
    name: str
    what: str
    make: Callable[[object, Shot], Iterator[Pixels]]


def film(planted: Planted, shot: Shot) -> Iterator[Pixels]:
    """Pieces of 20 frames. How much a film drifts differs from program to program by a quarter."""
    total = planted.frames or FIRST + STEP * (shot.segments - 1)
    rng = np.random.default_rng(shot.seed)
    own = 1 + 0.25 * rng.uniform(-1, 1)
    start_deg = rng.uniform(0, 360)
    low, high = next(arc for name, arc in HUE_BINS.items() if f" {name} " in f" {shot.prompt} ")
    for begin in range(0, total, 20):
        piece = [
            _frame(planted, number, start_deg, (low + high) / 2, own)
            for number in range(begin, min(begin + 20, total))
        ]
        yield np.stack(piece)


def _frame(planted: Planted, number: int, start_deg: float, hue_deg: float, own: float) -> Pixels:
    chained = max(0, int((number - 5) / planted.every + 1e-9)) * own
    picture = _background(start_deg + planted.background_deg * chained).copy()
    segment = max(0, number - 5) // STEP
    if not (planted.lost and segment):
        at = 2 + abs(number % 32 - 16)  # a pixel further in every frame
        ink = colour(hue_deg + planted.object_deg * chained, 1.0, 1.0)
        picture[10 : 10 + SIDE, at : at + SIDE] = ink
    return np.clip(picture.astype(int) + planted.jump * segment, 0, 255).astype(np.uint8)


@cache
def _background(hue_deg: float) -> Pixels:
    line = [colour(hue_deg + row, 0.5, 0.35) for row in np.linspace(0, 15, SIZE)]
    return np.repeat(np.array(line)[:, None], SIZE, axis=1)


def methods_module(planted: Mapping[str, Planted], made: list[tuple[str, int]]) -> ModuleType:
    """A stand-in for `mmpl.eval.methods`; notes in `made` each film that is begun."""

    def make(name: str) -> Callable[[object, Shot], Iterator[Pixels]]:
        def pieces(model: object, shot: Shot) -> Iterator[Pixels]:
            made.append((name, shot.seed))
            yield from film(planted[name], shot)

        return pieces

    @dataclass(frozen=True)
    class Evaluations:
        total: int

    module = ModuleType("mmpl.eval.methods")
    names = {name: Method(name, "planted", make(name)) for name in planted}
    vars(module).update(
        METHODS=names, Shot=Shot, evaluations=lambda name, model, shot: Evaluations(7)
    )
    return module
