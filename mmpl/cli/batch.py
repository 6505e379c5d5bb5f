"""Many films from one command: a file with one JSON object of flags a line. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmpl.cli import job
from mmpl.cli.arguments import FILES, JOB_GROUPS
from mmpl.cli.model import model_folder
from mmpl.errors import ArgumentError, InputError, MmplError
from mmpl.media.image import readable_file

_NOT_HERE = ("ranks", "gpus", "dry_run", "config", "job_dir", "output", "log", "preview")


def read_films(path: str, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings of each film of the file at `path`; the flags `given` are for all of them.

    Each is checked as far as it can be without reading pictures: a slip in the last line is told
    before the first film is begun. Raises InputError and ArgumentError that name the line.
    """
    for name in _NOT_HERE:
        if name in given:
            raise ArgumentError(
                f"--{name} means nothing for many films", got="--jobs", todo="say it in each line"
            )
    films: list[dict[str, Any]] = []
    outputs: set[str] = set()
    for number, line in _lines(path):
        try:
            film = {**given, **job.read_settings(line, path, (*JOB_GROUPS, FILES))}
            if "output" not in film:
                raise ArgumentError("a film has no output", wanted='"output": "some.mp4"')
            if film["output"] in outputs:
                raise ArgumentError("two films have one output", got=film["output"])
            outputs.add(film["output"])
            folder, _ = model_folder(film)
            job.film_for(job.request_of(film, max(0, film.get("seed", 0))), folder)
        except MmplError as error:
            error.add_note(f"line {number} of {path}")
            raise
        films.append(film)
    if not films:
        raise InputError("no films in this file", where=path, wanted="a JSON object a line")
    return films


def _lines(path: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        texts = Path(readable_file(path)).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError("not a text file", where=path, got=str(error)[:80]) from error
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict):
            raise InputError(
                "not a JSON object", where=f"{path}, line {number}", got=ascii(text)[:60],
                wanted='{"prompt": "...", "output": "some.mp4"}',
            )  # fmt: skip
        yield number, line
