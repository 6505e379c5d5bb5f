"""Prompts as a source to encode, beside videos: captions alone, of which no clip is cut.

A distillation by distribution matching makes its own clips and needs no others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmpl.errors import InputError
from mmpl.media.image import Pixels
from mmpl.train.footage import Captions, Cut, read_text

SUFFIX = ".txt"
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Prompt:
    """A line of a file, as a clip without frames."""

    name: str
    text: str
    file_bytes: int = 0

    @property
    def captions(self) -> Captions:
        return Captions(dense=self.text)

    def starts(self, cut: Cut) -> list[int]:
        return [0]

    def pixels(self, cut: Cut, starts: Sequence[int]) -> Iterator[Pixels]:
        for _ in starts:
            yield np.zeros((0, cut.height, cut.width, 3), np.uint8)


def find_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """The prompts of a UTF-8 file, one a line; empty lines are passed over. Raises InputError."""
    lines = read_text(Path(path), _MOST_BYTES).split("\n")
    prompts = [Prompt(f"line {n}", line.strip()) for n, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise InputError("no prompts in this file", where=os.fspath(path), wanted="one a line")
    return prompts
