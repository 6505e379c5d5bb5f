"""Settings of a film as data: from flags and job files, into the film's metadata, and compared.

A job file is the metadata of a film, the `job.json` of a job folder, which has the same form, or a
JSON file that holds as much of it as its author likes. No torch here.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmpl.checkpoint.defaults import Defaults
from mmpl.checkpoint.files import read_json
from mmpl.checkpoint.folder import ModelFolder
from mmpl.cli.arguments import BY_NAME, JOB_GROUPS, MACHINE, read_values
from mmpl.errors import ArgumentError, InputError, MmplError, OutputError
from mmpl.film.job import (
    GIVEN_FILE,
    JOB_FILE,
    is_begun,
    read_job,
    require_same,
    revise,
    revised,
    settings_of,
    start_over,
    up_to_date,
)
from mmpl.film.job import sweep as sweep_job
from mmpl.film.script import joined
from mmpl.film.settings import Film, Request, resolve
from mmpl.media.durable import locked, make_folder, sweep

Settings = Mapping[str, Any]  # flag name -> value

RANDOM_SEEDS = 2**31  # few enough digits to be typed
LONGEST_PROMPT = 1_000_000  # characters of a file
_LORA = "lora "  # and its number: a LoRA among the files
LENGTHS = ("duration", "num_frames", "segments")


@dataclass(frozen=True, slots=True)
class Record:
    """A job file: its settings, those that name the model included, the digests of the weights a
    film was made with, where it is to be written, and the flags that name the pictures it was
    made from, as far as they are known."""

    settings: Settings
    weights: Mapping[str, Any]
    files: Mapping[str, Any]
    output: str | None = None
    inputs: Settings = field(default_factory=dict)


def read_record(path: str) -> Record:
    """The settings stored in a film, a job folder or a JSON file, each checked as the flag of its
    name is.

    Raises InputError for a file of another kind and ArgumentError for a value that cannot be.
    """
    if path.lower().endswith(".mp4"):
        from mmpl.media.video import read_metadata  # takes a moment to import

        content: Mapping[str, Any] = read_metadata(path)
    else:
        content = read_json(Path(path, JOB_FILE) if os.path.isdir(path) else Path(path))
    content = up_to_date(content)
    settings = _table(content, "settings", content, path)
    beside = {name: _table(content, name, {}, path) for name in ("machine", "model")}
    values = read_settings({**beside["machine"], **settings, **beside["model"]}, path)
    return Record(
        values,
        _table(content, "weights", {}, path),
        _table(content, "files", {}, path),
        output if isinstance(output := content.get("output"), str) else None,
        read_settings(_table(content, "inputs", {}, path), path),
    )


def read_settings(
    table: Settings, path: str, groups: tuple[str, ...] = JOB_GROUPS
) -> dict[str, Any]:
    """The values of a table of the file at `path`, each read as the flag of its name, which must be
    of one of `groups`. Raises InputError and ArgumentError."""
    texts = {}
    for name, value in table.items():
        flag = BY_NAME.get(name)
        if flag is None or flag.group not in groups:
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
    return read_values(texts)


def merge(given: Settings, recorded: Settings) -> Settings:
    """Both together; flags win, and a length given in one way replaces one recorded in another."""
    if any(name in given for name in LENGTHS):
        recorded = {name: value for name, value in recorded.items() if name not in LENGTHS}
    return {**recorded, **given}


def resumed(settings: Settings) -> Settings:
    """`settings`, with the seed and the threads of the film that their job folder has begun, where
    they are not given: the same command then goes on with it, on any number of processes."""
    if "job_dir" not in settings or "fresh" in settings:
        return settings
    try:
        found = read_job(Path(settings["job_dir"])) or {}
        begun = _table(found, "settings", {}, settings["job_dir"])
    except MmplError:
        return settings  # what is wrong with it is said when it is opened
    left = [name for name in ("seed", "threads") if name not in settings]
    return {**settings, **{name: begun[name] for name in left if type(begun.get(name)) is int}}


@contextmanager
def at_work(folder: Path, film: Film, output: str, settings: Settings) -> Iterator[None]:
    """Within the block the job folder is there and this process's alone; it goes if nothing of a
    film was finished in it. What killed processes left half written, there and for `output`, goes
    first.

    A `revision` among the settings is carried out. Raises ResumeError, with the differences, if
    the folder has begun another film and is not to be started over, ArgumentError if another
    process holds it, OutputError if it cannot be made.
    """
    make_folder(folder, private=True)
    with locked(folder) as alone:
        try:
            if alone:
                tidy(folder, output)
            _require_own(folder, film, settings)
            yield
        finally:  # while it is locked: it may be another's the moment after
            with suppress(OSError):
                if not is_begun(folder):
                    for name in (GIVEN_FILE, JOB_FILE):
                        (folder / name).unlink(missing_ok=True)
                folder.rmdir()


def tidy(folder: Path, output: str) -> None:
    """Removes what killed processes left half written of a film, for who has its folder locked."""
    sweep_job(folder)
    sweep(output)


def tidy_if_idle(folder: Path, output: str) -> None:
    """As `tidy`, unless another process is at work in the folder or there is none."""
    with suppress(ArgumentError, OSError), locked(folder) as alone:
        if alone:
            tidy(folder, output)


def _require_own(folder: Path, film: Film, settings: Settings) -> None:
    """Starts the folder over or revises it, where that is wanted; else it must be this film's."""
    if "fresh" in settings:
        start_over(folder)
        return
    found = read_job(folder)
    if found is None:
        return
    revision = settings.get("revision")
    if revision is not None:
        found = revised(found, revision)
    machine = _machine_of(settings)
    machine.pop("vae_dtype", None)  # it changes frames, and no latents
    if "device" in machine:
        machine["device"] = machine["device"].partition(":")[0]
    require_same(folder, found, {"settings": settings_of(film) | machine})
    if revision is not None:
        revise(folder, found, revision)


