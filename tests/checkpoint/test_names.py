"""Prefixes, namings and relatives of Wan."""

from __future__ import annotations

import pytest
from torch import Tensor

from mmpl.checkpoint.names import (
    Kind,
    bare,
    bare_name,
    official,
    refuse_variants,
    to_diffusers,
    to_official,
)
from mmpl.errors import CheckpointError
from tests.checkpoint import worlds


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.ffn.0.weight",
        "model.blocks.0.ffn.0.weight",
        "module.blocks.0.ffn.0.weight",
        "model.diffusion_model.blocks.0.ffn.0.weight",
        "diffusion_model.blocks.0.ffn.0.weight",
        "transformer.blocks.0.ffn.0.weight",
        "generator.model._fsdp_wrapped_module.blocks.0.ffn.0.weight",
        "_orig_mod.module.model.blocks.0.ffn.0.weight",
        "model._fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.ffn.0.weight",
        "model._fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module._orig_mod.ffn.0.weight",
    ],
)
def test_wrappers_are_stripped_in_any_order(name: str) -> None:
    assert bare_name(name) == "blocks.0.ffn.0.weight"


@pytest.mark.parametrize("name", ["head.modulation", "conv1.weight", "norm.weight", "model", "x"])
def test_other_names_stay(name: str) -> None:
    assert bare_name(name) == name


def test_two_names_that_become_one_are_refused() -> None:
    with pytest.raises(CheckpointError, match="same tensor twice"):
        bare({"model.head.modulation": 1, "head.modulation": 2}, where="x.pt")


def test_every_name_survives_the_round_trip() -> None:
    states: dict[Kind, dict[str, Tensor]] = {
        "dit": worlds.dit_state(),
        "vae": worlds.vae_state(),
        "text": worlds.text_state(),
    }
    for kind, state in states.items():
        there = {name: to_diffusers(kind, name) for name in state}
        assert None not in there.values()
        assert len(set(there.values())) == len(state)
        assert {to_official(kind, other or "") for other in there.values()} == set(state)


def test_norms_trade_places_in_diffusers() -> None:
    assert to_diffusers("dit", "blocks.17.norm3.bias") == "blocks.17.norm2.bias"
    assert to_official("dit", "blocks.17.norm2.bias") == "blocks.17.norm3.bias"


@pytest.mark.parametrize("name", ["", "weight", "blocks.x.ffn.0.weight", "blocks.0.attn3.q.bias"])
def test_unknown_names_have_no_translation(name: str) -> None:
    assert to_diffusers("dit", name) is None
    assert to_official("dit", name) is None


def test_a_name_of_neither_naming_is_kept_for_the_shape_check() -> None:
    flat = {"condition_embedder.time_proj.weight": 1, "what.is.this": 2}
    assert official("dit", flat, where="x") == {"time_projection.1.weight": 1, "what.is.this": 2}


@pytest.mark.parametrize(
    "names",
    [
        ("shared.weight",),
        ("encoder.embed_tokens.weight",),
        ("shared.weight", "encoder.embed_tokens.weight"),
        ("encoder.embed_tokens.weight", "shared.weight"),
    ],
)
def test_tied_embedding_is_taken_from_either_name(names: tuple[str, ...]) -> None:
    flat = dict.fromkeys(names, 1) | {"encoder.final_layer_norm.weight": 2}
    assert official("text", flat, where="x") == {"token_embedding.weight": 1, "norm.weight": 2}


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("img_emb.proj.0.weight", "I2V with CLIP"),
        ("blocks.3.cross_attn.k_img.weight", "I2V with CLIP"),
        ("blocks.3.attn2.add_k_proj.weight", "I2V with CLIP"),
        ("condition_embedder.image_embedder.ff.net.2.bias", "I2V with CLIP"),
        ("img_emb.emb_pos", "first-last-frame"),
        ("vace_blocks.0.ffn.0.weight", "VACE"),
        ("vace_patch_embedding.bias", "VACE"),
        ("control_adapter.conv.weight", "Control"),
        ("blocks.0.self_attn.q.lora_A.weight", "LoRA"),
        ("lora_unet_blocks_0_self_attn_q.lora_down.weight", "LoRA"),
    ],
)
def test_relatives_are_named_and_refused(name: str, variant: str) -> None:
    with pytest.raises(CheckpointError, match=variant):
        refuse_variants(["head.modulation", name], where="x.safetensors")


def test_wan_itself_is_not_refused() -> None:
    for state in (worlds.dit_state(), worlds.vae_state(), worlds.text_state()):
        refuse_variants(state, where="x")
