"""What a film takes of a GPU's memory, and what is therefore kept in the host's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from mmpl.checkpoint.folder import Configs
from mmpl.cli.order import Order
from mmpl.cli.shell import Console
from mmpl.film.memory import Held, fits, least_offload, memory_plan
from mmpl.film.settings import Film
from mmpl.layout.mesh import Mesh
from mmpl.wan.choices import OFFLOADS

_GB = 1e9


def torch_dtype(name: str) -> torch.dtype | None:
    """The format of that name; None for auto."""
    return None if name == "auto" else getattr(torch, name)


def offload_for(
    order: Order, device: torch.device, engine: Mapping[str, Any], console: Console
) -> str:
    """The offload that was asked for; for `auto`, on a GPU the least that fits, and it is said.
    `engine`: the machine's settings that were taken."""
    wanted, free = order.machine["offload"], free_bytes(device)
    if wanted != "auto":
        return wanted
    if free is None:
        return "none"
    held = _held(engine)
    mesh = order.mesh or Mesh(1)
    plan = least_offload(order.folder.configs, order.film, held, free, mesh)
    kind = plan.held.offload
    line = f"{plan.peak / _GB:.1f} GB by calculation, {free / _GB:.1f} GB free on {device}"
    console.say(f"  memory   --offload {kind}: {line}")
    if not fits(plan, free):
        console.warn(f"this film may not fit even with --offload {kind}: {line}")
    return kind


def free_bytes(device: torch.device) -> int | None:
    """The free memory of a GPU; None for what has none of its own."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def peaks(
    configs: Configs, film: Film, settings: Mapping[str, Any], mesh: Mesh
) -> dict[str, float]:
    """For --dry_run: the most memory that a process of `mesh` takes on its GPU with the offload
    asked for, with all where that is left open, and of the host."""
    held = _held(settings)
    wanted = settings.get("offload", "auto")
    found: dict[str, float] = {}
    for kind in OFFLOADS if wanted == "auto" else (wanted,):
        plan = memory_plan(configs, film, replace(held, offload=kind), mesh)
        found[f"gpu_gb_offload_{kind}"] = plan.peak / _GB
        if plan.host:
            found[f"host_gb_offload_{kind}"] = plan.host / _GB
    return found


def _held(settings: Mapping[str, Any]) -> Held:
    """How a model is held with these settings, on a GPU where they leave it open."""
    quantize = settings.get("quantize", "none")
    return Held(
        torch_dtype(settings.get("dtype", "auto")) or torch.bfloat16,
        None if quantize == "none" else quantize,
        vae_dtype=torch_dtype(settings.get("vae_dtype", "auto")) or torch.bfloat16,
    )
