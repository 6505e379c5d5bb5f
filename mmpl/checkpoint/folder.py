"""Model folders: which files they hold, and what can be said of them before loading. No torch.

Two kinds. `mmpl`: config.json (all configs and defaults), dit.safetensors, vae.safetensors,
text.safetensors, tokenizer.json. `wan`: any folder with the weights of a Wan model, as Wan2.1,
diffusers, ComfyUI and others publish them, told by what the files hold and never by their names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmpl.checkpoint import files, sizes
from mmpl.checkpoint.defaults import Defaults
from mmpl.checkpoint.names import Kind, official
from mmpl.checkpoint.published import defaults_of, given_of, network_of
from mmpl.checkpoint.quantised import weight_shapes
from mmpl.checkpoint.recognise import (
    HEADER_SUFFIXES,
    INDEX_SUFFIX,
    PICKLE_SUFFIXES,
    SUFFIXES,
    TITLES,
    Weights,
    look,
    unreadable,
)
from mmpl.checkpoint.search import (
    CONFIG_FILE,
    FLAGS,
    GIVE_LORA,
    TOKENIZER_FILE,
    Contents,
    Role,
    choose,
    choose_tokenizer,
    contents,
    has,
    require_role,
)
from mmpl.checkpoint.shards import read_headers
from mmpl.checkpoint.tokenizer_file import require_tokenizer
from mmpl.errors import CheckpointError
from mmpl.wan.config import DiTConfig, TextConfig, VAEConfig

if TYPE_CHECKING:
    from mmpl.checkpoint.lora_names import LoraFile

BUNDLE_FORMAT = "mmpl-bundle"
BUNDLE_VERSION = 1
BUNDLE_FILES: dict[str, str] = {
    "dit": "dit.safetensors",
    "vae": "vae.safetensors",
    "text": "text.safetensors",
    "tokenizer": TOKENIZER_FILE,
}
INDEX_FILE = "model_index.json"  # of diffusers: which pipeline the networks belong to

PARTS: tuple[Kind, ...] = ("dit", "vae", "text")


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
    part of config.json about each network, `digests` what its weights must hash to, `families`
    whose way of naming tensors each network was saved in. `loras` are to be merged into the
    transformer.
    """

    path: Path
    kind: Literal["mmpl", "wan"]
    files: Mapping[str, Path]
    given: Mapping[str, Mapping[str, Any]]
    configs: Configs
    defaults: Defaults
    digests: Mapping[str, str]
    families: Mapping[str, str] = field(default_factory=dict)
    loras: tuple[LoraFile, ...] = ()

    @property
    def title(self) -> str:
        """What kind of folder it is, for people."""
        if self.kind == "mmpl":
            return "mmpl bundle"
        families = " ".join(self.families.values())
        named = next((name for name in ("diffusers", "ComfyUI") if name in families), "Wan2.1")
        return f"{named} folder"


