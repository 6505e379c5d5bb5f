"""Untrusted files looked at before anything is loaded: kind, size, JSON, headers. No torch.

Every function raises CheckpointError, in well under a second, whatever the file holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open

from mmpl.checkpoint.gguf_file import is_gguf, plain_format, read_entries
from mmpl.errors import CheckpointError

# Opening a header near the format's own cap of 100 MB takes 13 s and 2.4 GB; a 14B model needs
# less than 1 MiB.
MAX_HEADER_BYTES = 8 * 2**20
MAX_JSON_BYTES = 8 * 2**20
MAX_CONFIG_BYTES = 2**20
MAX_PICKLE_INDEX_BYTES = 64 * 2**20  # the pickle inside a .pt, without the tensors' bytes

DOWNLOAD_AGAIN = "copy or download the file again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says of a tensor: `dtype` in safetensors' words (F32, BF16, ...)."""

    dtype: str
    shape: tuple[int, ...]


def require_file(path: Path) -> int:
    """The size in bytes of a regular, non-empty file; symbolic links are followed."""
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            "no such file", where=str(path), todo="check the path or download the file"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "this path cannot be read", where=_printable(path), got=_reason(error)
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(
            "this is not a regular file",
            where=str(path),
            got=_kind(status.st_mode),
            wanted="a file",
        )
    if not status.st_size:
        raise CheckpointError("the file is empty", where=str(path), todo=DOWNLOAD_AGAIN)
    return status.st_size


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes."""
    size = require_file(path)
    if size > limit:
        raise CheckpointError(
            "the file is too large for what it should hold",
            where=str(path),
            got=f"{size} bytes",
            wanted=f"at most {limit}",
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            "the file cannot be read", where=str(path), got=_reason(error)
        ) from error


def read_text(path: Path, limit: int = MAX_JSON_BYTES) -> str:
    """The UTF-8 text of a file of at most `limit` bytes."""
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            "the file is not readable as text", where=str(path), got=_reason(error)
        ) from error


def read_json(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in a file; no NaN, no key given twice."""
    text = read_text(path, limit)
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            "the file is not valid JSON",
            where=str(path),
            got=_reason(error),
            todo="repair it or copy it again",
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            "the file holds another kind of JSON",
            where=str(path),
            got=type(value).__name__,
            wanted="an object",
        )
    return value


def require_whole_json(path: Path, limit: int) -> None:
    """Raises unless a file begins and ends as a JSON object does: cheap for a large vocabulary."""
    text = read_text(path, limit).strip()
    if not (text.startswith("{") and text.endswith("}")):
        raise CheckpointError(
            "the file is cut short or not a JSON object", where=str(path), todo=DOWNLOAD_AGAIN
        )


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Name -> dtype and shape of every tensor of a .safetensors file, checked against its length.

    The library parses and validates; only the header's length is read here, to cap it first. The
    same of a GGUF file, whose blocks count as the BF16 that they become.
    """
    require_file(path)
    if is_gguf(path):
        return _gguf_header(path)
    require_header(path)
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: TensorInfo(part.get_dtype(), tuple(part.get_shape()))
                for name, part in slices.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        refuse_damaged(path, error)


def _gguf_header(path: Path) -> dict[str, TensorInfo]:
    try:
        return {
            name: TensorInfo(plain_format(path, entry.kind) or "BF16", entry.shape)
            for name, entry in read_entries(path).items()
        }
    except (OSError, ValueError, KeyError) as error:
        refuse_damaged(path, error)


def require_header(path: Path) -> None:
    """Raises unless a .safetensors file starts with a header of a sane length."""
    size = require_file(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise CheckpointError(
            "the file cannot be read", where=str(path), got=_reason(error)
        ) from error
    if size < 8 or length > size - 8:
        raise CheckpointError(
            "the file is cut short or not a safetensors file",
            where=str(path),
            got=f"{size} bytes",
            wanted=f"{8 + length}" if size >= 8 and length < 2**40 else None,
            todo=DOWNLOAD_AGAIN,
        )
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            "the safetensors header is too large",
            where=str(path),
            got=f"{length} bytes",
            wanted=f"at most {MAX_HEADER_BYTES}",
        )


def read_metadata(path: Path) -> dict[str, str]:
    """What the header of a .safetensors file says beside its tensors; nothing of an index."""
    if path.suffix == ".json":
        return {}
    require_header(path)
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        refuse_damaged(path, error)


def require_bytes(path: Path, name: str, limit: int) -> None:
    """Raises unless a .safetensors file has a tensor `name` of at most `limit` bytes, in a row."""
    found = read_header(path).get(name)
    if found is None or found.dtype != "U8" or len(found.shape) != 1 or found.shape[0] > limit:
        raise CheckpointError(
            f"the file does not hold {name} as bytes",
            where=str(path),
            got=f"{found.dtype} of {found.shape}" if found else "no such tensor",
            wanted=f"at most {limit} bytes",
        )


def tensor_bytes(path: Path, name: str) -> bytes:
    """The content of a tensor for which `require_bytes` has found no fault."""
    try:
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(name).tobytes()
    except (SafetensorError, OSError, ValueError) as error:
        refuse_damaged(path, error)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    require_file(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            "the file cannot be read", where=str(path), got=_reason(error)
        ) from error


def is_zip(path: Path) -> bool:
    """Whether a pickle is of torch's zip format, the only one that can be memory-mapped."""
    require_file(path)
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise CheckpointError(
            "the file cannot be read", where=str(path), got=_reason(error)
        ) from error


def require_pickle(path: Path) -> None:
    """Raises when a .pt or .pth is visibly damaged; reads its table of contents, runs nothing.

    Entries must be stored uncompressed, as torch writes them: they are mapped as they lie, and
    nothing can unpack to more than the file's size.
    """
    size = require_file(path)
    if not is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # noqa: BLE001  damaged archives raise many types
        refuse_damaged(path, error)
    index = [entry for entry in entries if entry.filename.split("/")[-1] == "data.pkl"]
    if len(index) != 1 or index[0].file_size > MAX_PICKLE_INDEX_BYTES:
        raise CheckpointError(
            "this is not a torch checkpoint",
            where=str(path),
            got="an archive without a data.pkl of sane size",
            todo="check that the right file was given",
        )
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise CheckpointError(
                "the checkpoint's archive is compressed or encrypted",
                where=str(path),
                wanted="an archive as torch.save writes it",
                todo="save it again with torch.save, or as safetensors",
            )
        if entry.header_offset + entry.file_size > size:
            refuse_damaged(path, ValueError(f"entry {ascii(entry.filename[:60])} is cut short"))


def refuse_damaged(path: Path, error: Exception) -> NoReturn:
    """Raises CheckpointError for a file that its own library could not read."""
    raise CheckpointError(
        "the file is damaged, cut short or of another format",
        where=str(path),
        got=_reason(error),
        todo=DOWNLOAD_AGAIN,
    ) from error


def _reason(error: Exception) -> str:
    """One printable line of at most 160 characters."""
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return "".join(c if c.isprintable() else " " for c in text.split("\n")[0])[:160]


def _printable(path: Path) -> str:
    return ascii(str(path))[1:-1][:200]


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((name for test, name in kinds if test(mode)), "something else")


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is given twice")
    return table
