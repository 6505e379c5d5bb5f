"""Transformers written as files are read back to the same bits, and by others' code."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from mmpl.checkpoint.read import read_state_dict
from mmpl.checkpoint.write import write_transformer
from mmpl.errors import CheckpointError, OutputError
from tests.checkpoint.worlds import dit_state

FROZEN = "blocks.0.ffn.0.weight"


def pair() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights, and their average, which has one tensor in common with them."""
    weights, averaged = dit_state(0), dit_state(1)
    return weights, {**averaged, FROZEN: weights[FROZEN]}


def same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return got.keys() == wanted.keys() and all(torch.equal(got[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    weights, averaged = pair()
    write_transformer(tmp_path / f"plain.{suffix}", weights)
    assert same(read_state_dict(tmp_path / f"plain.{suffix}"), weights)
    write_transformer(tmp_path / f"both.{suffix}", weights, averaged)
    assert same(read_state_dict(tmp_path / f"both.{suffix}"), averaged)
    if suffix == "pt":
        assert same(read_state_dict(tmp_path / "both.pt", use_ema=False), weights)


def test_a_pickle_is_what_the_released_code_loads(tmp_path: Path) -> None:
    weights, averaged = pair()
    narrow = {name: tensor.bfloat16().requires_grad_() for name, tensor in weights.items()}
    write_transformer(tmp_path / "both.pt", narrow, {**averaged, FROZEN: narrow[FROZEN]})
    found = torch.load(tmp_path / "both.pt", weights_only=True)
    assert list(found) == ["generator", "generator_ema"]
    for flat in found.values():
        assert [name.removeprefix("model.") for name in flat] == list(weights)
        assert not any(tensor.requires_grad for tensor in flat.values())
    ends = [flat[f"model.{FROZEN}"].untyped_storage().data_ptr() for flat in found.values()]
    assert ends[0] == ends[1], "what both have in common is stored once"


def test_safetensors_say_whose_they_are(tmp_path: Path) -> None:
    """diffusers and transformers refuse files that do not."""
    write_transformer(tmp_path / "a.safetensors", dit_state())
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written in this format.*got .gguf"):
        write_transformer(tmp_path / "a.gguf", dit_state())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def _small_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_small_files")
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_disk_that_takes_no_more(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(OutputError, match="exceed the size limit"):
        write_transformer(tmp_path / f"a.{suffix}", dit_state())
    assert list(tmp_path.iterdir()) == []
