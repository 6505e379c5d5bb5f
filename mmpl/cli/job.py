"""Settings of a film as data: from flags and job files, into the film's metadata, and compared.

A job file is the metadata of a film, or a JSON file that holds as much of it as its author likes.
No torch here.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpl.checkpoint.defaults import Defaults
from mmpl.checkpoint.files import read_json
from mmpl.checkpoint.folder import ModelFolder
from mmpl.cli.arguments import BY_NAME, JOB_GROUPS, MACHINE, read_values
from mmpl.errors import ArgumentError, InputError, OutputError
from mmpl.film.settings import JOB_FILE, Film, Request, resolve

Settings = Mapping[str, Any]  # flag name -> value

LENGTHS = ("duration", "num_frames", "segments")


@dataclass(frozen=True, slots=True)
class Record:
    """A job file: its settings, and the digests of the weights a film was made with, if known."""

    settings: Settings
    weights: Mapping[str, Any]
    files: Mapping[str, Any]


def read_record(path: str) -> Record:
    """The settings stored in a film or in a JSON file, each checked as the flag of its name is.

    Raises InputError for a file of another kind and ArgumentError for a value that cannot be.
    """
    if path.lower().endswith(".mp4"):
        from mmpl.media.video import read_metadata  # takes a moment to import

        content: Mapping[str, Any] = read_metadata(path)
    else:
        content = read_json(Path(path))
    texts = {}
    for name, value in _table(content, "settings", content, path).items():
        flag = BY_NAME.get(name)
        if flag is None or flag.group not in JOB_GROUPS:
            raise InputError(
                "unknown setting",
                where=path,
                got=ascii(name)[:60],
                wanted="names of flags without the dashes, such as prompt, seed, steps",
            )
        if type(value) not in (str, int, float):
            raise InputError(
                f"{name} is neither a text nor a number", where=path, got=ascii(value)[:60]
            )
        texts[name] = str(value)
    return Record(
        read_values(texts),
        _table(content, "weights", {}, path),
        _table(content, "files", {}, path),
    )


def merge(given: Settings, recorded: Settings) -> Settings:
    """Both together; flags win, and a length given in one way replaces one recorded in another."""
    if any(name in given for name in LENGTHS):
        recorded = {name: value for name, value in recorded.items() if name not in LENGTHS}
    return {**recorded, **given}


def resumed(settings: Settings) -> Settings:
    """`settings`, with the seed and the threads of the film that their job folder has begun, where
    they are not given: the same command then goes on with it, on any number of processes."""
    if "job_dir" not in settings:
        return settings
    try:
        begun = read_json(Path(settings["job_dir"]) / JOB_FILE)
    except InputError:
        return settings  # there is none yet; what is wrong with it is said when it is opened
    left = [name for name in ("seed", "threads") if settings.get(name, -1) == -1]
    return {**settings, **{name: begun[name] for name in left if type(begun.get(name)) is int}}


def request_of(settings: Settings, seed: int) -> Request:
    """The request of these settings. Raises ArgumentError where there is no prompt."""
    if "prompt" not in settings:
        raise ArgumentError(
            "no prompt", wanted='--prompt "..."', todo="--examples lists prompts that work"
        )
    same = (
        "prompt", "negative_prompt", "segments", "width", "height", "fps", "steps", "shift",
        "guidance_scale", "solver", "seeding", "noise", "alpha", "beta", "layout",
    )  # fmt: skip
    return Request(
        seed=seed,
        duration_s=settings.get("duration"),
        frames=settings.get("num_frames"),
        **{name: settings[name] for name in same if name in settings},
    )


def film_settings(film: Film) -> dict[str, Any]:
    """Everything a film's pictures depend on but weights and machine, by the names of the flags."""
    same = (
        "prompt", "negative_prompt", "seed", "width", "height", "fps", "steps", "guidance_scale",
        "shift", "solver", "seeding", "noise", "alpha", "beta",
    )  # fmt: skip
    values = {name: getattr(film, name) for name in same}
    return values | {"num_frames": film.frames, "layout": film.layout.name}


def film_for(request: Request, folder: ModelFolder) -> Film:
    """The film a request means for the model in a folder, before its weights are read."""
    vae, dit = folder.configs.vae, folder.configs.dit
    return resolve(
        request,
        folder.defaults,
        temporal_stride=vae.temporal_stride,
        pixel_step=vae.spatial_stride * dit.patch_size[1],
    )


def file_sizes(folder: ModelFolder) -> dict[str, dict[str, Any]]:
    """Name and bytes of each of the model's files: what tells models apart before reading them."""
    return {
        part: {"name": path.name, "bytes": os.stat(path).st_size}
        for part, path in folder.files.items()
    }


def require_made(path: str, film: Film, folder: ModelFolder, given: Settings) -> Record:
    """The settings of the file at `path`, which is this very film, whole.

    Raises ArgumentError that says what it is instead. A seed or a setting of the machine counts
    only where it is `given`.
    """
    from mmpl.media.video import verify

    todo = "choose another --output, or --overwrite it"
    try:
        record = read_record(path)
    except (InputError, ArgumentError) as error:
        raise ArgumentError(
            "the output exists and is not a film with its settings in it", where=path, todo=todo
        ) from error
    wanted = film_settings(film)
    if "seed" not in given:
        del wanted["seed"]
    wanted |= {
        name: value
        for name, value in given.items()
        if name in BY_NAME and BY_NAME[name].group == MACHINE and value != "auto"
    }
    differing = [name for name, value in wanted.items() if record.settings.get(name) != value]
    if differing or not _same_weights(record, folder):
        raise ArgumentError(
            "the output exists and is another film",
            where=path,
            got="other " + ", ".join(differing or ["weights"]),
            todo=todo,
        )
    try:
        verify(path, film.frames, film.width, film.height)
    except OutputError as error:
        raise ArgumentError(
            "the output exists and is this film, but damaged", where=path, todo=todo
        ) from error
    return record


def command(film: Film, defaults: Defaults, rest: Settings, output: str) -> str:
    """The command that makes the same film again: what differs from the defaults, and `rest`."""
    plain = film_settings(
        resolve(
            Request(film.prompt, film.seed),
            defaults,
            temporal_stride=film.chain.temporal_stride,
            pixel_step=1,
        )
    )
    values = film_settings(film)
    keep = {n: v for n, v in values.items() if n in ("prompt", "seed") or v != plain[n]}
    words: list[str] = []
    for name, value in {**keep, **rest, "output": output}.items():
        words += [f"--{name}", str(value)]
    return " ".join(_quoted(word) for word in words)


def _same_weights(record: Record, folder: ModelFolder) -> bool:
    sizes = file_sizes(folder)
    return all(
        record.weights.get(part) == folder.digests[part]
        if part in folder.digests
        else record.files.get(part) == sizes[part]
        for part in sizes
    )


def _quoted(word: str) -> str:
    """`word` for a shell; characters that no terminal shows as bash and zsh write them."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = [
        char if char.isprintable() and char not in "\\'" else f"\\U{ord(char):08x}" for char in word
    ]
    return f"$'{''.join(escaped)}'"


def _table(
    content: Mapping[str, Any], name: str, default: Mapping[str, Any], where: str
) -> Mapping[str, Any]:
    value = content.get(name, default)
    if not isinstance(value, Mapping):
        raise InputError(f"{name} is not a table", where=where, wanted="a JSON object")
    return value
