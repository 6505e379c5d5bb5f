"""Frame accounting: how segments of latent frames lie end to end in a film of pixel frames.

Later segments start from seeds that repeat the last pixel frames of the segment before; in the
overlap the earlier segment's own frames stay. In code segments, pixel frames and latent frames
all count from 0; people, files and flags count segments from 1.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from mmpl.errors import ArgumentError
from mmpl.layout.layout import Layout

SEED_LATENTS = 2  # a segment starts from two latent frames
LONGEST_FRAMES = 10_000_000  # a week at 16 frames per second; beyond it a slip of the keyboard
SEEDINGS = ("terminal", "midpoint")
MODES = ("round_robin", "adaptive")  # of a schedule: who makes what
ORDERS = ("film_first", "plan_first")  # and what comes first


@dataclass(frozen=True, slots=True)
class Chain:
    """How the segments of a film join.

    `latents`: latent frames that count in each segment, from 0. `seeds`: latent frames that a
    later segment takes over from the one before. `temporal_stride`: pixel frames per latent
    frame, of which the first latent frame of a clip is always alone.
    """

    latents: int
    temporal_stride: int
    seeds: int = SEED_LATENTS

    def __post_init__(self) -> None:
        if not 1 <= self.seeds < self.latents or self.temporal_stride < 1:
            raise ArgumentError(
                "segments cannot join",
                got=f"{self.latents} latent frames, {self.seeds} seeds, "
                f"temporal stride {self.temporal_stride}",
                wanted="1 <= seeds < latent frames, stride >= 1",
            )

    @property
    def segment_frames(self) -> int:
        """Pixel frames of one segment."""
        return _pixel_frames(self.latents, self.temporal_stride)

    @property
    def overlap(self) -> int:
        """Pixel frames that a later segment repeats from the one before."""
        return _pixel_frames(self.seeds, self.temporal_stride)

    @property
    def step(self) -> int:
        """Pixel frames that each later segment adds."""
        return self.segment_frames - self.overlap

    @property
    def handover(self) -> tuple[int, ...]:
        """Latent frames to decode, in this order, for the next segment's seeds.

        The first of the keyframes handed over appears twice, so that the decoder has its history
        when it comes to the last `overlap` pixel frames of the result: exactly those are encoded
        again. For terminal seeding of 21 latent frames: 0, 19, 19, 20.
        """
        keyframes = tuple(range(self.latents - self.seeds, self.latents))
        return (0, keyframes[0], *keyframes)

    @property
    def handover_frames(self) -> tuple[int, int]:
        """Half-open range of pixel frames to take from the decoded `handover`."""
        total = _pixel_frames(len(self.handover), self.temporal_stride)
        return total - self.overlap, total


def chain_of(layout: Layout, *, seeding: str, temporal_stride: int) -> Chain:
    """How segments of `layout` join.

    `seeding` "terminal": the last latent frames seed the next segment and all frames are shown.
    "midpoint": the middle keyframes do, and the segment ends with them.
    """
    if seeding not in SEEDINGS:
        raise ArgumentError("unknown seeding", got=seeding, wanted=f"one of {', '.join(SEEDINGS)}")
    if seeding == "terminal":
        return Chain(layout.frames, temporal_stride)
    if layout.midpoint is None:
        raise ArgumentError(
            "this layout has no middle keyframes to seed from",
            where=f"layout {layout.name}",
            got="seeding midpoint",
            wanted="seeding terminal",
        )
    return Chain(layout.midpoint + 1, temporal_stride)


def film_frames(chain: Chain, segments: int) -> int:
    """Pixel frames of a film of whole segments: 81 + 76 (S - 1) for Wan and terminal seeding."""
    if segments < 1:
        raise ArgumentError("a film has at least one segment", got=segments, wanted=">= 1")
    return chain.segment_frames + chain.step * (segments - 1)


def segments_for(chain: Chain, frames: int) -> int:
    """The fewest segments that give a film of `frames` pixel frames."""
    _check_film(frames)
    return 1 + max(0, -(-(frames - chain.segment_frames) // chain.step))


def frames_for_duration(seconds: float, fps: float, *, longest: int = LONGEST_FRAMES) -> int:
    """round(seconds * fps), the exact number of pixel frames of a film of that duration.

    Raises ArgumentError for a duration or rate that is not a positive finite number, and for a
    film of no frames or more than `longest`.
    """
    for what, value in (("fps", fps), ("duration", seconds)):
        if not 0 < value <= sys.float_info.max:
            raise ArgumentError(f"{what} out of range", got=value, wanted="a positive number")
    frames = round(seconds * fps) if seconds <= longest / fps else None
    if not frames:
        raise ArgumentError(
            "duration out of range",
            got=f"{seconds} s at {fps} fps",
            wanted=f"1 to {longest} frames, {1 / fps:.3g} to {longest / fps:.6g} s",
        )
    return frames


def kept_frames(chain: Chain, segment: int, frames: int) -> tuple[int, int]:
    """Half-open range of the segment's own pixel frames that a film of `frames` frames shows.

    The first segment starts at 0, later ones after the overlap; the last is cut to length.
    """
    last = segments_for(chain, frames) - 1
    if not 0 <= segment <= last:
        raise ArgumentError("no such segment in the film", got=segment, wanted=f"0..{last}")
    start = chain.overlap if segment else 0
    return start, min(chain.segment_frames, frames - segment * chain.step)


def locate(chain: Chain, frame: int) -> tuple[int, int]:
    """Which segment shows film frame `frame`, and which of its own pixel frames that is."""
    if frame < 0:
        raise ArgumentError("no such film frame", got=frame, wanted=">= 0")
    segment = max(0, frame - chain.overlap) // chain.step
    return segment, frame - segment * chain.step


def film_frame(chain: Chain, segment: int, frame: int) -> int:
    """The film frame that the segment's own pixel frame `frame` depicts; inverse of `locate`.

    Frames in the overlap are depicted by two segments, and shown from the earlier one.
    """
    if segment < 0 or not 0 <= frame < chain.segment_frames:
        raise ArgumentError(
            "no such frame of a segment",
            got=f"segment {segment}, frame {frame}",
            wanted=f"segment >= 0, frame 0..{chain.segment_frames - 1}",
        )
    return segment * chain.step + frame


def joints(layout: Layout, chain: Chain, frames: int) -> dict[str, list[int]]:
    """The film frames that were made apart from the frame before them: "segment" where one segment
    follows another, "group" where one group of a segment follows another."""
    group_of = {frame: group.name for group in layout.groups for frame in group.frames}
    segments, groups = [], []
    for segment in range(segments_for(chain, frames)):
        start, stop = kept_frames(chain, segment, frames)
        if segment:
            segments.append(film_frame(chain, segment, start))
        for latent in range(1, chain.latents):
            frame = chain.temporal_stride * (latent - 1) + 1
            if start < frame < stop and group_of[latent] != group_of[latent - 1]:
                groups.append(film_frame(chain, segment, frame))
    return {"segment": segments, "group": groups}


def latent_of(chain: Chain, frame: int) -> int:
    """The latent frame that decodes to the segment's own pixel frame `frame`."""
    return -(-frame // chain.temporal_stride)


def needed_latents(chain: Chain, segment: int, frames: int) -> tuple[int, ...]:
    """Latent frames of the segment that a film of `frames` pixel frames needs, ascending.

    The decoder is causal: showing a pixel frame takes every latent frame up to its own. A segment
    with a successor also needs the frames of the hand-over. `layout.needed` turns the
    answer into groups.
    """
    _, stop = kept_frames(chain, segment, frames)
    latents = set(range(latent_of(chain, stop - 1) + 1))
    if segment < segments_for(chain, frames) - 1:
        latents.update(chain.handover)
    return tuple(sorted(latents))


def _pixel_frames(latents: int, temporal_stride: int) -> int:
    return 1 + temporal_stride * (latents - 1)


def _check_film(frames: int) -> None:
    if frames < 1:
        raise ArgumentError("a film has at least one frame", got=frames, wanted=">= 1")
