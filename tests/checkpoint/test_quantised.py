"""Weights in 8 bits: each format gives the weights it means, and nothing is dropped in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmpl.checkpoint.bundle import Model, load_model, load_transformer, model_from_state_dicts
from mmpl.checkpoint.folder import check_folder
from mmpl.checkpoint.names import to_diffusers
from mmpl.errors import ArgumentError, CheckpointError
from mmpl.wan.dit_params import compute_dtype, quantised_kind
from mmpl.wan.params import QuantisedLinear, to_flat
from tests.checkpoint import worlds
from tests.checkpoint.quantised_worlds import E4M3, E5M2, FORMATS, INT8, State, plain, scaled, whole

DIT = "diffusion_pytorch_model.safetensors"
Q = "blocks.0.self_attn.q"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return worlds.write_wan_folder(tmp_path_factory.mktemp("eight") / "wan", with_dit=False)


def written(folder: Path, state: State, prefix: str = "") -> Path:
    save_file({prefix + n: t.contiguous() for n, t in state.items()}, folder / DIT)
    return folder


def same(flat: State, wanted: State) -> bool:
    return flat.keys() == wanted.keys() and all(
        flat[name].dtype is wanted[name].dtype and torch.equal(flat[name], wanted[name])
        for name in wanted
    )


# ------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_each_format_gives_the_weights_it_means(folder: Path, name: str, prefix: str) -> None:
    stored, meant = FORMATS[name](worlds.dit_state())
    written(folder, stored, prefix)
    assert check_folder(folder).configs.dit == worlds.CONFIGS.dit
    assert same(to_flat(load_model(folder).dit), meant)


def test_in_a_pickle_and_under_the_names_of_diffusers(folder: Path, tmp_path: Path) -> None:
    stored, meant = FORMATS["lightx2v_int8"](worlds.dit_state())
    renamed = {to_diffusers("dit", name): tensor for name, tensor in stored.items()}
    assert None not in renamed
    torch.save(renamed, tmp_path / "dit.pt")
    assert same(to_flat(load_model(folder, checkpoint=tmp_path / "dit.pt").dit), meant)


@pytest.mark.parametrize("name", ["fp8_e4m3fn", "comfy_fp8_scaled"])
def test_a_text_encoder(folder: Path, name: str) -> None:
    """As ComfyUI's, whose table of tokens may be cast without a scale."""
    stored, meant = FORMATS[name](worlds.text_state())
    stored["token_embedding.weight"] = stored["token_embedding.weight"].to(E4M3)
    meant["token_embedding.weight"] = stored["token_embedding.weight"].bfloat16()
    path = folder / "models_t5_umt5-xxl-enc-bf16.pth"
    before = path.read_bytes()
    try:
        torch.save(stored, path)
        written(folder, worlds.dit_state())
        assert same(to_flat(load_model(folder).text), meant)
    finally:
        path.write_bytes(before)


def test_training_reads_it_too(folder: Path) -> None:
    stored, meant = FORMATS["kijai_fp8_e5m2_scaled"](worlds.dit_state())
    found = load_transformer(check_folder(written(folder, stored)))
    assert same(found.flat, meant)


def test_the_digest_is_of_what_is_stored(folder: Path) -> None:
    """The same bytes in two ways of reading are one model; other scales are another."""
    stored, _ = FORMATS["lightx2v_fp8"](worlds.dit_state())
    written(folder, stored)
    first = load_model(folder).digests["dit"]
    assert load_model(folder, quantize="fp8").digests["dit"] == first
    stored[Q + ".weight_scale"] = 2 * stored[Q + ".weight_scale"]
    assert load_model(written(folder, stored)).digests["dit"] != first


# ------------------------------------------------------------------------------ what is kept


