"""LoRAs: read from files of every kind in use, and merged into a transformer's weights.

A LoRA holds deltas: `strength * alpha / rank * up @ down` for a matrix, or whole ones. All are
added in float32 (float64 where the weight is), and the sum is rounded once, to the format in which
the weight is stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmpl.checkpoint import files, lora_settings
from mmpl.checkpoint.folder import is_pickle
from mmpl.checkpoint.lora_names import (
    DIFF_ENDS,
    MOSTLY,
    Change,
    Parsed,
    fit,
    merged_digest,
    parse,
    ranks,
)
from mmpl.checkpoint.lora_settings import LoraSettings
from mmpl.checkpoint.read import digest, read_tensors, require_plain
from mmpl.errors import ArgumentError, CheckpointError

INSIDE = ("generator_lora", "lora", "state_dict", "model")  # where pickles keep it
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True, eq=False)
class Lora:
    """A LoRA's tensors by the names of its file. `settings`: what is said about all of its pairs;
    `zeros`: how many whole deltas were left out that held zeros alone."""

    flat: Mapping[str, Tensor]
    parsed: Parsed
    settings: LoraSettings
    zeros: int
    digest: str
    where: str

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.flat.items()}


@dataclass(frozen=True, slots=True)
class Merged:
    """What was merged: `matched` of `total` deltas, those of pure zeros not counted, and why the
    rest was left out: reason -> count."""

    where: str
    strength: float
    family: str
    ranks: tuple[int, ...]
    matched: int
    total: int
    zeros: int
    left_out: Mapping[str, int]

    @property
    def fits(self) -> bool:
        """Whether so much of it was matched that it must have been made for this model."""
        return self.matched >= MOSTLY * self.total

    def lines(self) -> list[str]:
        """For people: what was merged, then one line for each reason to leave something out."""
        rank = f", rank {', '.join(map(str, self.ranks))}" if self.ranks else ""
        return [
            f"{self.where} at {self.strength:g}: matched {self.matched}/{self.total} "
            f"({self.family}{rank})",
            *(f"left out: {count} {reason}" for reason, count in self.left_out.items()),
            *([f"left out: {self.zeros} whose delta is zero"] if self.zeros else []),
        ]


def read_lora(path: str | Path) -> Lora:
    """The LoRA in a .safetensors or pickled file, of any family. Raises CheckpointError."""
    path = Path(path)
    flat = read_tensors(path, inside=INSIDE)
    sha256 = files.sha256_of(path)
    parsed = parse(flat, where=str(path))
    shapes = {name: tuple(tensor.shape) for name, tensor in flat.items()}
    metadata = {} if is_pickle(path) else files.read_metadata(path)
    settings = lora_settings.of_file(path, metadata, ranks(parsed, shapes))
    return lora_from_state_dict(flat, settings=settings, sha256=sha256, where=str(path))


def lora_from_state_dict(
    flat: Mapping[str, Tensor],
    *,
    settings: LoraSettings | None = None,
    sha256: str | None = None,
    where: str = "LoRA state dict",
) -> Lora:
    """A LoRA of tensors under the names of any family. Raises CheckpointError."""
    require_plain(flat, where=where)
    for name, tensor in flat.items():
        _require_numbers(name, tensor, where)
    kept = {
        name: tensor
        for name, tensor in flat.items()
        if not (name.endswith(DIFF_ENDS) and not tensor.any())
    }
    if not kept:
        raise CheckpointError("this LoRA holds zeros alone", where=where)
    settings = settings or LoraSettings()
    return Lora(
        flat=kept,
        parsed=parse(kept, where=where),
        settings=settings,
        zeros=len(flat) - len(kept),
        digest=merged_digest(sha256 or digest(flat), settings.marks()),
        where=where,
    )


@torch.no_grad()
def merged(
    flat: Mapping[str, Tensor], loras: Sequence[tuple[Lora, float]]
) -> tuple[dict[str, Tensor], tuple[Merged, ...]]:
    """A transformer's weights, under official names, with LoRAs merged in, each at its strength,
    and what was merged of each.

    Works tensor by tensor; tensors that no LoRA changes are those of `flat`. Raises
    CheckpointError for a LoRA of another model or size.
    """
    model = {name: tuple(tensor.shape) for name, tensor in flat.items()}
    deltas: dict[str, list[tuple[Lora, float, Change]]] = {}
    reports = []
    for lora, strength in loras:
        if not math.isfinite(strength):
            raise ArgumentError("the strength of a LoRA is not a number", got=strength)
        found = fit(lora.parsed, lora.shapes, model, where=lora.where)
        for change in found.changes:
            deltas.setdefault(change.target, []).append((lora, strength, change))
        reports.append(
            Merged(
                where=lora.where,
                strength=strength,
                family=lora.parsed.family,
                ranks=tuple(ranks(lora.parsed, lora.shapes)),
                matched=len(found.changes),
                total=found.total,
                zeros=lora.zeros,
                left_out=found.left_out,
            )
        )
    whole = {
        name: _changed(name, weight, deltas[name]) if name in deltas else weight
        for name, weight in flat.items()
    }
    return whole, tuple(reports)


def with_loras(digests: Mapping[str, str], loras: Sequence[tuple[Lora, float]]) -> dict[str, str]:
    """The digests of a model after its transformer has had `loras` merged in."""
    if not loras:
        return dict(digests)
    each = [(lora.digest, strength) for lora, strength in loras]
    return {**digests, "dit": merged_digest(digests["dit"], each), "lora": merged_digest("", each)}


def _changed(name: str, weight: Tensor, deltas: Sequence[tuple[Lora, float, Change]]) -> Tensor:
    if weight.dtype not in FLOATS:
        raise CheckpointError(
            "a LoRA cannot be merged into quantised weights",
            where=deltas[0][0].where,
            got=f"{name} of {weight.dtype}",
            wanted="float32, float16 or bfloat16",
            todo="give the model's weights before they were quantised",
        )
    total = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    for lora, strength, change in deltas:
        parts = [lora.flat[key].to(total.device, total.dtype) for key in change.keys]
        if len(parts) == 2:
            down, up = (part.flatten(1) for part in parts)
            delta = strength * _scale(lora, change, len(down)) * (up @ down)
        else:
            delta = strength * parts[0]
        total += delta.reshape(total.shape)
    return total.to(weight.dtype)


def _scale(lora: Lora, change: Change, rank: int) -> float:
    if change.alpha:
        alpha = lora.flat[change.alpha]
        if alpha.numel() != 1:
            raise CheckpointError(
                "an alpha is not one number",
                where=lora.where,
                got=f"{ascii(change.alpha)[:80]} of {tuple(alpha.shape)}",
            )
        return alpha.item() / rank
    return lora.settings.scale(rank)


def _require_numbers(name: str, tensor: Tensor, where: str) -> None:
    if tensor.dtype not in FLOATS and tensor.numel() > 1:
        raise CheckpointError(
            "a LoRA in this number format cannot be read",
            where=where,
            got=f"{ascii(name)[:80]} of {tensor.dtype}",
            wanted="float32, float16 or bfloat16",
        )
    if not tensor.float().isfinite().all():
        raise CheckpointError(
            "the LoRA holds numbers that are not finite",
            where=where,
            got=ascii(name)[:80],
            todo="its training went wrong, or the file is damaged: get another",
        )
