"""LoRAs that are damaged, or made for something else: one line that says so, nothing merged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmpl.checkpoint.lora import lora_from_state_dict, merged, read_lora
from mmpl.errors import ArgumentError, CheckpointError
from tests.checkpoint import lora_worlds, worlds
from tests.checkpoint.lora_worlds import RANK, Flat, tiny_pairs

BASE = worlds.dit_state()
PAIRS = tiny_pairs()


def put(flat: Flat, *, strength: float = 1.0, base: Flat = BASE) -> Flat:
    return merged(base, [(lora_from_state_dict(flat), strength)])[0]


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_size_is_refused_and_both_are_named() -> None:
    big = {"blocks.0.self_attn.q": (torch.ones(2, 5120), torch.ones(5120, 2))}
    base = {"blocks.0.self_attn.q.weight": torch.ones(1536, 1536)}
    said = refusal(lambda: put(lora_worlds.comfy(big), base=base))
    assert "5120x5120 (Wan2.1 14B)" in said
    assert "1536x1536 (Wan2.1 1.3B)" in said


def test_a_lora_of_another_network_is_refused() -> None:
    flux = {"single_transformer_blocks.0.attn.to_q": PAIRS["blocks.0.self_attn.q"]}
    said = refusal(lambda: put(lora_worlds.peft(flux)))
    assert "matched 0/1" in said
    assert "single_transformer_blocks" in said


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_blocks_0_ffn_0.hada_w1_a", "LoHa"),
        ("lora_unet_blocks_0_ffn_0.lokr_w1", "LoKr"),
        ("diffusion_model.blocks.0.ffn.0.dora_scale", "DoRA"),
        ("base_model.model.blocks.0.ffn.0.lora_magnitude_vector.weight", "DoRA"),
        ("lora_unet_blocks_0_ffn_0.oft_blocks", "OFT"),
        ("patch_embedding.lora_mid.weight", "LoCon"),
        ("base_model.model.blocks.0.ffn.0.lora_B.bias", "biases"),
    ],
)
def test_other_adapters_are_refused_by_name(key: str, kind: str) -> None:
    assert kind in refusal(lambda: put(lora_worlds.comfy(PAIRS) | {key: torch.ones(2)}))


def _without(name: str) -> Flat:
    flat = lora_worlds.comfy(PAIRS)
    del flat[f"diffusion_model.blocks.0.ffn.0.{name}.weight"]
    return flat


def _with(name: str, tensor: Tensor) -> Flat:
    return lora_worlds.comfy(PAIRS) | {f"diffusion_model.{name}": tensor}


Q = "blocks.0.self_attn.q"
BAD: dict[str, tuple[Flat, str]] = {
    "half a pair": (_without("lora_B"), "half"),
    "other half": (_without("lora_A"), "half"),
    "NaN": (_with(f"{Q}.lora_A.weight", torch.full((RANK, 48), math.nan)), "not finite"),
    "infinite": (_with(f"{Q}.diff_b", torch.full((48,), math.inf)), "not finite"),
    "ranks differ": (_with(f"{Q}.lora_A.weight", torch.ones(RANK + 1, 48)), "each other"),
    "no rank": (_with(f"{Q}.lora_A.weight", torch.ones(0, 48)), "each other"),
    "a vector": (_with(f"{Q}.lora_A.weight", torch.ones(48)), "each other"),
    "other shape": (_with(f"{Q}.diff_b", torch.ones(47)), "another size"),
    "two alphas": (_with(f"{Q}.alpha", torch.ones(2)), "one number"),
    "whole numbers": (_with(f"{Q}.lora_A.weight", torch.ones(RANK, 48).int()), "int32"),
    "fp8": (_with(f"{Q}.lora_A.weight", torch.ones(RANK, 48).to(torch.float8_e4m3fn)), "float8"),
    "twice": (_with("model." + Q + ".lora_A.weight", torch.ones(RANK, 48)), "twice"),
    "a model": (BASE, "not a LoRA"),
    "zeros": ({f"{Q}.diff_b": torch.zeros(48)}, "zeros alone"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_content_is_refused(tmp_path: Path, fault: str) -> None:
    flat, word = BAD[fault]
    save_file(flat, tmp_path / "x.safetensors")
    said = refusal(lambda: merged(BASE, [(read_lora(tmp_path / "x.safetensors"), 1.0)]))
    assert word in said
    assert str(tmp_path) in said


BAD_FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "empty": ("x.safetensors", lambda path: path.write_bytes(b"")),
    "cut": (
        "x.safetensors",
        lambda path: (
            save_file(lora_worlds.comfy(PAIRS), path),
            path.write_bytes(path.read_bytes()[:-9]),
        ),
    ),
    "code": ("x.pt", lambda path: torch.save({"a": worlds.Attack(path.parent / "canary")}, path)),
    "a folder": ("x.safetensors", lambda path: path.mkdir()),
    "missing": ("x.safetensors", lambda path: None),
    "a list": ("x.pt", lambda path: torch.save([torch.ones(2)], path)),
    "other format": ("x.txt", lambda path: path.write_text("hello")),
    "bad alpha": (
        "x.safetensors",
        lambda path: save_file(lora_worlds.comfy(PAIRS), path, metadata={"lora_alpha": "much"}),
    ),
    "bad metadata": (
        "x.safetensors",
        lambda path: save_file(
            lora_worlds.comfy(PAIRS), path, metadata={"lora_adapter_metadata": "["}
        ),
    ),
    "alphas by module": (
        "x.safetensors",
        lambda path: (
            save_file(lora_worlds.comfy(PAIRS), path),
            (path.parent / "adapter_config.json").write_text(
                json.dumps({"r": RANK, "lora_alpha": 1, "alpha_pattern": {"q": 2}})
            ),
        ),
    ),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_bad_files_are_refused(tmp_path: Path, fault: str) -> None:
    name, make = BAD_FILES[fault]
    make(tmp_path / name)
    assert str(tmp_path) in refusal(lambda: read_lora(tmp_path / name))
    assert not (tmp_path / "canary").exists()


def test_quantised_weights_are_refused() -> None:
    base = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in BASE.items()}
    assert "float8" in refusal(lambda: put(lora_worlds.comfy(PAIRS), base=base))


def test_a_strength_that_is_no_number_is_refused() -> None:
    with pytest.raises(ArgumentError, match="strength"):
        put(lora_worlds.comfy(PAIRS), strength=math.nan)
