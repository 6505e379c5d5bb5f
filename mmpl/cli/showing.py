"""A film to be watched before it is whole: an mp4 of each finished segment, and a preview."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from mmpl.cli.order import Order
from mmpl.cli.shell import Console
from mmpl.film.job import segment_film
from mmpl.generate import Frames
from mmpl.media.image import Pixels
from mmpl.media.preview import PreviewWriter
from mmpl.media.video import VideoWriter


class Showing:
    """`with Showing(order, console) as showing:` writes what it is given, in the order of the film,
    to a film of each segment in the job folder, and to the preview if one is wanted."""

    def __init__(self, order: Order, console: Console) -> None:
        self._order, self._console = order, console
        self._preview: PreviewWriter | None = None
        self._segment: VideoWriter | None = None  # the one in hand

    def __enter__(self) -> Self:
        order, film = self._order, self._order.film
        if order.preview is not None:
            self._preview = PreviewWriter(order.preview, film.width, film.height, film.fps)
            self._preview.__enter__()
        return self

    def see_before(self, pixels_FHWC: Pixels) -> None:
        """Frames of the clip that the film goes on from."""
        if self._preview is not None:
            self._preview.write(pixels_FHWC)

    def see(self, event: Frames) -> bool:
        """Frames of a segment; with its last, its own film gets its name. Whether that is so."""
        film = self._order.film
        self.see_before(event.pixels_FHWC)
        own = event.first_frame - film.first_frame(event.segment) + len(event.pixels_FHWC)
        start, stop = film.kept(event.segment)
        whole = own == stop - start
        if self._order.job_dir is None:
            return whole
        if self._segment is None:
            path = Path(self._order.job_dir) / segment_film(event.segment)
            self._segment = VideoWriter(path, film.width, film.height, film.fps).__enter__()
        self._segment.write(event.pixels_FHWC)
        if whole:
            self._segment.__exit__(None, None, None)
            first, path = film.first_frame(event.segment), self._segment.path
            self._console.tell(
                "segment",
                segment=event.segment + 1,
                first_frame=first,
                frames=stop - start,
                path=path,
            )
            self._segment = None
        return whole

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._preview is not None:
            self._preview.__exit__(kind, error, trace)
        if self._segment is not None:
            self._segment.__exit__(kind, error, trace)
