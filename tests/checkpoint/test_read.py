"""State dicts from files of every kind, sound and hostile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmpl.checkpoint import files, read
from mmpl.checkpoint.read import digest, read_state_dict
from mmpl.errors import CheckpointError
from tests.checkpoint import worlds

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return got.keys() == wanted.keys() and all(
        got[k].dtype == wanted[k].dtype and torch.equal(got[k], wanted[k]) for k in wanted
    )


# ------------------------------------------------------------------------------------- sound


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path = tmp_path / f"x{suffix}"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    assert same(read_state_dict(path), STATE)


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.safetensors")
    assert same(read_state_dict(tmp_path / "x.safetensors"), STATE)
    assert same(read_state_dict(str(tmp_path / "x.safetensors")), STATE)


def test_shards(tmp_path: Path) -> None:
    state = worlds.dit_state()
    assert same(read_state_dict(worlds.write_shards(tmp_path, state, 3)), state)


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.safetensors")
    (tmp_path / "link.safetensors").symlink_to("x.safetensors")
    assert same(read_state_dict(tmp_path / "link.safetensors"), STATE)


def test_zipped_pickles_are_mapped_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    load = torch.load

    def spy(path: object, **options: object) -> object:
        seen.append(options)
        return load(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "load", spy)
    for zipped in (True, False):
        torch.save(STATE, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        read_state_dict(tmp_path / "x.pt")
    assert [options["mmap"] for options in seen] == [True, False]
    assert all(options["weights_only"] is True for options in seen)


def test_writing_to_a_read_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pt")
    save_file(STATE, tmp_path / "x.safetensors")
    for name in ("x.pt", "x.safetensors"):
        read_state_dict(tmp_path / name)["a.weight"].zero_()
        assert same(read_state_dict(tmp_path / name), STATE)


def test_parameters_are_plain_tensors_too(tmp_path: Path) -> None:
    torch.save({"a": torch.nn.Parameter(torch.ones(2))}, tmp_path / "x.pt")
    assert torch.equal(read_state_dict(tmp_path / "x.pt")["a"], torch.ones(2))


# ---------------------------------------------------------------------------------- wrappers

PLAIN, EMA = {"model.x": torch.zeros(2)}, {"model._fsdp_wrapped_module.x": torch.ones(2)}


@pytest.mark.parametrize(
    ("saved", "use_ema", "wanted"),
    [
        ({"generator": PLAIN, "generator_ema": EMA, "critic": PLAIN}, None, 1),
        ({"generator": PLAIN, "generator_ema": EMA}, True, 1),
        ({"generator": PLAIN, "generator_ema": EMA}, False, 0),
        ({"generator_ema": EMA}, None, 1),
        ({"generator": PLAIN, "step": 7}, None, 0),
        ({"generator": PLAIN}, False, 0),
        ({"model": PLAIN}, None, 0),
        ({"state_dict": PLAIN}, None, 0),
        ({"state_dict": {"generator": PLAIN, "generator_ema": EMA}}, False, 0),
        (PLAIN, None, 0),
        (PLAIN, False, 0),
    ],
)
def test_generator_is_found(
    tmp_path: Path, saved: dict, use_ema: bool | None, wanted: float
) -> None:
    torch.save(saved, tmp_path / "x.pt")
    flat = read_state_dict(tmp_path / "x.pt", use_ema=use_ema)
    assert list(flat) == ["x"]
    assert flat["x"].tolist() == [wanted] * 2


@pytest.mark.parametrize(
    ("saved", "use_ema", "message"),
    [
        ({"generator": PLAIN}, True, "no averaged"),
        (PLAIN, True, "no averaged"),
        ({"generator_ema": EMA}, False, "no plain"),
    ],
)
def test_weights_that_are_not_there(
    tmp_path: Path, saved: dict, use_ema: bool, message: str
) -> None:
    torch.save(saved, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(tmp_path / "x.pt", use_ema=use_ema)


# ------------------------------------------------------------------------------------ digest


def test_digest_sees_every_number_of_small_tensors() -> None:
    before = digest(STATE)
    assert digest(dict(reversed(STATE.items()))) == before
    changed = {name: tensor.clone() for name, tensor in STATE.items()}
    changed["a.weight"][1, 1] += 1
    assert digest(changed) != before
    assert digest({**STATE, "b": STATE["b"].float()}) != before
    assert digest({**STATE, "a.weight": STATE["a.weight"].reshape(3, 2)}) != before
    assert digest({"a.weight": STATE["a.weight"], "c": STATE["b"]}) != before


def test_digest_of_a_large_tensor_looks_at_both_ends() -> None:
    large = torch.zeros(read._WHOLE_BYTES)
    for place in (0, -1):
        changed = large.clone()
        changed[place] = 1
        assert digest({"a": changed}) != digest({"a": large})


def test_header_limits_are_the_documented_ones() -> None:
    assert files.MAX_HEADER_BYTES == 8 * 2**20
