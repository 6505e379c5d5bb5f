"""Models named owner/name on the Hugging Face hub: the few files of them that are read. No torch.

Through the extra `hub`, imported where it is used. What was fetched once is used as it is, without
asking anybody: the network is only for files that are not there yet.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from mmpl.checkpoint.folder import BUNDLE_FILES, INDEX_FILE
from mmpl.checkpoint.search import CONFIG_FILE, Role
from mmpl.errors import CheckpointError
from mmpl.media.durable import output_error

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_PATIENCE_S = 10.0
_SHOWN = 4


# What the weights of a network are called, as diffusers and Wan2.1 save them.
_STEMS = ("diffusion_pytorch_model", "model")
_ENDS = (".safetensors.index.json", ".safetensors")

# How each kind of folder is published: what each part's file is called, `*` for any of the above;
# the first one there counts. Pickles where the kind knows nothing else.
_KINDS: tuple[dict[Role, tuple[str, ...]], ...] = (
    {
        "dit": (BUNDLE_FILES["dit"],),
        "vae": (BUNDLE_FILES["vae"],),
        "text": (BUNDLE_FILES["text"],),
        "tokenizer": (BUNDLE_FILES["tokenizer"],),
    },
    {
        "dit": ("*",),
        "vae": ("Wan2.1_VAE.pth",),
        "text": ("models_t5_umt5-xxl-enc-bf16.pth",),
        "tokenizer": ("google/umt5-xxl/tokenizer.json", "google/umt5-xxl/spiece.model"),
    },
    {
        "dit": ("transformer/*",),
        "vae": ("vae/*",),
        "text": ("text_encoder/*",),
        "tokenizer": ("tokenizer/tokenizer.json", "tokenizer/spiece.model"),
    },
)
_CONFIGS = (
    CONFIG_FILE,
    INDEX_FILE,
    "transformer/config.json",
    "vae/config.json",
    "text_encoder/config.json",
)
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


def is_repository(name: str) -> bool:
    """Whether this is the name of a model on the hub: owner/name, and nothing here is called so."""
    return _NAME.fullmatch(name) is not None and not os.path.lexists(name)


def fetch(name: str, *, without: Collection[str] = (), shows: bool = False) -> Path:
    """The folder of the model owner/name, fetched unless it is there: its configs and the files of
    its parts but `without`. `shows`: whether the library may show on stderr how far it is.

    Raises CheckpointError where there is no such model, no way to it, or none of a known kind in
    it, and OutputError for a full disk.
    """
    library = _library(name)
    there = _there(library, name, without)
    if there is not None:
        return there
    if not shows:
        library.utils.disable_progress_bars()
    information = _asked(name, lambda: library.HfApi().model_info(name, timeout=_PATIENCE_S))
    listed = {entry.rfilename for entry in information.siblings or ()}
    files = choose(listed, without)
    if files is None:
        raise CheckpointError(
            "there is no whole model under names that are known in it",
            where=name,
            got=_few(sorted(listed)),
            wanted="the files of Wan2.1, of diffusers or of an mmpl bundle",
            todo="download the files you want and give them, or give what is missing by flags",
        )
    folders = {
        _above(_asked(name, lambda file=file: library.hf_hub_download(name, file)), file)
        for file in files
    }
    if len(folders) > 1:
        raise CheckpointError(
            "it was changed by its owner while it was fetched", where=name, todo="try again"
        )
    return folders.pop()


def choose(listed: Collection[str], without: Collection[str] = ()) -> list[str] | None:
    """Of all files of a repository those that make a model, configs first; None unless there are
    all that a kind of folder has, but for the parts `without`."""
    for kind in _KINDS:
        parts = [_part(names, listed) for role, names in kind.items() if role not in without]
        if all(parts):
            configs = [name for name in _CONFIGS if name in listed]
            return [*configs, *(file for part in parts for file in part)]
    return None


def _part(names: Iterable[str], listed: Collection[str]) -> list[str]:
    """The files of the first of these that is whole, with its shards; none if none is."""
    for name in _spelt(names):
        if name in listed:
            shards = list(_shards(name, listed)) if name.endswith(".index.json") else []
            if shards or not name.endswith(".index.json"):
                return [name, *shards]
    return []


def _spelt(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        folder, any_weights, _ = name.partition("*")
        spelt = (f"{folder}{stem}{end}" for stem in _STEMS for end in _ENDS)
        yield from spelt if any_weights else (name,)


def _shards(index: str, listed: Collection[str]) -> Iterator[str]:
    """The shards of an index, if all of them are there."""
    stem = index.removesuffix(".safetensors.index.json")
    found = [match for match in map(_SHARD.fullmatch, sorted(listed)) if match and match[1] == stem]
    if found and len(found) == int(found[0][3]):
        yield from (match[0] for match in found)


def _there(library: Any, name: str, without: Collection[str]) -> Path | None:
    """The folder of what was fetched before, if it is all that is wanted."""
    for config in (CONFIG_FILE, INDEX_FILE):
        found = _asked(name, lambda file=config: library.try_to_load_from_cache(name, file))
        if isinstance(found, str):
            folder = _above(found, config)
            listed = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
            return folder if choose(listed, without) else None
    return None


def _above(path: str, file: str) -> Path:
    """The folder in which `file`, a path with slashes, is at `path`."""
    return Path(path).parents[file.count("/")]


def _library(name: str) -> Any:
    try:
        return import_module("huggingface_hub")
    except ImportError as error:
        raise CheckpointError(
            "no such model folder, and fetching a model of this name takes the package "
            "huggingface_hub, which is not installed",
            where=name,
            todo="check the path, or pip install 'mmpl[hub]'",
        ) from error


def _asked(name: str, ask: Callable[[], Any]) -> Any:
    """What the library answers; whatever it raises becomes one line."""
    try:
        return ask()
    except Exception as error:  # noqa: BLE001  its transport raises many types
        _refuse(name, error)


def _refuse(name: str, error: Exception) -> NoReturn:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise output_error(error.filename or name, error) from error
    if {"RepositoryNotFoundError", "HFValidationError"} & kinds:
        raise CheckpointError(
            "there is no such model folder here, and no such model on the hub for you",
            where=name,
            todo="check the name; for a gated or private model log in first (hf auth login)",
        ) from error
    said = next((line for line in str(error).splitlines() if line.strip()), "")
    raise CheckpointError(
        "there is no such model folder here, and the hub cannot be reached",
        where=name,
        got=ascii(f"{type(error).__name__}: {said}"[:160])[1:-1],
        todo="check the path or the network, or give the folder of a model that you have",
    ) from error


def _few(names: list[str]) -> str:
    shown = ", ".join(ascii(name)[1:-1][:80] for name in names[:_SHOWN])
    return f"{len(names)} files: {shown}" + (", ..." if len(names) > _SHOWN else "")
