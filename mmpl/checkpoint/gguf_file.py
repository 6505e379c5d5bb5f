"""GGUF files as ComfyUI-GGUF and llama.cpp write them: names, shapes, and where the numbers are.

The table of contents is read here, with caps: the library's own reader follows counts of a damaged
file for ever. What the blocks of numbers mean is the library's (extra `gguf`), imported where used.
No torch. Source of the layout: the GGUF specification of ggml, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from importlib import import_module
from math import prod
from pathlib import Path
from typing import IO, Any

from mmpl.errors import CheckpointError

MAGIC = b"GGUF"
SHAPE_KEY = "comfy.gguf.orig_shape."
ARCHITECTURES = ("wan", "t5", "t5encoder")

_VERSIONS = (2, 3)
_MOST = 2**20  # tensors, settings, entries of a list: a vocabulary has 2**18
_LONGEST = 2**20  # bytes of a text
_LONGEST_TABLE = 16 * 2**20  # bytes before the numbers; a vocabulary takes half of that
_SCALARS = {code: letter for code, letter in enumerate("BbHhIif?  Qqd") if letter != " "}
_TEXT, _LIST = 8, 9
_UNSTORED = 4  # axes that a tensor can have at most

# llama.cpp's names of a T5 encoder -> official ones, `#` for the block.
_T5 = {
    "token_embd": "token_embedding",
    "enc.output_norm": "norm",
    "enc.blk.#.attn_norm": "blocks.#.norm1",
    "enc.blk.#.ffn_norm": "blocks.#.norm2",
    "enc.blk.#.attn_rel_b": "blocks.#.pos_embedding.embedding",
    "enc.blk.#.ffn_gate": "blocks.#.ffn.gate.0",
    "enc.blk.#.ffn_up": "blocks.#.ffn.fc1",
    "enc.blk.#.ffn_down": "blocks.#.ffn.fc2",
    **{f"enc.blk.#.attn_{part}": f"blocks.#.attn.{part}" for part in "qkvo"},
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the file: `kind` is ggml's number of its format, `shape` that of the network's
    tensor, `rows` the axes it is stored with, and `start` and `size` its bytes in the file."""

    kind: int
    shape: tuple[int, ...]
    rows: tuple[int, ...]
    start: int
    size: int


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does; False for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_entries(path: Path) -> dict[str, Entry]:
    """Official name -> entry, of every tensor. Raises CheckpointError for other models, ValueError
    or OSError for what is damaged."""
    library = gguf_library(path)
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(len(MAGIC))
        (version,) = _numbers(file, "I")
        if version not in _VERSIONS:
            raise ValueError(f"GGUF version {version}, known are {_VERSIONS}")
        tensors, settings = (_count(file) for _ in range(2))
        facts = {_text(file): _value(file) for _ in range(settings)}
        architecture = facts.get("general.architecture")
        if architecture not in ARCHITECTURES:
            raise CheckpointError(
                "this GGUF holds another model",
                where=str(path),
                got=f"architecture {ascii(architecture)[:40]}",
                wanted=" or ".join(ARCHITECTURES),
            )
        stored = [_tensor(file) for _ in range(tensors)]
        align = facts.get("general.alignment", 32)
        if type(align) is not int or align < 1:
            raise ValueError("the alignment is no number")
        start = -(-file.tell() // align) * align
    found: dict[str, Entry] = {}
    for name, axes, kind, offset in stored:
        block, block_bytes = block_size(library, kind)
        count = prod(axes)
        if not count or not axes or axes[-1] % block:
            raise ValueError(f"{name!r} of {axes} does not fill its blocks")
        entry = Entry(
            kind, _shape(facts, name, axes), axes, start + offset, count // block * block_bytes
        )
        if entry.start + entry.size > size:
            raise ValueError(f"the numbers of {name!r} are cut short")
        official = name if architecture == "wan" else _t5_name(name)
        if official in found:
            raise ValueError(f"{name!r} comes twice")
        found[official] = entry
    return found


def plain_format(path: Path, kind: int) -> str | None:
    """F32 or F16 for numbers that are stored plainly, None for blocks."""
    name = gguf_library(path).GGMLQuantizationType(kind).name
    return name if name in ("F32", "F16") else None


def gguf_library(path: Path) -> Any:
    """The package gguf. Raises CheckpointError, about the file, where it is not installed."""
    try:
        return import_module("gguf")
    except ImportError as error:
        raise CheckpointError(
            "reading GGUF takes the package gguf, which is not installed",
            where=str(path),
            todo="pip install 'mmpl[gguf]'",
        ) from error


def block_size(library: Any, kind: int) -> tuple[int, int]:
    """Numbers in a block of a format, and its bytes. Raises ValueError for an unknown one."""
    return library.GGML_QUANT_SIZES[library.GGMLQuantizationType(kind)]


def _shape(facts: dict[str, Any], name: str, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The tensor's own shape, where it was stored with other axes."""
    given = facts.get(SHAPE_KEY + name)
    if given is None:
        return axes
    whole = isinstance(given, tuple) and all(type(side) is int and side > 0 for side in given)
    if not whole or prod(given) != prod(axes):
        raise ValueError(f"the shape {given} of {name!r} is not that of {axes}")
    return given


def _t5_name(name: str) -> str:
    stem, _, word = name.rpartition(".")
    steps = stem.split(".")
    block = steps[2] if len(steps) > 3 else ""
    pattern = ".".join([*steps[:2], "#", *steps[3:]]) if block else stem
    official = _T5.get(pattern)
    return f"{official.replace('#', block)}.{word}" if official else name


def _tensor(file: IO[bytes]) -> tuple[str, tuple[int, ...], int, int]:
    """Name, axes, format and place of a tensor; the file has the last axis first."""
    name = _text(file)
    (axes,) = _numbers(file, "I")
    if axes > _UNSTORED:
        raise ValueError(f"a tensor of {axes} axes")
    sides = _numbers(file, f"{axes}Q")
    kind, offset = _numbers(file, "IQ")
    return name, tuple(reversed(sides)), kind, offset


def _value(file: IO[bytes]) -> Any:
    """A setting: a number, a text, or a tuple of them; of a long list only that it is there."""
    (kind,) = _numbers(file, "I")
    if kind != _LIST:
        return _text(file) if kind == _TEXT else _numbers(file, _scalar(kind))[0]
    (kind,) = _numbers(file, "I")
    count = _count(file)
    if kind == _TEXT:
        return tuple(_text(file) for _ in range(count))
    return _numbers(file, f"{count}{_scalar(kind)}")


def _scalar(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"a setting of unknown type {kind}")
    return _SCALARS[kind]


def _count(file: IO[bytes]) -> int:
    (count,) = _numbers(file, "Q")
    if count > _MOST:
        raise ValueError(f"a count of {count}")
    return count


def _text(file: IO[bytes]) -> str:
    (length,) = _numbers(file, "Q")
    if length > _LONGEST:
        raise ValueError(f"a text of {length} bytes")
    return _bytes(file, length).decode("utf-8")


def _numbers(file: IO[bytes], form: str) -> tuple[Any, ...]:
    form = "<" + form
    return struct.unpack(form, _bytes(file, struct.calcsize(form)))


def _bytes(file: IO[bytes], length: int) -> bytes:
    content = file.read(length)
    if len(content) < length or file.tell() > _LONGEST_TABLE:
        raise ValueError("the table of contents is cut short, or far too long")
    return content
