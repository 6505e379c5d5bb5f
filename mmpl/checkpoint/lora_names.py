"""LoRA files by their key names and shapes: which tensors of a model each changes. No torch.

A key is the name of a module with an end that says what the tensor is: half of a low-rank pair
(down, also called A, and up, B), its alpha, or a whole delta. Modules come dotted, with
underscores or half and half, under official or diffusers names, behind any prefix; they are looked
up among the tensors that the model really has. Sources: files as published and the programs that
write them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from mmpl.checkpoint.names import WRAPPER_WORDS, to_diffusers
from mmpl.checkpoint.sizes import KNOWN_DIMS, Shapes
from mmpl.errors import CheckpointError

MOSTLY = 0.9  # of a LoRA that fits a model: with less of it, something is likely to be wrong

DOWN, UP, ALPHA, DIFF, BIAS, MODULATION = "down", "up", "alpha", "diff", "diff_b", "diff_m"
_ENDS = (  # the word after A or B is the name that PEFT gave the adapter
    (DOWN, r"[._]lora(?:_A|_down|\.down)(?:\.[\w-]+)??(?:\.weight)?$"),
    (UP, r"[._]lora(?:_B|_up|\.up)(?:\.[\w-]+)??(?:\.weight)?$"),
    (ALPHA, r"\.(?:lora_)?alpha$"),
    (DIFF, r"\.diff$"),
    (BIAS, r"\.diff_b$"),
    (MODULATION, r"\.diff_m$"),
)
DIFF_ENDS = (".diff", ".diff_b", ".diff_m")
_OTHER_KINDS = (  # what cannot be merged, by a key that only it has
    (r"\.hada_", "a LyCORIS LoHa"),
    (r"\.lokr_", "a LyCORIS LoKr"),
    (r"\.(dora_scale|lora_magnitude_vector)", "a DoRA"),
    (r"\.(oft|boft)_|\.oft_blocks", "an OFT adapter"),
    (r"\.lora_mid\.", "a LoCon with a core tensor"),
    (r"\.lora_[AB]\.([\w-]+\.)?bias$", "a LoRA with biases inside its pairs"),
)
_PREFIX = re.compile(
    r"(?:(?:lora_(?:unet|transformer|dit)|lycoris)_+)?"
    r"(?:(?:base_model|model|diffusion_model|generator|transformer|dit|unet)_+)*"
)
_DIFFUSERS = re.compile(r"attn[12]_|condition_embedder_|ffn_net_|^proj_out$|^scale_shift_table$")
_REASONS = (  # why a module may be missing in a text-to-video model
    (
        r"^img_emb|_(k|v|norm_k)_img$|_add_[kv]_proj$|norm_added_[kq]$|image_embedder",
        "for image input, which this model does not have",
    ),
    (r"^lora_te|^text_encoder|^te[12]?_", "for a text encoder, which stays as it is"),
    (r"^vace_|control_adapter|^ref_conv", "for a control network, which this model does not have"),
)


@dataclass(frozen=True, slots=True)
class Change:
    """One delta to the tensor `target`: the file's tensors `keys`, two (down, up) of a low-rank
    pair or one whole; `alpha` is the key of a pair's alpha, empty where it has none."""

    target: str
    keys: tuple[str, ...]
    alpha: str = ""


@dataclass(frozen=True, slots=True)
class Fit:
    """What a LoRA changes in a model, and reason -> count of the deltas that find no place."""

    changes: tuple[Change, ...]
    left_out: Mapping[str, int]

    @property
    def total(self) -> int:
        return len(self.changes) + sum(self.left_out.values())


@dataclass(frozen=True, slots=True)
class Parsed:
    """A LoRA's keys: module -> role -> key. `family` says for people who writes such files."""

    modules: Mapping[str, Mapping[str, str]]
    family: str
    in_diffusers: bool

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The keys (down, up) of every low-rank pair."""
        return [(keys[DOWN], keys[UP]) for keys in self.modules.values() if DOWN in keys]


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA to merge at a strength: a file of so many bytes, with this `sha256`."""

    path: Path
    strength: float
    bytes: int
    sha256: str


def is_lora(names: Iterable[str]) -> bool:
    """Whether any of these names is one of a LoRA, of whatever kind."""
    others = [pattern for pattern, _ in _OTHER_KINDS]
    return any(_split(name)[1] or any(re.search(p, name) for p in others) for name in names)


def parse(names: Iterable[str], *, where: str) -> Parsed:
    """The keys of a LoRA, sorted out. Raises CheckpointError for what is no LoRA or an adapter of
    another kind, for half a pair and for two keys that mean the same tensor."""
    names = list(names)
    _refuse_other_kinds(names, where)
    if not is_lora(names):
        raise CheckpointError(
            "this is not a LoRA",
            where=where,
            got=f"{len(names)} tensors, {ascii(names[0])[:80]} the first"
            if names
            else "no tensors",
            wanted="names that end in lora_A, lora_down, diff or the like",
        )
    modules: dict[str, dict[str, str]] = {}
    for name in names:
        stem, role = _split(name)
        roles = modules.setdefault(_module(stem), {})
        if role in roles:
            raise CheckpointError(
                "the LoRA holds the same tensor twice under different names",
                where=where,
                got=f"{ascii(roles[role])[:80]} and {ascii(name)[:80]}",
            )
        roles[role] = name
    for keys in modules.values():
        if (DOWN in keys) != (UP in keys):
            raise CheckpointError(
                "half of a low-rank pair is missing",
                where=where,
                got=ascii(keys.get(DOWN) or keys[UP])[:100] + " alone",
                todo="copy or download the file again",
            )
    in_diffusers = any(_DIFFUSERS.search(module) for module in modules)
    return Parsed(modules, _family(names, in_diffusers), in_diffusers)


