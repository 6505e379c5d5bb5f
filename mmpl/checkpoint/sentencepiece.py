"""SentencePiece models (spiece.model) as tokenizer.json: what files without the latter carry.

Only Unigram models of the T5 family, whose vocabulary ends in 300 extra ids that the model file
leaves out. Read field by field from protobuf's wire format, for the whole of its library would be
used for four fields. Sources: sentencepiece_model.proto; transformers' conversion of T5.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

from mmpl.errors import CheckpointError

MAX_PIECES = 2**20
EXTRA_IDS = 300  # of umT5
_UNKNOWN, _CONTROL = 2, 3  # types of pieces
_UNIGRAM = 1
_UNDERLINE = "\u2581"  # stands for a space


def tokenizer_json_of(model: bytes, *, where: str) -> str:
    """The text of a tokenizer.json with the same ids as a SentencePiece model and its extra ids.

    Raises CheckpointError for anything but a whole Unigram model.
    """
    try:
        return json.dumps(_converted(model), ensure_ascii=False)
    except (ValueError, IndexError, struct.error) as error:
        raise CheckpointError(
            "not a SentencePiece model of the T5 family",
            where=where,
            got=str(error)[:120],
            wanted="a whole spiece.model",
            todo="copy it again, or give the model's tokenizer.json",
        ) from error


def _converted(model: bytes) -> dict[str, Any]:
    pieces: list[tuple[str, float]] = []
    special: list[int] = []
    unknown, charsmap = None, b""
    for field, value in _fields(model):
        if field == 1:
            text, score, kind = _piece(_message(value))
            if kind in (_UNKNOWN, _CONTROL):
                special.append(len(pieces))
            if kind == _UNKNOWN:
                unknown = len(pieces)
            pieces.append((text, score))
            if len(pieces) > MAX_PIECES:
                raise ValueError(f"more than {MAX_PIECES} pieces")
        elif field == 2:
            kinds = [v for f, v in _fields(_message(value)) if f == 3]
            if kinds not in ([], [_UNIGRAM]):
                raise ValueError(f"model type {kinds[-1]}, not Unigram")
        elif field == 3:
            charsmap = b"".join(_message(v) for f, v in _fields(_message(value)) if f == 2)
    if unknown is None:
        raise ValueError("no token for what is unknown")
    special += range(len(pieces), len(pieces) + EXTRA_IDS)
    pieces += [(f"<extra_id_{number}>", 0.0) for number in reversed(range(EXTRA_IDS))]
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    ]
    if charsmap:
        table = base64.b64encode(charsmap).decode()
        steps.insert(0, {"type": "Precompiled", "precompiled_charsmap": table})
    return {
        "version": "1.0",
        "added_tokens": [_added(index, pieces[index][0]) for index in special],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": _UNDERLINE,
            "prepend_scheme": "always",
        },
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": pieces},
    }


def _piece(message: bytes) -> tuple[str, float, int]:
    """Text, score and type of a piece; type 1 is an ordinary one."""
    text, score, kind = "", 0.0, 1
    for field, value in _fields(message):
        if field == 1:
            text = _message(value).decode("utf-8")
        elif field == 2:
            (score,) = struct.unpack("<f", _message(value))
        elif field == 3 and isinstance(value, int):
            kind = value
    return text, score, kind


def _added(index: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": text, **flags, "special": True}


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where text or a message belongs")
    return value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field: varints as int, all else as its bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire}")
        length, at = _varint(message, at) if wire == 2 else (8 if wire == 1 else 4, at)
        if at + length > len(message):
            raise ValueError(f"cut short after {len(message)} bytes")
        yield number, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
