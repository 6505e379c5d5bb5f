"""A model: three networks, tokenizer and defaults, from a folder or from state dicts, and back.

`load_model` reads the folders that `folder` knows. Whatever is wrong with them is a
CheckpointError; `check_folder` finds most of it without loading anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmpl.checkpoint.defaults import Defaults
from mmpl.checkpoint.dequantise import described, plain_weights
from mmpl.checkpoint.folder import (
    BUNDLE_FILES,
    BUNDLE_FORMAT,
    BUNDLE_VERSION,
    CONFIG_FILE,
    PARTS,
    Configs,
    ModelFolder,
    check_folder,
    part_config,
    require_matching,
)
from mmpl.checkpoint.frame_rate import fold_frame_rate
from mmpl.checkpoint.lora import Lora, merged, read_lora, with_loras
from mmpl.checkpoint.model import Encoders as Encoders
from mmpl.checkpoint.model import Model as Model
from mmpl.checkpoint.names import Kind, official
from mmpl.checkpoint.quantised import companion, weight_shapes
from mmpl.checkpoint.read import digest, read_state_dict, require_plain
from mmpl.checkpoint.sizes import Given
from mmpl.checkpoint.tokenizer_file import read_tokenizer
from mmpl.checkpoint.write import put_safetensors
from mmpl.errors import CheckpointError
from mmpl.media.durable import make_folder, put
from mmpl.wan.config import DiTConfig, VAEConfig
from mmpl.wan.dit_params import DiTParams, dit_from_flat, dit_held, dit_shapes
from mmpl.wan.offload import Offload
from mmpl.wan.params import Shapes, check_shapes, to_flat, tree_map
from mmpl.wan.text import TextParams, text_from_flat, text_shapes
from mmpl.wan.tokenizer import Tokenizer
from mmpl.wan.vae import VAEParams, vae_from_flat, vae_shapes

__all__ = [
    "Configs",
    "Defaults",
    "Encoders",
    "Lora",
    "Model",
    "Transformer",
    "check_folder",
    "load_encoders",
    "load_model",
    "load_transformer",
    "load_vae",
    "model_from_state_dicts",
    "read_lora",
    "write_bundle",
]

_SHAPES: dict[Kind, Callable[[Any], Shapes]] = {
    "dit": dit_shapes,
    "vae": vae_shapes,
    "text": text_shapes,
}


def load_model(
    folder: str | Path | ModelFolder,
    *,
    checkpoint: str | Path | None = None,
    loras: Sequence[tuple[str | Path, float]] = (),
    use_ema: bool | None = None,
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
    device: torch.device | str = "cpu",
    offload: str = "none",
) -> Model:
    """The model of an mmpl bundle or of Wan weights in any folder that `check_folder` reads, or
    that it has read. Raises CheckpointError.

    `checkpoint` (MMPL, Self-Forcing, CausVid), where the folder is not yet read, takes the place
    of its transformer, whose file may then be missing; of one with averaged weights these are
    taken unless `use_ema` is False. `loras`, files and strengths, are merged into it after those
    that a folder was read with. `dtype` is the format of the transformer's matrix products, by
    default as stored; its other weights are then held in float32 or better. The VAE is held in
    float32, the text encoder as stored. What a file holds in 8 bits becomes bfloat16 first.
    `quantize`, fp8 or int8: the matrices of the transformer's blocks are held in it; those that
    are stored so stay as they are, unless something is merged into them. `offload`, none, model or
    block: what lives in the host's memory until `device` needs it, see `mmpl.wan.offload`; it
    changes no result. Raises ArgumentError for another.
    """
    residence = Offload(offload, device)
    found = _found(folder, checkpoint)
    files_of = [*((lora.path, lora.strength) for lora in found.loras), *loras]
    read = [(read_lora(path), strength) for path, strength in files_of]
    parts, tokenizer, digests = _read(found, PARTS, use_ema, keep=None if read else quantize)
    return _model(
        parts,
        tokenizer,
        found.defaults,
        digests,
        read,
        residence,
        dtype=dtype,
        quantize=quantize,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Transformer:
    """A model's transformer alone: its weights as they are stored, under official names; bfloat16
    where that is 8 bits. `digest` is that of the file."""

    flat: dict[str, Tensor]
    config: DiTConfig
    digest: str


def load_transformer(found: ModelFolder, *, use_ema: bool | None = None) -> Transformer:
    """The transformer of a folder that `check_folder` found, mapped where its file can be, so that
    nothing is read before it is used. Raises CheckpointError."""
    part = read_part(found, "dit", use_ema=use_ema)
    _require_digests(found, {"dit": part.digest})
    return Transformer(part.flat, part.config, part.digest)


def load_vae(
    found: ModelFolder, *, device: torch.device | str = "cpu"
) -> tuple[VAEParams, VAEConfig]:
    """The VAE alone of a folder that `check_folder` found, in float32. Raises CheckpointError."""
    part = read_part(found, "vae")
    _require_digests(found, {"vae": part.digest})
    return _vae_held(part, device), part.config


def load_encoders(
    folder: str | Path | ModelFolder, *, device: torch.device | str = "cpu"
) -> Encoders:
    """VAE and text encoder of a folder that `load_model` reads, in the same formats; its
    transformer, much larger, is not loaded. Raises CheckpointError."""
    parts, tokenizer, digests = _read(_found(folder), ("vae", "text"))
    return _encoders(parts, tokenizer, digests, device)


def model_from_state_dicts(  # noqa: PLR0913  all of a model
    *,
    dit: Mapping[str, Tensor],
    vae: Mapping[str, Tensor],
    text: Mapping[str, Tensor],
    tokenizer_json: str,
    configs: Configs | None = None,
    defaults: Defaults | None = None,
    loras: Sequence[tuple[Lora, float]] = (),
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
    device: torch.device | str = "cpu",
    offload: str = "none",
) -> Model:
    """A model from state dicts that the caller has and the text of its tokenizer.json.

    Names may be official, diffusers' or transformers', with wrapper prefixes. Without `configs`
    the sizes are those of the shapes, the rest (heads of 128, VAE levels, latent statistics)
    Wan2.1's. Tensors are used as they are where format and device allow: do not change them
    afterwards. `loras`, with their strengths, are those of `lora_from_state_dict` or `read_lora`.
    See `load_model` for `dtype`, `quantize` and `offload`. Raises CheckpointError, ArgumentError.
    """
    residence = Offload(offload, device)
    states: dict[Kind, Mapping[str, Tensor]] = {"dit": dit, "vae": vae, "text": text}
    parts: dict[Kind, Part] = {}
    for part, flat in states.items():
        where = f"{part} state dict"
        require_plain(flat, where=where)
        given = asdict(getattr(configs, part)) if configs else {}
        keep = quantize if part == "dit" and not loras else None
        parts[part] = _recognised(part, flat, given, where, keep=keep)
    return _model(
        parts,
        Tokenizer(tokenizer_json),
        defaults or Defaults(),
        _digests(parts, tokenizer_json),
        loras,
        residence,
        dtype=dtype,
        quantize=quantize,
    )


def write_bundle(
    folder: str | Path,
    *,
    dit: DiTParams,
    vae: VAEParams,
    text: TextParams,
    configs: Configs,
    tokenizer_json: str,
    defaults: Defaults,
) -> dict[str, str]:
    """Writes an mmpl bundle that `load_model` reads back to the same bits; returns its digests.

    Every file is written whole under another name and renamed, config.json last; its digests
    make a folder that mixes two writes refuse to load. Raises OutputError.
    """
    path = Path(folder)
    flats = {
        part: {name: leaf.detach().cpu().contiguous() for name, leaf in to_flat(tree).items()}
        for part, tree in (("dit", dit), ("vae", vae), ("text", text))
    }
    digests = {part: digest(flat) for part, flat in flats.items()}
    digests["tokenizer"] = text_digest(tokenizer_json)
    make_folder(path)
    for part, flat in flats.items():
        put_safetensors(path / BUNDLE_FILES[part], flat)
    put(path / BUNDLE_FILES["tokenizer"], lambda file: file.write(tokenizer_json.encode()))
    put_config(path, configs, defaults, digests)
    return digests


def put_config(
    folder: Path, configs: Configs, defaults: Defaults, digests: Mapping[str, str]
) -> None:
    """Writes the config.json of a bundle, whose other files are there. Raises OutputError."""
    config = {
        "format": BUNDLE_FORMAT,
        "version": BUNDLE_VERSION,
        **{part: asdict(getattr(configs, part)) for part in PARTS},
        "defaults": asdict(defaults),
        "digests": dict(digests),
    }
    text = json.dumps(config, indent=1, ensure_ascii=False)
    put(folder / CONFIG_FILE, lambda file: file.write(text.encode()))


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One network's weights under official names, checked against the config of their shapes.
    `digest` is that of what the file holds, from before any of it became bfloat16."""

    flat: dict[str, Tensor]
    config: Any
    where: str
    digest: str


