"""Which network's weights a file holds, told by the names of its tensors alone. No torch.

Nothing is loaded and nothing is run: of a pickle only its text constants are read. So a folder of
a 14B model is looked through in a fraction of a second, whatever its files are called.
"""

from __future__ import annotations

import os
import pickletools  # reads what a pickle would do, and does nothing of it
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal

from mmpl.checkpoint import files, shards
from mmpl.checkpoint.names import (
    EMBEDDED_TOKENIZER,
    FRAME_RATE,
    bare_name,
    other_naming,
    variant_of,
)
from mmpl.checkpoint.shards import INDEX_SUFFIX as INDEX_SUFFIX
from mmpl.errors import CheckpointError

Network = Literal["dit", "vae", "text", "clip", "lora", "other"]

SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
HEADER_SUFFIXES = (*SAFETENSORS_SUFFIXES, ".gguf")
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (*HEADER_SUFFIXES, *PICKLE_SUFFIXES, INDEX_SUFFIX)

TITLES: dict[Network, str] = {
    "dit": "a transformer",
    "vae": "a video VAE",
    "text": "a text encoder",
    "clip": "a CLIP encoder",
    "lora": "a LoRA, not a whole model",
    "other": "weights of no network that mmpl knows",
}

TRAINING = "a training checkpoint as Self-Forcing and MMPL save it"  # the family of its names

# One of 14B with averages and a critic takes about 10^5 operations.
_MOST_OPERATIONS = 500_000
_CUT = ""  # in the place of all names after these
_LEGACY_BYTES = 16 * 2**20  # of an old pickle: what comes before the tensors' bytes is far less
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PICKLES = 4  # magic number, version, machine, and then what was saved
_TEXT_OPERATIONS = frozenset({"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"})

# In this order: a network by a name that only it has.
_MARKS: tuple[tuple[Network, str], ...] = (
    ("lora", r"(.*\.|)(lora_[AB]|lora_down|lora_up|hada_w1_a|lokr_w1)\b"),
    ("dit", r"blocks\.\d+\.(self_attn|attn1)\.|head\.modulation$|patch_embedding\."),
    ("dit", r"condition_embedder\.|vace_"),
    ("vae", r"(encoder|decoder)\.(middle|mid_block)\..*\bgamma$"),
    ("text", r"blocks\.\d+\.(attn\.[qkvo]|pos_embedding)\.|encoder\.block\.\d+\.layer\."),
    ("clip", r"(visual|textual|vision_model|text_model)\."),
)
# Relatives that the names of a VAE or text encoder tell.
_RELATIVES: tuple[tuple[Network, str, str], ...] = (
    ("vae", r"encoder\.downsamples\.\d+\.downsamples\.", "the VAE of Wan2.2 5B"),
    ("vae", r"encoder\.down_blocks\.\d+\.resnets\.", "the VAE of Wan2.2 5B"),
)
_BIAS = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """What a file of weights is. `family`: who names its tensors so. `relative`: what it is, if a
    relative of the network that cannot be run, else empty. `blocks`: how many a transformer has by
    its names; 0 where that is not sure: a critic may be deeper, and long files are not read whole.
    """

    path: Path
    network: Network
    family: str
    relative: str = ""
    tells_frame_rate: bool = False
    holds_tokenizer: bool = False
    blocks: int = 0

    @property
    def title(self) -> str:
        """What it is, for people."""
        return self.relative or TITLES[self.network]


def look(path: Path) -> Weights:
    """What the file at `path` is. Raises CheckpointError for one that cannot be read."""
    return recognised(path, tensor_names(path))


def recognised(path: Path, names: Iterable[str]) -> Weights:
    """What a file with tensors of these names is."""
    raw = frozenset(names)
    bare = {bare_name(name) for name in raw}
    marked: list[Network] = [kind for kind, mark in _MARKS if _any(mark, bare)]
    network = marked[0] if marked else "other"
    return Weights(
        path,
        network,
        _family(network, raw, bare),
        _relative(network, bare),
        network == "dit" and any(name.startswith(FRAME_RATE) for name in bare),
        network == "text" and EMBEDDED_TOKENIZER in raw,
        _blocks(bare) if network == "dit" and not raw & {"critic", _CUT} else 0,
    )


