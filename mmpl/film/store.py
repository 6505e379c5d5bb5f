"""The job folder: what a film has finished, durable, one checksummed file a task.

A task's file is there whole or not at all. Whoever starts the same film on the folder goes on from
what is there, on any number of ranks.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmpl.errors import InputError
from mmpl.film.job import TABLES, file_name, read_job, require_same, write_job
from mmpl.layout.work import Task, Work
from mmpl.media import durable


class Store:
    """Finished latents in `folder`, which is made if it is not there.

    `job` is all that the latents depend on, see `mmpl.generate.job_of`; without one the folder is
    taken as it is. `notes` are kept beside it. Raises ResumeError when the folder belongs to
    another job, OutputError where it cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        job: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        if job is None:
            return
        durable.make_folder(self.folder, private=True)
        found = read_job(self.folder)
        if found is None:
            write_job(self.folder, {**job, **(notes or {})})
            return
        require_same(self.folder, found, job)
        if any(found.get(name, {}).keys() < job.get(name, {}).keys() for name in TABLES):
            # Planned with other weights: which ones it goes on with is known from here on.
            write_job(self.folder, {**found, **job, **(notes or {})})

    def put(self, task: Task, z_BCTHW: Tensor) -> None:
        """Makes the latents of a task durable. Raises OutputError."""
        data = z_BCTHW.detach().to("cpu").contiguous()
        content = save({"z_BCTHW": data}, metadata={"sha256": _sha256(data, task)})
        durable.put(self._path(task), lambda file: file.write(content))

    def get(self, task: Task) -> Tensor:
        """The latents of a finished task. Raises InputError if the file is damaged."""
        found = self._read(task)
        if found is None:
            raise InputError(
                "these finished latents are damaged or gone",
                where=str(self._path(task)),
                todo="run the same command again: they will be made anew",
            )
        return found

    def look(self, work: Work) -> tuple[frozenset[Task], tuple[Path, ...]]:
        """The tasks of `work` that are finished, and the files that are there and not whole."""
        there = [task for task in work.tasks if self._path(task).exists()]
        finished = frozenset(task for task in there if self._read(task) is not None)
        return finished, tuple(self._path(task) for task in there if task not in finished)

    def _read(self, task: Task) -> Tensor | None:
        """The latents of a task; None where its file is not there or not whole."""
        try:
            with safe_open(self._path(task), framework="pt") as file:
                z_BCTHW = file.get_tensor("z_BCTHW")
                wanted = (file.metadata() or {}).get("sha256")
        except (OSError, SafetensorError):
            return None
        return z_BCTHW if wanted == _sha256(z_BCTHW, task) else None

    def _path(self, task: Task) -> Path:
        return self.folder / file_name(task)


def _sha256(data: Tensor, task: Task) -> str:
    """Of the latents, and of what they are: two files that changed places are damaged too."""
    return hashlib.sha256(repr(task).encode() + data.numpy().tobytes()).hexdigest()
