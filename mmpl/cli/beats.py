"""Signs of life of the processes of one film, in a file they all have mapped into memory.

A process writes where it is; its parent reads it without asking, whatever state the process is in.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

_FORM, _SIZE = "=qqqq", 32  # count, started, segment from 1, step; in bytes


@dataclass(frozen=True, slots=True)
class Beat:
    """`count` grows with each sign. `started`: the model is loaded. `segment` counts from 1."""

    count: int = 0
    started: bool = False
    segment: int = 0
    step: int = 0

    @property
    def where(self) -> str:
        return f"in segment {self.segment}, step {self.step}, " if self.segment else ""


class Beats:
    """The signs of `ranks` processes in the file at `path`."""

    def __init__(self, path: Path, ranks: int, *, create: bool = False) -> None:
        if create:
            path.write_bytes(bytes(ranks * _SIZE))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), ranks * _SIZE)

    def read(self, rank: int) -> Beat:
        count, started, segment, step = struct.unpack_from(_FORM, self._memory, rank * _SIZE)
        return Beat(count, bool(started), segment, step)

    def write(self, rank: int, *, started: bool, segment: int = 0, step: int = 0) -> None:
        count = self.read(rank).count + 1
        struct.pack_into(_FORM, self._memory, rank * _SIZE, count, started, segment, step)
