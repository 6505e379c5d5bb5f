"""This process as one of several that make a film: joining the others and giving signs of life."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from mmpl import __version__
from mmpl.cli.beats import Beats
from mmpl.cli.place import Place
from mmpl.errors import RankError
from mmpl.film.exchange import require_equal
from mmpl.film.settings import Film
from mmpl.generate import Event, Mesh, Model, Ranks, Stepped

MEETING_S = 900  # the longest that others may take to load the model
_PR_SET_PDEATHSIG = 1


class Crew:
    """The process at `place` among those of one film."""

    def __init__(self, place: Place, device: torch.device) -> None:
        self._place, self._device = place, device
        self._beats: Beats | None = None
        if place.folder is not None:
            self._beats = Beats(place.folder / "beats", place.ranks)
            _end_with_parent()
            # The parent decides when all stop, so that each stops once and in order.
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def join(self, model: Model, film: Film, mesh: Mesh | None) -> Ranks:
        """The processes of the film, once all are there.

        Raises ArgumentError if they are not about to make the same film, RankError if some do
        not come.
        """
        backend = "gloo" if self._device.type == "cpu" else "cpu:gloo,cuda:nccl"
        folder = self._place.folder
        try:
            dist.init_process_group(
                backend,
                init_method="env://" if folder is None else f"file://{folder}/store",
                rank=self._place.rank,
                world_size=self._place.ranks,
                timeout=timedelta(seconds=MEETING_S),
            )
        except (RuntimeError, ValueError) as error:
            raise RankError(
                "the processes did not find each other", got=str(error).splitlines()[0][:120],
                todo="check MASTER_ADDR and MASTER_PORT, and that all were started",
            ) from error  # fmt: skip
        group = dist.group.WORLD
        assert group is not None
        same = (__version__, torch.__version__, film, mesh, sorted(model.digests.items()))
        require_equal(repr(same), group)
        return Ranks(group, mesh, self._beat)

    def follow(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events, each a sign of life."""
        self._beat()
        for event in events:
            if isinstance(event, Stepped):
                self._beat(event.segment + 1, event.step)
            else:
                self._beat()
            yield event
        if dist.is_initialized():
            dist.destroy_process_group()

    def _beat(self, segment: int = 0, step: int = 0) -> None:
        if self._beats is not None:
            self._beats.write(self._place.rank, started=True, segment=segment, step=step)


def _end_with_parent() -> None:
    """No process outlives its parent, however that ends."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(RankError.exit_code)

    threading.Thread(target=watch, daemon=True, name="parent").start()
