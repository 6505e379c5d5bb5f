"""Ctrl-C and SIGTERM in a training: they wait for the end of the step, so that it is saved."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_BOUNCE_S = 2.0  # torchrun passes on what the terminal has sent to all of its processes already


class Wish:
    """To stop: the signal that came, if one did."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._since = 0.0

    def __bool__(self) -> bool:
        return self.number is not None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the block a first SIGINT or SIGTERM is only noted, and a second one, unless it is
        the same wish, does what it did before. So do those that Python does not handle, and all
        outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = {number: handler for number, handler in found.items() if callable(handler)}

        def note(number: int, frame: object) -> None:
            if not self:
                self.number, self._since = number, time.monotonic()
            elif time.monotonic() - self._since >= _BOUNCE_S:
                before[signal.Signals(number)](number, frame)  # pyright: ignore[reportArgumentType]

        try:
            for number in before:
                signal.signal(number, note)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def grant(self, note: str) -> NoReturn:
        """Raises what the signal raises here, else KeyboardInterrupt, with a note."""
        try:
            if self.number is not None:
                signal.raise_signal(self.number)
            raise KeyboardInterrupt
        except KeyboardInterrupt as stopped:
            stopped.add_note(note)
            raise
