"""What the text encoder makes of prompts, kept in a folder: one checksummed file each.

A file is called by a digest of all that its numbers depend on, so none is ever out of date, and
prompts cannot be read from it. It is there whole or not at all; a damaged one is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmpl.checkpoint.model import Model
from mmpl.media import durable
from mmpl.wan.tokenizer import clean_prompt

_FORMAT = 1


@torch.no_grad()
def embeddings_of(model: Model, prompts: Sequence[str]) -> tuple[list[Tensor], tuple[Path, ...]]:
    """One embedding [J, dim] per prompt, in the format of the text encoder and on the model's
    device: the bits of `model.encoded`; and the files that were damaged.

    With `model.text_cache` the encoder runs for what is not there, which is then kept. Raises
    OutputError where the folder cannot be written.
    """
    folder = model.text_cache
    if folder is None:
        return model.encoded(prompts), ()
    durable.make_folder(folder)
    found: dict[str, Tensor] = {}
    missing: dict[str, Path] = {}
    damaged: list[Path] = []
    for prompt in dict.fromkeys(prompts):
        path = folder / f"{_key(model, prompt)}.safetensors"
        embedding = _read(path)
        if embedding is None:
            missing[prompt] = path
            if path.exists():
                damaged.append(path)
        else:
            found[prompt] = embedding.to(model.device)
    for prompt, embedding in zip(missing, model.encoded(list(missing)), strict=True):
        _write(missing[prompt], embedding)
        found[prompt] = embedding
    return [found[prompt] for prompt in prompts], tuple(damaged)


def _key(model: Model, prompt: str) -> str:
    """The digest of all that the bits of an embedding depend on."""
    weights = {part: model.digests[part] for part in ("text", "tokenizer")}
    everything = {
        "format": _FORMAT,
        "prompt": clean_prompt(prompt),
        "text_len": model.dit_config.text_len,
        "weights": weights,
        "dtype": str(model.text.norm.weight.dtype),
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _write(path: Path, embedding_JD: Tensor) -> None:
    data = embedding_JD.cpu().contiguous()
    content = save({"embedding_JD": data}, metadata={"sha256": _sha256(path, data)})
    durable.put(path, lambda file: file.write(content))


def _read(path: Path) -> Tensor | None:
    """The embedding of a file; None where it is not there or not whole."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            data = file.get_tensor("embedding_JD")
            wanted = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return data if wanted == _sha256(path, data) else None


def _sha256(path: Path, data: Tensor) -> str:
    """Of the numbers, and of what they are: two files that changed places are damaged too."""
    what = f"{path.stem} {data.dtype} {tuple(data.shape)}"
    return hashlib.sha256(what.encode() + data.view(torch.uint8).numpy().tobytes()).hexdigest()
