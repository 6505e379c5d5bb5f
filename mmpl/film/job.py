"""Whose job folder this is: the settings, weights and versions that a film's latents depend on.

`job.json` holds them by the names of the flags, in the form of a film's metadata, so either can be
read as the settings of another run. No torch here: a folder of another film is refused before
anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmpl.errors import ResumeError
from mmpl.film.pins import pins_text
from mmpl.film.script import cuts_text, seeds_text
from mmpl.film.settings import Film
from mmpl.layout.work import SEEDS, Task
from mmpl.media import durable

JOB_FILE = "job.json"
GIVEN_FILE = "given.safetensors"
STORYBOARD, REPORT = "storyboard.png", "report.html"
KEYFRAMES, THUMBNAILS = "keyframes", "thumbnails"  # folders of pictures
FINISHED = "segment_*.safetensors"  # one file a task
STILLS = "segment_*.png"
SEGMENT_FILMS = "segment_*.mp4"
PREVIEW = "preview.mp4"
TABLES = ("settings", "weights", "versions")  # what the latents depend on
_SHORT = 40


@dataclass(frozen=True, slots=True)
class Revision:
    """A job changed on purpose: its new settings, by name, and the segments, from 0, that have to
    be made again, or of these the `groups` alone. `prepare` writes what they are made from, before
    anything else changes. `notes`: what else changes in the job."""

    settings: Mapping[str, Any]
    segments: range
    groups: tuple[str, ...] = ()
    prepare: Callable[[], None] = lambda: None
    notes: Mapping[str, Any] = field(default_factory=dict)


def settings_of(film: Film) -> dict[str, Any]:
    """Everything a film's pictures depend on but weights and machine, by the names of the flags."""
    same = (
        "prompt", "negative_prompt", "seed", "width", "height", "fps", "steps", "populate_steps",
        "guidance_scale", "shift", "solver", "seeding", "noise", "alpha", "beta",
    )  # fmt: skip
    values = {name: getattr(film, name) for name in same}
    return values | {
        "num_frames": film.frames,
        "layout": film.layout.name,
        "cut": cuts_text(film.cuts),
        "segment_seeds": seeds_text(film.segment_seeds),
        "given": pins_text(film.pins),
        "lead": film.lead,
    }


def up_to_date(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job, or a film's metadata, with what its settings mean that were written before there was
    a setting."""
    found = job.get("settings")
    if not isinstance(found, Mapping):
        return {**job}
    since = {"quantize": "none", "compile": "no"}
    if "steps" in found:
        since["populate_steps"] = found["steps"]
    return {**job, "settings": {**since, **found}}


def read_job(folder: Path) -> dict[str, Any] | None:
    """The job of a folder; None where none has begun. Raises ResumeError for one that cannot be
    read, or is missing beside finished latents."""
    path = folder / JOB_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not is_begun(folder):
            return None
        raise ResumeError(
            "nothing says of which film the latents in this folder are",
            where=str(folder),
            wanted=f"{JOB_FILE} beside them",
            todo="start it over with --fresh, or give another --job_dir",
        ) from None
    except (OSError, ValueError) as error:
        raise ResumeError(
            "this job folder cannot be read",
            where=str(path),
            got=str(error)[:80],
            todo="start it over with --fresh, or give another --job_dir",
        ) from error
    return up_to_date(found) if isinstance(found, dict) else {}


def write_job(folder: Path, job: Mapping[str, Any]) -> None:
    """Notes whose folder this is, durably. Raises OutputError."""
    content = (json.dumps(job, indent=1, ensure_ascii=False) + "\n").encode()
    durable.put(folder / JOB_FILE, lambda file: file.write(content))


def is_begun(folder: Path) -> bool:
    """Whether something of a film is finished in a job folder."""
    return next(folder.glob(FINISHED), None) is not None


def file_name(task: Task) -> str:
    """Of the latents that a make or a hand-over gives, in the job folder."""
    name = SEEDS if task.kind == "hand_over" else task.group or task.kind
    segment = task.segment + (2 if task.kind == "hand_over" else 1)
    return f"segment_{segment:04d}.{name}.safetensors"


def segment_film(segment: int) -> str:
    """Of what the film shows of a segment, in the job folder."""
    return f"segment_{segment + 1:04d}.mp4"


def start_over(folder: Path) -> None:
    """Removes what a job folder holds of its film, and nothing else. The job goes last: latents
    that another film's job is written beside would be taken for its own. Raises OutputError."""
    mine = [
        *folder.glob(FINISHED),
        *(folder / name for name in (GIVEN_FILE, STORYBOARD, REPORT, PREVIEW)),
    ]
    mine += folder.glob(SEGMENT_FILMS)
    mine += [path for name in (KEYFRAMES, THUMBNAILS) for path in (folder / name).glob(STILLS)]
    durable.remove(mine)
    durable.remove([folder / JOB_FILE])


def sweep(folder: Path) -> None:
    """Removes the temporary files that killed processes left in a job folder. Only for who knows
    that nobody else is at work in it."""
    names = FINISHED, SEGMENT_FILMS, JOB_FILE, GIVEN_FILE, STORYBOARD, REPORT
    durable.sweep_folder(folder, *names)
    for pictures in (KEYFRAMES, THUMBNAILS):
        durable.sweep_folder(folder / pictures, STILLS)


def revised(job: Mapping[str, Any], revision: Revision) -> dict[str, Any]:
    """The job after a revision."""
    return {**job, "settings": {**job["settings"], **revision.settings}, **revision.notes}


def revise(folder: Path, job: Mapping[str, Any], revision: Revision) -> None:
    """Makes the folder that of the job `revised`. What is no longer true goes first: whenever this
    is interrupted, the folder is that of one of the two, whole. For who has it locked. Raises
    OutputError."""
    revision.prepare()
    stale = [folder / REPORT]
    for segment in revision.segments:
        name = f"segment_{segment + 1:04d}"
        stale.append(folder / segment_film(segment))
        if revision.groups:
            stale += [folder / f"{name}.{group}.safetensors" for group in revision.groups]
            continue
        first = segment == revision.segments[0]
        latents = folder.glob(f"{name}.*.safetensors")
        stale += [path for path in latents if not (first and path.name.split(".")[1] == SEEDS)]
        for pictures in (KEYFRAMES, THUMBNAILS):
            stale += (folder / pictures).glob(f"{name}.*.png")
    if not revision.groups:
        stale.append(folder / STORYBOARD)
    durable.remove([path for path in stale if path.exists()])
    write_job(folder, job)


def require_same(folder: Path, found: Mapping[str, Any], job: Mapping[str, Any]) -> None:
    """Raises ResumeError, with every difference, unless `found` in `folder` is `job`.

    Only the tables and entries of `job` count, and of weights only those that `found` names: a
    film that was planned with another model names the VAE alone.
    """
    there, here = _entries(found, job), _entries(job, job)
    changed = [
        name
        for name in here
        if there.get(name) != here[name] and (name in there or not name.startswith("weights "))
    ]
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
            if isinstance(entries, Mapping) and name in entries:
                found[prefix + name] = json.loads(json.dumps(entries[name]))
    return found


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 3]}..."
