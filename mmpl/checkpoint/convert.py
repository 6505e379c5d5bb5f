"""Any model that loads, written as one mmpl bundle: a network and a tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmpl.checkpoint.bundle import put_config, read_part, text_digest
from mmpl.checkpoint.folder import BUNDLE_FILES, PARTS, Configs, ModelFolder
from mmpl.checkpoint.lora import merged, read_lora
from mmpl.checkpoint.names import Kind
from mmpl.checkpoint.read import digest
from mmpl.checkpoint.tokenizer_file import read_tokenizer
from mmpl.checkpoint.write import put_streamed
from mmpl.media.durable import make_folder, put, require_space
from mmpl.wan.dit_params import dit_cast, dit_from_flat
from mmpl.wan.ops import natural_precision
from mmpl.wan.params import to_flat
from mmpl.wan.tokenizer import Tokenizer


def convert(
    found: ModelFolder, folder: str | Path, *, dtype: torch.dtype | None = None
) -> dict[str, str]:
    """Writes the model that `check_folder` found as a bundle; returns its digests.

    The bundle loads to the same bits; with `dtype`, to those of `load_model(found, dtype=dtype)`.
    Its LoRAs are merged into the transformer. Weights are mapped, cast and written one at a time;
    what a LoRA changes is held in memory. config.json comes last, so that a
    conversion that was cut short does not load. Raises CheckpointError and OutputError.
    """
    path = Path(folder)
    tokenizer = read_tokenizer(found.files["tokenizer"])
    Tokenizer(tokenizer, where=str(found.files["tokenizer"]))  # refuses what is none
    make_folder(path)
    configs: dict[str, Any] = {}
    digests: dict[str, str] = {}
    for part in PARTS:
        configs[part], digests[part] = _convert(found, part, path, dtype if part == "dit" else None)
    put(path / BUNDLE_FILES["tokenizer"], lambda file: file.write(tokenizer.encode()))
    digests["tokenizer"] = text_digest(tokenizer)
    put_config(path, Configs(**configs), found.defaults, digests)
    return digests


def _convert(
    found: ModelFolder, part: Kind, folder: Path, dtype: torch.dtype | None
) -> tuple[Any, str]:
    """The config and the digest of one network, which is then in the bundle."""
    read = read_part(found, part)
    stored = read.flat
    if part == "dit":
        loras = [(read_lora(lora.path), lora.strength) for lora in found.loras]
        stored, _ = merged(stored, loras)
    formats = {name: tensor.dtype for name, tensor in stored.items()}
    if dtype is not None:
        empty = {name: torch.empty_like(t, device="meta") for name, t in stored.items()}
        narrow = dit_cast(dit_from_flat(empty, read.config), natural_precision(dtype))
        formats = {name: leaf.dtype for name, leaf in to_flat(narrow).items()}
    require_space({folder: sum(prod(stored[n].shape) * f.itemsize for n, f in formats.items())})
    flat = _Cast(stored, formats)
    put_streamed(folder / BUNDLE_FILES[part], flat, flat.entries)
    return read.config, digest(flat)


class _Cast(Mapping[str, Tensor]):
    """State dict whose tensors are cast when they are asked for, and not kept."""

    def __init__(self, flat: Mapping[str, Tensor], formats: Mapping[str, torch.dtype]) -> None:
        self._flat, self._formats = flat, formats

    @property
    def entries(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {name: (self._formats[name], tuple(self._flat[name].shape)) for name in self}

    def __getitem__(self, name: str) -> Tensor:
        return self._flat[name].to(self._formats[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._flat)

    def __len__(self) -> int:
        return len(self._flat)