def matrices(model: Model) -> list[QuantisedLinear]:
    block = model.dit.blocks[1]
    found = [
        *(getattr(layer, part) for layer in (block.self_attn, block.cross_attn) for part in "qkvo"),
        block.ffn_in,
        block.ffn_out,
    ]
    assert all(isinstance(linear, QuantisedLinear) for linear in found)
    return found


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fp8_e4m3fn", "fp8"),
        ("comfy_fp8_scaled", "fp8"),
        ("lightx2v_fp8", "fp8"),
        ("lightx2v_int8", "int8"),
    ],
)
def test_what_is_stored_so_stays_so(folder: Path, name: str, kind: str) -> None:
    stored, meant = FORMATS[name](worlds.dit_state())
    model = load_model(written(folder, stored), quantize=kind, dtype=torch.bfloat16)
    assert (quantised_kind(model.dit), compute_dtype(model.dit)) == (kind, torch.bfloat16)
    held = model.dit.blocks[1].ffn_out
    assert isinstance(held, QuantisedLinear)
    assert torch.equal(
        held.weight.view(torch.uint8), stored["blocks.1.ffn.2.weight"].view(torch.uint8)
    )
    for linear in matrices(model):
        assert linear.weight_scale.dtype is torch.float32
        assert linear.weight_scale.shape == (len(linear.weight), 1)
    product = (held.weight.float() * held.weight_scale).bfloat16()
    assert torch.equal(product, meant["blocks.1.ffn.2.weight"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("musubi_parts", "fp8"),
        ("fp8_e5m2", "fp8"),
        ("lightx2v_int8", "fp8"),
        ("fp8_e4m3fn", "int8"),
    ],
)
def test_what_is_stored_otherwise_is_quantised_anew(folder: Path, name: str, kind: str) -> None:
    model = load_model(written(folder, FORMATS[name](worlds.dit_state())[0]), quantize=kind)
    assert quantised_kind(model.dit) == kind
    matrices(model)


def test_kept_weights_make_a_file_that_is_read_again(folder: Path) -> None:
    """A quantised tree's flat form is LightX2V's format."""
    model = load_model(written(folder, worlds.dit_state()), quantize="int8")
    again = load_model(written(folder, to_flat(model.dit)), quantize="int8")
    assert same(to_flat(again.dit), to_flat(model.dit))


def test_state_dicts_are_quantised_as_files_are(folder: Path) -> None:
    stored, _ = FORMATS["lightx2v_int8"](worlds.dit_state())
    for kind in ("int8", "fp8"):
        model = model_from_state_dicts(
            dit=stored,
            vae=worlds.vae_state(),
            text=worlds.text_state(),
            tokenizer_json=worlds.tokenizer_json(),
            configs=worlds.CONFIGS,
            quantize=kind,
        )
        read = load_model(written(folder, stored), quantize=kind)
        assert quantised_kind(model.dit) == kind
        assert same(to_flat(model.dit), to_flat(read.dit))


def test_an_unknown_way_is_refused(folder: Path) -> None:
    with pytest.raises(ArgumentError, match="fp8 or int8"):
        load_model(written(folder, worlds.dit_state()), quantize="fp4")


# --------------------------------------------------------------------------- what is refused

Damage = Callable[[State], State]


def changed(name: str, value: Tensor | None) -> Damage:
    """The state with one tensor replaced, added, or left out."""

    def change(state: State) -> State:
        rest = {n: t for n, t in state.items() if n != name}
        return rest if value is None else rest | {name: value}

    return change


def note(text: str) -> Damage:
    """Another one for a layer of ComfyUI's."""
    content = bytearray(text.encode("utf-8", "surrogateescape"))
    return changed(Q + ".comfy_quant", torch.frombuffer(content, dtype=torch.uint8).clone())


def scale(*shape: int, value: float = 1.0) -> Damage:
    return changed(Q + ".weight_scale", torch.full(shape, value))


