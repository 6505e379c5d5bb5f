"""A transformer as a file that this program and the released MMPL and Self-Forcing code load.

The one place that pickles: dictionaries of plain tensors, nothing else.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mmpl.checkpoint.folder import is_pickle
from mmpl.checkpoint.read import EMA_KEY, PLAIN_KEYS
from mmpl.checkpoint.recognise import PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES
from mmpl.errors import CheckpointError
from mmpl.media import durable

_FORMATS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
_INSIDE = "model."  # where the released code's generator keeps its network


def write_transformer(
    path: str | Path, weights: Mapping[str, Tensor], averaged: Mapping[str, Tensor] | None = None
) -> None:
    """Writes weights under their official names, as .safetensors or .pt by the suffix of `path`.

    A .pt is a training checkpoint, {"generator": weights, "generator_ema": averaged}; the second
    only where there are `averaged` ones. A .safetensors holds `averaged` alone then. Tensors that
    both have in common are stored once. Raises CheckpointError for another suffix, and OutputError.
    """
    path = Path(path)
    if path.suffix not in (*PICKLE_SUFFIXES, *SAFETENSORS_SUFFIXES):
        raise CheckpointError(
            "weights cannot be written in this format",
            where=str(path),
            got=path.suffix or "no suffix",
            wanted="one of " + " ".join((*SAFETENSORS_SUFFIXES, *PICKLE_SUFFIXES)),
        )
    if is_pickle(path):
        parts = {PLAIN_KEYS[0]: weights} | ({} if averaged is None else {EMA_KEY: averaged})
    else:
        parts = {"": weights if averaged is None else averaged}
    parts = _plain(parts)
    each = {id(tensor): tensor for flat in parts.values() for tensor in flat.values()}
    durable.require_space({path.absolute().parent: _bytes(each.values())})
    if not is_pickle(path):
        put_safetensors(path, parts[""], {"format": "pt"})
        return
    content = {
        name: {_INSIDE + key: tensor for key, tensor in flat.items()}
        for name, flat in parts.items()
    }
    durable.put(path, lambda file: torch.save(content, file))


def put_safetensors(
    path: Path, flat: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Makes `path` a .safetensors file, or leaves everything as it was. Raises OutputError."""
    with durable.replacing(path) as temporary:
        try:
            save_file(flat, temporary, metadata=metadata)
        except SafetensorError as error:  # what the system said is only in its text
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def put_streamed(
    path: Path,
    flat: Mapping[str, Tensor],
    entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
) -> None:
    """As `put_safetensors`, asking `flat` for one tensor after the other; `entries` say format and
    shape of each beforehand. Raises OutputError."""
    order = sorted(entries, key=lambda name: (-entries[name][0].itemsize, name))  # keeps alignment
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        dtype, shape = entries[name]
        begin, end = end, end + dtype.itemsize * prod(shape)
        header[name] = {"dtype": _FORMATS[dtype], "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = flat[name].detach().cpu().contiguous()
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)

    durable.put(path, write)


def _plain(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """The same on the CPU, dense, detached; a tensor that comes twice stays one."""
    made: dict[int, Tensor] = {}

    def plain(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = tensor.detach().cpu().contiguous()
        return made[id(tensor)]

    return {part: {name: plain(t) for name, t in flat.items()} for part, flat in parts.items()}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
