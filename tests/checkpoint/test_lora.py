"""LoRAs of every family give the weights that the plain sum gives; what does not fit is said."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmpl.checkpoint.bundle import load_model, model_from_state_dicts
from mmpl.checkpoint.convert import convert
from mmpl.checkpoint.folder import check_folder
from mmpl.checkpoint.lora import Merged, lora_from_state_dict, merged, read_lora
from mmpl.checkpoint.lora_files import check_lora
from mmpl.checkpoint.lora_names import fit, parse
from mmpl.checkpoint.names import to_diffusers
from mmpl.wan.params import to_flat
from tests.checkpoint import lora_worlds, worlds
from tests.checkpoint.lora_worlds import FAMILIES, RANK, Flat, Pairs, tiny_pairs
from tests.parity.golden import document

BASE = worlds.dit_state()
PAIRS = tiny_pairs()
COUNT = len(lora_worlds.LINEARS) * worlds.CONFIGS.dit.num_layers


def summed(pairs: Pairs, scale: float = 1.0, base: Flat = BASE) -> Flat:
    """The weights with the pairs' products added, the plain way, in double precision."""
    whole = {name: tensor.double() for name, tensor in base.items()}
    for module, (down, up) in pairs.items():
        whole[f"{module}.weight"] += scale * (up.double() @ down.double())
    return whole


def put(flat: Flat, *, strength: float = 1.0, base: Flat = BASE) -> tuple[Flat, Merged]:
    weights, (report,) = merged(base, [(lora_from_state_dict(flat), strength)])
    return weights, report


def close(got: Flat, wanted: Flat) -> bool:
    return got.keys() == wanted.keys() and all(
        torch.allclose(got[name].double(), wanted[name].double(), rtol=1e-6, atol=1e-6)
        for name in wanted
    )


# ------------------------------------------------------------------------------- families


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_same_weights(family: str) -> None:
    write, called = FAMILIES[family]
    weights, report = put(write(PAIRS))
    assert close(weights, summed(PAIRS))
    assert (report.matched, report.total, report.left_out) == (COUNT, COUNT, {})
    assert (report.family, report.ranks, report.fits) == (called, (RANK,), True)
    assert not torch.equal(weights["blocks.0.ffn.0.weight"], BASE["blocks.0.ffn.0.weight"])
    assert weights["head.head.weight"] is BASE["head.head.weight"]


@pytest.mark.parametrize("family", FAMILIES)
def test_families_from_files(tmp_path: Path, family: str) -> None:
    flat = FAMILIES[family][0](PAIRS)
    save_file(flat, tmp_path / "x.safetensors")
    torch.save({"generator_lora": flat, "step": 7}, tmp_path / "x.pt")
    torch.save(flat, tmp_path / "flat.pt")
    for name in ("x.safetensors", "x.pt", "flat.pt"):
        weights, _ = merged(BASE, [(read_lora(tmp_path / name), 1.0)])
        assert close(weights, summed(PAIRS))


SIZES = ("1.3b", "14b")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
def test_full_size_key_lists(family: str, size: str) -> None:
    """All linear layers and their biases, on names and shapes alone."""
    manifest = document(f"manifest_dit_t2v_{size}")["tensors"]
    model = {name: tuple(shape) for name, shape in manifest.items()}
    pairs = {
        name.removesuffix(".weight"): (
            torch.empty(8, shape[1], device="meta"),
            torch.empty(shape[0], 8, device="meta"),
        )
        for name, shape in model.items()
        if name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2
    }
    flat = FAMILIES[family][0](pairs)
    for name, tensor in list(flat.items()):
        stem, end = re.split(r"\.(?=lora_|alpha)", name, maxsplit=1)
        if end.startswith(("lora_B", "lora_up")):
            flat[f"{stem}.diff_b"] = tensor[:, 0]
    parsed = parse(flat, where="x")
    found = fit(parsed, lora_worlds.shapes_of(flat), model, where="x")
    layers = 10 * {"1.3b": 30, "14b": 40}[size]
    assert (len(found.changes), found.left_out) == (2 * layers, {})
    wanted = {f"{module}.{word}" for module in pairs for word in ("weight", "bias")}
    assert {change.target for change in found.changes} == wanted


def test_names_with_underscores_are_never_ambiguous() -> None:
    for size in SIZES:
        names = document(f"manifest_dit_t2v_{size}")["tensors"]
        for spelt in (names, [to_diffusers("dit", each) or "" for each in names]):
            assert len({each.replace(".", "_") for each in spelt}) == len(names)


# ------------------------------------------------------------------------ deltas and scales