def check_folder(
    folder: str | Path,
    *,
    checkpoint: str | Path | None = None,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> ModelFolder:
    """Everything that can be said of a model in a fraction of a second.

    `folder` may also be one file of weights: what it does not hold is then taken from the folder
    it is in, or the one above. `checkpoint` takes the place of the transformer, `vae`,
    `text_encoder` and `tokenizer` of those. Looks at configs, presence and kind of every file,
    headers of safetensors files, tables of contents of pickles. Loads no weights and runs
    nothing. Raises CheckpointError.
    """
    found = open_folder(
        folder, checkpoint=checkpoint, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
    )
    configs = found.configs
    require_tokenizer(found.files["tokenizer"])
    for part in PARTS:
        path = found.files[part]
        if is_pickle(path):
            files.require_pickle(path)
        else:
            entries = official(part, read_headers(path), where=str(path))
            shapes = weight_shapes(entries, where=str(path))
            config = part_config(part, shapes, found.given[part], where=str(path))
            configs = replace(configs, **{part: config})
    if is_pickle(found.files["text"]):  # its width is the one of its size that shows elsewhere
        configs = replace(configs, text=replace(configs.text, dim=configs.dit.text_dim))
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


def open_folder(
    folder: str | Path,
    *,
    checkpoint: str | Path | None = None,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> ModelFolder:
    """The model's config and the paths of its files, which exist; see `check_folder`. Raises
    CheckpointError."""
    path = root = Path(folder)
    flags = zip(FLAGS, (checkpoint, vae, text_encoder, tokenizer), strict=True)
    told: dict[Role, Path] = {role: Path(file) for role, file in flags if file is not None}
    if not os.path.isdir(path):
        root = path.parent
        told = {_role(path): path, **told}
    config = _json(root / CONFIG_FILE)
    bundle = "format" in config
    found = _bundle(path, root, config, told) if bundle else _searched(path, root, told)
    for role, file in found.files.items():
        files.require_file(file)
        if role != "tokenizer":
            is_pickle(file)  # refuses other formats
    return found


def _role(path: Path) -> Role:
    """Which network's weights the file given as a model holds."""
    if not os.path.lexists(path) or not path.name.endswith(SUFFIXES):
        raise CheckpointError(
            "no such model folder",
            where=str(path),
            wanted="an mmpl bundle, a folder of Wan weights, or one file of them",
        )
    found = look(path)
    role: Role | None = next((part for part in PARTS if part == found.network), None)
    if role is None:
        raise CheckpointError(
            "this is not a part of a model",
            where=str(path),
            got=found.title,
            wanted=", ".join(TITLES[part] for part in PARTS),
            todo=GIVE_LORA if found.network == "lora" else "",
        )
    return role


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no such file."""
    return files.read_json(path) if os.path.lexists(path) else {}


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
    if path.suffix in HEADER_SUFFIXES or path.name.endswith(INDEX_SUFFIX):
        return False
    raise unreadable(path)


def _bundle(
    path: Path, root: Path, config: Mapping[str, Any], told: Mapping[Role, Path]
) -> ModelFolder:
    where = str(root / CONFIG_FILE)
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
    looked = {role: require_role(role, file) for role, file in told.items()}
    if (dit := looked.get("dit")) is not None:
        _require_blocks(dit, given["dit"])
    return ModelFolder(
        path=path,
        kind="mmpl",
        files={**{part: root / name for part, name in BUNDLE_FILES.items()}, **told},
        given=given,
        configs=_nominal(given, where),
        defaults=sizes.build(Defaults, settings, where=f"{where}: defaults"),
        digests={part: value for part, value in digests.items() if part not in told},
        families={role: weights.family for role, weights in looked.items() if weights},
    )


def _searched(path: Path, root: Path, told: Mapping[Role, Path]) -> ModelFolder:
    """A model whose files are recognised by what they hold."""
    wanted: list[Role] = [role for role in FLAGS if role not in told]
    places = [contents(root)] if wanted else []
    if path != root and not all(has(role, places[0]) for role in wanted):
        places.append(contents(root.parent))  # as of transformer/x.safetensors in a whole folder
    networks: dict[Kind, Weights] = {}
    given: dict[str, Mapping[str, Any]] = {}
    # What is missing is told before what is there twice: files may be in each other's place.
    for part in sorted(PARTS, key=lambda part: any(has(part, place) for place in places)):
        weights = require_role(part, told[part]) if part in told else None
        networks[part] = weights or choose(part, places)
        given[part] = _given(part, networks[part].path, part in told, places)
    _require_blocks(networks["dit"], given["dit"])
    tokenizer = told["tokenizer"] if "tokenizer" in told else choose_tokenizer(places)
    roots = [place.folder for place in places] or [root]
    index = next((p for p in (f / INDEX_FILE for f in roots) if os.path.lexists(p)), None)
    return ModelFolder(
        path=path,
        kind="wan",
        files={**{part: networks[part].path for part in PARTS}, "tokenizer": tokenizer},
        given=given,
        configs=_nominal(given, str(root)),
        defaults=defaults_of(
            _json(index) if index else {},
            tells_frame_rate=networks["dit"].tells_frame_rate,
            where=str(index),
        ),
        digests={},
        families={part: weights.family for part, weights in networks.items()},
    )


def _require_blocks(dit: Weights, given: Mapping[str, Any]) -> None:
    """Of a pickle, whose shapes are not known before it is loaded."""
    wanted = given.get("num_layers", dit.blocks)
    if is_pickle(dit.path) and dit.blocks not in (0, wanted):
        raise CheckpointError(
            "the transformer is of another size than its config says",
            where=str(dit.path),
            got=f"{dit.blocks} blocks",
            wanted=wanted,
            todo="give a checkpoint of this model, or the folder of the other",
        )


def _given(part: Kind, file: Path, told: bool, places: Sequence[Contents]) -> Mapping[str, Any]:
    """What the config.json beside a network's file says of it. A transformer that was given from
    elsewhere is held to the config of the folder whose own it replaces."""
    beside = file.parent / CONFIG_FILE
    config = _json(beside)
    about = network_of(config)
    if config and (about == part or (part == "dit" and about is None)):
        return given_of(part, config, where=str(beside))
    if part == "dit" and told:
        for path in (path for place in places for path in place.configs):
            config = _json(path)
            about = network_of(config)
            if about == "dit" or (about is None and path.parent == places[0].folder):
                return given_of("dit", config, where=str(path))
    return {}


def _nominal(given: Mapping[str, Mapping[str, Any]], where: str) -> Configs:
    return Configs(
        dit=sizes.nominal_dit(given["dit"], where=where),
        vae=sizes.build(VAEConfig, given["vae"], where=where),
        text=sizes.build(TextConfig, given["text"], where=where),
    )
