"""mmpl-gen convert: any model that loads as one bundle folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpl.cli.model import model_folder
from mmpl.cli.shell import Console, printable
from mmpl.errors import ArgumentError
from mmpl.media.durable import check_folder_writable


def convert(source: str, given: Mapping[str, Any], console: Console) -> str:
    """Writes the model at `source`, with the parts that flags name, to the folder `output`;
    returns its path. Raises MmplError."""
    if "model_path" in given:
        raise ArgumentError("the model is given twice", wanted=f"{source} alone")
    output = Path(given["output"])
    if os.path.lexists(output) and "overwrite" not in given:
        raise ArgumentError(
            "the folder exists", where=str(output), todo="choose another name or --overwrite it"
        )
    found, _ = model_folder({**given, "model_path": source})
    own = {found.path.resolve(), *(path.resolve().parent for path in found.files.values())}
    if output.resolve() in own:
        raise ArgumentError("a model cannot be converted in its own folder", where=str(output))
    check_folder_writable(output)
    console.say(f"{printable(source)}: {found.title}")
    for part, path in found.files.items():
        console.say(f"  {part:10}{printable(str(path))}")

    import torch

    from mmpl.checkpoint.convert import convert as write

    dtype = given.get("dtype", "auto")
    write(found, output, dtype=None if dtype == "auto" else getattr(torch, dtype))
    return str(output)
