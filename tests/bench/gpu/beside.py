"""Rows of ours beside the official modules, and of 8-bit matrices beside bfloat16, in turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from mmpl.layout.presets import SEGMENT_LATENTS
from mmpl.wan.choices import QUANTISED
from mmpl.wan.dit import Engine, Positions, dit, encode_context
from mmpl.wan.params import to_flat
from tests.bench import official
from tests.bench.gpu.lab import Call, Lab, Size, apart
from tests.bench.gpu.pixels import FORMATS, decode_call
from tests.bench.gpu.record import Figure, Wanted
from tests.bench.gpu.scene import TEXT, TIME, segment
from tests.bench.vae import official_network

LAYERS = {"14B": 8, "1.3B": 30}  # what is around them is the same
FASTER = {"14B": Wanted(least=1.25, best=1.4), "1.3B": Wanted(least=1.35, best=1.6)}
VAE_FASTER = {"fp32": Wanted(least=1.3), "bf16": Wanted(least=2.5)}
FRAMES = 7  # latent frames of a clip that sees itself: as many as a plan makes


def transformers(lab: Lab, size: str) -> Iterator[Figure]:
    """A forward of a clip that sees itself: the official one encodes its text every time, ours has
    done so once, as in a film."""
    one = lab.sizes[size].of_layers(LAYERS[size])
    x_BCTHW = lab.noise(1, one.dit.in_dim, FRAMES, *one.latent_size)
    text = lab.noise(min(TEXT, one.dit.text_len), one.dit.text_dim)
    name, backend = next(iter(lab.backends().items()))
    engine = Engine(attention=backend)
    sides = {
        "ours": _ours(lab, one, x_BCTHW, text, engine),
        "compiled": _ours(lab, one, x_BCTHW, text, replace(engine, block_fn=lab.compiled())),
        "official": official.device_call(_checkout(lab), one.dit, x_BCTHW, text, backend),
    }
    taken = lab.in_turns(sides)
    for own in ("ours", "compiled"):
        yield Figure(
            f"{size}, {one.dit.num_layers} layers, {name}: official over {own}",
            taken["official"] / taken[own],
            "x",
            {"ms": taken[own] * 1e3, "official ms": taken["official"] * 1e3},
            FASTER[size],
        )


def _ours(lab: Lab, size: Size, x: torch.Tensor, text: torch.Tensor, engine: Engine) -> Call:
    params, config = lab.transformer(size.dit), size.dit
    t_B1 = torch.full((1, 1), TIME, device=lab.device)
    frames = Positions(tuple(range(x.shape[2])))
    with torch.no_grad():
        context = encode_context(params, config, [text.to(lab.compute)], engine=engine)

    @torch.no_grad()
    def call() -> torch.Tensor:
        return dit(params, config, x, t_B1, context, frames=frames, engine=engine)

    return call


def decoders(lab: Lab, size: str) -> Iterator[Figure]:
    """A segment's decode by both VAEs, after one warm-up."""
    checkout, one = _checkout(lab), lab.sizes[size]
    for name, dtype in FORMATS.items():
        z_BCTHW = lab.noise(1, one.vae.z_dim, SEGMENT_LATENTS, *one.latent_size, dtype=dtype)
        network = official_network(checkout, one.vae).to(lab.device, dtype)
        scale = [
            torch.tensor(one.vae.latent_mean, dtype=dtype, device=lab.device),
            1 / torch.tensor(one.vae.latent_std, dtype=dtype, device=lab.device),
        ]
        sides = {
            "ours": decode_call(lab, one, dtype),
            "official": partial(network.decode, z_BCTHW, scale),
        }
        taken = lab.in_turns(sides, warm_ups=1, repeats=3)
        yield Figure(
            f"VAE decode, {name}: official over ours",
            taken["official"] / taken["ours"],
            "x",
            {"s": taken["ours"], "official s": taken["official"]},
            VAE_FASTER[name],
        )


def quantised(lab: Lab, size: str) -> Iterator[Figure]:
    """A pass of fill_tail with matrices in 8 bits, beside the same in bfloat16."""
    one = lab.sizes[size].of_layers(LAYERS[size])
    plain_s, plain = 0.0, None
    for kind in (None, *QUANTISED):
        scene = segment(lab, one, kind=kind)
        group = scene.layout.groups[-1]
        weights = sum(_bytes(block) for block in scene.network.params.blocks)
        for compiled in (False, True):
            call = scene.pass_call(lab, group, lab.engine(compiled=compiled))
            taken_s = lab.seconds(call)
            plain_s, v_BCTHW = plain_s or taken_s, call()[0]
            plain = v_BCTHW if plain is None else plain
            yield Figure(
                f"{size}, {one.dit.num_layers} layers, {kind or 'bf16'}"
                + (" compiled" if compiled else ""),
                taken_s * 1e3,
                "ms",
                {
                    "of bf16 eager": taken_s / plain_s,
                    "GB of blocks": weights / 1e9,
                    "apart": apart(v_BCTHW, plain),
                },
            )
        del scene, call
        lab.tidy()


def _bytes(tree: object) -> int:
    return sum(leaf.nbytes for leaf in to_flat(tree).values())


def _checkout(lab: Lab) -> Path:
    if lab.official is None:
        raise LookupError("no --official: nothing to compare with")
    return lab.official
