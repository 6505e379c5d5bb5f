"""Which of the processes of one film this one is, as its environment says. Imports little."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmpl.errors import RankError

FOLDER = "MMPL_FOLDER"  # where the processes of one film meet, on one machine
PARENT = "MMPL_PARENT"  # the process that started them there
PATIENCE_S = 60.0  # how long a process may be silent
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Which process this is. `folder` is where those of one machine meet; None under torchrun.
    `settings`: flags decided by the parent, which win over those given."""

    rank: int
    ranks: int
    local_rank: int
    folder: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def speaks(self) -> bool:
        """Whether it checks and warns, which a parent would have done already."""
        return self.folder is None and self.rank == 0

    @property
    def first_of_machine(self) -> bool:
        """Whether it tells for its machine, one of several, that it takes part."""
        return self.folder is None and self.local_rank == 0


def place() -> Place | None:
    """The place this process was given in its environment, if any."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(os.environ.get(name, "").isdigit() for name in names):
        return None
    rank, ranks, local_rank = (int(os.environ[name]) for name in names)
    if FOLDER not in os.environ:
        return Place(rank, ranks, local_rank)
    folder = Path(os.environ[FOLDER])
    from mmpl.layout.mesh import Mesh  # takes a moment that --help need not wait for

    settings = json.loads(settings_file(folder, rank).read_text(encoding="utf-8"))
    settings["parallel"] = Mesh(*settings["parallel"])
    return Place(rank, ranks, local_rank, folder, settings)


def end_with_parent() -> None:
    """From now on this process does not outlive the parent that started it for a film, if one did,
    however that ends; it ends at once where that has happened already."""
    if PARENT not in os.environ:
        return
    parent = int(os.environ[PARENT])
    if sys.platform == "linux":
        import ctypes  # takes a moment that --help need not wait for

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:  # where the kernel does not, or the parent was gone before it was told
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(RankError.exit_code)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def settings_file(folder: Path, rank: int) -> Path:
    """Where the parent leaves the flags that it decides for a process."""
    return folder / f"settings-{rank}.json"