def fit(parsed: Parsed, shapes: Shapes, model: Shapes, *, where: str) -> Fit:
    """What a LoRA with tensors of these `shapes` changes in a `model` of those, under official
    names. Raises CheckpointError where nothing fits, or a shape does not."""
    targets = _targets(model, parsed.in_diffusers)
    changes: list[Change] = []
    left_out: dict[str, int] = {}
    for module, keys in parsed.modules.items():
        for role, key in keys.items():
            if role == UP or (role == ALPHA and DOWN in keys):
                continue
            target = targets.get((module, role))
            if target is None:
                reason = _reason(module, role)
                left_out[reason] = left_out.get(reason, 0) + 1
            elif role == DOWN:
                changes.append(Change(target, (key, keys[UP]), keys.get(ALPHA, "")))
            else:
                changes.append(Change(target, (key,)))
    if not changes:
        raise CheckpointError(
            "no part of this LoRA belongs to the model",
            where=where,
            got=f"matched 0/{sum(left_out.values())}, {ascii(next(iter(parsed.modules)))[:80]} "
            "among the rest",
            wanted="a LoRA for Wan2.1 text-to-video",
        )
    for change in changes:
        _require_shape(change, shapes, model, where)
    return Fit(tuple(changes), left_out)


def ranks(parsed: Parsed, shapes: Shapes) -> list[int]:
    """The ranks of a LoRA's pairs, each once."""
    return sorted({shapes[down][0] for down, _ in parsed.pairs if shapes[down]})


def merged_digest(digest: str, loras: Sequence[tuple[str, float]]) -> str:
    """A fingerprint of weights with LoRAs merged into them, from those of the weights and of each
    LoRA, and its strength."""
    if not loras:
        return digest
    lines = [digest, *(f"{lora} {strength!r}" for lora, strength in loras)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _split(name: str) -> tuple[str, str]:
    """The name of the module in a key, and what the key holds of it; "" where that is unknown."""
    for role, pattern in _ENDS:
        found = re.search(pattern, name)
        if found:
            return name[: found.start()], role
    return name, ""


def _module(stem: str) -> str:
    """A module's name without prefixes, with underscores for dots."""
    words = [word for word in stem.split(".") if word not in WRAPPER_WORDS]
    return _PREFIX.sub("", "_".join(words), count=1)


def _targets(model: Iterable[str], in_diffusers: bool) -> dict[tuple[str, str], str]:
    """(module, role) -> the official name of the tensor that it changes."""
    table: dict[tuple[str, str], str] = {}
    for name in model:
        spelt = (to_diffusers("dit", name) or name) if in_diffusers else name
        stem, _, word = spelt.rpartition(".")
        module = stem.replace(".", "_")
        if word == "bias":
            table[module, BIAS] = name
        elif word == "weight":
            table[module, DOWN] = table[module, DIFF] = name
        else:  # a tensor by itself: a modulation
            table[module, MODULATION] = table[spelt.replace(".", "_"), DIFF] = name
    return table


def _require_shape(change: Change, shapes: Shapes, model: Shapes, where: str) -> None:
    wanted = model[change.target]
    got = shapes[change.keys[0]]
    if len(change.keys) == 2:
        down, up = got, shapes[change.keys[1]]
        if len(down) < 2 or len(up) < 2 or down[0] != prod(up[1:]) or not down[0]:
            raise CheckpointError(
                "the halves of a low-rank pair do not fit each other",
                where=where,
                got=f"{ascii(change.keys[0])[:80]} {down}, up {up}",
                todo="copy or download the file again",
            )
        got, wanted = (up[0], prod(down[1:])), (wanted[0], prod(wanted[1:]))
    if [n for n in got if n != 1] != [n for n in wanted if n != 1]:
        raise CheckpointError(
            "this LoRA is for a model of another size",
            where=where,
            got=f"{change.target} {_sized(got)}",
            wanted=_sized(wanted),
            todo="give a LoRA that was made for this size",
        )


def _sized(shape: tuple[int, ...]) -> str:
    known = [KNOWN_DIMS[side] for side in shape if side in KNOWN_DIMS]
    return "x".join(map(str, shape)) + (f" ({known[0]})" if known else "")


def _reason(module: str, role: str) -> str:
    if not role:
        return "under names of no kind of LoRA"
    if role == ALPHA:
        return "alone, an alpha without its pair"
    for pattern, reason in _REASONS:
        if re.search(pattern, module):
            return reason
    return "for modules that this model does not have"


def _refuse_other_kinds(names: Iterable[str], where: str) -> None:
    for name in names:
        for pattern, kind in _OTHER_KINDS:
            if re.search(pattern, name):
                raise CheckpointError(
                    f"this is {kind}, which is not supported",
                    where=where,
                    got=f"key {ascii(name)[:80]}",
                    wanted="a LoRA of low-rank pairs",
                    todo="merge it in the program that made it, or convert it to a LoRA",
                )


def _family(names: Sequence[str], in_diffusers: bool) -> str:
    def any_has(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in names)

    if any_has(r"^lora_(unet|transformer)_"):
        return "kohya / musubi"
    if any_has(r"^base_model\.|\.lora_A\.(?!weight$)[\w-]+"):
        return "PEFT"
    if in_diffusers:
        return "diffusers"
    return "ComfyUI / diffusion-pipe" if any_has(r"\.lora_A\.") else "LightX2V / Kijai"