def _machine_of(settings: Settings) -> dict[str, Any]:
    """The settings of the machine that are given, not left to be found out, and change a film."""
    return {
        name: value
        for name, value in settings.items()
        if name in BY_NAME
        and BY_NAME[name].group == MACHINE
        and value != "auto"
        and name not in ("offload", "text_cache")
    }


def with_prompt_file(given: Settings) -> Settings:
    """The flags, with the prompt that the file they name holds.

    Raises ArgumentError if they have one of their own, InputError for a file that is no text.
    """
    if "prompt_file" not in given:
        return given
    if "prompt" in given:
        raise ArgumentError("the prompt is given twice", got="--prompt and --prompt_file")
    from mmpl.media.image import readable_file  # takes a moment to import

    path = readable_file(given["prompt_file"])
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(LONGEST_PROMPT + 1)
    except (OSError, ValueError) as error:
        raise InputError("not a text file", where=str(path), got=str(error)[:80]) from error
    if len(text) > LONGEST_PROMPT:
        raise InputError(
            "too long for a prompt", where=str(path), wanted=f"{LONGEST_PROMPT:,} characters"
        )
    return {**given, "prompt": joined([line for line in text.splitlines() if line.strip()] or [""])}


def request_of(settings: Settings, seed: int) -> Request:
    """The request of these settings. Raises ArgumentError where there is no prompt."""
    if "prompt" not in settings:
        raise ArgumentError(
            "no prompt", wanted='--prompt "..."', todo="--examples lists prompts that work"
        )
    same = (
        "prompt", "cut", "segment_seeds", "given", "lead", "negative_prompt", "segments", "width",
        "height", "fps", "steps", "populate_steps", "shift", "guidance_scale", "solver", "seeding",
        "noise", "alpha", "beta", "layout",
    )  # fmt: skip
    return Request(
        seed=seed,
        duration_s=settings.get("duration"),
        frames=settings.get("num_frames"),
        **{name: settings[name] for name in same if name in settings},
    )


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
    """Name and bytes of each of the model's files: what tells models apart before reading them. Of
    a LoRA also the digest, as those of one training are all of one size."""
    sizes: dict[str, dict[str, Any]] = {
        part: {"name": path.name, "bytes": os.stat(path).st_size}
        for part, path in folder.files.items()
    }
    for number, lora in enumerate(folder.loras, 1):
        sizes[f"{_LORA}{number}"] = {
            "name": lora.path.name,
            "bytes": lora.bytes,
            "sha256": lora.sha256,
            "strength": lora.strength,
        }
    return sizes


def require_made(
    path: str, film: Film, before: int, folder: ModelFolder, given: Settings
) -> Record:
    """The settings of the file at `path`, which is this very film, whole, after `before` frames.

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
    wanted = settings_of(film)
    if "seed" not in given:
        del wanted["seed"]
    wanted |= _machine_of(given)
    differing = [name for name, value in wanted.items() if record.settings.get(name) != value]
    if differing or not _same_weights(record, folder):
        raise ArgumentError(
            "the output exists and is another film",
            where=path,
            got="other " + ", ".join(differing or ["weights"]),
            todo=todo,
        )
    try:
        verify(path, before + film.frames, film.width, film.height)
    except OutputError as error:
        raise ArgumentError(
            "the output exists and is this film, but damaged", where=path, todo=todo
        ) from error
    return record


def command(film: Film, defaults: Defaults, rest: Settings, output: str) -> str:
    """The command that makes the same film again: what differs from the defaults, and `rest`."""
    plain = settings_of(
        resolve(
            Request("any", film.seed),
            defaults,
            temporal_stride=film.chain.temporal_stride,
            pixel_step=1,
        )
    )
    values = settings_of(film)
    for name in ("given", "lead"):  # the pictures say so, which are in `rest`
        del values[name]
    keep = {n: v for n, v in values.items() if n in ("prompt", "seed") or v != plain[n]}
    words: list[str] = []
    for name, value in {**keep, **rest, "output": output}.items():
        for text in str(value).splitlines() if name in ("keyframe", "lora") else [str(value)]:
            words += [f"--{name}", *([text] if BY_NAME[name].metavar else [])]
    return " ".join(_quoted(word) for word in words)


def _same_weights(record: Record, folder: ModelFolder) -> bool:
    sizes = file_sizes(folder)
    loras = {part for part in record.files if part.startswith(_LORA)}
    digests = dict(folder.digests)
    if folder.loras:
        digests.pop("dit", None)  # the film's is that of the merged weights
    return all(
        record.weights.get(part) == digests[part]
        if part in digests
        else record.files.get(part) == sizes.get(part)
        for part in {*sizes, *loras}
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
