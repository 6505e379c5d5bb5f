"""The job folder: what a film has finished, durable, one checksummed file a task.

A task's file is there whole or not at all. Whoever starts the same film on the folder goes on from
what is there, on any number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmpl.errors import InputError, ResumeError
from mmpl.film.settings import JOB_FILE
from mmpl.layout.work import Task, Work
from mmpl.media import durable


class Store:
    """Finished latents in `folder`, which is made if it is not there.

    `job` is all that the latents depend on, as JSON can hold it. Raises ResumeError when the
    folder belongs to another job, OutputError where it cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], job: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        durable.make_folder(self.folder, private=True)
        _settle(self.folder / JOB_FILE, json.loads(json.dumps(job)))

    def put(self, task: Task, z_BCTHW: Tensor) -> None:
        """Makes the latents of a task durable. Raises OutputError."""
        data = z_BCTHW.detach().to("cpu").contiguous()
        with durable.replacing(self._path(task)) as temporary:
            save_file({"z_BCTHW": data}, temporary, metadata={"sha256": _sha256(data)})

    def get(self, task: Task) -> Tensor:
        """The latents of a finished task. Raises InputError if the file is damaged."""
        found = _read(self._path(task))
        if found is None:
            raise InputError(
                "these finished latents are damaged or gone",
                where=str(self._path(task)),
                todo="run the same command again: they will be made anew",
            )
        return found

    def finished(self, work: Work) -> frozenset[Task]:
        """The tasks of `work` whose files are there and whole; damaged ones are not."""
        return frozenset(task for task in work.tasks if _read(self._path(task)) is not None)

    def _path(self, task: Task) -> Path:
        name = "seeds" if task.kind == "hand_over" else task.group or task.kind
        segment = task.segment + (2 if task.kind == "hand_over" else 1)
        return self.folder / f"segment_{segment:04d}.{name}.safetensors"


def _settle(path: Path, job: Mapping[str, Any]) -> None:
    """Notes whose folder this is, or compares."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        content = (json.dumps(job, indent=1, ensure_ascii=False) + "\n").encode()
        durable.put(path, lambda file: file.write(content))
        return
    except (OSError, ValueError) as error:
        raise ResumeError(
            "this job folder cannot be read", where=str(path), got=str(error)[:80],
            todo="remove the folder or give another --job_dir",
        ) from error  # fmt: skip
    if not isinstance(found, dict):
        found = {}
    changed = sorted(n for n in job.keys() | found.keys() if job.get(n) != found.get(n))
    if changed:
        raise ResumeError(
            "this job folder belongs to another film",
            where=str(path.parent),
            got=", ".join(f"{name} {_short(job.get(name))}" for name in changed),
            wanted=", ".join(f"{name} {_short(found.get(name))}" for name in changed),
            todo="give the same settings, or another --job_dir, or remove the folder",
        )


def _read(path: Path) -> Tensor | None:
    """The latents in a file; None where it is not there or not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            z_BCTHW = file.get_tensor("z_BCTHW")
            wanted = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return z_BCTHW if wanted == _sha256(z_BCTHW) else None


def _sha256(data: Tensor) -> str:
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
