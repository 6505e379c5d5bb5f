"""A film to make, as the flags mean it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmpl.checkpoint.folder import ModelFolder
from mmpl.cli.pictures import Clip
from mmpl.cli.place import Place
from mmpl.film.pins import Pictures
from mmpl.film.settings import Film, Request
from mmpl.layout.mesh import Mesh


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """A film to make, all of it checked as far as can be without torch.

    `inputs` are the flags that name pictures, `pictures` what they hold (None where a job folder
    does), and `clip` is written before the film. `preview`:
    where a growing film is written. `model` holds the flags model_path and checkpoint
    as given, `machine` device, dtype, attention and threads as wanted. `only_plan`: its storyboard
    alone. `weights` are the digests of the film that a job file is about. `program` is the command
    as it was typed. `schedule` holds the flags schedule and order as given. `place`: which of
    several processes this is, in which `mesh`.
    """

    request: Request
    film: Film
    inputs: Mapping[str, Any]
    pictures: Pictures | None
    clip: Clip | None
    preview: str | None
    folder: ModelFolder
    model: Mapping[str, str]
    machine: Mapping[str, Any]
    output: str
    only_plan: bool
    keep_metadata: bool
    weights: Mapping[str, Any]
    program: str
    job_dir: str | None
    schedule: Mapping[str, str]
    place: Place | None
    patience_s: float
    mesh: Mesh | None

    @property
    def leads(self) -> bool:
        """Whether this process writes what all of them make."""
        return self.place is None or self.place.rank == 0
