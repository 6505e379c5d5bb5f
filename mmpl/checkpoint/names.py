"""Key names of checkpoints: wrapper prefixes, official <-> diffusers / transformers, and variants.

Official Wan names are the ones used in memory. A rule is a pair of templates, read either way:
`#` stands for an index; the last word (weight, bias, gamma) is kept. A name is a place in the
network plus a part of it, so the tables list places and parts apart. Works on names alone.
Sources: the published files and diffusers' conversion script.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeVar

from mmpl.errors import CheckpointError

Kind = Literal["dit", "vae", "text"]
Rules = tuple[tuple[str, str], ...]
Value = TypeVar("Value")

# Left behind by parallel wrappers and torch.compile at any depth of a name.
WRAPPER_WORDS = frozenset(
    {"module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"}
)
# Put in front of every name by the program that saved the file.
LEADING_WORDS = frozenset({"model", "diffusion_model", "generator", "transformer"})

# Of quantised weights.
_COMPANIONS = ("scale_weight", "weight_scale", "scale_input", "input_scale", "comfy_quant")
_LAST_WORDS = frozenset({"weight", "bias", "gamma", *_COMPANIONS})
_ATTENTION_PARTS = (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))


def _joined(places: Rules, parts: Rules) -> Rules:
    """Every part in every place."""
    return tuple(
        (f"{place}.{part}", f"{other_place}.{other_part}")
        for place, other_place in places
        for part, other_part in parts
    )


# SkyReels-V2-DF 1.3B alone, which adds something for 16 or 24 frames a second.
FRAME_RATE = "fps_"
_FRAME_RATE_PLACES: Rules = (
    ("fps_embedding", "fps_embedding"),
    ("fps_projection.0", "fps_projection.net.0.proj"),
    ("fps_projection.2", "fps_projection.net.2"),
)
# What ComfyUI's text encoders hold beside their weights: a tokenizer as bytes.
EMBEDDED_TOKENIZER = "spiece_model"

_DIT_TOP: Rules = (
    ("patch_embedding", "patch_embedding"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("head.head", "proj_out"),
    ("head.modulation", "scale_shift_table"),
)
_DIT_BLOCK: Rules = (
    ("modulation", "scale_shift_table"),
    ("norm3", "norm2"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
    *(
        (f"{official}.{part}", f"{other}.{renamed}")
        for official, other in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for part, renamed in (*_ATTENTION_PARTS, ("norm_q", "norm_q"), ("norm_k", "norm_k"))
    ),
)

_TEXT_TOP: Rules = (
    ("token_embedding", "shared"),
    ("token_embedding", "encoder.embed_tokens"),  # the tied copy; files hold either or both
    ("norm", "encoder.final_layer_norm"),
)
_TEXT_BLOCK: Rules = (
    ("norm1", "layer.0.layer_norm"),
    ("norm2", "layer.1.layer_norm"),
    ("pos_embedding.embedding", "layer.0.SelfAttention.relative_attention_bias"),
    ("ffn.gate.0", "layer.1.DenseReluDense.wi_0"),
    ("ffn.fc1", "layer.1.DenseReluDense.wi_1"),
    ("ffn.fc2", "layer.1.DenseReluDense.wo"),
    *((f"attn.{part}", f"layer.0.SelfAttention.{part}") for part in "qkvo"),
)

_VAE_TOP: Rules = (
    ("conv1", "quant_conv"),
    ("conv2", "post_quant_conv"),
    *(
        (f"{side}.{official}", f"{side}.{other}")
        for side in ("encoder", "decoder")
        for official, other in (
            ("conv1", "conv_in"),
            ("head.0", "norm_out"),
            ("head.2", "conv_out"),
        )
    ),
)
# Wan's decoder has four layers a level, three residual blocks and an upsampler; the official
# list is flat, the other nested.
_VAE_LEVELS, _VAE_PERIOD = 4, 4
_VAE_PLACES: Rules = (
    ("encoder.downsamples.#", "encoder.down_blocks.#"),
    *(
        (f"{side}.middle.{index}", f"{side}.mid_block.{other}")
        for side in ("encoder", "decoder")
        for index, other in enumerate(("resnets.0", "attentions.0", "resnets.1"))
    ),
    *(
        (
            f"decoder.upsamples.{_VAE_PERIOD * level + layer}",
            f"decoder.up_blocks.{level}."
            + (f"resnets.{layer}" if layer < _VAE_PERIOD - 1 else "upsamplers.0"),
        )
        for level in range(_VAE_LEVELS)
        for layer in range(_VAE_PERIOD)
    ),
)
_VAE_PARTS: Rules = (
    ("residual.0", "norm1"),
    ("residual.2", "conv1"),
    ("residual.3", "norm2"),
    ("residual.6", "conv2"),
    ("shortcut", "conv_shortcut"),
    ("resample.1", "resample.1"),
    ("time_conv", "time_conv"),
    ("norm", "norm"),
    ("to_qkv", "to_qkv"),
    ("proj", "proj"),
)

_TABLES: dict[Kind, Rules] = {
    "dit": _DIT_TOP + _FRAME_RATE_PLACES + _joined((("blocks.#", "blocks.#"),), _DIT_BLOCK),
    "text": _TEXT_TOP + _joined((("blocks.#", "encoder.block.#"),), _TEXT_BLOCK),
    "vae": _VAE_TOP + _joined(_VAE_PLACES, _VAE_PARTS),
}
# Reversed: of two rules with the same official name the first one counts.
_TO_DIFFUSERS = {kind: dict(reversed(rules)) for kind, rules in _TABLES.items()}
_TO_OFFICIAL = {
    kind: {other: official for official, other in rules} for kind, rules in _TABLES.items()
}

# A name that only the other naming has, for each network.
_OTHER_NAMING: dict[Kind, str] = {
    "dit": r"condition_embedder\.",
    "text": r"(shared\.|encoder\.(block|embed_tokens)\.)",
    "vae": r"(encoder|decoder)\.conv_in\.",
}

# Families that share Wan's names but not its network, by a key that only they have.
_VARIANTS: tuple[tuple[str, str], ...] = (
    (r"\.(lora_[AB]|lora_down|lora_up|hada_w1_a|lokr_w1|diff_b)\b", "a LoRA, not a whole model"),
    (r"(^|\.)vace_", "Wan VACE"),
    (r"(^|\.)control_adapter\.", "Wan Fun-Control"),
    (r"^ref_conv\.", "Wan Fun-Reference"),
    (r"^img_emb\.emb_pos$", "Wan first-last-frame (CLIP image conditioning)"),
    (r"^img_emb\.|\.(k_img|v_img|norm_k_img)\.|\.add_[kv]_proj\.", "Wan I2V with CLIP"),
    (r"^condition_embedder\.image_embedder\.", "Wan I2V with CLIP"),
    (r"\.to_gate_compress\.", "a Wan with video sparse attention (FastWan VSA)"),
    (r"\.cam_encoder\.", "Wan ReCamMaster"),
    (r"(^|\.)(audio|motion|face)_(proj|encoder|adapter|injector)", "Wan with audio or pose input"),
)


def to_diffusers(kind: Kind, name: str) -> str | None:
    """The diffusers (DiT, VAE) or transformers (text) name of an official name, None if unknown."""
    return _translate(_TO_DIFFUSERS[kind], name)


def to_official(kind: Kind, name: str) -> str | None:
    """The official name of a diffusers or transformers name, None if unknown."""
    return _translate(_TO_OFFICIAL[kind], name)


def official(kind: Kind, flat: Mapping[str, Value], *, where: str) -> dict[str, Value]:
    """The same entries under official names, whatever prefixes and naming the file uses.

    Names of neither naming stay as they are, for the shape check to name them. Raises
    CheckpointError for relatives of Wan and for two entries of the same name.
    """
    entries = bare(flat, where=where)
    refuse_variants(entries, where=where)
    if kind == "text":
        entries.pop(EMBEDDED_TOKENIZER, None)
    if not other_naming(kind, entries):
        return entries
    if {"shared.weight", "encoder.embed_tokens.weight"} <= set(entries):
        del entries["encoder.embed_tokens.weight"]  # tied: readers of such files take `shared`
    return _renamed(entries, lambda name: to_official(kind, name) or name, where=where)


def other_naming(kind: Kind, names: Iterable[str]) -> bool:
    """Whether bare names are those of diffusers (DiT, VAE) or transformers (text)."""
    match = re.compile(_OTHER_NAMING[kind]).match
    return any(match(name) for name in names)


def bare_name(name: str) -> str:
    """`name` without what wrappers and saving programs put around it."""
    words = [word for word in name.split(".") if word not in WRAPPER_WORDS]
    while len(words) > 1 and words[0] in LEADING_WORDS:
        words = words[1:]
    return ".".join(words)


def bare(flat: Mapping[str, Value], *, where: str) -> dict[str, Value]:
    """The same entries under bare names. Raises CheckpointError when two become the same."""
    return _renamed(flat, bare_name, where=where)


def refuse_variants(names: Iterable[str], *, where: str) -> None:
    """Raises CheckpointError when the names belong to a relative of Wan that cannot be run."""
    found = variant_of(names)
    if found is not None:
        name, variant = found
        raise CheckpointError(
            f"this is {variant}, which is not supported",
            where=where,
            got=f"key {_shown(name)}",
            wanted="a Wan2.1 text-to-video model or one fine-tuned from it",
        )


def variant_of(names: Iterable[str]) -> tuple[str, str] | None:
    """A name that only a relative of Wan has, and which it is; None for Wan itself."""
    listed = list(names)
    for pattern, variant in _VARIANTS:
        search = re.compile(pattern).search
        for name in listed:
            if search(name):
                return name, variant
    return None


def _renamed(
    flat: Mapping[str, Value], rename: Callable[[str], str], *, where: str
) -> dict[str, Value]:
    renamed: dict[str, Value] = {}
    for name, value in flat.items():
        new = rename(name)
        if new in renamed:
            raise CheckpointError(
                "the file holds the same tensor twice under different names",
                where=where,
                got=_shown(name),
                todo="save the model once, without its wrapped copy",
            )
        renamed[new] = value
    return renamed


def _shown(name: str) -> str:
    return ascii(name[:80])


def _translate(table: Mapping[str, str], name: str) -> str | None:
    stem, _, word = name.rpartition(".")
    if word not in _LAST_WORDS:
        stem, word = name, ""
    index = re.search(r"(?<=\.)\d+(?=\.)", stem)
    found = table.get(stem)
    if found is None and index:
        found = table.get(stem[: index.start()] + "#" + stem[index.end() :])
        found = found and found.replace("#", index.group())
    return f"{found}.{word}" if found and word else found
