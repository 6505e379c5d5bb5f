"""The files of a model in a folder: each looked at, one chosen for each network. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmpl.checkpoint import files, shards
from mmpl.checkpoint.names import Kind
from mmpl.checkpoint.recognise import INDEX_SUFFIX, SUFFIXES, TITLES, Weights, look
from mmpl.checkpoint.tokenizer_file import MAX_TOKENIZER_BYTES, require_tokenizer
from mmpl.errors import CheckpointError

Role = Literal["dit", "vae", "text", "tokenizer"]

FLAGS: dict[Role, str] = {
    "dit": "--checkpoint",
    "vae": "--vae",
    "text": "--text_encoder",
    "tokenizer": "--tokenizer",
}
GIVE_LORA = "give a whole model, and this file with --lora"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "config.json"
SPIECE_FILE = "spiece.model"

_DEPTH = 2  # google/umt5-xxl/tokenizer.json of an official folder
_MOST_ENTRIES = 4000
_MOST_WEIGHTS = 200
_SHOWN = 5


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """What lies in a folder and two levels below it. `damaged`: why files could not be read."""

    folder: Path
    weights: tuple[Weights, ...]
    damaged: tuple[CheckpointError, ...]
    tokenizers: tuple[Path, ...]
    configs: tuple[Path, ...]


def contents(folder: Path) -> Contents:
    """Looks at every file of weights in `folder`. Raises CheckpointError for too many of them."""
    paths: list[Path] = []
    tokenizers: list[Path] = []
    configs: list[Path] = []
    for path in _files(folder):
        if path.name in (TOKENIZER_FILE, SPIECE_FILE):
            tokenizers.append(path)
        elif path.name == CONFIG_FILE:
            configs.append(path)
        elif path.name.endswith(SUFFIXES):
            paths.append(path)
    if len(paths) > _MOST_WEIGHTS:
        raise _too_many(folder, f"{len(paths)} files of weights")
    weights: list[Weights] = []
    damaged: list[CheckpointError] = []
    covered: set[Path] = set()
    known: set[str] = set()
    for path in sorted(paths, key=lambda path: not path.name.endswith(INDEX_SUFFIX)):
        real = os.path.realpath(path)
        if path in covered or real in known:
            continue
        known.add(real)
        try:
            if path.name.endswith(INDEX_SUFFIX):
                covered |= set(shards.shard_paths(path))
            else:
                covered |= set(shards.shards_without_index(path))
            weights.append(look(path))
        except CheckpointError as error:
            damaged.append(error)
    return Contents(folder, tuple(weights), tuple(damaged), tuple(tokenizers), tuple(configs))


def require_role(role: Role, path: Path) -> Weights | None:
    """What a file is that was given for a role; None for a tokenizer. Raises CheckpointError
    unless it holds that network."""
    if role == "tokenizer":
        require_tokenizer(path)
        return None
    found = look(path)
    if found.network != role:
        raise CheckpointError(
            f"this does not hold {TITLES[role]}",
            where=str(path),
            got=found.title,
            todo=GIVE_LORA if found.network == "lora" else f"check the file given by {FLAGS[role]}",
        )
    if found.relative:
        raise _relative(found)
    return found


def choose(role: Kind, places: Sequence[Contents]) -> Weights:
    """The one file of a network in the first of these folders that has any. Raises
    CheckpointError where there is none, or more than one."""
    seen = [weights for place in places for weights in place.weights]
    for place in places:
        found = [weights for weights in place.weights if weights.network == role]
        whole = [weights for weights in found if not weights.relative]
        if len(whole) == 1:
            return whole[0]
        if whole and place.damaged:  # the index of these shards, maybe
            raise place.damaged[0]
        if whole:
            raise _several(role, place.folder, [weights.path for weights in whole])
        if found:
            raise _relative(found[0])
    for place in places:
        if place.damaged:
            raise place.damaged[0]
    got = [f"{_below(places, weights.path)} ({weights.title})" for weights in seen]
    raise _missing(role, TITLES[role].split(" ", 1)[1], places, got)


def has(role: Role, place: Contents) -> bool:
    """Whether there is any candidate for a role."""
    if role == "tokenizer":
        return bool(place.tokenizers) or any(w.holds_tokenizer for w in place.weights)
    return any(weights.network == role for weights in place.weights)


def choose_tokenizer(places: Sequence[Contents]) -> Path:
    """The one tokenizer.json there is, of several the one of umT5's kind; else the SentencePiece
    model, a file of its own or inside the text encoder's. Raises CheckpointError."""
    for place in places:
        found = [path for path in place.tokenizers if path.name == TOKENIZER_FILE]
        if len(found) > 1:
            found = [path for path in found if _is_unigram(path)] or found
        found = found or [path for path in place.tokenizers if path.name == SPIECE_FILE]
        found = found or [weights.path for weights in place.weights if weights.holds_tokenizer]
        if len(found) == 1:
            return found[0]
        if found:
            raise _several("tokenizer", place.folder, found)
    raise _missing("tokenizer", f"tokenizer ({TOKENIZER_FILE})", places, [])


def _files(folder: Path) -> Iterator[Path]:
    """Every file in and below a folder, in order; links are followed, no folder twice."""
    todo, count = [(folder, 0)], 0
    seen: set[tuple[int, int]] = set()
    while todo:
        place, depth = todo.pop(0)
        try:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                listed = []
                for entry in entries:
                    count += 1
                    if count > _MOST_ENTRIES:
                        raise _too_many(folder, f"more than {_MOST_ENTRIES} files and folders")
                    listed.append((entry.name, os.path.isdir(entry.path)))
        except OSError:  # a folder that may not be read has nothing to offer
            continue
        for name, is_folder in sorted(listed):
            if name.startswith("."):
                continue
            if not is_folder:
                yield place / name
            elif depth < _DEPTH:
                todo.append((place / name, depth + 1))


def _is_unigram(path: Path) -> bool:
    try:
        return '"Unigram"' in files.read_text(path, MAX_TOKENIZER_BYTES)
    except CheckpointError:
        return False


def _relative(found: Weights) -> CheckpointError:
    return CheckpointError(
        f"this is {found.relative}, which is not supported",
        where=str(found.path),
        wanted="a Wan2.1 text-to-video model or one fine-tuned from it",
    )


def _several(role: Role, folder: Path, paths: Iterable[Path]) -> CheckpointError:
    names = [os.path.relpath(path, folder) for path in paths]
    title = "a tokenizer" if role == "tokenizer" else TITLES[role]
    return CheckpointError(
        f"several files hold {title}",
        where=str(folder),
        got=_listed(names),
        wanted="one of them, or all shards of one",
        todo=f"say which with {FLAGS[role]}",
    )


def _missing(role: Role, title: str, places: Sequence[Contents], got: list[str]) -> CheckpointError:
    return CheckpointError(
        f"there is no {title} in this folder",
        where=" or ".join(str(place.folder) for place in places),
        got=_listed(got) if got else "no file of weights" if role != "tokenizer" else None,
        todo=f"download it, or give it with {FLAGS[role]}",
    )


def _too_many(folder: Path, got: str) -> CheckpointError:
    return CheckpointError(
        "too much lies here to look for a model",
        where=str(folder),
        got=got,
        todo="give the model's own folder, or each file: " + " ".join(FLAGS.values()),
    )


def _below(places: Sequence[Contents], path: Path) -> str:
    return os.path.relpath(path, places[0].folder)


def _listed(names: Sequence[str]) -> str:
    shown = [ascii(name)[1:-1][:100] for name in names[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
