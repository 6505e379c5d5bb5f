"""The VAE beside the official one: CPU time of one thread, kernels, bytes, memory, and how far
the results are apart.

    python -m tests.bench.vae [--official PATH] [--dim 32] [--size 208x128] [--frames 17]
                              [--repeats 3] [--bundle weights/tiny]

The official side is `PATH/wan/modules/vae.py` of a checkout of Wan2.1; both have the same weights,
and their runs alternate. `peak` is of tensors alone; `process` is the most that a process of its
own held, torch and workspaces included (Linux). A bundle's VAE has no
official counterpart where it folds pixels: its lines are ours alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmpl.wan import vae
from mmpl.wan.config import VAEConfig
from tests.bench.counter import count

Call = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """What is coded: the network's width, and a clip."""

    dim: int
    width: int
    height: int
    frames: int

    @property
    def config(self) -> VAEConfig:
        return VAEConfig(dim=self.dim)


def inputs(config: VAEConfig, width: int, height: int, frames: int) -> tuple[Tensor, Tensor]:
    """Pixels and latents of a clip."""
    generator = torch.Generator().manual_seed(1)
    stride = config.spatial_stride
    latents = (config.z_dim, config.latent_frames(frames), height // stride, width // stride)
    video_BCFHW = torch.rand(1, 3, frames, height, width, generator=generator) * 2 - 1
    return video_BCFHW, torch.randn(1, *latents, generator=generator)


def weights(config: VAEConfig) -> dict[str, Tensor]:
    """Random ones under the official names, of sizes that keep activations at 1."""
    generator = torch.Generator().manual_seed(0)
    flat = {}
    for name, shape in vae.vae_shapes(config).items():
        if name.endswith("gamma"):
            flat[name] = torch.ones(shape)
        else:
            scale = prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.02
            flat[name] = torch.randn(shape, generator=generator) * scale
    return flat


def our_calls(case: Case) -> dict[str, Call]:
    """Decode and encode by mmpl."""
    config = case.config
    params = vae.vae_from_flat(weights(config), config)
    video_BCFHW, z_BCTHW = inputs(config, case.width, case.height, case.frames)
    return {
        "decode": lambda: vae.decode(params, config, z_BCTHW)[0],
        "encode": lambda: vae.encode(params, config, video_BCFHW)[0],
    }


def official_calls(case: Case, checkout: Path) -> dict[str, Call]:
    """The same by the official module."""
    config = case.config
    network = official_network(checkout, config)
    network.load_state_dict(weights(config))
    scale = [torch.tensor(config.latent_mean), 1 / torch.tensor(config.latent_std)]
    video_BCFHW, z_BCTHW = inputs(config, case.width, case.height, case.frames)
    return {
        "decode": lambda: network.decode(z_BCTHW, scale),
        "encode": lambda: network.encode(video_BCFHW, scale),
    }


def official_network(checkout: Path, config: VAEConfig) -> Any:
    """The official VAE at this size, of the weights it starts a training with."""
    spec = spec_from_file_location("official_vae", checkout / "wan" / "modules" / "vae.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = module_from_spec(spec)
    with warnings.catch_warnings(action="ignore"):
        spec.loader.exec_module(module)
    network = module.WanVAE_(
        dim=config.dim,
        z_dim=config.z_dim,
        dim_mult=list(config.dim_mult),
        num_res_blocks=config.num_res_blocks,
        temperal_downsample=list(config.temporal_downsample),
    )
    return network.eval().requires_grad_(False)


def process_mb(case: Case, checkout: Path | None, name: str) -> float:
    """The most memory that this process held after one call of one side."""
    torch.set_num_threads(1)
    calls = our_calls(case) if checkout is None else official_calls(case, checkout)
    with torch.no_grad():
        calls[name]()
    with open("/proc/self/status", encoding="ascii") as file:  # not rusage: exec keeps its parent's
        (line,) = (line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def seconds(calls: list[Call], repeats: int) -> list[list[float]]:
    """CPU seconds of each call, in turns, the first turn not counted."""
    taken: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, times in zip(calls, taken, strict=True):
            start = time.process_time()
            call()
            if turn:
                times.append(time.process_time() - start)
    return taken


@torch.no_grad()
def compare(case: Case, checkout: Path | None, repeats: int) -> None:
    """Prints the two sides, and their ratios."""
    sides: dict[str, tuple[dict[str, Call], Path | None]] = {}
    if checkout:
        sides["official"] = official_calls(case, checkout), checkout
    sides["mmpl"] = (our_calls(case), None)
    for name in ("decode", "encode"):
        calls = [side[name] for side, _ in sides.values()]
        rows = []
        for (side, (_, where)), times in zip(sides.items(), seconds(calls, repeats), strict=True):
            counts = count(calls[len(rows)])
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                held = alone.submit(process_mb, case, where, name).result()
            figures = (
                statistics.median(times),
                counts.total,
                counts.other_bytes / 1e9,
                counts.peak_bytes / 1e6,
                held,
            )
            rows.append(figures)
            taken, kernels, gigabytes, peak, process = figures
            print(
                f"{name} {side:9} {taken:6.2f} s CPU (least {min(times):.2f}), {kernels} kernels, "
                f"{gigabytes:.2f} GB beside convolutions, peak {peak:.0f} MB, "
                f"process {process:.0f} MB",
                flush=True,
            )
        if len(rows) == 2:
            ratios = [ours / theirs for theirs, ours in zip(*rows, strict=True)]
            apart = (calls[0]() - calls[1]()).abs().max().item()
            print(
                f"{name} ratio     {ratios[0]:6.2f}, kernels {ratios[1]:.2f}, bytes {ratios[2]:.2f}"
                f", peak {ratios[3]:.2f}, process {ratios[4]:.2f}; results {apart:.1e} apart"
            )


@torch.no_grad()
def bundle(folder: Path, repeats: int) -> None:
    """Prints what a segment of a bundle's own size takes."""
    from mmpl.generate import load_model

    model = load_model(folder)
    params, config, size = model.vae, model.vae_config, model.defaults
    video_BCFHW, z_BCTHW = inputs(config, size.width, size.height, 81)
    calls: dict[str, Call] = {
        "decode": lambda: vae.decode(params, config, z_BCTHW)[0],
        "encode": lambda: vae.encode(params, config, video_BCFHW)[0],
    }
    for (name, call), times in zip(calls.items(), seconds(list(calls.values()), repeats)):
        counts = count(call)
        print(
            f"{folder} {name} of 81 frames {size.width}x{size.height}: "
            f"{statistics.median(times):.2f} s CPU, {counts.total} kernels, "
            f"{counts.other_bytes / 1e9:.2f} GB beside convolutions"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--official", type=Path)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--size", default="208x128")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bundle", type=Path, default=Path("weights/tiny"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    width, height = map(int, given.size.split("x"))
    compare(Case(given.dim, width, height, given.frames), given.official, given.repeats)
    bundle(given.bundle, given.repeats)


if __name__ == "__main__":
    main()
