"""Model folders: which files they hold, and what can be said of them before loading. No torch.

Two kinds. `mmpl`: config.json (all configs and defaults), dit.safetensors, vae.safetensors,
text.safetensors, tokenizer.json. `wan`: a folder as Wan2.1 is published, whose transformer an
MMPL or Self-Forcing checkpoint can replace.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mmpl.checkpoint import files, sizes
from mmpl.checkpoint.defaults import Defaults
from mmpl.checkpoint.names import Kind, official
from mmpl.checkpoint.quantised import weight_shapes
from mmpl.errors import CheckpointError
from mmpl.wan.config import DiTConfig, TextConfig, VAEConfig

BUNDLE_FORMAT = "mmpl-bundle"
BUNDLE_VERSION = 1
BUNDLE_FILES = {
    "dit": "dit.safetensors",
    "vae": "vae.safetensors",
    "text": "text.safetensors",
    "tokenizer": "tokenizer.json",
}
WAN_FILES = {
    "vae": "Wan2.1_VAE.pth",
    "text": "models_t5_umt5-xxl-enc-bf16.pth",
    "tokenizer": "google/umt5-xxl/tokenizer.json",
}
WAN_DIT = ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors")
CONFIG_FILE = "config.json"
MAX_TOKENIZER_BYTES = 64 * 2**20

PARTS: tuple[Kind, ...] = ("dit", "vae", "text")
SAFETENSORS_SUFFIXES = (".safetensors", ".sft", ".gguf")  # what is no pickle
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True, slots=True)
class Configs:
    """Sizes of the three networks."""

    dit: DiTConfig
    vae: VAEConfig
    text: TextConfig


@dataclass(frozen=True, slots=True, eq=False)
class ModelFolder:
    """Where a model's parts are, and what its config says.

    `configs` are those of the tensors where a header could be read; for networks in pickles,
    whose sizes are known only after loading, those of config.json or of Wan2.1. `given` is the
    part of config.json about each network, `digests` what its weights must hash to.
    """

    path: Path
    kind: Literal["mmpl", "wan"]
    files: Mapping[str, Path]
    given: Mapping[str, Mapping[str, Any]]
    configs: Configs
    defaults: Defaults
    digests: Mapping[str, str]


def check_folder(folder: str | Path, *, checkpoint: str | Path | None = None) -> ModelFolder:
    """Everything that can be said of a model folder in a fraction of a second.

    Config, presence and kind of every file, headers of safetensors files, tables of contents of
    pickles; `checkpoint` takes the place of the folder's transformer. Loads no weights and runs
    nothing. Raises CheckpointError.
    """
    found = open_folder(folder, checkpoint=checkpoint)
    configs = found.configs
    files.require_whole_json(found.files["tokenizer"], MAX_TOKENIZER_BYTES)
    for part in PARTS:
        path = found.files[part]
        if is_pickle(path):
            files.require_pickle(path)
        else:
            entries = official(part, files.read_headers(path), where=str(path))
            shapes = weight_shapes(entries, where=str(path))
            config = part_config(part, shapes, found.given[part], where=str(path))
            configs = replace(configs, **{part: config})
    if not any(is_pickle(found.files[part]) for part in PARTS):
        require_matching(configs, found.defaults, where=str(found.path))
    return replace(found, configs=configs)


def require_matching(configs: Configs, defaults: Defaults, *, where: str) -> None:
    """Raises CheckpointError unless the networks fit together and make the default size."""
    dit, vae, text = configs.dit, configs.vae, configs.text
    for what, got, wanted in (
        ("latent channels of transformer and VAE", dit.in_dim, vae.z_dim),
        ("text width of transformer and text encoder", dit.text_dim, text.dim),
    ):
        if got != wanted:
            raise CheckpointError(
                f"{what} differ",
                where=where,
                got=got,
                wanted=wanted,
                todo="give the networks of one model",
            )
    rows, columns = (vae.spatial_stride * side for side in dit.patch_size[1:])
    if defaults.height % rows or defaults.width % columns:
        raise CheckpointError(
            "the default size is not one the model can make",
            where=where,
            got=f"{defaults.width}x{defaults.height}",
            wanted=f"multiples of {columns} and {rows}",
        )


def open_folder(folder: str | Path, *, checkpoint: str | Path | None = None) -> ModelFolder:
    """The folder's config and the paths of its files, which exist. Raises CheckpointError."""
    path = Path(folder)
    if not os.path.isdir(path):
        raise CheckpointError(
            "no such model folder",
            where=str(path),
            wanted="an mmpl bundle or an official Wan2.1 folder",
        )
    config = files.read_json(path / CONFIG_FILE)
    where = str(path / CONFIG_FILE)
    found = _bundle(path, config, where) if "format" in config else _wan(path, config, where)
    paths = dict(found.files)
    if checkpoint is not None:
        paths["dit"] = Path(checkpoint)
    elif found.kind == "wan":
        paths["dit"] = _wan_dit(path)
    for name, file in paths.items():
        files.require_file(file)
        if name != "tokenizer":
            is_pickle(file)  # refuses other formats
    digests = {k: v for k, v in found.digests.items() if checkpoint is None or k != "dit"}
    return replace(found, files=paths, digests=digests)


