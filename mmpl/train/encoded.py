"""Encoded clips on disk: shards of latents and text embeddings, and their reader.

A shard is a safetensors file with the clips of a few videos: `z_CTHW.<clip>`, and per video
`dense_JD.<video>` and `short_JD.<video>`, where it has such a caption. Of captions alone, made with
no frames, there are no latents. Its record, JSON in the metadata, names videos, clips and what was
refused, how all was made, and the SHA-256 of the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmpl.errors import InputError
from mmpl.media import durable
from mmpl.train.manifest import TEXTS_FILE, Made, read_manifest, shard_paths

Kind = Literal["dense", "short"]
_KEY = "mmpl"  # the only one: the order of several is not the same in every file
_TODO = "run mmpl-train encode again: it makes what is missing or damaged"


@dataclass(frozen=True, slots=True)
class Record:
    """What a shard holds: names of its videos, of each clip (video, first frame), and (name,
    reason) of what was refused; `made` says how."""

    made: Made
    videos: tuple[str, ...] = ()
    clips: tuple[tuple[int, int], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Clip:
    path: Path
    clip: int
    video: int
    name: str


class EncodedClips:
    """The clips that `mmpl.train.encoding.encode_clips` left in a folder, in the order of its
    sources.

    Tensors are mapped from the files when asked for, and nothing stays open: it can be shared among
    threads and sent to other processes. With `verify` all files are read and held against their
    checksums first. `made` says how the clips were made, `negative` and `empty` are the embeddings
    [J, D] of the model's negative prompt and of no text. Raises InputError where the folder is
    none of encoded clips, not finished, or damaged.
    """

    def __init__(self, folder: str | Path, *, verify: bool = True) -> None:
        self.folder = Path(folder)
        made = read_manifest(self.folder)
        if made is None:
            raise InputError(
                "no encoded clips here", where=str(folder), todo="make them: mmpl-train encode"
            )
        self.made = made
        paths = shard_paths(self.folder, made)
        missing = [path for path in paths if not path.exists()]
        if missing:
            raise InputError(
                "these clips are not all encoded",
                where=str(folder),
                got=f"{len(paths) - len(missing)} shards",
                wanted=len(paths),
                todo=_TODO,
            )
        self._clips: list[_Clip] = []
        for path in paths:
            record = _intact(path, made, verify=verify)
            for clip, (video, start) in enumerate(record.clips):
                self._clips.append(_Clip(path, clip, video, f"{record.videos[video]}#{start}"))
        texts = self.folder / TEXTS_FILE
        _intact(texts, made, verify=verify)
        self.negative, self.empty = _tensor(texts, "negative_JD"), _tensor(texts, "empty_JD")

    def __len__(self) -> int:
        return len(self._clips)

    def latents(self, index: int) -> Tensor:
        """z_CTHW of a clip, as stored (float16 unless it was wanted otherwise). Raises InputError
        for captions alone."""
        clip = self._clips[index]
        if not self.made["frames"]:
            raise InputError(
                "these are captions alone, without clips",
                where=str(self.folder),
                todo="encode videos for this, or procedural:COUNT",
            )
        return _tensor(clip.path, f"z_CTHW.{clip.clip}")

    def text(self, index: int, kind: Kind = "dense") -> Tensor:
        """The embedding [J, D] of a clip's dense or short caption; of the other one, where there is
        only that."""
        clip = self._clips[index]
        other = "short" if kind == "dense" else "dense"
        names = [f"{name}_JD.{clip.video}" for name in (kind, other)]
        return _tensor(clip.path, *names)

    def name(self, index: int) -> str:
        """The clip's video and first frame: `cats/a.mp4#12`."""
        return self._clips[index].name


def write_shard(path: Path, record: Record, tensors: Mapping[str, Tensor]) -> None:
    """Makes a shard durable. The same content gives the same bytes. Raises OutputError."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    entries = _entries(record)
    said = json.dumps(entries | {"sha256": _sha256(entries, plain)}, sort_keys=True)
    content = save(plain, metadata={_KEY: said})
    durable.put(path, lambda file: file.write(content))


def read_record(path: Path, *, verify: bool) -> Record | None:
    """What a shard holds; None where it cannot be read or, with `verify`, is not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            entries = json.loads((file.metadata() or {})[_KEY])
            names = file.keys() if verify else ()
            tensors = {name: file.get_tensor(name) for name in names}
        sha256 = entries.pop("sha256")
        if verify and sha256 != _sha256(entries, tensors):
            return None
        return Record(
            entries["made"],
            tuple(entries["videos"]),
            tuple((video, start) for video, start in entries["clips"]),
            tuple((name, reason) for name, reason in entries["refused"]),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _intact(path: Path, made: Made, *, verify: bool) -> Record:
    record = read_record(path, verify=verify)
    if record is None:
        raise InputError("this shard is damaged or gone", where=str(path), todo=_TODO)
    if record.made != made:
        raise InputError("this shard belongs to other encoded clips", where=str(path))
    return record


def _tensor(path: Path, *names: str) -> Tensor:
    """The first of these tensors that there is."""
    try:
        with safe_open(path, framework="pt") as file:
            there = set(file.keys())
            return file.get_tensor(next(name for name in names if name in there))
    except (OSError, SafetensorError, StopIteration) as error:
        raise InputError("this shard is damaged or gone", where=str(path), todo=_TODO) from error


def _entries(record: Record) -> dict[str, Any]:
    return {
        "made": dict(record.made),
        "videos": list(record.videos),
        "clips": [list(clip) for clip in record.clips],
        "refused": [list(one) for one in record.refused],
    }


def _sha256(entries: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256(json.dumps(entries, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
