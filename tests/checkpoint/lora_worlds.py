"""LoRAs as the programs in use write them: one content, a writer for each family of key names.

A content is official module name -> (down, up); alphas and whole deltas are added by the writers
that have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mmpl.checkpoint.names import to_diffusers
from tests.checkpoint import worlds

RANK = 4
Flat = dict[str, Tensor]
Pairs = Mapping[str, tuple[Tensor, Tensor]]
Writer = Callable[[Pairs], Flat]

LINEARS = tuple(
    part
    for layer in ("self_attn", "cross_attn")
    for part in (f"{layer}.q", f"{layer}.k", f"{layer}.v", f"{layer}.o")
) + ("ffn.0", "ffn.2")  # of each block


def pairs_for(
    model: Mapping[str, tuple[int, ...]], *, rank: int = RANK, seed: int = 0, scale: float = 0.1
) -> Pairs:
    """A pair for each linear layer of each block of a model of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in model.items():
        module, _, word = name.rpartition(".")
        if word == "weight" and module.startswith("blocks.") and len(shape) == 2:
            rows, columns = shape
            found[module] = (
                scale * torch.randn(rank, columns, generator=generator),
                scale * torch.randn(rows, rank, generator=generator),
            )
    return found


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def tiny_pairs(seed: int = 0) -> Pairs:
    return pairs_for(shapes_of(worlds.dit_state()), seed=seed)


def _written(
    pairs: Pairs, name_of: Callable[[str], str], ends: tuple[str, str], alpha: float | None = None
) -> Flat:
    flat: Flat = {}
    for module, (down, up) in pairs.items():
        name = name_of(module)
        flat[f"{name}.{ends[0]}.weight"], flat[f"{name}.{ends[1]}.weight"] = down, up
        if alpha is not None:
            flat[f"{name}.alpha"] = torch.tensor(alpha)
    return flat


def _in_diffusers(module: str) -> str:
    return (to_diffusers("dit", f"{module}.weight") or "").removesuffix(".weight")


def _half_dotted(module: str) -> str:
    _, index, rest = module.split(".", 2)
    return f"lora_unet_blocks_{index}.{rest}"


AB, DOWN_UP = ("lora_A", "lora_B"), ("lora_down", "lora_up")
NAMED_AB = ("lora_A.default", "lora_B.default")


def comfy(pairs: Pairs) -> Flat:
    return _written(pairs, lambda m: f"diffusion_model.{m}", AB)


def lightx2v(pairs: Pairs) -> Flat:
    return _written(pairs, lambda m: f"diffusion_model.{m}", DOWN_UP)


def kohya(pairs: Pairs) -> Flat:
    return _written(pairs, lambda m: "lora_unet_" + m.replace(".", "_"), DOWN_UP, RANK)


def wan_fun(pairs: Pairs) -> Flat:
    return _written(pairs, lambda m: "lora_unet__" + m.replace(".", "_"), DOWN_UP, RANK)


def half_dotted(pairs: Pairs) -> Flat:
    return _written(pairs, _half_dotted, DOWN_UP, RANK)


def diffusers(pairs: Pairs) -> Flat:
    return _written(pairs, lambda m: f"transformer.{_in_diffusers(m)}", AB)


def peft(pairs: Pairs) -> Flat:
    return _written(pairs, lambda m: f"base_model.model.{m}", NAMED_AB)


def peft_diffusers(pairs: Pairs) -> Flat:
    return _written(pairs, lambda m: f"base_model.model.{_in_diffusers(m)}", AB)


def diffsynth(pairs: Pairs) -> Flat:
    return _written(pairs, lambda m: m, NAMED_AB)


def longlive(pairs: Pairs) -> Flat:
    """What its pickle holds under generator_lora."""
    return _written(pairs, lambda m: f"base_model.model.model._fsdp_wrapped_module.{m}", AB)


FAMILIES: dict[str, tuple[Writer, str]] = {  # and what it is called
    "comfy": (comfy, "ComfyUI / diffusion-pipe"),
    "lightx2v": (lightx2v, "LightX2V / Kijai"),
    "kohya": (kohya, "kohya / musubi"),
    "wan_fun": (wan_fun, "kohya / musubi"),
    "half_dotted": (half_dotted, "kohya / musubi"),
    "diffusers": (diffusers, "diffusers"),
    "peft": (peft, "PEFT"),
    "peft_diffusers": (peft_diffusers, "PEFT"),
    "diffsynth": (diffsynth, "PEFT"),
    "longlive": (longlive, "PEFT"),
}
