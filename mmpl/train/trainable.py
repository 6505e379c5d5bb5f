"""Which weights of a Wan transformer are trained: the strategies of Table 3. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mmpl.errors import ArgumentError

TRAINS: dict[str, str] = {
    "self-attention": r"blocks\.\d+\.self_attn\..+",
    "qk": r"blocks\.\d+\.self_attn\.[qk]\..+",
    "all": r".+",
    "none": r"(?!)",
}
"""Name -> official names of what it trains. `self-attention` (the default, and the released model)
is every parameter of it: projections and norms. `qk` is the projections of queries and keys alone,
as the paper words it, without their norms. `none` is Table 3's Freeze."""


def trained(trains: str, names: Iterable[str]) -> tuple[str, ...]:
    """Those of the official `names` that are trained, in their order. Raises ArgumentError."""
    if trains not in TRAINS:
        raise ArgumentError("unknown choice of weights", got=trains, wanted=", ".join(TRAINS))
    return tuple(name for name in names if re.fullmatch(TRAINS[trains], name))
