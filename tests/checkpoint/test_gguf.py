"""GGUF: read to the library's own numbers, and every damage is one line."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from mmpl.checkpoint import gguf_file, read
from mmpl.checkpoint.bundle import load_model
from mmpl.checkpoint.folder import check_folder
from mmpl.checkpoint.read import read_state_dict
from mmpl.errors import CheckpointError
from mmpl.wan.params import to_flat
from tests.checkpoint import worlds

# llama.cpp's words for the parts of a T5 block.
T5_PARTS = {
    "norm1": "attn_norm",
    "norm2": "ffn_norm",
    "pos_embedding.embedding": "attn_rel_b",
    "ffn.gate.0": "ffn_gate",
    "ffn.fc1": "ffn_up",
    "ffn.fc2": "ffn_down",
    **{f"attn.{part}": f"attn_{part}" for part in "qkvo"},
}


@pytest.fixture(scope="module")
def gguf() -> ModuleType:
    return pytest.importorskip("gguf", reason="the extra gguf is not installed")


def state() -> dict[str, Tensor]:
    """A transformer whose matrices fill blocks of 32."""
    return {
        name: tensor.repeat(1, 2)[:, :64].contiguous() if tensor.ndim == 2 else tensor
        for name, tensor in worlds.dit_state().items()
    }


def write(
    gguf: ModuleType, path: Path, arch: str, state: dict[str, Tensor], kind: str
) -> dict[str, Tensor]:
    """A file as ComfyUI-GGUF's converter makes it, matrices with whole blocks in `kind`; returns
    what its weights are."""
    writer = gguf.GGUFWriter(path, arch)
    quantized = gguf.GGMLQuantizationType[kind]
    block = gguf.GGML_QUANT_SIZES[quantized][0]
    meant = {}
    for name, tensor in state.items():
        array = tensor.numpy()
        if array.ndim > 4:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(array.shape))
            array = array.reshape(array.shape[0], -1)
        if array.ndim == 2 and array.shape[1] % block == 0:
            data = gguf.quants.quantize(array, quantized)
            writer.add_tensor(name, data, raw_dtype=quantized)
            numbers = np.array(gguf.quants.dequantize(data, quantized))
            meant[name] = torch.from_numpy(numbers).bfloat16().view(tensor.shape)
        else:
            writer.add_tensor(name, array.astype(np.float32))
            meant[name] = tensor
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def same(flat: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert flat.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert flat[name].dtype is tensor.dtype, name
        assert torch.equal(flat[name], tensor), name


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "BF16"])
def test_a_transformer(gguf: ModuleType, tmp_path: Path, kind: str) -> None:
    meant = write(gguf, tmp_path / "x.gguf", "wan", state(), kind)
    assert any(tensor.dtype is torch.bfloat16 for tensor in meant.values())
    same(read_state_dict(tmp_path / "x.gguf"), meant)
    entries = gguf_file.read_entries(tmp_path / "x.gguf")
    assert {n: e.shape for n, e in entries.items()} == {n: tuple(t.shape) for n, t in meant.items()}


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_blocks_of_256(gguf: ModuleType, tmp_path: Path, kind: str) -> None:
    """What is published mostly, and what the library reads but does not write: any bytes are
    numbers, if the halves of a block that scale it are."""
    quantized, path = gguf.GGMLQuantizationType[kind], tmp_path / "x.gguf"
    block, block_bytes = gguf.GGML_QUANT_SIZES[quantized]
    assert block == 256
    data = np.random.default_rng(7).integers(0, 256, (6, 2 * block_bytes), dtype=np.uint8)
    data &= 0x3F  # no half is infinite or not a number
    writer = gguf.GGUFWriter(path, "wan")
    writer.add_tensor("blocks.0.ffn.0.weight", data, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    meant = torch.from_numpy(np.array(gguf.quants.dequantize(data, quantized))).bfloat16()
    assert meant.isfinite().all()
    assert meant.unique().numel() > 99
    same(read_state_dict(path), {"blocks.0.ffn.0.weight": meant.view(6, 512)})


def test_in_a_model_folder(gguf: ModuleType, tmp_path: Path) -> None:
    folder = worlds.write_wan_folder(tmp_path / "wan", with_dit=False)
    path = tmp_path / "x.gguf"
    meant = write(gguf, path, "wan", worlds.dit_state(), "BF16")
    assert check_folder(folder, checkpoint=path).configs.dit == worlds.CONFIGS.dit
    same(to_flat(load_model(folder, checkpoint=path).dit), meant)


@pytest.mark.parametrize("arch", ["t5", "t5encoder"])
def test_a_text_encoder(gguf: ModuleType, tmp_path: Path, arch: str) -> None:
    renamed = {}
    for name in worlds.text_state():
        new = name.replace("token_embedding", "token_embd")
        new = "enc.output_norm.weight" if name == "norm.weight" else new
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            new = f"enc.blk.{number}.{T5_PARTS[rest.removesuffix('.weight')]}.weight"
        renamed[name] = new
    official = {new: name for name, new in renamed.items()}
    flat = {renamed[name]: tensor for name, tensor in worlds.text_state().items()}
    meant = write(gguf, tmp_path / "x.gguf", arch, flat, "Q8_0")
    same(read_state_dict(tmp_path / "x.gguf"), {official[n]: t for n, t in meant.items()})


def test_a_long_tensor_in_parts(
    gguf: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_AT_ONCE", 100)
    meant = write(gguf, tmp_path / "x.gguf", "wan", state(), "Q8_0")
    same(read_state_dict(tmp_path / "x.gguf"), meant)


def refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_state_dict(path)
    assert str(caught.value).isprintable()
    assert str(path) in str(caught.value)


def test_another_model_is_named(gguf: ModuleType, tmp_path: Path) -> None:
    write(gguf, tmp_path / "x.gguf", "flux", {"a": torch.ones(32, 32)}, "Q8_0")
    refused(tmp_path / "x.gguf", "architecture 'flux'")


def test_a_shape_of_another_size(gguf: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write(gguf, path, "wan", {"a": torch.ones(2, 2, 2, 2, 2)}, "Q8_0")
    whole = path.read_bytes()
    five = struct.pack("<5i", 2, 2, 2, 2, 2)
    assert five in whole
    path.write_bytes(whole.replace(five, struct.pack("<5i", 2, 2, 2, 2, 3)))
    refused(path, "shape")


def test_every_cut_and_every_flip_is_refused_or_read(gguf: ModuleType, tmp_path: Path) -> None:
    """Damage in the table of contents never gives another error, nor a tensor past the end."""
    path = tmp_path / "x.gguf"
    write(gguf, path, "wan", {"a": torch.ones(32), "b": torch.ones(4, 32)}, "Q8_0")
    whole = path.read_bytes()
    ends = min(entry.start for entry in gguf_file.read_entries(path).values())
    for cut in (*range(4, ends, 7), len(whole) - 33):
        path.write_bytes(whole[:cut])
        refused(path, "damaged|empty")
    for at in range(4, ends):
        for value in (0, 0x7F, 0xFF):
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            with suppress(CheckpointError):
                read_state_dict(path)


def test_counts_without_end_are_refused_at_once(gguf: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    listed = struct.pack("<IIQ", 9, 0, 2**60)
    key = struct.pack("<Q", 1) + b"k"
    for content in (
        struct.pack("<IQQ", 3, 2**60, 0),
        struct.pack("<IQQ", 3, 0, 2**60),
        struct.pack("<IQQ", 3, 0, 1) + key + listed,
        struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62),
        struct.pack("<IQQ", 9, 0, 0),
    ):
        path.write_bytes(b"GGUF" + content)
        refused(path, "damaged")


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(gguf_file, "import_module", missing)
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + bytes(40))
    refused(path, r"pip install 'mmpl\[gguf\]'")
    folder = worlds.write_wan_folder(tmp_path / "wan", with_dit=False)
    with pytest.raises(CheckpointError, match="package gguf"):
        check_folder(folder, checkpoint=path)
