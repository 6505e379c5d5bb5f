"""Config files as Wan, diffusers and transformers publish them, in this program's words. No torch.

What a file says beside the sizes either changes the network, and must then be Wan2.1's, or it
does not and is named here as ignored; anything else is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmpl.checkpoint.defaults import DISTILLED, Defaults
from mmpl.checkpoint.names import Kind
from mmpl.checkpoint.sizes import Given, typed
from mmpl.errors import CheckpointError
from mmpl.wan.config import DiTConfig, TextConfig, VAEConfig

Must = tuple[tuple[str, tuple[Any, ...]], ...]  # entry -> its values that leave the network Wan2.1

_DIFFUSERS_DITS = ("WanTransformer3DModel", "SkyReelsV2Transformer3DModel")
_ANY_BOOL = (False, True, None)  # told by the names of the tensors

_OFFICIAL_MUST: Must = (
    ("model_type", ("t2v",)),
    ("qk_norm", (True,)),
    ("cross_attn_norm", (True,)),
    ("window_size", ([-1, -1],)),
    ("inject_sample_info", _ANY_BOOL),
)
_DIT_MUST: Must = (
    ("qk_norm", ("rms_norm_across_heads",)),
    ("cross_attn_norm", (True,)),
    ("added_kv_proj_dim", (None,)),
    ("image_dim", (None,)),
    ("pos_embed_seq_len", (None,)),
    ("flag_causal_attention", (False,)),
    ("num_frame_per_block", (1,)),
    ("inject_sample_info", _ANY_BOOL),
)
_VAE_MUST: Must = (
    ("attn_scales", ([],)),
    ("is_residual", (False,)),
    ("decoder_base_dim", (None,)),
)
_TEXT_MUST: Must = (
    ("feed_forward_proj", ("gated-gelu",)),
    ("is_gated_act", (True,)),
    ("dense_act_fn", ("gelu_new",)),
    ("model_type", ("umt5",)),
)
_DIT_NAMES = {"in_channels": "in_dim", "out_channels": "out_dim"}
_VAE_NAMES = {
    "base_dim": "dim",
    "temperal_downsample": "temporal_downsample",  # diffusers' spelling
    "latents_mean": "latent_mean",
    "latents_std": "latent_std",
}
_TEXT_NAMES = {
    "d_model": "dim",
    "d_ff": "dim_ffn",
    "relative_attention_num_buckets": "num_buckets",
    "relative_attention_max_distance": "max_distance",
    "layer_norm_epsilon": "eps",
}
_DIT_IGNORED = ("rope_max_seq_len",)  # the length of a table that is computed here
_VAE_IGNORED = (  # follow from the rest, or are for training
    "in_channels", "out_channels", "scale_factor_temporal", "scale_factor_spatial", "dropout",
    "clip_output",
)  # fmt: skip

# SkyReels-V2-DF's own settings, where a checkpoint tells the transformer the frame rate.
_SKYREELS: dict[str, Any] = {"fps": 24, "shift": 8.0, "guidance_scale": 6.0, "steps": 30}


def network_of(config: Given) -> Kind | None:
    """Which network a config.json is about, by what is in it; None where it does not say."""
    if "d_model" in config:
        return "text"
    if "base_dim" in config or "latents_mean" in config:
        return "vae"
    said = str(config.get("_class_name", ""))
    sized = {"ffn_dim", "num_layers"} <= set(config)
    return "dit" if sized or said.startswith("Wan") or "Transformer3D" in said else None


def given_of(part: Kind, config: Given, *, where: str) -> dict[str, Any]:
    """What a config.json says of a network, as entries of its config. Raises CheckpointError."""
    if part == "vae":
        return _vae(config, where)
    if part == "text":
        return _text(config, where)
    if "num_attention_heads" in config or "Transformer3D" in str(config.get("_class_name")):
        return _diffusers_dit(config, where)
    return typed(DiTConfig, _checked(_plain(config), _OFFICIAL_MUST, where), where=where)


def defaults_of(pipeline: Given, *, tells_frame_rate: bool, where: str) -> Defaults:
    """Settings for a model with this model_index.json, {} without one: Wan2.1's, or those of a
    model that was distilled to few steps. Raises CheckpointError for two transformers."""
    if isinstance(pipeline.get("transformer_2"), list) and any(pipeline["transformer_2"]):
        raise CheckpointError(
            "this is Wan2.2 A14B, with two transformers, which is not supported",
            where=where,
            got="an entry transformer_2",
            wanted="a Wan2.1 text-to-video model or one fine-tuned from it",
        )
    if "DMD" in str(pipeline.get("_class_name")):
        return Defaults(**DISTILLED["fastwan"])
    return Defaults(**_SKYREELS) if tells_frame_rate else Defaults()


def _diffusers_dit(config: Given, where: str) -> dict[str, Any]:
    said = config.get("_class_name", _DIFFUSERS_DITS[0])
    if said not in _DIFFUSERS_DITS:
        raise CheckpointError(
            "the config is that of another transformer",
            where=where,
            got=ascii(said)[:60],
            wanted=" or ".join(_DIFFUSERS_DITS),
        )
    rest = _renamed(_checked(_plain(config), _DIT_MUST, where), _DIT_NAMES, _DIT_IGNORED)
    width = rest.pop("attention_head_dim", None)
    heads = rest.pop("num_attention_heads", None)
    if heads is not None:
        rest["num_heads"] = heads
        if type(width) is int and type(heads) is int:
            rest["dim"] = width * heads
    return typed(DiTConfig, rest, where=where)


def _vae(config: Given, where: str) -> dict[str, Any]:
    plain = _plain(config)
    if plain.get("decoder_base_dim") == plain.get("base_dim"):
        plain.pop("decoder_base_dim", None)
    rest = _renamed(_checked(plain, _VAE_MUST, where), _VAE_NAMES, _VAE_IGNORED)
    if rest.get("patch_size", 1) is None:
        del rest["patch_size"]
    return typed(VAEConfig, rest, where=where)


def _text(config: Given, where: str) -> dict[str, Any]:
    """Of a transformers config only what makes the network; the rest is about generating text."""
    rest = _renamed(_checked(dict(config), _TEXT_MUST, where), _TEXT_NAMES, ())
    width, heads = rest.pop("d_kv", None), rest.get("num_heads")
    if type(width) is int and type(heads) is int:
        rest["dim_attn"] = width * heads
    known = {name: value for name, value in rest.items() if name in TextConfig.__slots__}
    return typed(TextConfig, known, where=where)


def _plain(config: Given) -> dict[str, Any]:
    """Without what says where the file comes from."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _checked(config: dict[str, Any], must: Must, where: str) -> dict[str, Any]:
    """Without the entries of `must`, each of which has one of its values or is not there."""
    for name, allowed in must:
        if name in config and config[name] not in allowed:
            raise CheckpointError(
                f"{name} is not that of a text-to-video Wan2.1",
                where=where,
                got=ascii(config[name])[:60],
                wanted=" or ".join(repr(value) for value in allowed),
            )
    return {name: value for name, value in config.items() if name not in dict(must)}


def _renamed(config: Given, names: Mapping[str, str], ignored: tuple[str, ...]) -> dict[str, Any]:
    return {names.get(name, name): v for name, v in config.items() if name not in ignored}
