"""This process as one of several that make a film: joining the others and giving signs of life."""

from __future__ import annotations

import os
import signal
import socket
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


class Crew:
    """The process at `place` among those of one film, joined once all are there.

    Raises RankError if those that start them are not to be found for `patience_s`.
    """

    def __init__(self, place: Place, device: torch.device, patience_s: float) -> None:
        self._place, self._device = place, device
        self._beats: Beats | None = None
        if place.folder is not None:
            self._beats = Beats(place.folder / "beats", place.ranks)
            # The parent decides when all stop, so that each stops once and in order.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        elif place.rank > 0:
            _await_port(patience_s)
        self._meet()

    def _meet(self) -> None:
        """Before the model is loaded, so that a wrong address does not cost minutes."""
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
            raise _not_met(str(error).splitlines()[0][:120]) from error

    def join(self, model: Model, film: Film, mesh: Mesh | None) -> Ranks:
        """The processes of the film, once all have loaded their model.

        Raises ArgumentError if they are not about to make the same film, RankError if some are
        gone.
        """
        group = dist.group.WORLD
        assert group is not None
        same = (__version__, torch.__version__, film, mesh, sorted(model.digests.items()))
        require_equal(repr(same), group)
        return Ranks(group, mesh, self.beat)

    def follow(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events, each a sign of life."""
        self.beat()
        for event in events:
            if isinstance(event, Stepped):
                self.beat(event.segment + 1, event.step)
            else:
                self.beat()
            yield event
        if dist.is_initialized():
            dist.destroy_process_group()

    def beat(self, segment: int = 0, step: int = 0) -> None:
        """A sign of life, from where this process is; segments count from 1."""
        if self._beats is not None:
            self._beats.write(self._place.rank, started=True, segment=segment, step=step)


def _await_port(patience_s: float) -> None:
    """Until rank 0 can be reached: torch itself would try for as long as loading may take."""
    address = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not address[1].isdigit():
        raise _not_met(f"MASTER_PORT {address[1]!r}")
    end = time.monotonic() + patience_s
    while True:
        try:
            socket.create_connection((address[0], int(address[1])), timeout=2).close()
        except OSError as error:
            if time.monotonic() > end:
                raise _not_met(f"{':'.join(address)} {error.strerror or error}") from error
            time.sleep(0.2)
        else:
            return


def _not_met(got: str) -> RankError:
    return RankError(
        "the processes did not find each other",
        got=got,
        todo="check MASTER_ADDR and MASTER_PORT, and that all were started",
    )
