"""Whose job folder this is: the settings, weights and versions that a film's latents depend on.

`job.json` holds them by the names of the flags, in the form of a film's metadata, so either can be
read as the settings of another run. No torch here: a folder of another film is refused before
anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpl.errors import ResumeError
from mmpl.film.script import cuts_text, seeds_text
from mmpl.film.settings import Film
from mmpl.layout.work import SEEDS
from mmpl.media import durable

JOB_FILE = "job.json"
STORYBOARD, KEYFRAMES = "storyboard.png", "keyframes"
FINISHED = "segment_*.safetensors"  # one file a task
STILLS = "segment_*.png"
TABLES = ("settings", "weights", "versions")  # what the latents depend on
_SHORT = 40


@dataclass(frozen=True, slots=True)
class Revision:
    """A job changed on purpose: its new settings, by name, and the segments, from 0, that have to
    be made again."""

    settings: Mapping[str, Any]
    segments: range


def settings_of(film: Film) -> dict[str, Any]:
    """Everything a film's pictures depend on but weights and machine, by the names of the flags."""
    same = (
        "prompt", "negative_prompt", "seed", "width", "height", "fps", "steps", "guidance_scale",
        "shift", "solver", "seeding", "noise", "alpha", "beta",
    )  # fmt: skip
    values = {name: getattr(film, name) for name in same}
    return values | {
        "num_frames": film.frames,
        "layout": film.layout.name,
        "cut": cuts_text(film.cuts),
        "segment_seeds": seeds_text(film.segment_seeds),
    }


def read_job(folder: Path) -> dict[str, Any] | None:
    """The job of a folder; None where none has begun. Raises ResumeError for one that cannot be
    read, or is missing."""
    path = folder / JOB_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if is_begun(folder):
            raise ResumeError(
                "this folder holds parts of a film, and not what film that is",
                where=str(folder),
                todo="start it over with --fresh, or give another --job_dir",
            ) from None
        return None
    except (OSError, ValueError) as error:
        raise ResumeError(
            "this job folder cannot be read",
            where=str(path),
            got=str(error)[:80],
            todo="start it over with --fresh, or give another --job_dir",
        ) from error
    return found if isinstance(found, dict) else {}


def write_job(folder: Path, job: Mapping[str, Any]) -> None:
    """Notes whose folder this is, durably. Raises OutputError."""
    content = (json.dumps(job, indent=1, ensure_ascii=False) + "\n").encode()
    durable.put(folder / JOB_FILE, lambda file: file.write(content))


def is_begun(folder: Path) -> bool:
    """Whether something of a film is finished in a job folder."""
    return next(folder.glob(FINISHED), None) is not None


def start_over(folder: Path) -> None:
    """Removes what a job folder holds of its film, and nothing else; the job itself last: whenever
    this is interrupted, what is left belongs to the film that the folder says."""
    mine = [*folder.glob(FINISHED), folder / STORYBOARD]
    mine += (folder / KEYFRAMES).glob(STILLS)
    for path in [*mine, folder / JOB_FILE]:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Removes the temporary files that killed processes left in a job folder. Only for who knows
    that nobody else is at work in it."""
    durable.sweep_folder(folder, FINISHED, JOB_FILE, STORYBOARD)
    durable.sweep_folder(folder / KEYFRAMES, STILLS)


def revised(job: Mapping[str, Any], revision: Revision) -> dict[str, Any]:
    """The job after a revision."""
    return {**job, "settings": {**job["settings"], **revision.settings}}


def revise(folder: Path, job: Mapping[str, Any], revision: Revision) -> None:
    """Makes the folder that of the revised `job`. What is no longer true goes first: whenever this
    is interrupted, the folder is that of one of the two, whole."""
    stale = [folder / STORYBOARD]
    for segment in revision.segments:
        names = [*folder.glob(f"segment_{segment + 1:04d}.*.safetensors")]
        names += (folder / KEYFRAMES).glob(f"segment_{segment + 1:04d}.*.png")
        first = segment == revision.segments[0]
        stale += [path for path in names if not (first and path.name.split(".")[1] == SEEDS)]
    for path in stale:
        path.unlink(missing_ok=True)
    write_job(folder, job)


def require_same(folder: Path, found: Mapping[str, Any], job: Mapping[str, Any]) -> None:
    """Raises ResumeError, with every difference, unless `found` in `folder` is `job`.

    Only the tables and entries of `job` count.
    """
    there, here = _entries(found, job), _entries(job, job)
    changed = [name for name in here if there.get(name) != here[name]]
    if changed:
        raise ResumeError(
            "this job folder belongs to another film",
            where=str(folder),
            got=", ".join(f"{name} {_short(here[name])}" for name in changed),
            wanted=", ".join(f"{name} {_short(there.get(name))}" for name in changed),
            todo="give the same settings, or another --job_dir, or start it over with --fresh",
        )


def _entries(job: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of the tables of a job that `wanted` has too, by one name each."""
    found = {}
    for table in TABLES:
        entries = job.get(table)
        prefix = "" if table == "settings" else f"{table} "
        for name in wanted.get(table, {}):
            value = entries.get(name) if isinstance(entries, Mapping) else None
            found[prefix + name] = json.loads(json.dumps(value))
    return found


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 3]}..."
