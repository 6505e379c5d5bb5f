"""The transformer's block as torch compiles it: once for every kind of pass, for all layers alike.

Passes are of one kind where they have as many clips and tokens and read and write the same rows of
a cache, so a film compiles as often as its layout has groups, all of it in its first segment.
"""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.wan.cache import LayerKV
from mmpl.wan.choices import COMPILED
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit_block import BlockFn, Shared, block
from mmpl.wan.dit_params import BlockParams

# Of passes. Of what is compiled more often than 8 times torch goes back to the plain function, and
# some layouts have more groups. `torch.compile` itself takes a limit since torch 2.13 alone.
_KINDS = 64
_WIDE = 1024  # numbers of a token from which blocks are work enough to repay a minute of compiling


@dataclass(frozen=True, slots=True, eq=False)
class CompiledBlock:
    """`block`, compiled for each kind of pass at its first call. It differs from `block` by
    rounding. Raises ArgumentError where it cannot be compiled."""

    run: Callable[..., Tensor]
    limit: Any  # a context in which it may be compiled so often

    def __call__(
        self,
        params: BlockParams,
        config: DiTConfig,
        x_BLD: Tensor,
        shared: Shared,
        text: LayerKV,
        cached: LayerKV | None,
        /,
    ) -> Tensor:
        try:
            with self.limit:
                return self.run(params, config, x_BLD, shared, text, cached)
        except torch._dynamo.exc.TorchDynamoException as error:  # pyright: ignore[reportAttributeAccessIssue]
            raise ArgumentError(
                "torch cannot compile the transformer's block here",
                got=" ".join(str(error).split())[:160],
                todo="do not compile it: --compile no",
            ) from error


def compiled_block(backend: str | Callable[..., Any] = "inductor") -> BlockFn:
    """`block`, compiled with static shapes by a backend of `torch.compile`."""
    run = torch.compile(block, dynamic=False, backend=backend)
    return CompiledBlock(run, torch._dynamo.config.patch(recompile_limit=_KINDS))


def resolve_compiled(
    name: str, device: torch.device | str, config: DiTConfig, *, ulysses: bool = False
) -> tuple[bool, str]:
    """Whether blocks are to be compiled, and what kept "auto" from it on a GPU, "" if nothing did.

    `name`: "yes", "no" or "auto", which compiles on a GPU that has all it takes, for a network of
    some size, unless ranks share passes by `ulysses`: that was tried on CPUs alone. Raises
    ArgumentError for another name.
    """
    if name not in COMPILED:
        raise ArgumentError("unknown choice", got=f"compiled={name!r}", wanted=", ".join(COMPILED))
    if name != "auto":
        return name == "yes", ""
    if torch.device(device).type != "cuda" or config.dim < _WIDE:
        return False, ""
    missing = "its passes are shared by Ulysses" if ulysses else _missing()
    return not missing, missing


def _missing() -> str:
    """What torch does not find that it needs to compile for a GPU."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if not any(map(shutil.which, ("gcc", "clang"))):
        return "there is no C compiler, gcc or clang"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers are not installed (python3-dev)"
    return ""
