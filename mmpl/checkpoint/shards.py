"""Weights in several files: which they are, and what their headers say together. No torch.

Every function raises CheckpointError, in well under a second, whatever the files hold.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mmpl.checkpoint.files import (
    DOWNLOAD_AGAIN,
    MAX_JSON_BYTES,
    TensorInfo,
    read_header,
    read_json,
    require_file,
)
from mmpl.errors import CheckpointError

INDEX_SUFFIX = ".index.json"
_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


def read_headers(path: Path) -> dict[str, TensorInfo]:
    """Like `read_header`, of all files that `shard_paths` finds."""
    return {name: info for part in shard_headers(path).values() for name, info in part.items()}


def shard_headers(path: Path) -> dict[Path, dict[str, TensorInfo]]:
    """File -> its header, of all files that `shard_paths` finds. Each holds exactly the tensors
    that the index says, where there is one, and none that another holds."""
    indexed = index_shards(path) if path.name.endswith(INDEX_SUFFIX) else {}
    headers: dict[Path, dict[str, TensorInfo]] = {}
    names: set[str] = set()
    for shard in shard_paths(path):
        headers[shard] = header = read_header(shard)
        astray = sorted(indexed[shard.name].symmetric_difference(header)) if indexed else []
        if astray:
            raise CheckpointError(
                "a shard does not hold what the index says",
                where=str(shard),
                got=f"{len(astray)} missing or unexpected, {ascii(astray[0])[:80]} among them",
                todo=DOWNLOAD_AGAIN,
            )
        twice = sorted(names.intersection(header))
        if twice:
            raise CheckpointError(
                "a shard holds what another of them does",
                where=str(shard),
                got=f"{len(twice)} tensors, {ascii(twice[0])[:80]} among them",
                todo="give the shards of one model, in a folder of their own",
            )
        names.update(header)
    return headers


def shard_paths(path: Path) -> list[Path]:
    """The files that `path` stands for: those beside an index that it names; of a file that
    is numbered as a shard, as in x-00001-of-00002.safetensors, it and the others, which must be
    there; any other file alone."""
    if path.name.endswith(INDEX_SUFFIX):
        return [path.parent / shard for shard in index_shards(path)]
    numbered = _NUMBERED.fullmatch(path.name)
    if numbered is None or not 1 <= int(numbered[2]) <= int(numbered[3]):
        return [path]
    shards: list[Path] = []
    for number in range(1, int(numbered[3]) + 1):
        shards.append(path.parent / f"{numbered[1]}-{number:05}-of-{numbered[3]}.safetensors")
        require_file(shards[-1])
    return shards


def shards_without_index(path: Path) -> list[Path]:
    """The shards that `path` stands for, where these have no index; nothing of other files."""
    numbered = _NUMBERED.fullmatch(path.name)
    if numbered is None or os.path.lexists(
        path.parent / f"{numbered[1]}.safetensors{INDEX_SUFFIX}"
    ):
        return []
    return shard_paths(path)


def index_shards(path: Path) -> dict[str, set[str]]:
    """File name -> the tensors in it, as an .index.json says: plain names, never paths."""
    table = read_json(path, MAX_JSON_BYTES).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(
            "the index lists no tensors", where=str(path), wanted="an object weight_map"
        )
    shards: dict[str, set[str]] = {}
    for name, shard in table.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise CheckpointError(
                "the index names a file outside its folder",
                where=str(path),
                got=ascii(shard)[:80],
                wanted="plain .safetensors file names",
            )
        shards.setdefault(shard, set()).add(name)
    return shards


def _is_plain_name(name: str) -> bool:
    return (
        name.endswith(".safetensors")
        and name.isprintable()
        and not any(c in name for c in "/\\:")
        and not name.startswith(".")
    )
