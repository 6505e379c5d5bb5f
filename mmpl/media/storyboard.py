"""A storyboard as one picture: stills in rows, each with its time, each row with what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mmpl.errors import ArgumentError

_INK, _FAINT, _PAPER = (235, 235, 235), (150, 150, 150), (24, 24, 24)
_GAP, _LINE = 8, 20  # pixels around stills, and of a line of text
_SMALLEST, _LARGEST = 120, 320  # pixels that a still is wide on the sheet
_FONT_SIZE = 14


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A line of text, and under it stills (HWC uint8 RGB, all of one size) with a word each."""

    text: str
    stills: Sequence[tuple[str, NDArray[np.uint8]]]


def storyboard(title: str, rows: Sequence[Row]) -> NDArray[np.uint8]:
    """The picture, HWC uint8 RGB; small stills are enlarged, large ones reduced. Text that is too
    long is cut. Raises ArgumentError where there are no stills."""
    sizes = {still.shape for row in rows for _, still in row.stills}
    if len(sizes) != 1:
        raise ArgumentError(
            "no storyboard", got=f"stills of {len(sizes)} sizes", wanted="stills of one size"
        )
    (height, width, _) = sizes.pop()
    scale = min(max(1.0, _SMALLEST / width), _LARGEST / width)
    cell_width, cell_height = round(width * scale), round(height * scale)
    columns = max(len(row.stills) for row in rows)
    row_height = _LINE + cell_height + _LINE + _GAP
    size = (_GAP + columns * (cell_width + _GAP), 2 * _GAP + _LINE + len(rows) * row_height)
    sheet = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    most = size[0] - 2 * _GAP
    draw.text((_GAP, _GAP), _cut(title, font, most), fill=_INK, font=font)
    for index, row in enumerate(rows):
        top = 2 * _GAP + _LINE + index * row_height
        draw.text((_GAP, top), _cut(row.text, font, most), fill=_FAINT, font=font)
        for column, (word, still) in enumerate(row.stills):
            left = _GAP + column * (cell_width + _GAP)
            image = Image.fromarray(still).resize(
                (cell_width, cell_height), Image.Resampling.LANCZOS
            )
            sheet.paste(image, (left, top + _LINE))
            draw.text((left, top + _LINE + cell_height + 1), word, fill=_INK, font=font)
    return np.asarray(sheet)


def _cut(text: str, font: Any, width: int) -> str:
    """As much of `text` as fits, on one line."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[: max(0, len(text) - max(1, len(text) // 20))]
    return text + "..."
