"""The given latents of a film in its job folder: one checksummed file. No torch here.

With it a job is gone on with when its pictures are no longer there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mmpl.film.job import GIVEN_FILE
from mmpl.film.pins import Pin, pins_text
from mmpl.media import durable

Arrays = dict[Pin, NDArray[np.float32]]  # what is at each pin: z_BCHW


def write_given(folder: Path, arrays: Mapping[Pin, NDArray[np.float32]]) -> None:
    """Makes these the given latents of a job folder, durably. Raises OutputError."""
    named = {pins_text([pin]): np.ascontiguousarray(array) for pin, array in arrays.items()}
    with durable.replacing(folder / GIVEN_FILE) as temporary:
        save_file(named, temporary, metadata={"sha256": _sha256(named)})


def read_given(folder: Path, pins: Iterable[Pin]) -> Arrays:
    """Those of `pins` that the folder holds; none where its file is missing or not whole."""
    try:
        with safe_open(folder / GIVEN_FILE, framework="numpy") as file:
            named = {name: file.get_tensor(name) for name in sorted(file.keys())}  # noqa: SIM118
            wanted = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return {}
    if wanted != _sha256(named):
        return {}
    return {pin: named[pins_text([pin])] for pin in pins if pins_text([pin]) in named}


def _sha256(named: Mapping[str, NDArray[Any]]) -> str:
    sha256 = hashlib.sha256()
    for name in sorted(named):
        sha256.update(name.encode() + named[name].tobytes())
    return sha256.hexdigest()