def test_whole_deltas() -> None:
    deltas = {
        "blocks.1.self_attn.q.bias": "blocks.1.self_attn.q.diff_b",
        "blocks.1.self_attn.norm_q.weight": "blocks.1.self_attn.norm_q.diff",
        "blocks.2.norm3.weight": "blocks.2.norm3.diff",
        "blocks.2.norm3.bias": "blocks.2.norm3.diff_b",
        "blocks.0.modulation": "blocks.0.diff_m",
        "head.modulation": "head.modulation.diff",
        "patch_embedding.weight": "patch_embedding.diff",
        "time_projection.1.bias": "time_projection.1.diff_b",
    }
    flat = {f"diffusion_model.{key}": torch.randn_like(BASE[name]) for name, key in deltas.items()}
    weights, report = put(flat, strength=0.5)
    for name, key in deltas.items():
        assert torch.allclose(weights[name], BASE[name] + 0.5 * flat[f"diffusion_model.{key}"])
    assert (report.matched, report.total) == (len(deltas), len(deltas))


def test_norms_trade_places_in_diffusers() -> None:
    delta = torch.ones_like(BASE["blocks.0.norm3.weight"])
    pair = lora_worlds.diffusers(PAIRS)
    weights, report = put(pair | {"transformer.blocks.0.norm2.diff": delta})
    assert torch.allclose(weights["blocks.0.norm3.weight"], BASE["blocks.0.norm3.weight"] + 1)
    assert report.left_out == {}
    _, report = put(pair | {"transformer.blocks.0.norm3.diff": delta})  # Wan's norm2 has no gain
    assert report.left_out == {"for modules that this model does not have": 1}


def test_a_convolution() -> None:
    down, up = torch.randn(RANK, 16, 1, 2, 2), torch.randn(48, RANK, 1, 1, 1)
    flat = {"patch_embedding.lora_down.weight": down, "patch_embedding.lora_up.weight": up}
    weights, _ = put(flat)
    delta = (up.flatten(1) @ down.flatten(1)).reshape(48, 16, 1, 2, 2)
    assert torch.allclose(
        weights["patch_embedding.weight"], BASE["patch_embedding.weight"] + delta, atol=1e-5
    )


@pytest.mark.parametrize("alpha", [RANK, 1.0, 2 * RANK, 0.0])
def test_alpha_is_divided_by_the_rank(alpha: float) -> None:
    flat = lora_worlds.lightx2v(PAIRS)
    for name in list(flat):
        flat[name.rsplit(".", 2)[0] + ".alpha"] = torch.tensor([alpha])
    assert close(put(flat)[0], summed(PAIRS, alpha / RANK))


def test_alpha_of_one_pair_is_its_own() -> None:
    flat = lora_worlds.comfy(PAIRS) | {"diffusion_model.blocks.0.ffn.0.alpha": torch.tensor(1)}
    wanted = summed(PAIRS)
    down, up = PAIRS["blocks.0.ffn.0"]
    wanted["blocks.0.ffn.0.weight"] -= (1 - 1 / RANK) * (up @ down)
    assert close(put(flat)[0], wanted)


DIFFUSERS_METADATA = {"transformer.r": RANK, "transformer.lora_alpha": 10}


@pytest.mark.parametrize(
    ("metadata", "config", "scale"),
    [
        ({}, None, 1.0),
        ({"lora_alpha": "8"}, None, 8 / RANK),
        ({"lora_adapter_metadata": json.dumps(DIFFUSERS_METADATA)}, None, 10 / RANK),
        ({}, {"r": RANK, "lora_alpha": 1}, 1 / RANK),
        ({}, {"r": RANK, "lora_alpha": 1, "use_rslora": True}, 1 / math.sqrt(RANK)),
        ({}, {"r": 64, "lora_alpha": 1}, 1.0),  # of another LoRA in the same folder
        ({"lora_alpha": "8"}, {"r": RANK, "lora_alpha": 1}, 8 / RANK),
    ],
)
def test_alpha_of_the_whole_file(
    tmp_path: Path, metadata: dict[str, str], config: dict | None, scale: float
) -> None:
    save_file(lora_worlds.diffusers(PAIRS), tmp_path / "x.safetensors", metadata=metadata)
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    weights, _ = merged(BASE, [(read_lora(tmp_path / "x.safetensors"), 1.0)])
    assert close(weights, summed(PAIRS, scale))


def test_two_loras_are_their_sum() -> None:
    first, second = tiny_pairs(1), tiny_pairs(2)
    loras = [
        (lora_from_state_dict(lora_worlds.kohya(first)), 0.7),
        (lora_from_state_dict(lora_worlds.diffusers(second)), -1.3),
    ]
    weights, reports = merged(BASE, loras)
    assert close(weights, summed(second, -1.3, summed(first, 0.7)))
    assert [report.strength for report in reports] == [0.7, -1.3]


def test_there_and_back() -> None:
    lora = lora_from_state_dict(lora_worlds.comfy(PAIRS))
    there, _ = merged(BASE, [(lora, 1.0)])
    back, _ = merged(there, [(lora, -1.0)])
    assert close(back, BASE)
    assert close(merged(BASE, [(lora, 0.0)])[0], BASE)
    assert all(torch.equal(merged(BASE, [])[0][name], BASE[name]) for name in BASE)


