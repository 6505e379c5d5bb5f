"""Hostile and damaged checkpoint files: refused in one line, quickly, and nothing in them runs."""

from __future__ import annotations

import json
import os
import pickle
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmpl.checkpoint.read import read_state_dict
from mmpl.errors import CheckpointError
from tests.checkpoint import worlds

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def _zipped(path: Path, value: object) -> None:
    torch.save(value, path)


def _legacy(path: Path, value: object) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def _raw(path: Path, value: object) -> None:
    path.write_bytes(pickle.dumps(value))


def _protocol_4(path: Path, value: object) -> None:
    torch.save(value, path, pickle_protocol=4)


@pytest.mark.parametrize("write", [_zipped, _legacy, _raw, _protocol_4])
@pytest.mark.parametrize("nested", [False, True])
def test_code_in_a_pickle_is_not_run(
    tmp_path: Path, write: Callable[[Path, object], None], nested: bool
) -> None:
    canary, path = tmp_path / "canary", tmp_path / "x.pt"
    attack = worlds.Attack(canary)
    write(path, {"generator": {"a": torch.ones(2), "b": [attack]}} if nested else attack)
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(path)
    assert not canary.exists()
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_the_attack_would_work_on_a_careless_reader(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(worlds.Attack(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def _self_containing() -> dict:
    value: dict = {}
    value["model"] = value
    return value


NOT_STATE_DICTS = {
    "a tensor": torch.ones(2),
    "a list": [torch.ones(2)],
    "text": "hello",
    "nothing": {},
    "an empty generator": {"generator": {}},
    "a number": {"a": 1},
    "text inside": {"a": "x"},
    "a list inside": {"a": [torch.ones(2)]},
    "numbered": {0: torch.ones(2)},
    "nested": {"a": {"b": torch.ones(2)}},
    "itself": _self_containing(),
    "complex": {"a": torch.ones(2, dtype=torch.complex64)},
    "sparse": {"a": torch.eye(3).to_sparse()},
    "expanded": {"a": torch.ones(1).expand(2**40)},
    "meta": {"a": torch.ones(2, device="meta")},
}


@pytest.mark.parametrize("kind", NOT_STATE_DICTS)
def test_other_content_is_refused(tmp_path: Path, kind: str) -> None:
    torch.save(NOT_STATE_DICTS[kind], tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(tmp_path / "x.pt")
    assert str(tmp_path) in str(caught.value)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _header(length: int, rest: bytes = b"{}") -> Callable[[Path], object]:
    return lambda path: path.write_bytes(length.to_bytes(8, "little") + rest)


def _json_header(text: str, data: bytes = b"") -> Callable[[Path], object]:
    return _header(len(text.encode()), text.encode() + data)


def _huge_header(path: Path) -> None:
    with path.open("wb") as file:
        file.write((90 * 2**20).to_bytes(8, "little"))
        file.truncate(100 * 2**20)


ENTRY = '{"a":{"dtype":"F32","shape":%s,"data_offsets":%s}}'
BAD_FILES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.touch(),
    "folder": lambda path: path.mkdir(),
    "pipe": _fifo,
    "device": _device,
    "link to itself": _loop,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "seven bytes": lambda path: path.write_bytes(b"1234567"),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "text": lambda path: path.write_text("not found" * 100),
    "html": lambda path: path.write_text("<html>404</html>" * 9),
}
BAD_SAFETENSORS: dict[str, Callable[[Path], object]] = {
    "header longer than the file": _header(2**20),
    "header of 2^63": _header(2**63),
    "header of 90 MB": _huge_header,
    "header not JSON": _json_header("nonsense"),
    "header without end": _json_header('{"a":'),
    "deep header": _json_header("[" * 100_000),
    "list header": _json_header("[]"),
    "offsets behind the end": _json_header(ENTRY % ("[2]", "[0,8]"), b"1234"),
    "offsets backwards": _json_header(ENTRY % ("[2]", "[8,0]"), b"12345678"),
    "shape of 2^63": _json_header(ENTRY % ("[9223372036854775808]", "[0,8]"), b"12345678"),
    "shape overflow": _json_header(ENTRY % ("[4294967296,4294967296]", "[0,8]"), b"12345678"),
    "negative shape": _json_header(ENTRY % ("[-2]", "[0,8]"), b"12345678"),
    "shape unlike data": _json_header(ENTRY % ("[3]", "[0,8]"), b"12345678"),
    "unknown dtype": _json_header(
        '{"a":{"dtype":"X9","shape":[2],"data_offsets":[0,8]}}', b"12345678"
    ),
    "bytes left over": _json_header(ENTRY % ("[2]", "[0,8]"), b"1234567890"),
    "no tensors": _json_header("{}"),
    "only metadata": _json_header('{"__metadata__":{"a":"b"}}'),
}


def refused_quickly(path: Path) -> str:
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(path)
    assert time.process_time() - start < 1
    message = str(caught.value)
    assert message.isprintable()
    assert path.name in message
    return message


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".safetensors.index.json"])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    BAD_FILES[kind](path)
    refused_quickly(path)


@pytest.mark.parametrize("kind", BAD_SAFETENSORS)
def test_bad_safetensors(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.safetensors"
    BAD_SAFETENSORS[kind](path)
    refused_quickly(path)


@pytest.mark.parametrize(
    "table",
    [
        {"a": "../secret.safetensors"},
        {"a": "/etc/passwd.safetensors"},
        {"a": "sub/x.safetensors"},
        {"a": "..\\x.safetensors"},
        {"a": ".safetensors"},
        {"a": "x\0.safetensors"},
        {"a": "x.pt"},
        {"a": 7},
        {"a": "absent.safetensors"},
        {"a.weight": "x.safetensors"},
        {"a.weight": "x.safetensors", "b": "x.safetensors", "c": "x.safetensors"},
        {},
        [],
        None,
    ],
)
def test_bad_index(tmp_path: Path, table: object) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    save_file(STATE, inside / "x.safetensors")
    save_file(STATE, tmp_path / "secret.safetensors")
    index = inside / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    with pytest.raises(CheckpointError):
        read_state_dict(index)


@pytest.mark.parametrize("text", ["[1,2]", '{"weight_map": NaN}', '{"a":1,"a":2}', "{" * 9999])
def test_bad_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.index.json").write_text(text)
    refused_quickly(tmp_path / "x.index.json")


@pytest.mark.parametrize("name", ["model", "model.txt", "model.json"])
def test_other_formats_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x" * 99)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state_dict(tmp_path / name)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as old,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "compressed" in refused_quickly(tmp_path / "y.pt")


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert "not a torch checkpoint" in refused_quickly(tmp_path / "x.pt")


def _damaged(whole: bytes, dice: random.Random) -> bytes:
    """A file cut short, with bytes changed, taken out, put in or doubled, up to four of these."""
    data = bytearray(whole)
    for _ in range(dice.randint(1, 4)):
        start = dice.randrange(len(data) + 1)
        stop = min(len(data), start + dice.choice((0, 1, 1, 8, 64)))
        part = dice.choice((b"", dice.randbytes(stop - start), dice.randbytes(8), data[start:stop]))
        if dice.random() < 0.1:
            stop = len(data)  # what follows is lost
        data[start:stop] = part * dice.choice((1, 1, 2))
    return bytes(data)


@pytest.mark.parametrize(
    "count", [200, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".legacy.pt", ".attack.pt"])
def test_damaged_files_give_one_kind_of_error(tmp_path: Path, suffix: str, count: int) -> None:
    path, canary = tmp_path / f"x{suffix}", tmp_path / "canary"
    if suffix == ".safetensors":
        save_file(STATE, path)
    else:
        state = {"a": worlds.Attack(canary)} if "attack" in suffix else STATE
        torch.save(state, path, _use_new_zipfile_serialization=suffix == ".pt")
    whole, dice = path.read_bytes(), random.Random(5)
    refused = 0
    for _ in range(count):
        path.write_bytes(_damaged(whole, dice))
        start = time.process_time()
        try:
            read_state_dict(path)  # a change may leave a readable file
        except CheckpointError as error:
            refused += 1
            assert str(error).isprintable()  # noqa: PT017
        assert time.process_time() - start < 1
    assert refused > count // 3
    assert not canary.exists()


def test_old_torch_does_not_unpickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(STATE, tmp_path / "x.pt")
    for version in ("2.9.1+cu128", "1.13.1"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(CheckpointError, match="upgrade torch"):
            read_state_dict(tmp_path / "x.pt")
    for version in ("2.10.0", "2.13.0+cpu", "3.0.0a0"):
        monkeypatch.setattr(torch, "__version__", version)
        assert read_state_dict(tmp_path / "x.pt").keys() == STATE.keys()
