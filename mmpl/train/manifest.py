"""What a folder of encoded clips says of itself: how they were made, and of what. No torch here."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmpl.errors import ArgumentError, InputError
from mmpl.media import durable
from mmpl.train.footage import MANIFEST_FILE, Cut, Refused, Source

FORMAT, VERSION = "mmpl-encoded", 1
TEXTS_FILE, REFUSED_FILE = "texts.safetensors", "refused.jsonl"
SHARDS = "shard-*.safetensors"
SHARD_CLIPS = 16  # at most, unless one video gives more
_SHOWN = 3  # differences told

Made = Mapping[str, str | int]  # how clips were made, and of what


@dataclass(frozen=True, slots=True)
class Choices:
    """How clips are cut and stored: latents in `dtype`, texts of at most `text_len` tokens."""

    cut: Cut
    text_len: int
    negative_prompt: str
    dtype: str = "float16"


def made_of(sources: Sequence[Source], choices: Choices, digests: Mapping[str, str]) -> Made:
    """All that the bytes of shards depend on. `digests`: those of VAE, text encoder and tokenizer
    that are known."""
    parts = [[source.name, asdict(source.captions), source.file_bytes] for source in sources]
    weights = {part: digests[part] for part in ("vae", "text", "tokenizer") if part in digests}
    return {
        "format": FORMAT,
        "version": VERSION,
        **asdict(choices.cut),
        "text_len": choices.text_len,
        "negative_prompt": choices.negative_prompt,
        "dtype": choices.dtype,
        "videos": len(sources),
        "sources": hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
        **weights,
    }


def shard_videos(made: Made) -> int:
    """Videos of a shard."""
    return max(1, SHARD_CLIPS // int(made["clips_per_video"]))


def shard_paths(folder: Path, made: Made) -> list[Path]:
    """The shards of a folder when it is whole."""
    shards = -(-int(made["videos"]) // shard_videos(made))
    return [folder / SHARDS.replace("*", f"{shard:05d}") for shard in range(shards)]


def read_manifest(folder: Path) -> Made | None:
    """How the clips of a folder were made; None where there is no folder or it has none. Raises
    InputError."""
    path = folder / MANIFEST_FILE
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError("cannot read what these clips are", where=str(path)) from error
    if not isinstance(made, dict) or (made.get("format"), made.get("version")) != (FORMAT, VERSION):
        raise InputError(
            "not clips that this program encoded",
            where=str(path),
            wanted=f"{FORMAT} version {VERSION}",
        )
    return made


def require_same(folder: Path, wanted: Made) -> bool:
    """Whether clips were encoded to this folder. Raises ArgumentError if they were made otherwise,
    as far as `wanted` says."""
    found = read_manifest(folder)
    if found is not None:
        require_made(folder, found, wanted)
    return found is not None


def require_made(where: str | os.PathLike[str], found: Mapping[str, Any], wanted: Made) -> None:
    """Raises ArgumentError unless `found` has all that `wanted` has."""
    other = [name for name in wanted if found.get(name) != wanted[name]]
    if other:
        got, want = (
            ", ".join(f"{name} {ascii(values.get(name))[:40]}" for name in other[:_SHOWN])
            for values in (found, wanted)
        )
        raise ArgumentError(
            "the clips there were encoded otherwise, or of other data",
            where=os.fspath(where),
            got=got,
            wanted=want,
            todo="give another folder, or remove this one",
        )


def write_manifest(folder: Path, made: Made) -> None:
    """Raises OutputError."""
    content = json.dumps(made, indent=1).encode() + b"\n"
    durable.put(folder / MANIFEST_FILE, lambda file: file.write(content))


def write_refused(folder: Path, refused: Iterable[Refused]) -> None:
    """One JSON object a line: `name` and `reason`. Raises OutputError."""
    content = "".join(json.dumps(asdict(one)) + "\n" for one in refused).encode()
    durable.put(folder / REFUSED_FILE, lambda file: file.write(content))