def part_config(
    part: Kind, shapes: sizes.Shapes, given: sizes.Given, *, where: str
) -> DiTConfig | VAEConfig | TextConfig:
    """The config of one network from its official-name shapes and what config.json says of it."""
    read = {"dit": sizes.dit_config, "vae": sizes.vae_config, "text": sizes.text_config}
    return read[part](shapes, given, where=where)


def is_pickle(path: Path) -> bool:
    """True for a pickle, False for safetensors or its index, by suffix; others are refused."""
    if path.suffix in PICKLE_SUFFIXES:
        return True
    if path.suffix in SAFETENSORS_SUFFIXES or path.name.endswith(".index.json"):
        return False
    raise CheckpointError(
        "weights in this format cannot be read",
        where=str(path),
        got=path.suffix or "no suffix",
        wanted="one of " + " ".join((*SAFETENSORS_SUFFIXES, ".index.json", *PICKLE_SUFFIXES)),
    )


def _bundle(path: Path, config: Mapping[str, Any], where: str) -> ModelFolder:
    if config["format"] != BUNDLE_FORMAT or config.get("version") != BUNDLE_VERSION:
        raise CheckpointError(
            "unknown kind of bundle",
            where=where,
            got=ascii((config["format"], config.get("version")))[:80],
            wanted=f"{BUNDLE_FORMAT} version {BUNDLE_VERSION}",
            todo="this model may need a newer mmpl",
        )
    known = {"format", "version", "dit", "vae", "text", "defaults", "digests"}
    wrong = sorted(known.symmetric_difference(config))
    if wrong:
        raise CheckpointError(
            "missing or unknown entries", where=where, got=ascii(wrong[:5]), wanted=sorted(known)
        )
    for name in sorted(known - {"format", "version"}):
        if not isinstance(config[name], dict):
            raise CheckpointError(f"{name} is not an object", where=where)
    given = {
        part: sizes.typed(kind, config[part], where=f"{where}: {part}")
        for part, kind in (("dit", DiTConfig), ("vae", VAEConfig), ("text", TextConfig))
    }
    settings = sizes.typed(Defaults, config["defaults"], where=f"{where}: defaults")
    digests = config["digests"]
    if not set(digests) <= set(BUNDLE_FILES) or not all(type(v) is str for v in digests.values()):
        raise CheckpointError("digests are not one text per part", where=where)
    return ModelFolder(
        path=path,
        kind="mmpl",
        files={part: path / name for part, name in BUNDLE_FILES.items()},
        given=given,
        configs=_nominal(given, where),
        defaults=sizes.build(Defaults, settings, where=f"{where}: defaults"),
        digests=digests,
    )


def _wan(path: Path, config: Mapping[str, Any], where: str) -> ModelFolder:
    given = {"dit": sizes.official_config(config, where=where), "vae": {}, "text": {}}
    return ModelFolder(
        path=path,
        kind="wan",
        files={part: path / name for part, name in WAN_FILES.items()},
        given=given,
        configs=_nominal(given, where),
        defaults=Defaults(),
        digests={},
    )


def _nominal(given: Mapping[str, Mapping[str, Any]], where: str) -> Configs:
    return Configs(
        dit=sizes.nominal_dit(given["dit"], where=where),
        vae=sizes.build(VAEConfig, given["vae"], where=where),
        text=sizes.build(TextConfig, given["text"], where=where),
    )


def _wan_dit(path: Path) -> Path:
    for name in WAN_DIT:
        if os.path.lexists(path / name):
            return path / name
    raise CheckpointError(
        "the folder holds no transformer weights",
        where=str(path),
        wanted=" or ".join(WAN_DIT),
        todo="download them, or give a checkpoint that replaces them",
    )
