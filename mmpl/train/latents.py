"""Pre-encoded training clips: shards of latents in a run folder, made once, resumable.

A clip is its seed; captions are drawn again from it. Latents are stored as the VAE makes them, so
what makes them fit for a transformer (see `whitening`) can be measured from the shards themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmpl.checkpoint.read import digest
from mmpl.errors import ArgumentError
from mmpl.media import durable
from mmpl.train.clips import ClipSpec, draw_spec, render_batch
from mmpl.wan import vae
from mmpl.wan.config import VAEConfig
from mmpl.wan.params import to_flat

SHARD_CLIPS = 64
_BATCH = 4


@dataclass(frozen=True, slots=True, eq=False)
class LatentClips:
    """Raw latents z_BCTHW (float16) of clips; `seeds` int64. Clips of odd seeds are continuations:
    windows from the middle of a film, whose caption tells how it began."""

    z_BCTHW: Tensor
    seeds: Tensor

    def spec(self, index: int) -> ClipSpec:
        return clip_of(int(self.seeds[index]))

    def first(self, count: int) -> LatentClips:
        return LatentClips(self.z_BCTHW[:count], self.seeds[:count])


def clip_of(seed: int) -> ClipSpec:
    """The training clip of a seed: even seeds begin a film, odd seeds continue one."""
    return draw_spec(seed, continuation=seed % 2 == 1)


def encode_shards(
    params: vae.VAEParams,
    config: VAEConfig,
    folder: Path,
    *,
    seeds: Sequence[int],
    latents: int,
    size: int,
) -> Iterator[int]:
    """Encodes the first `latents` latent frames of the clips of `seeds` into shards; yields how
    many clips are done.

    Raises ArgumentError when the folder holds latents of another VAE.
    """
    durable.make_folder(folder)
    made_by = {"vae": digest(to_flat(params))}
    for shard, start in enumerate(range(0, len(seeds), SHARD_CLIPS)):
        path = folder / f"shard-{shard:05d}.safetensors"
        own = list(seeds[start : start + SHARD_CLIPS])
        if not path.exists():
            parts = [
                _encode(params, config, own[i : i + _BATCH], latents, size)
                for i in range(0, len(own), _BATCH)
            ]
            tensors = {"z_BCTHW": torch.cat(parts).half(), "seeds": torch.tensor(own)}
            with durable.replacing(path) as temporary:
                save_file(tensors, temporary, metadata=made_by)
        else:
            _check_maker(path, made_by)
        yield start + len(own)


def _check_maker(path: Path, made_by: dict[str, str]) -> None:
    with safe_open(path, framework="pt") as file:
        found = file.metadata()
    if found != made_by:
        raise ArgumentError(
            "these latents were made by another VAE",
            where=str(path),
            todo="remove the folder of latents, and what was trained on them",
        )


def read_shards(folder: Path) -> LatentClips:
    """All clips of a folder. Raises ArgumentError when there are none."""
    shards = [load_file(path) for path in sorted(folder.glob("shard-*.safetensors"))]
    if not shards:
        raise ArgumentError("no latents", where=str(folder), todo="encode clips first")
    return LatentClips(
        torch.cat([shard["z_BCTHW"] for shard in shards]),
        torch.cat([shard["seeds"] for shard in shards]),
    )


@torch.no_grad()
def _encode(
    params: vae.VAEParams, config: VAEConfig, seeds: list[int], latents: int, size: int
) -> Tensor:
    frames = config.pixel_frames(latents)
    clips = [clip_of(seed) for seed in seeds]
    device = params.conv1.weight.device
    video = render_batch(clips, [(0, frames)] * len(seeds), size=size, device=device)
    return vae.encode(params, config, video)[0].cpu()
