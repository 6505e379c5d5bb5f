"""A film to make, as the flags mean it, and how they come to mean it. No torch here."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpl.checkpoint.folder import ModelFolder
from mmpl.cli import job, pictures
from mmpl.cli.model import model_folder
from mmpl.cli.pictures import Clip
from mmpl.cli.place import PATIENCE_S, Place
from mmpl.cli.shell import Console, cores
from mmpl.errors import ArgumentError
from mmpl.film.job import PREVIEW
from mmpl.film.pictures import Pictures, with_pictures
from mmpl.film.settings import Film, Request
from mmpl.media.durable import check_writable

if TYPE_CHECKING:
    from mmpl.layout.mesh import Mesh  # takes a moment that --help need not wait for

OUTPUT = "film.mp4"
Shelf = dict[tuple[object, ...], Any]  # the model that was loaded last, by all that makes it


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """A film to make, all of it checked as far as can be without torch.

    `inputs` are the flags that name pictures, `pictures` what they hold (None where a job folder
    does), and `clip` is written before the film. `preview`:
    where a growing film is written. `model` holds the flags about the model as given, `machine`
    device, dtype, vae_dtype, attention, compile, offload, quantize, threads and text_cache as
    wanted. `only_plan`: its storyboard alone.
    `weights` are the digests of the film that a job file is about. `program` is the command as it
    was typed. `schedule` holds the flags schedule and order as given. `place`: which of several
    processes this is, in which `mesh`.
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


def order_of(
    settings: Mapping[str, Any], record: job.Record, here: Place | None, console: Console
) -> Order:
    """What is to be made, checked as far as can be before anything is loaded or written."""
    from mmpl.cli import dry_run
    from mmpl.media.video import check_size

    output = settings.get("output", OUTPUT)
    request = job.request_of(settings, _seed(settings, here))
    folder, model = model_folder(settings)
    film, seen = job.film_for(request, folder), None
    check_size(film.width, film.height)
    inputs = pictures.named({**record.inputs, **settings})
    if pictures.named(settings):
        seen, landings = pictures.load(inputs, film)
        request = with_pictures(request, film, seen, folder.defaults.layout_i2v)
        pictures.require_recorded(request.given, settings.get("given"), inputs)
        film = job.film_for(request, folder)
        for line in landings:
            console.say(line)
    if settings["only_plan"] and "job_dir" not in settings:
        raise ArgumentError("a storyboard needs a job folder", todo="give --job_dir")
    return Order(
        request=request,
        film=film,
        inputs=inputs,
        pictures=seen,
        clip=pictures.clip_of(inputs, film),
        preview=_preview(settings, output),
        folder=folder,
        model=model,
        machine=_machine(settings),
        output=output,
        only_plan=settings["only_plan"],
        keep_metadata="no_metadata" not in settings,
        weights=record.weights,
        program=settings["program"],
        job_dir=settings.get("job_dir"),
        schedule={name: settings[name] for name in ("schedule", "order") if name in settings},
        place=here,
        patience_s=settings.get("rank_timeout", PATIENCE_S),
        mesh=None if here is None else dry_run.mesh_of(settings, film, folder, here.ranks),
    )


def _preview(settings: Mapping[str, Any], output: str) -> str | None:
    """Where the growing film is written, if one is wanted: by default into the job folder."""
    path = settings.get("preview")
    if path == "":
        if "job_dir" not in settings:
            raise ArgumentError("a preview needs a name", todo="give --preview FILE.mp4")
        path = str(Path(settings["job_dir"], PREVIEW))
    elif path is not None:
        check_writable(path, overwrite=True)
        if os.path.abspath(path) == os.path.abspath(output):
            raise ArgumentError("preview and output are one file", got=path, wanted="two names")
    return path


def _seed(settings: Mapping[str, Any], here: Place | None) -> int:
    seed = settings.get("seed", -1)
    if seed != -1:
        return seed
    if here is not None:
        raise ArgumentError(
            "several processes need one seed", got="a random one for each", todo="give --seed"
        )
    return secrets.randbelow(job.RANDOM_SEEDS)


def _machine(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the machine as wanted; what is left to `auto` needs torch to be told."""
    automatic = ("device", "dtype", "vae_dtype", "attention", "compile", "offload")
    usual: dict[str, Any] = dict.fromkeys(automatic, "auto")
    usual |= {"quantize": "none", "threads": cores(), "text_cache": None}
    return {name: settings.get(name, value) for name, value in usual.items()}
