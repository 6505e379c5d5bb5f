"""Pictures that are given for a film, and the pins that stand for them in a request. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmpl.errors import ArgumentError
from mmpl.film.pins import Pin, digest_of, landing, pins_text
from mmpl.film.settings import Film, Request

if TYPE_CHECKING:  # numpy takes a moment that --help need not wait for
    from mmpl.media.image import Pixels


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """What is given: `stills` (film frame, HWC), one after the other, and `clip_FHWC`, the last
    frames of a clip that the film goes on from, as many as segments overlap, or None. Pixels are
    uint8 RGB of the film's size."""

    stills: tuple[tuple[int, Pixels], ...] = ()
    clip_FHWC: Pixels | None = None


def with_pictures(request: Request, film: Film, pictures: Pictures, layout_i2v: str) -> Request:
    """`request`, which means `film` before, with the pins of `pictures`.

    A film that begins with a given frame is made in `layout_i2v`, unless the request names a
    layout. Raises ArgumentError for pixels of another size and moments outside the film.
    """
    chain, pins = film.chain, []
    lead = 0
    if pictures.clip_FHWC is not None:
        _check_pixels(pictures.clip_FHWC, (chain.overlap, film.height, film.width, 3))
        lead = chain.overlap
        pins += [Pin(0, seed, digest_of(pictures.clip_FHWC)) for seed in range(chain.seeds)]
    for frame, pixels_HWC in pictures.stills:
        _check_pixels(pixels_HWC, (film.height, film.width, 3))
        pins.append(Pin(*landing(chain, film.frames, lead, frame), digest_of(pixels_HWC)))
    layout = request.layout
    if lead == 0 and any((pin.segment, pin.latent) == (0, 0) for pin in pins):
        layout = layout or layout_i2v
    return replace(request, given=pins_text(pins), lead=lead, layout=layout)


def _check_pixels(pixels: Pixels, shape: tuple[int, ...]) -> None:
    if str(pixels.dtype) != "uint8" or pixels.shape != shape:
        raise ArgumentError(
            "not a picture of the film's size",
            got=f"{pixels.dtype} {pixels.shape}",
            wanted=f"uint8 {shape}",
        )
