"""Does a film show what its prompt says? Counted over held-out prompts, read from pixels alone.

For every prompt a film is made; its first segment is read for shape, hue and motion, its last
second for whether one recognisable object is left. The same reading of true clips gives the
instrument's own limit, and of true clips through the VAE the model's ceiling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mmpl.checkpoint.bundle import Model
from mmpl.eval.reader import classify
from mmpl.media.pixels import to_uint8
from mmpl.train.clip_spec import draw_spec_of
from mmpl.train.clips import render
from mmpl.train.grammar import held_out_prompts
from mmpl.wan import vae

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Score:
    """One film against its prompt. `left` is None where the film is a single segment."""

    prompt: str
    shape: bool
    hue: bool
    motion: bool
    left: bool | None
    seen: str


@dataclass(frozen=True, slots=True)
class Table:
    """Shares of right answers, 0..1; `left` of the films that go on after the first segment."""

    films: int
    shape: float
    hue: float
    motion: float
    left: float | None


def adherence(
    make_film: Callable[[str, int], Pixels],
    *,
    segment_frames: int,
    fps: int,
    prompts: int = 32,
    seed: int = 0,
) -> Iterator[Score]:
    """Makes a film for each held-out prompt and scores it.

    `make_film(prompt, seed)` gives uint8 FHWC pixels; seeds are `seed`, `seed` + 1, ...
    """
    for index, wanted in enumerate(held_out_prompts(prompts)):
        pixels = make_film(wanted[0], seed + index)
        yield score(pixels, wanted, segment_frames=segment_frames, fps=fps)


def score(
    pixels_FHWC: Pixels, wanted: tuple[str, str, str, str], *, segment_frames: int, fps: int
) -> Score:
    """Reads one film: its first segment, and its last second if it is longer.

    `wanted` is (prompt, shape, hue bin, motion)."""
    prompt, shape, hue, motion = wanted
    first = classify(pixels_FHWC[:segment_frames])
    left = classify(pixels_FHWC[-fps:]).one_object if len(pixels_FHWC) > segment_frames else None
    return Score(
        prompt,
        shape=first.shape == shape,
        hue=first.hue_bin == hue,
        motion=first.motion == motion,
        left=left,
        seen=f"{first.hue_bin} {first.shape} {first.motion}",
    )


def ceiling(
    model: Model, *, segment_frames: int, prompts: int = 32, seed: int = 10**9
) -> tuple[Table, Table, float]:
    """True clips of the held-out prompts and their reconstructions by the VAE, read in the same
    way, and the mean absolute error of the reconstructions (pixels in 0..1)."""
    truth, rebuilt, errors = [], [], []
    for index, wanted in enumerate(held_out_prompts(prompts)):
        spec = draw_spec_of(seed + index, *wanted[1:])
        video_CFHW = render(spec, (0, segment_frames), size=model.defaults.height)
        decoded_CFHW = reconstruct(model, video_CFHW)
        errors.append((decoded_CFHW - video_CFHW).abs().mean().item() / 2)
        for pixels, scores in ((video_CFHW, truth), (decoded_CFHW, rebuilt)):
            scores.append(score(to_uint8(pixels), wanted, segment_frames=segment_frames, fps=1))
    return tabulate(truth), tabulate(rebuilt), float(np.mean(errors))


@torch.no_grad()
def reconstruct(model: Model, video_CFHW: torch.Tensor) -> torch.Tensor:
    """A clip through the VAE and back, clamped to [-1, 1]."""
    z_BCTHW, _ = vae.encode(model.vae, model.vae_config, video_CFHW[None])
    return vae.decode(model.vae, model.vae_config, z_BCTHW)[0][0].clamp(-1, 1)


def tabulate(scores: list[Score]) -> Table:
    """Shares of right answers."""
    left = [s.left for s in scores if s.left is not None]
    return Table(
        films=len(scores),
        shape=float(np.mean([s.shape for s in scores])),
        hue=float(np.mean([s.hue for s in scores])),
        motion=float(np.mean([s.motion for s in scores])),
        left=float(np.mean(left)) if left else None,
    )
