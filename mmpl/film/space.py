"""What a film takes on the disk, known before it is made. No torch here."""

from __future__ import annotations

import math
from collections.abc import Collection

from mmpl.film.job import file_name
from mmpl.film.settings import Film
from mmpl.layout.work import Work

_LATENT_BYTES = 4  # latents are kept in float32
# Of H.264 as we encode, measured on 416x240: a grey wall has 0.0005 in a short film, a soft
# gradient that moves 0.006, still noise 0.014, moving grain 0.06.
_LEAST_BYTES_PER_PIXEL, _MANY_BYTES_PER_PIXEL = 0.0002, 0.02


def latent_bytes(
    work: Work, latent_shape: tuple[int, int, int], there: Collection[str] = ()
) -> int:
    """Bytes of all latents that `work` makes, but for those in the files `there`, by name.

    `latent_shape`: channels, rows and columns of a latent frame.
    """
    frames = {group.name: len(group.frames) for group in work.layout.groups}
    missing = sum(
        work.chain.seeds if task.kind == "hand_over" else frames[task.group]
        for task in work.tasks
        if task.kind != "decode" and file_name(task) not in there
    )
    return missing * math.prod(latent_shape) * _LATENT_BYTES


def video_bytes(film: Film) -> tuple[int, int]:
    """Bytes that the mp4 of a film has at least, and may well have."""
    pixels = film.frames * film.width * film.height
    return int(_LEAST_BYTES_PER_PIXEL * pixels), int(_MANY_BYTES_PER_PIXEL * pixels)