def tensor_names(path: Path) -> Iterator[str]:
    """The names in a file of weights; of a pickle all its text constants, names among them. Raises
    CheckpointError."""
    if path.name.endswith(INDEX_SUFFIX):
        for names in shards.index_shards(path).values():
            yield from names
    elif path.suffix in HEADER_SUFFIXES:
        yield from shards.read_headers(path)
    elif path.suffix in PICKLE_SUFFIXES:
        yield from _pickle_texts(path)
    else:
        raise unreadable(path)


def unreadable(path: Path) -> CheckpointError:
    """The error for a file whose suffix is none of those that are read."""
    return CheckpointError(
        "weights in this format cannot be read",
        where=str(path),
        got=path.suffix or "no suffix",
        wanted="one of " + " ".join((*HEADER_SUFFIXES, INDEX_SUFFIX, *PICKLE_SUFFIXES)),
    )


def _pickle_texts(path: Path) -> list[str]:
    files.require_pickle(path)
    try:
        if not files.is_zip(path):
            return _legacy_texts(path)
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
        entry = next(e for e in listed if e.filename.split("/")[-1] == "data.pkl")
        return _texts(BytesIO(_stored(path, entry)))
    except Exception as error:  # noqa: BLE001  a damaged pickle raises many types
        files.refuse_damaged(path, error)


def _stored(path: Path, entry: zipfile.ZipInfo) -> bytes:
    """An entry that is not compressed. Its checksum is not looked at: torch may leave it out."""
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
        file.seek(name + extra, os.SEEK_CUR)
        return file.read(entry.file_size)


def _legacy_texts(path: Path) -> list[str]:
    """Of the format that torch wrote before it took to zip files."""
    with path.open("rb") as file:
        stream = BytesIO(file.read(_LEGACY_BYTES))
    if _LEGACY_MAGIC not in [value for _, value, _ in pickletools.genops(stream)]:
        raise ValueError("not a torch checkpoint")
    return [_texts(stream) for _ in range(1, _LEGACY_PICKLES)][-1]


def _texts(stream: BinaryIO) -> list[str]:
    texts: list[str] = []
    for count, (operation, value, _) in enumerate(pickletools.genops(stream)):
        if operation.name in _TEXT_OPERATIONS and isinstance(value, str):
            texts.append(value)
        if count == _MOST_OPERATIONS:
            texts.append(_CUT)
            break
    return texts


def _family(network: Network, raw: frozenset[str], bare: set[str]) -> str:
    if {"generator", "generator_ema"} & raw:
        return TRAINING
    if network == "text" and other_naming("text", bare):
        return "transformers and ComfyUI naming"
    if network in ("dit", "vae") and other_naming(network, bare):
        return "diffusers naming"
    if any(name.startswith("model.diffusion_model.") for name in raw):
        return "ComfyUI naming"
    return "Wan2.1's own naming" if network in ("dit", "vae", "text") else ""


def _relative(network: Network, bare: set[str]) -> str:
    if network == "dit":
        found = variant_of(bare)
        return found[1] if found else ""
    for kind, mark, title in _RELATIVES:
        if network == kind and _any(mark, bare):
            return title
    # umT5 has a position bias in every block, other T5s in the first alone.
    deep = any(name.startswith("encoder.block.1.") for name in bare)
    if network == "text" and deep and _BIAS not in bare:
        return "a T5 encoder that is not umT5"
    if network == "text" and (found := variant_of(bare)):
        return found[1]
    return ""


def _blocks(bare: set[str]) -> int:
    match = re.compile(r"blocks\.(\d{1,4})\.(?:self_attn|attn1)\.").match
    found = (match(name) for name in bare)
    return max((1 + int(one[1]) for one in found if one), default=0)


def _any(pattern: str, names: Iterable[str]) -> bool:
    match = re.compile(pattern).match
    return any(match(name) for name in names)
