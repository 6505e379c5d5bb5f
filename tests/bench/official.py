"""The other side: modules of an official Wan2.1 checkout, which stay where they are.

`transformer` runs `PATH/wan/modules/model.py` as it is, with stand-ins for the three things it
imports that need not be installed here: diffusers' base classes, which only add loading and saving,
flash-attn, in whose place torch's own attention is called with the same operands, and CUDA's
autocast.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mmpl.wan.attention import AttentionBackend, sdpa
from mmpl.wan.config import DiTConfig
from mmpl.wan.ops import Precision
from tests.bench.cases import Row, inputs, state


def module(
    checkout: Path, name: str, *, device: str = "cpu", attention: AttentionBackend = sdpa
) -> ModuleType:
    """`checkout`/wan/modules/NAME.py, run with the stand-ins, which are gone again afterwards.
    `device`: the type of that which it will run on; `attention` is called in flash-attn's place."""
    package = "official_wan"
    stands: dict[str, dict[str, Any]] = {
        "diffusers": {},
        "diffusers.configuration_utils": {
            "ConfigMixin": type("ConfigMixin", (), {}),
            "register_to_config": lambda function: function,
        },
        "diffusers.models": {},
        "diffusers.models.modeling_utils": {"ModelMixin": nn.Module},
        package: {"__path__": []},
        f"{package}.attention": {"flash_attention": partial(_attention, attention)},
    }
    made = {key: ModuleType(key) for key in stands}
    for key, values in stands.items():
        vars(made[key]).update(values)
    path = checkout / "wan" / "modules" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{package}.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    before = {key: sys.modules.get(key) for key in made}
    sys.modules.update(made)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spec.loader.exec_module(found)
    finally:
        for key, module_before in before.items():
            del sys.modules[key]
            if module_before is not None:
                sys.modules[key] = module_before
    # Its islands of float32 are switched on for CUDA alone.
    off: dict[str, Any] = {"enabled": False} if device == "cpu" else {}
    vars(found)["amp"] = SimpleNamespace(
        autocast=lambda **o: torch.autocast(device, **{**o, **off})
    )
    return found


def transformer(checkout: Path, row: Row) -> nn.Module:
    """The official transformer at the size of `row`, with the weights of `cases.params`."""
    made = built(module(checkout, "model"), row.config)
    made.load_state_dict(state(row.config))
    return made


def built(found: ModuleType, config: DiTConfig) -> nn.Module:
    """The official transformer at this size, of the weights it starts a training with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = found.WanModel(
            dim=config.dim,
            ffn_dim=config.ffn_dim,
            num_heads=config.num_heads,
            num_layers=config.num_layers,
            freq_dim=config.freq_dim,
            text_dim=config.text_dim,
            text_len=config.text_len,
            cross_attn_norm=True,
        )
    return made.eval().requires_grad_(False)


def device_call(
    checkout: Path, config: DiTConfig, x_BCTHW: Tensor, text: Tensor, attention: AttentionBackend
) -> Callable[[], Tensor]:
    """A forward in mixed bfloat16 of a clip that sees itself, on the device of `x_BCTHW`, its
    weights held as the official programs hold them."""
    device = x_BCTHW.device
    with device:
        model = built(module(checkout, "model", device=device.type, attention=attention), config)
    if device.type != "cpu":  # whose autocast does not reach all that is in another format
        model = model.to(torch.bfloat16)
    t_B = torch.full((1,), 900.0, device=device)
    tokens = x_BCTHW.shape[2] * config.frame_tokens(*x_BCTHW.shape[3:])

    @torch.no_grad()
    def call() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16), _quiet():
            return model([x_BCTHW[0]], t_B, [text], tokens)[0][None]

    return call


def forward_call(checkout: Path, row: Row, precision: Precision) -> Callable[[], Tensor]:
    """What `cases.forward_call` computes, by the official transformer."""
    model = transformer(checkout, row)
    x_BCTHW, text = inputs(row)
    half = precision.compute is not torch.float32

    @torch.no_grad()
    def call() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half), _quiet():
            return model([x_BCTHW[0]], torch.tensor([500.0]), [text], row.tokens)[0][None]

    return call


def block_call(checkout: Path, row: Row, precision: Precision) -> Callable[[], Tensor]:
    """A pass through all blocks by the official ones, which encode the text every time."""
    model = transformer(checkout, row)
    config, half = row.config, precision.compute is not torch.float32
    generator = torch.Generator().manual_seed(1)
    x_BLD = torch.randn(1, row.tokens, config.dim, generator=generator)
    shared = {
        "e": torch.randn(1, 6, config.dim, generator=generator),
        "seq_lens": torch.tensor([row.tokens]),
        "grid_sizes": torch.tensor([row.grid]),
        "freqs": model.freqs,
        "context": torch.randn(1, config.text_len, config.dim, generator=generator),
        "context_lens": None,
    }

    @torch.no_grad()
    def call() -> Tensor:
        y_BLD = x_BLD
        with torch.autocast("cpu", torch.bfloat16, enabled=half), _quiet():
            for block in model.blocks:  # pyright: ignore[reportGeneralTypeIssues]
                y_BLD = block(y_BLD, **shared)
        return y_BLD

    return call


def _attention(backend: AttentionBackend, q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    """Of [B, L, N, K] each, all tokens visible; formats are those of the values."""
    return backend(q.to(v.dtype), k.to(v.dtype), v)


def _quiet() -> warnings.catch_warnings[None]:
    """The official code's CUDA casts have nothing to do on a CPU, and say so."""
    return warnings.catch_warnings(action="ignore")
