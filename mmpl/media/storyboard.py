"""A storyboard as one picture: stills in rows, each with its time, each row with what it shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_INK, _FAINT, _PAPER = (235, 235, 235), (150, 150, 150), (24, 24, 24)
_GAP, _LINE = 8, 20  # pixels around stills, and of a line of text
_SMALLEST, _LARGEST = 120, 320  # pixels that a still is wide on the sheet
_FONT_SIZE = 14


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A line of text, and under it stills (HWC uint8 RGB, all of one size) with a word each."""

    text: str
    stills: Sequence[tuple[str, NDArray[np.uint8]]]


@dataclass(frozen=True, slots=True)
class SheetSize:
    """Pixels of a storyboard of so many `rows` and `columns` of stills of one size. Small stills
    are enlarged, large ones reduced."""

    rows: int
    columns: int
    still_height: int
    still_width: int

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width of a still on the sheet."""
        scale = min(max(1.0, _SMALLEST / self.still_width), _LARGEST / self.still_width)
        return round(self.still_height * scale), round(self.still_width * scale)

    @property
    def width(self) -> int:
        return _GAP + self.columns * (self.cell[1] + _GAP)

    @property
    def title_height(self) -> int:
        return 2 * _GAP + _LINE

    @property
    def row_height(self) -> int:
        return _LINE + self.cell[0] + _LINE + _GAP

    @property
    def height(self) -> int:
        return self.title_height + self.rows * self.row_height


def storyboard(size: SheetSize, title: str, rows: Iterable[Row]) -> Iterator[NDArray[np.uint8]]:
    """The picture from its top, HWC uint8 RGB: a band of the title, then one of each row, drawn as
    it comes, for a long film has many. Text that is too long is cut."""
    font, most = ImageFont.load_default(_FONT_SIZE), size.width - 2 * _GAP
    cell_height, cell_width = size.cell
    band = Image.new("RGB", (size.width, size.title_height), _PAPER)
    text = _cut(title, font, most)
    ImageDraw.Draw(band).text((_GAP, _GAP), text, fill=_INK, font=font)
    yield np.asarray(band)
    for row in rows:
        band = Image.new("RGB", (size.width, size.row_height), _PAPER)
        draw = ImageDraw.Draw(band)
        draw.text((_GAP, 0), _cut(row.text, font, most), fill=_FAINT, font=font)
        for column, (word, still) in enumerate(row.stills):
            left = _GAP + column * (cell_width + _GAP)
            image = Image.fromarray(still).resize(
                (cell_width, cell_height), Image.Resampling.LANCZOS
            )
            band.paste(image, (left, _LINE))
            draw.text((left, _LINE + cell_height + 1), word, fill=_INK, font=font)
        yield np.asarray(band)


def _cut(text: str, font: Any, width: int) -> str:
    """As much of `text` as fits, on one line."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[: max(0, len(text) - max(1, len(text) // 20))]
    return text + "..."