EARLY: dict[str, tuple[str, Damage, str]] = {
    "no scale for int8": ("lightx2v_int8", changed(Q + ".weight_scale", None), "has no scale"),
    "no scale for one of fp8": ("lightx2v_fp8", changed(Q + ".weight_scale", None), "has no scale"),
    "no scales but the mark": (
        "fp8_e4m3fn",
        changed("scaled_fp8", torch.zeros(2).to(E4M3)),
        "has no scale",
    ),
    "no weight for a scale": (
        "lightx2v_fp8",
        changed("blocks.7.ffn.0.weight_scale", torch.ones(1)),
        "no weight",
    ),
    "no weight for an input's": (
        "comfy_fp8_scaled",
        changed("blocks.7.ffn.0.scale_input", torch.ones(1)),
        "no weight",
    ),
    "two scales": ("lightx2v_fp8", changed(Q + ".scale_weight", torch.ones(1)), "two scales"),
    "of another length": ("lightx2v_fp8", scale(47, 1), "does not fit"),
    "along the other side": ("lightx2v_fp8", scale(1, 48), "does not fit"),
    "of parts that do not divide": ("lightx2v_fp8", scale(48, 5, 1), "does not fit"),
    "of no parts": ("lightx2v_fp8", scale(48, 0, 1), "does not fit"),
    "of nothing": ("lightx2v_fp8", scale(0), "does not fit"),
    "of four axes": ("lightx2v_fp8", scale(48, 1, 1, 1), "does not fit"),
    "an input's for rows": (
        "comfy_fp8_scaled",
        changed(Q + ".scale_input", torch.ones(48, 1)),
        "does not fit",
    ),
    "of integers": (
        "lightx2v_fp8",
        changed(Q + ".weight_scale", torch.ones(48, 1, dtype=torch.int32)),
        "not a number",
    ),
    "a note alone": (
        "lightx2v_fp8",
        changed("blocks.7.ffn.0.comfy_quant", torch.ones(9, dtype=torch.uint8)),
        "no weight",
    ),
    "a note of 2000 bytes": ("comfy_noted", note("{" * 2000), "not a few bytes"),
    "a note of numbers": ("comfy_noted", changed(Q + ".comfy_quant", torch.ones(9)), "few bytes"),
    "a noted weight without scale": (
        "comfy_noted",
        changed(Q + ".weight_scale", None),
        "has no scale",
    ),
    "mark of another format": (
        "kijai_fp8_e5m2_scaled",
        changed("scaled_fp8", torch.zeros(2).to(E4M3)),
        "mark of scaled fp8 says F8_E4M3",
    ),
    "mark of integers": (
        "comfy_fp8_scaled",
        changed("scaled_fp8", torch.zeros(2, dtype=torch.int64)),
        "mark",
    ),
    "weights of 32-bit integers": (
        "fp8_e4m3fn",
        changed(Q + ".weight", torch.ones(48, 48, dtype=torch.int32)),
        "number format",
    ),
}
LATE: dict[str, tuple[str, Damage, str]] = {
    "not a number": ("lightx2v_fp8", scale(48, 1, value=float("nan")), "not a finite"),
    "another way": ("comfy_noted", note('{"format": "nvfp4"}'), "not stored as is said.*nvfp4"),
    "a rotated one": (
        "comfy_noted",
        note('{"format": "float8_e4m3fn", "rotated": 1}'),
        "unknown way.*rotated",
    ),
    "a note that is no JSON": ("comfy_noted", note("{" * 999), "unknown way"),
    "a note that is no text": ("comfy_noted", note("\udcff"), "unknown way"),
    "infinite": ("lightx2v_int8", scale(1, value=float("inf")), "not a finite"),
    "negative": ("lightx2v_fp8", scale(value=-1.0), "not a finite"),
}


def refused(function: Callable[[Path], object], folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        function(folder)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 700
    assert str(folder) in line


@pytest.mark.parametrize("name", EARLY)
def test_refused_by_the_header(folder: Path, name: str) -> None:
    format_, damage, message = EARLY[name]
    written(folder, damage(FORMATS[format_](worlds.dit_state())[0]))
    refused(check_folder, folder, message)
    refused(load_model, folder, message)


@pytest.mark.parametrize("name", LATE)
def test_refused_by_the_numbers(folder: Path, name: str) -> None:
    format_, damage, message = LATE[name]
    written(folder, damage(FORMATS[format_](worlds.dit_state())[0]))
    check_folder(folder)
    refused(load_model, folder, message)


def test_formats_of_the_writers_differ() -> None:
    """The writers round: a reader that took the plain weights would be noticed."""
    state = worlds.dit_state()
    for writer in (plain(E4M3), plain(E5M2), scaled(INT8, ".weight_scale", whole)):
        assert not torch.equal(writer(state)[1][Q + ".weight"], state[Q + ".weight"].bfloat16())
