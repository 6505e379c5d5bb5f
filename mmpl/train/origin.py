"""What a tuning was begun with: a record in its run folder. No torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mmpl.checkpoint.files import read_json
from mmpl.errors import ArgumentError, InputError
from mmpl.media import durable

RECORD = "tune.json"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a run's model is, and which of its weights are trained. `digest` is that of its
    transformer."""

    model_path: str
    checkpoint: str | None
    digest: str
    trains: str


def begin(run: Path, origin: Origin) -> None:
    """Records the origin, or holds it against the record; only where the model is may change.
    Raises ArgumentError, OutputError."""
    durable.make_folder(run)
    path = run / RECORD
    if path.exists():
        found = origin_of(run)
        for name in ("digest", "trains"):
            if getattr(found, name) != getattr(origin, name):
                raise ArgumentError(
                    "this run was started otherwise",
                    where=str(path),
                    got=f"{name} {getattr(origin, name)[:20]}",
                    wanted=f"{name} {getattr(found, name)[:20]}",
                    todo="use the old model and --trains, or another folder",
                )
    content = json.dumps(asdict(origin), indent=1).encode() + b"\n"
    durable.put(path, lambda file: file.write(content))


def origin_of(run: Path) -> Origin:
    """What `begin` recorded. Raises InputError where nothing was, or it is damaged."""
    path = run / RECORD
    if not path.is_file():
        raise InputError(
            "this is not the run folder of a tuning", where=str(run), wanted=f"{RECORD} in it"
        )
    found = read_json(path)
    texts = all(isinstance(value, str) or name == "checkpoint" for name, value in found.items())
    if found.keys() != {field.name for field in fields(Origin)} or not texts:
        raise InputError("the record of this run is damaged", where=str(path))
    return Origin(**found)
