"""Weights that are changed while a film is made from them. No torch.

They are mapped: what is written into their files is in the film from then on, and where they are
cut short the next look at them is a bus error, which ends a process before it can say anything. So
the files are looked at after every step; a file put in their place under the same name does no
harm, as the one that is mapped stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from mmpl.checkpoint.folder import ModelFolder
from mmpl.checkpoint.shards import shard_paths
from mmpl.errors import CheckpointError

Event = TypeVar("Event")
Seen = tuple[int, int, int, int]  # device, inode, bytes, time of the last change


class Unchanged:
    """The files of a model as they are now, before they are loaded."""

    def __init__(self, folder: ModelFolder) -> None:
        paths = [path for named in folder.files.values() for path in shard_paths(named)]
        self._seen = {path: _look(path) for path in paths}

    def follow(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events, as long as no file was changed before they came. Raises CheckpointError."""
        for event in events:
            self.require()
            yield event

    def require(self) -> None:
        """Raises CheckpointError if a file was written to or cut, or grew."""
        for path, before in self._seen.items():
            now = _look(path)
            if before is not None and now is not None and now[:2] == before[:2] and now != before:
                raise CheckpointError(
                    "the weights changed while they were in use",
                    where=str(path),
                    got=f"{now[2]} bytes" if now[2] != before[2] else "other content",
                    wanted=f"{before[2]} bytes, as when they were loaded",
                    todo="put the file back; write a new one under another name, then rename it",
                )


def _look(path: Path) -> Seen | None:
    try:
        found = os.stat(path)
    except OSError:  # gone: what is mapped stays
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
