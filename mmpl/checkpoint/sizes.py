"""Configs from JSON and from tensor shapes, each checked against the other. No torch.

A file's shapes decide; what a config file says beside them must agree. Every number is range
checked before anything of that size is made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from math import prod
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from mmpl.errors import ArgumentError, CheckpointError
from mmpl.wan.config import DiTConfig, TextConfig, VAEConfig

Config = TypeVar("Config")
Shapes = Mapping[str, tuple[int, ...]]
Given = Mapping[str, Any]

HEAD_DIM = 128  # of every Wan model, unless its config says otherwise
MAX_LAYERS = 512
MAX_TEXT_LEN = 8192
MAX_WHOLE = 2**31

# Dim -> what people call the model, for messages.
KNOWN_DIMS = {1536: "Wan2.1 1.3B", 5120: "Wan2.1 14B", 3072: "Wan2.2 5B"}


def typed(cls: type, given: Given, *, where: str) -> dict[str, Any]:
    """The entries of a JSON object as keyword arguments of the dataclass `cls`.

    Raises CheckpointError for keys that `cls` does not have and values of another type.
    """
    hints = get_type_hints(cls)
    names = {field.name for field in fields(cls)}
    unknown = sorted(set(given) - names)
    if unknown:
        raise CheckpointError(
            "unknown settings",
            where=where,
            got=", ".join(ascii(name)[1:-1][:40] for name in unknown[:5]),
            wanted="only " + ", ".join(sorted(names)),
            todo="this model may need a newer mmpl",
        )
    return {name: _convert(value, hints[name], f"{where}: {name}") for name, value in given.items()}


def build(cls: type[Config], values: Given, *, where: str) -> Config:
    """`cls(**values)`, with its complaints as CheckpointError."""
    try:
        return cls(**values)
    except ArgumentError as error:
        raise CheckpointError(
            error.what, where=where, got=error.got, wanted=error.wanted
        ) from error


def dit_config(shapes: Shapes, given: Given, *, where: str) -> DiTConfig:
    """The DiT's config from its official-name shapes; `given` holds what a config file says.

    Heads (dim / 128), text_len and eps cannot be read off the shapes and come from `given`.
    """
    axis = _reader(shapes, "diffusion transformer", where)
    patch = tuple(axis("patch_embedding.weight", i) for i in (2, 3, 4))
    found = {
        "dim": axis("head.modulation", -1),
        "ffn_dim": axis("blocks.0.ffn.0.weight", 0),
        "num_layers": _count(shapes, r"blocks\.(\d+)\."),
        "freq_dim": axis("time_embedding.0.weight", 1),
        "text_dim": axis("text_embedding.0.weight", 1),
        "in_dim": axis("patch_embedding.weight", 1),
        "out_dim": axis("head.head.weight", 0) // max(1, prod(patch)),
        "patch_size": patch,
    }
    return nominal_dit(_agreed(found, given, where), where=where)


def nominal_dit(given: Given, *, where: str) -> DiTConfig:
    """The DiT's config as a config file alone gives it."""
    dim = given.get("dim", DiTConfig().dim)
    config = build(DiTConfig, {"num_heads": max(1, dim // HEAD_DIM), **given}, where=where)
    _in_range("num_layers", config.num_layers, 1, MAX_LAYERS, where)
    _in_range("text_len", config.text_len, 1, MAX_TEXT_LEN, where)
    _in_range("eps", config.eps, 1e-12, 1e-2, where)
    for side in config.patch_size:
        _in_range("patch_size", side, 1, 16, where)
    if config.in_dim != config.out_dim:
        raise CheckpointError(
            "the model takes more channels than it gives: an image-to-video Wan, not supported",
            where=where,
            got=f"in_dim {config.in_dim}, out_dim {config.out_dim}",
            wanted="a Wan2.1 text-to-video model or one fine-tuned from it",
        )
    return config


def text_config(shapes: Shapes, given: Given, *, where: str) -> TextConfig:
    """The text encoder's config from its official-name shapes and what a config file says."""
    axis = _reader(shapes, "umT5 encoder", where)
    found = {
        "vocab_size": axis("token_embedding.weight", 0),
        "dim": axis("token_embedding.weight", 1),
        "dim_attn": axis("blocks.0.attn.q.weight", 0),
        "dim_ffn": axis("blocks.0.ffn.fc1.weight", 0),
        "num_heads": axis("blocks.0.pos_embedding.embedding.weight", 1),
        "num_buckets": axis("blocks.0.pos_embedding.embedding.weight", 0),
        "num_layers": _count(shapes, r"blocks\.(\d+)\."),
    }
    config = build(TextConfig, _agreed(found, given, where), where=where)
    _in_range("num_layers", config.num_layers, 1, MAX_LAYERS, where)
    _in_range("eps", config.eps, 1e-12, 1e-2, where)
    return config


def vae_config(shapes: Shapes, given: Given, *, where: str) -> VAEConfig:
    """The VAE's config from its official-name shapes and what a config file says.

    Without a config file levels, residual blocks and latent statistics are Wan2.1's.
    """
    axis = _reader(shapes, "Wan VAE", where)
    channels = axis("encoder.conv1.weight", 1)
    found = {
        "dim": axis("encoder.conv1.weight", 0),
        "z_dim": axis("conv2.weight", 0),
        "patch_size": math.isqrt(channels // 3),
    }
    config = build(VAEConfig, _agreed(found, given, where), where=where)
    _in_range("levels", len(config.dim_mult), 1, 8, where)
    for multiple in config.dim_mult:
        _in_range("dim_mult", multiple, 1, 64, where)
    _in_range("patch_size", config.patch_size, 1, 16, where)
    for value in config.latent_std:
        _in_range("latent_std", value, 1e-6, 1e6, where)
    layers = _count(shapes, r"encoder\.downsamples\.(\d+)\.")
    wanted = len(config.dim_mult) * (config.num_res_blocks + 1) - 1
    if layers != wanted:
        raise CheckpointError(
            "the VAE has another number of layers than its config says",
            where=where,
            got=f"{layers} encoder layers",
            wanted=wanted,
        )
    return config


def _agreed(found: dict[str, Any], given: Given, where: str) -> dict[str, Any]:
    """Both together; raises CheckpointError where they contradict each other."""
    wrong = [name for name in found if name in given and given[name] != found[name]]
    if wrong:
        raise CheckpointError(
            "the tensors' shapes contradict the config",
            where=where,
            got=_described(found, wrong),
            wanted=_described(given, wrong) + " as the config says",
            todo="give the config and the weights of the same model",
        )
    return {**given, **found}


def _described(values: Given, names: list[str]) -> str:
    text = ", ".join(f"{name} {values[name]}" for name in names)
    known = KNOWN_DIMS.get(values["dim"]) if "dim" in names else None
    return f"{text} ({known})" if known else text


def _reader(shapes: Shapes, network: str, where: str) -> Callable[[str, int], int]:
    def axis(name: str, index: int) -> int:
        shape = shapes.get(name)
        if shape is None:
            raise CheckpointError(
                f"this does not hold a {network}",
                where=where,
                got=f"{len(shapes)} tensors, "
                + (f"the first named {ascii(next(iter(shapes)))[:80]}" if shapes else "none"),
                wanted=f"one named {name}",
                todo="check that the right file was given",
            )
        if not -len(shape) <= index < len(shape):
            raise CheckpointError(
                f"{name} has another number of axes", where=where, got=shape, wanted=network
            )
        return shape[index]

    return axis


def _count(shapes: Shapes, pattern: str) -> int:
    matches = (re.match(pattern, name) for name in shapes)
    return len({match.group(1) for match in matches if match})


def _in_range(name: str, value: float, low: float, high: float, where: str) -> None:
    if not low <= value <= high:
        raise CheckpointError(
            f"{name} is out of range", where=where, got=value, wanted=f"{low} to {high}"
        )


def _convert(value: Any, hint: Any, where: str) -> Any:
    """A JSON value as a value of type `hint`: bool, int, float, str or a tuple of one of them; None
    where it is one of them or None."""
    if NoneType in get_args(hint):
        if value is None:
            return None
        hint, _ = get_args(hint)
    if get_origin(hint) is tuple and isinstance(value, list):
        inner = get_args(hint)
        if inner[-1] is Ellipsis:
            return tuple(_convert(part, inner[0], where) for part in value)
        if len(inner) == len(value):
            return tuple(_convert(part, kind, where) for part, kind in zip(value, inner))
    elif hint is float and type(value) in (int, float) and abs(value) < math.inf:
        return float(value)
    elif type(value) is hint and (hint is not int or abs(value) <= MAX_WHOLE):
        return value
    raise CheckpointError(
        "a setting has the wrong type or size",
        where=where,
        got=ascii(value)[:60],
        wanted=getattr(hint, "__name__", str(hint)) if get_origin(hint) is None else str(hint),
    )
