"""How far films from matrices in 8 bits are from those of the bundle as it is.

    python -m tests.bench.quantised [--model_path weights/tiny] [--prompts 3] [--steps 8]

Peak signal-to-noise ratio in dB over all latents of a segment, whose peak is the span of the plain
ones, and over all pixels of its frames, whose peak is 255. Same seed, same noise. On a CPU the
products are of dequantised matrices; a card with fp8 rounds their inputs too.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from math import inf, log10
from pathlib import Path

import torch
from torch import Tensor

from mmpl.generate import Frames, Made, Model, Request, generate, load_model
from mmpl.wan.choices import QUANTISED
from mmpl.wan.dit_params import dit_quantised


def psnr_db(found: Tensor, wanted: Tensor, peak: float) -> float:
    """Peak signal-to-noise ratio; infinite where both are the same."""
    error = (found.double() - wanted.double()).square().mean().item()
    return inf if error == 0 else 10 * log10(peak**2 / error)


def film(model: Model, request: Request) -> tuple[Tensor, Tensor]:
    """All latents of the film, one after the other, and all its pixels."""
    latents: list[Tensor] = []
    pixels: list[Tensor] = []
    for event in generate(model, request):
        if isinstance(event, Made) and event.z_BCTHW is not None:
            latents.append(event.z_BCTHW.flatten().cpu())
        if isinstance(event, Frames):
            pixels.append(torch.as_tensor(event.pixels_FHWC).flatten())
    return torch.cat(latents), torch.cat(pixels)


def measured(model: Model, request: Request) -> dict[str, tuple[float, float]]:
    """PSNR in dB of latents and of pixels, for each way to quantise."""
    z, x = film(model, request)
    span = (z.max() - z.min()).item()
    found = {}
    for kind in QUANTISED:
        held = replace(model, dit=dit_quantised(model.dit, kind))
        other_z, other_x = film(held, request)
        found[kind] = (psnr_db(other_z, z, span), psnr_db(other_x, x, 255.0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model_path", type=Path, default=Path("weights/tiny"))
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    given = parser.parse_args()
    model = load_model(given.model_path)
    for seed, prompt in enumerate(model.defaults.examples[: given.prompts], start=1):
        for kind, (latents, frames) in measured(
            model, Request(prompt, seed, segments=1, steps=given.steps)
        ).items():
            print(
                f"{kind:5} latents {latents:5.1f} dB, frames {frames:5.1f} dB  {prompt}", flush=True
            )


if __name__ == "__main__":
    main()