@pytest.mark.parametrize("stored", [torch.float64, torch.float16, torch.bfloat16])
def test_the_sum_is_rounded_once(stored: torch.dtype) -> None:
    base = {name: tensor.to(stored) for name, tensor in BASE.items()}
    halves = {k: (d.bfloat16(), u.bfloat16()) for k, (d, u) in PAIRS.items()}
    loras = [(lora_from_state_dict(lora_worlds.comfy(halves)), 0.5)] * 2
    weights, _ = merged(base, loras)
    wanted = summed(halves, 1.0, base)
    for name, tensor in weights.items():
        assert tensor.dtype == stored
        unit = torch.finfo(stored).eps / 2 + 1e-6
        assert ((tensor.double() - wanted[name]).abs() <= unit * wanted[name].abs() + 1e-6).all()


# --------------------------------------------------------------------------- what is left out


def test_harmless_keys_are_grouped_in_one_line_each() -> None:
    flat = lora_worlds.comfy(PAIRS)
    for block in range(3):
        for part in ("k_img", "v_img"):
            stem = f"diffusion_model.blocks.{block}.cross_attn.{part}"
            flat |= {f"{stem}.lora_A.weight": torch.ones(2, 48)}
            flat |= {f"{stem}.lora_B.weight": torch.ones(48, 2)}
        flat[f"diffusion_model.blocks.{block}.norm1.diff"] = torch.zeros(48)
    flat["diffusion_model.img_emb.proj.0.diff"] = torch.ones(5)
    flat["something.weight"] = torch.ones(2)
    weights, report = put(flat)
    assert close(weights, summed(PAIRS))
    assert (report.matched, report.total, report.zeros) == (COUNT, COUNT + 8, 3)
    assert not report.fits
    first, *rest = report.lines()
    assert f"matched {COUNT}/{COUNT + 8} (ComfyUI / diffusion-pipe, rank 2, {RANK})" in first
    assert rest == [
        "left out: 7 for image input, which this model does not have",
        "left out: 1 under names of no kind of LoRA",
        "left out: 3 whose delta is zero",
    ]


def test_nine_tenths_are_enough() -> None:
    wanted = dict(list(PAIRS.items())[:27])
    stray = {f"blocks.{7 + n}.ffn.0": pair for n, pair in enumerate(list(PAIRS.values())[27:])}
    _, report = put(lora_worlds.comfy({**wanted, **stray}))
    assert (report.matched, report.total, report.fits) == (27, 30, True)
    _, report = put(lora_worlds.comfy({**dict(list(wanted.items())[:26]), **stray}))
    assert not report.fits


# ---------------------------------------------------------------------------------- models


def test_digests_tell_files_and_settings_apart(tmp_path: Path) -> None:
    flat = lora_worlds.comfy(PAIRS)
    for name, metadata in (("a", {}), ("b", {"lora_alpha": "2"}), ("c", {})):
        save_file(flat, tmp_path / f"{name}.safetensors", metadata=metadata)
        flat = {k: v + (name == "b") for k, v in flat.items()}
    digests = [read_lora(tmp_path / f"{name}.safetensors").digest for name in "abc"]
    assert len(set(digests)) == 3


def test_a_model_with_loras(tmp_path: Path) -> None:
    folder = worlds.write_wan_folder(tmp_path / "wan")
    save_file(lora_worlds.kohya(PAIRS), tmp_path / "x.safetensors")
    plain = load_model(folder)
    model = load_model(folder, loras=[(tmp_path / "x.safetensors", 0.5)])
    assert close(to_flat(model.dit), summed(PAIRS, 0.5))
    assert [report.matched for report in model.loras] == [COUNT]
    assert plain.loras == ()
    changed = {part for part in model.digests if model.digests[part] != plain.digests.get(part)}
    assert changed == {"dit", "lora"}
    same = model_from_state_dicts(
        dit=BASE,
        vae=worlds.vae_state(),
        text=worlds.text_state(),
        tokenizer_json=worlds.tokenizer_json(),
        configs=worlds.CONFIGS,
        loras=[(read_lora(tmp_path / "x.safetensors"), 0.5)],
    )
    assert close(to_flat(same.dit), to_flat(model.dit))
    assert same.digests["dit"] == model.digests["dit"]


def test_a_converted_model_has_its_loras_merged(tmp_path: Path) -> None:
    save_file(lora_worlds.kohya(PAIRS), tmp_path / "x.safetensors")
    found = check_folder(worlds.write_wan_folder(tmp_path / "wan"))
    found = replace(found, loras=(check_lora(tmp_path / "x.safetensors", 0.5, found),))
    convert(found, tmp_path / "bundle")
    got, wanted = load_model(tmp_path / "bundle"), load_model(found)
    for name, tensor in to_flat(wanted.dit).items():
        assert torch.equal(to_flat(got.dit)[name], tensor)
    assert got.digests["vae"] == wanted.digests["vae"]
    assert close(to_flat(got.dit), summed(PAIRS, 0.5))
