"""Pins of a film: which latent frames are given, and where a moment lands. No torch.

As text, which is how job files hold them, `#3.10:0123456789abcdef` is latent frame 10 of the third
segment, and the start of the digest of what it shows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmpl.errors import ArgumentError
from mmpl.layout.timeline import Chain, latent_of, locate, segments_for

if TYPE_CHECKING:  # numpy takes a moment that --help need not wait for
    import numpy as np
    from numpy.typing import NDArray

_PIN = re.compile(r"#(\d{1,7})\.(\d{1,4}):((?:kept)?[0-9a-f]{16})")
_KEPT = "kept"  # how the digest of latents begins that are not a picture's, but the film's own


@dataclass(frozen=True, slots=True, order=True)
class Pin:
    """Latent frame `latent` of `segment`, which counts from 0, is given; `digest` of what."""

    segment: int
    latent: int
    digest: str

    @property
    def is_kept(self) -> bool:
        """Whether the frame is one that the film had before, see `kept_pin`."""
        return self.digest.startswith(_KEPT)


def kept_pin(segment: int, latent: int, z_BCHW: NDArray[np.float32]) -> Pin:
    """The pin that holds a latent frame as the film has it."""
    return Pin(segment, latent, _KEPT + digest_of(z_BCHW))


def landing(chain: Chain, frames: int, lead: int, frame: int) -> tuple[int, int]:
    """The segment and latent frame that show film frame `frame` of a film of `frames` frames.

    Raises ArgumentError for a frame outside of it.
    """
    if not 0 <= frame < frames:
        raise ArgumentError(
            "a picture outside the film", got=f"frame {frame}", wanted=f"0 to {frames - 1}"
        )
    segment, own = locate(chain, lead + frame)
    return segment, latent_of(chain, own)


def read_pins(text: str, chain: Chain, latents: int, frames: int) -> tuple[Pin, ...]:
    """The pins of a text, for a film of `frames` pixel frames whose segments have `latents` latent
    frames. Raises ArgumentError."""
    pins = []
    for word in filter(None, text.split(",")):
        match = _PIN.fullmatch(word.strip())
        if match is None:
            raise ArgumentError(
                "not a given frame", got=word[:40], wanted="#3.10: and 16 digits of a digest"
            )
        pins.append(Pin(int(match[1]) - 1, int(match[2]), match[3]))
    for pin in pins:
        if not (0 <= pin.segment < segments_for(chain, frames) and pin.latent < latents):
            raise ArgumentError(
                "a given frame is outside the film",
                got=f"segment {pin.segment + 1}, latent frame {pin.latent}",
            )
    places = [f"segment {pin.segment + 1}, latent frame {pin.latent}" for pin in pins]
    if len(set(places)) < len(places):
        raise ArgumentError(
            "two pictures for one moment",
            got=max(places, key=places.count),
            wanted=f"pictures at least {chain.temporal_stride} frames apart",
        )
    return tuple(sorted(pins))


def pins_text(pins: Iterable[Pin]) -> str:
    return ",".join(f"#{pin.segment + 1}.{pin.latent}:{pin.digest}" for pin in sorted(pins))


def digest_of(array: NDArray[Any]) -> str:
    """Of what a pin shows, as its text has it."""
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()[:16]
