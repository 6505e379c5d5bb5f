"""Tensors from untrusted files: safetensors, sharded safetensors, torch pickles.

The one place that unpickles, always with `weights_only=True`: nothing in a file is run, and there
is no switch to change that. Whatever a damaged file makes a library raise becomes CheckpointError.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from mmpl.checkpoint import files
from mmpl.checkpoint.folder import is_pickle
from mmpl.checkpoint.gguf_file import (
    Entry,
    block_size,
    gguf_library,
    is_gguf,
    plain_format,
    read_entries,
)
from mmpl.checkpoint.names import bare
from mmpl.checkpoint.shards import shard_headers
from mmpl.errors import CheckpointError, is_out_of_memory

# Two holes of the restricted unpickler are known; the second was closed in this version.
SAFE_TORCH = (2, 10)

EMA_KEY = "generator_ema"
PLAIN_KEYS = ("generator", "model", "state_dict")
_AT_ONCE = 2**22  # numbers of a GGUF file made float32 at a time
_MAX_WRAPPERS = 4  # a hostile dict can contain itself

# A tensor up to this size is hashed whole, a larger one at both ends.
_WHOLE_BYTES, _END_BYTES = 2**20, 2**16


def read_state_dict(path: str | Path, *, use_ema: bool | None = None) -> dict[str, Tensor]:
    """Name -> CPU tensor of a .safetensors, .safetensors.index.json, .gguf, .pt or .pth file.

    Memory-mapped where the format allows, so pages are read when used. Of a training checkpoint
    the generator is taken, its averaged weights (EMA) when there are any; `use_ema` True or False
    asks for one of the two. Wrapper prefixes are stripped from the names. Raises CheckpointError
    for whatever is wrong with the file.
    """
    path = Path(path)
    if is_pickle(path):
        flat = _generator(_unpickled(path), use_ema, str(path))
    else:
        if use_ema:
            raise _no_weights("averaged (EMA)", path)
        flat = _all_mapped(path)
    require_plain(flat, where=str(path))
    return bare(flat, where=str(path))


def read_tensors(path: str | Path, *, inside: Sequence[str]) -> dict[str, Tensor]:
    """As `read_state_dict`, with the names as they are in the file. `inside`: the keys under which
    a pickle may keep the state dict. Raises CheckpointError."""
    path = Path(path)
    if not is_pickle(path):
        flat: Any = _all_mapped(path)
    else:
        flat = _unpickled(path)
        for _ in range(_MAX_WRAPPERS):
            if not isinstance(flat, Mapping):
                break
            flat = next((flat[k] for k in inside if isinstance(flat.get(k), Mapping)), flat)
        _require_mapping(flat, str(path))
    require_plain(flat, where=str(path))
    return dict(flat)


def require_plain(flat: Mapping[Any, Any], *, where: str) -> None:
    """Raises CheckpointError unless these are named, dense, strided, real tensors with data."""
    if not flat:
        raise CheckpointError("the file holds no tensors", where=where)
    for name, value in flat.items():
        problem = _problem(name, value)
        if problem:
            raise CheckpointError(
                "the file holds something else than plain tensors",
                where=where,
                got=f"{ascii(name)[:80]}: {problem}",
                wanted="named, dense, real tensors",
            )


def digest(flat: Mapping[str, Tensor]) -> str:
    """A fingerprint of weights: names, formats, shapes, and the numbers.

    Of a tensor above 1 MiB only both ends are hashed, so that it stays cheap at 14 B parameters:
    it tells models apart and finds damage in small ones, not every flipped bit in large ones.
    """
    sha = hashlib.sha256()
    for name in sorted(flat):
        whole_tensor = flat[name].detach()  # once: some mappings make it anew
        tensor = whole_tensor.reshape(-1)
        sha.update(f"{name} {tensor.dtype} {tuple(whole_tensor.shape)}\n".encode())
        ends = _END_BYTES // tensor.element_size()
        whole = tensor.numel() * tensor.element_size() <= _WHOLE_BYTES
        for part in (tensor,) if whole else (tensor[:ends], tensor[-ends:]):
            sha.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _all_mapped(path: Path) -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for shard, header in shard_headers(path).items():
        flat.update(_mapped(shard, list(header)))
    return flat


def _mapped(path: Path, names: list[str]) -> dict[str, Tensor]:
    try:
        if is_gguf(path):
            return {name: _made(path, entry) for name, entry in read_entries(path).items()}
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in names}
    except Exception as error:  # noqa: BLE001  a damaged file raises many types
        if is_out_of_memory(error):  # its sizes were checked before: it is not the file
            raise
        files.refuse_damaged(path, error)


def _made(path: Path, entry: Entry) -> Tensor:
    """A tensor of a GGUF file: its blocks become bfloat16, part by part."""
    plain = {"F32": torch.float32, "F16": torch.float16}
    stored = plain_format(path, entry.kind) or "BF16"
    made = torch.empty(entry.shape, dtype=plain.get(stored, torch.bfloat16))
    flat, done = made.view(-1), 0
    for part in _float_rows(path, entry):
        flat[done : done + len(part)] = torch.from_numpy(part)
        done += len(part)
    return made


def _float_rows(path: Path, entry: Entry) -> Iterator[np.ndarray]:
    """The numbers of a GGUF tensor in float32, flat, a part after the other.

    Raises ValueError for a format that the library cannot turn into numbers.
    """
    library = gguf_library(path)
    kind = library.GGMLQuantizationType(entry.kind)
    block, block_bytes = block_size(library, entry.kind)
    content = np.memmap(path, np.uint8, "r", entry.start, (entry.size,))
    step = max(1, _AT_ONCE // block) * block_bytes
    for start in range(0, entry.size, step):
        part = np.array(content[start : start + step])[None]
        try:
            yield library.quants.dequantize(part, kind).reshape(-1)
        except NotImplementedError as error:
            raise ValueError(f"numbers in {kind.name} cannot be read") from error


def _unpickled(path: Path) -> Any:
    files.require_pickle(path)
    _require_safe_torch(torch.__version__)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=files.is_zip(path))
    except Exception as error:  # noqa: BLE001  a damaged file raises eleven types
        # The library's text goes on to explain how to switch the protection off: not shown.
        if re.search(r"weights.?only|unsupported|global", str(error), re.IGNORECASE):
            raise CheckpointError(
                "the pickle holds more than tensors, maybe code, and was not run",
                where=str(path),
                wanted="a state dict of plain tensors",
                todo="ask its publisher for a safetensors file",
            ) from error
        files.refuse_damaged(path, error)


def _require_safe_torch(version: str) -> None:
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < SAFE_TORCH:
        raise CheckpointError(
            "this torch cannot read pickles safely",
            got=f"torch {version}",
            wanted=f"torch >= {SAFE_TORCH[0]}.{SAFE_TORCH[1]}",
            todo="upgrade torch, or use safetensors files",
        )


def _generator(value: Any, use_ema: bool | None, where: str) -> Mapping[Any, Any]:
    """The state dict inside a training checkpoint; a flat one is taken as it is."""
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(value, Mapping):
            break
        inner = {k: value[k] for k in (EMA_KEY, *PLAIN_KEYS) if isinstance(value.get(k), Mapping)}
        if not inner:
            break
        plain = next((key for key in PLAIN_KEYS if key in inner), None)
        if EMA_KEY in inner and use_ema is not False:
            value, use_ema = inner[EMA_KEY], None
        elif plain is not None:
            value = inner[plain]
        else:
            raise _no_weights("plain (not averaged)", where)
    if use_ema:
        raise _no_weights("averaged (EMA)", where)
    _require_mapping(value, where)
    return value


def _require_mapping(value: object, where: str) -> None:
    if not isinstance(value, Mapping):
        raise CheckpointError(
            "the file does not hold a state dict", where=where, got=type(value).__name__
        )


def _no_weights(kind: str, where: object) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint has no {kind} weights", where=str(where), todo="leave the EMA option out"
    )


def _problem(name: Any, value: Any) -> str:
    """What keeps an entry from being a plain tensor, or nothing."""
    if not isinstance(name, str) or not name:
        return "its name is not text"
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.layout is not torch.strided or value.is_quantized:
        return "sparse or quantised"
    if value.is_complex():
        return "complex"
    if value.is_meta:
        return "without data"
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        return "fewer numbers stored than its shape says"
    return ""
