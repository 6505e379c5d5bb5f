"""The networks that arms of the claims have for themselves, found in a folder.

Each is a model folder of the arm's name, or a transformer alone, NAME.safetensors, whose other
parts are those of the model it was trained from: of tuned ones the plain model, which lies beside
them. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mmpl.checkpoint.folder import ModelFolder, check_folder
from mmpl.errors import CheckpointError
from mmpl.eval.claims_arms import NETWORK_ARMS, PLAIN

_SUFFIX = ".safetensors"
_TUNED = "tuned_"  # the names of those that belong to the plain model


def find_networks(folder: Path, shared: ModelFolder) -> dict[str, ModelFolder]:
    """The networks in `folder` by the names of their arms, checked as far as they can be before
    they are loaded; what a control's file does not hold is that of the `shared` model. Names that
    begin with a dot do not count. Raises CheckpointError for a name that is no arm's or is there
    twice, for a tuned transformer without the plain model, and what `check_folder` does.
    """
    try:
        entries = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise CheckpointError(
            "the folder of networks cannot be read", where=str(folder), got=str(error.strerror)
        ) from error
    found: dict[str, Path] = {}
    for entry in entries:
        path = folder / entry
        name = entry if os.path.isdir(path) else entry.removesuffix(_SUFFIX)
        if name not in NETWORK_ARMS or (name == entry and not os.path.isdir(path)):
            raise CheckpointError(
                "this is no network of the claims",
                where=str(path),
                wanted=f"NAME{_SUFFIX} or a model folder NAME, of {', '.join(NETWORK_ARMS)}",
            )
        if name in found:
            raise CheckpointError("this network is there twice", where=str(path), todo="remove one")
        found[name] = path
    if not found:
        raise CheckpointError(
            "there are no networks", where=str(folder), wanted=", ".join(NETWORK_ARMS)
        )
    return {name: _checked(name, found, shared) for name in NETWORK_ARMS if name in found}


def _checked(name: str, found: Mapping[str, Path], shared: ModelFolder) -> ModelFolder:
    path = found[name]
    if os.path.isdir(path):
        return check_folder(path)
    if not name.startswith(_TUNED):
        return check_folder(shared.path, checkpoint=path)
    plain = found.get(PLAIN)
    if plain is None or not os.path.isdir(plain):
        raise CheckpointError(
            "this transformer belongs to the model that it was tuned from",
            where=str(path),
            wanted=f"that model beside it, as the folder {PLAIN}",
        )
    return check_folder(plain, checkpoint=path)