def _found(folder: str | Path | ModelFolder, checkpoint: str | Path | None = None) -> ModelFolder:
    if isinstance(folder, ModelFolder):
        return folder
    return check_folder(folder, checkpoint=checkpoint)


def _read(
    found: ModelFolder,
    wanted: tuple[Kind, ...],
    use_ema: bool | None = None,
    *,
    keep: str | None = None,
) -> tuple[dict[Kind, Part], Tokenizer, dict[str, str]]:
    """The `wanted` parts of a folder, its tokenizer, and the digests of both. Matrices of the
    transformer that are stored in `keep` (fp8, int8) stay so."""
    parts: dict[Kind, Part] = {
        part: read_part(found, part, use_ema=use_ema, keep=keep) for part in wanted
    }
    where = found.files["tokenizer"]
    tokenizer_json = read_tokenizer(where)
    digests = _digests(parts, tokenizer_json)
    _require_digests(found, digests)
    return parts, Tokenizer(tokenizer_json, where=str(where)), digests


def read_part(
    found: ModelFolder, part: Kind, *, use_ema: bool | None = None, keep: str | None = None
) -> Part:
    """One network of a folder that `check_folder` found, mapped where its file can be; `use_ema`
    and `keep`, the 8-bit format whose matrices stay so, are for the transformer alone. Raises
    CheckpointError."""
    path = found.files[part]
    if part != "dit":
        use_ema = keep = None
    flat = read_state_dict(path, use_ema=use_ema)
    return _recognised(part, flat, found.given[part], str(path), keep=keep)


