"""The procedural clips as a source of clips to encode, beside videos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmpl.media.image import Pixels
from mmpl.media.pixels import to_uint8
from mmpl.train.clips import caption, render
from mmpl.train.footage import Captions, Cut
from mmpl.train.latents import clip_of


@dataclass(frozen=True, slots=True)
class ProceduralClip:
    """The training clip of a seed. Its dense caption names the background, its short one does not.

    Its motion is per frame, whatever the rate; of a size that is not square it shows the middle.
    """

    seed: int
    file_bytes: int = 0

    @property
    def name(self) -> str:
        return f"procedural-{self.seed}"

    @property
    def captions(self) -> Captions:
        spec = clip_of(self.seed)
        dense, short = (caption(spec, self.seed, backgrounds=share) for share in (1.0, 0.0))
        return Captions(dense, short)

    def starts(self, cut: Cut) -> list[int]:
        return cut.starts(cut.frames)

    def pixels(self, cut: Cut, starts: Sequence[int]) -> Iterator[Pixels]:
        side = max(cut.width, cut.height)
        middle = ((side - cut.height) // 2, (side - cut.width) // 2, cut.height, cut.width)
        for start in starts:
            frames = (start, start + cut.frames)
            yield to_uint8(render(clip_of(self.seed), frames, size=side, crop=middle))
