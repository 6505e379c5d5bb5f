"""Which of the processes of one film this one is, as its environment says. Imports little."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = "MMPL_FOLDER"  # where the processes of one film meet, on one machine


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


def settings_file(folder: Path, rank: int) -> Path:
    """Where the parent leaves the flags that it decides for a process."""
    return folder / f"settings-{rank}.json"
