"""Encoded clips as a training reads them, made of noise."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmpl.layout.presets import SEGMENT_LATENTS
from mmpl.wan.config import DiTConfig


class FakeClips:
    """`count` clips for a transformer; all is drawn from the number of a clip."""

    def __init__(
        self,
        config: DiTConfig,
        count: int = 3,
        *,
        frames: int = SEGMENT_LATENTS,
        size: tuple[int, int] = (2, 4),
        made: Mapping[str, str | int] | None = None,
    ) -> None:
        self.config, self.count, self.frames, self.size = config, count, frames, size
        self.made = {"clips": count} if made is None else made

    def __len__(self) -> int:
        return self.count

    @property
    def negative(self) -> Tensor:
        return self._drawn(1, 2, self.config.text_dim)

    def latents(self, index: int, /) -> Tensor:
        return self._drawn(100 + index, self.config.in_dim, self.frames, *self.size).half()

    def text(self, index: int, kind: str, /) -> Tensor:
        words = {"dense": 5, "short": 3}[kind]
        return self._drawn(1000 * words + index, words, self.config.text_dim)

    def name(self, index: int, /) -> str:
        return f"clip {index}"

    def _drawn(self, seed: int, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
