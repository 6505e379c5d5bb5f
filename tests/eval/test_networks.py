"""Networks of arms, as they lie in a folder: found with what they belong to, or refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mmpl.checkpoint.folder import check_folder
from mmpl.errors import CheckpointError
from mmpl.eval.networks import find_networks
from tests.small import write_small


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    os.mkdir("networks")
    return write_small(Path("model"))


def test_a_file_comes_with_the_model_it_belongs_to(model: Path) -> None:
    here = Path("networks")
    shutil.copytree(model, here / "tuned_none")
    for name in ("tuned_all", "control_mmpl"):
        shutil.copy(model / "dit.safetensors", here / f"{name}.safetensors")
    (here / ".hidden").touch()
    found = find_networks(here, check_folder(model))
    assert {name: (one.files["dit"], one.files["text"]) for name, one in found.items()} == {
        "control_mmpl": (here / "control_mmpl.safetensors", model / "text.safetensors"),
        "tuned_all": (here / "tuned_all.safetensors", here / "tuned_none" / "text.safetensors"),
        "tuned_none": (
            here / "tuned_none" / "dit.safetensors",
            here / "tuned_none" / "text.safetensors",
        ),
    }


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "networks: there are no networks; wanted control_mmpl, control_chunks, tuned_none"),
        (["notes.txt"], "networks/notes.txt: this is no network of the claims; wanted NAME.safe"),
        (["tuned_most/"], "networks/tuned_most: this is no network of the claims"),
        (["mmpl_terminal.safetensors"], "this is no network of the claims"),
        (["control_mmpl"], "networks/control_mmpl: this is no network of the claims"),
        (["control_mmpl/", "control_mmpl.safetensors"], "is there twice; remove one"),
        (["tuned_qk.safetensors"], "belongs to the model that it was tuned from; wanted that"),
        (["tuned_none.safetensors"], "belongs to the model that it was tuned from"),
        (["control_mmpl/"], "networks/control_mmpl"),
        (["control_mmpl.safetensors"], "networks/control_mmpl.safetensors: "),
    ],
)
def test_what_is_no_network_is_refused(model: Path, names: list[str], words: str) -> None:
    for name in names:
        path = Path("networks", name)
        os.mkdir(path) if name.endswith("/") else path.touch()
    with pytest.raises(CheckpointError) as found:
        find_networks(Path("networks"), check_folder(model))
    assert words in str(found.value)


def test_a_folder_that_is_not_there(model: Path) -> None:
    with pytest.raises(CheckpointError, match="missing: the folder of networks cannot be read"):
        find_networks(Path("missing"), check_folder(model))