def _recognised(
    part: Kind, flat: Mapping[str, Tensor], given: Given, where: str, *, keep: str | None = None
) -> Part:
    flat = official(part, flat, where=where)
    stored = digest(flat)
    weight_shapes(described(flat), where=where)  # refuses what does not belong together
    flat = plain_weights(flat, where=where, keep=keep)
    if part == "dit":
        flat = fold_frame_rate(flat)
    shapes = {name: tuple(t.shape) for name, t in flat.items() if not companion(name)}
    config = part_config(part, shapes, given, where=where)
    check_shapes({name: flat[name] for name in shapes}, _SHAPES[part](config), where=where)
    return Part(flat, config, where, stored)


def _model(
    parts: Mapping[Kind, Part],
    tokenizer: Tokenizer,
    defaults: Defaults,
    digests: Mapping[str, str],
    loras: Sequence[tuple[Lora, float]],
    offload: Offload,
    *,
    dtype: torch.dtype | None,
    quantize: str | None = None,
) -> Model:
    """Checks the parts against each other and puts them together."""
    dit, vae, text = (parts[part] for part in PARTS)
    configs = Configs(dit.config, vae.config, text.config)
    require_matching(configs, defaults, where=dit.where)
    encoders = _encoders(parts, tokenizer, digests)
    flat, merges = merged(dit.flat, loras)
    return Model(
        dit=offload.place_dit(dit_held(dit_from_flat(flat, dit.config), dtype, quantize)),
        dit_config=dit.config,
        vae=offload.place_vae(encoders.vae),
        vae_config=encoders.vae_config,
        text=offload.place_text(encoders.text),
        text_config=encoders.text_config,
        tokenizer=tokenizer,
        defaults=defaults,
        digests=with_loras(digests, loras),
        loras=merges,
        offload=offload,
    )


def _encoders(
    parts: Mapping[Kind, Part],
    tokenizer: Tokenizer,
    digests: Mapping[str, str],
    device: torch.device | str | None = None,
) -> Encoders:
    """Both as they are held, on `device` or where they are."""
    vae, text = parts["vae"], parts["text"]
    if tokenizer.vocab_size > text.config.vocab_size:
        raise CheckpointError(
            "the tokenizer does not belong to the text encoder",
            where=text.where,
            got=f"{tokenizer.vocab_size} tokens",
            wanted=f"at most {text.config.vocab_size}",
        )
    return Encoders(
        vae=_vae_held(vae, device),
        vae_config=vae.config,
        text=tree_map(lambda leaf: leaf.to(device), text_from_flat(text.flat, text.config)),
        text_config=text.config,
        tokenizer=tokenizer,
        digests=digests,
    )


def _vae_held(vae: Part, device: torch.device | str | None) -> VAEParams:
    return tree_map(
        lambda leaf: leaf.to(device, torch.float32), vae_from_flat(vae.flat, vae.config)
    )


def _require_digests(found: ModelFolder, actual: Mapping[str, str]) -> None:
    for part, wanted in found.digests.items():
        if part in actual and actual[part] != wanted:
            raise CheckpointError(
                "the file is not the one its config.json was written with, or is damaged",
                where=str(found.files[part]),
                got=f"digest {actual[part][:12]}",
                wanted=wanted[:12],
                todo="copy the whole folder again",
            )


def _digests(parts: Mapping[Kind, Part], tokenizer_json: str) -> dict[str, str]:
    digests: dict[str, str] = {part: read.digest for part, read in parts.items()}
    return digests | {"tokenizer": text_digest(tokenizer_json)}


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
