"""Measures by a network that the user brings: JEPA-SCORE, how alike frames stay to it, t-LPIPS.

An encoder is a function of pixels x_BCHW, float32 RGB in [0, 1], to features [B, D]; it must treat
the pictures of a batch apart, and be differentiable for the score. A distance is a function of two
pictures x_BCHW of a batch of one, float32 RGB in [-1, 1] as LPIPS has it, to one number.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import jvp, vjp

from mmpl.errors import ArgumentError, InputError

Encoder = Callable[[Tensor], Tensor]
Distance = Callable[[Tensor, Tensor], Tensor | float]
LPIPS_NETWORKS = ("alex", "vgg", "squeeze")
LEAST_SINGULAR = 1e-6  # smaller singular values count as this one, as in the score's own paper


@dataclass(frozen=True, slots=True)
class FeatureMetrics:
    """Of frames taken evenly from a film. `consistency`: mean over all frames but the first of the
    mean of two cosines of features, with the first frame and with the one before (VBench's subject
    consistency with DINO, background consistency with CLIP). `jepa_score_std` and
    `jepa_score_first_last_diff`: of the score of each frame, its deviation and how far the last is
    from the first; None where it was not asked for."""

    frames: int
    consistency: float
    jepa_score_std: float | None
    jepa_score_first_last_diff: float | None


def measure_features(
    encoder: Encoder, frames_FHWC: NDArray[np.uint8], *, rank: int = 0, seed: int = 0
) -> FeatureMetrics:
    """Measures frames, uint8 RGB, two or more; `rank` directions for JEPA-SCORE, 0 to leave it out.

    Raises ArgumentError for fewer frames, and for features that are not [B, D].
    """
    if len(frames_FHWC) < 2:
        raise ArgumentError("frames to compare", got=len(frames_FHWC), wanted="2 or more")
    frames = [_picture(pixels_HWC) for pixels_HWC in frames_FHWC]
    with torch.no_grad():
        features = torch.cat([_features(encoder, x_BCHW) for x_BCHW in frames])
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    to_first, to_last = unit[1:] @ unit[0], (unit[1:] * unit[:-1]).sum(1)
    scores = [jepa_score(encoder, x_BCHW, rank=rank, seed=seed) for x_BCHW in frames if rank]
    return FeatureMetrics(
        frames=len(frames),
        consistency=float((to_first + to_last).mean() / 2),
        jepa_score_std=float(np.std(scores)) if scores else None,
        jepa_score_first_last_diff=abs(scores[-1] - scores[0]) if scores else None,
    )


def jepa_score(encoder: Encoder, x_BCHW: Tensor, *, rank: int, seed: int = 0) -> float:
    """Mean logarithm of the `rank` largest singular values of the encoder's Jacobian at a picture.

    The sum of Balestriero et al. 2025 (arXiv 2510.05949), divided by how many values it has, so
    that encoders can be compared; MMPL's own figures are of such a size. The values are found in a
    random subspace (Halko et al. 2011): `rank` products with the Jacobian, `rank` with its
    transpose; of as many as there are features they are exact. Raises ArgumentError for a rank that
    is not positive.
    """
    if rank < 1:
        raise ArgumentError("rank", got=rank, wanted="1 or more")

    def flat(x: Tensor) -> Tensor:
        return _features(encoder, x)[0]

    generator = torch.Generator().manual_seed(seed)
    columns = []
    for _ in range(rank):
        along = torch.randn(x_BCHW.shape, generator=generator).to(x_BCHW)
        columns.append(jvp(flat, (x_BCHW,), (along,))[1])
    basis_DR, _ = torch.linalg.qr(torch.stack(columns, dim=1).double())
    value_D, back, *_ = vjp(flat, x_BCHW)
    rows = [back(direction.to(value_D))[0].double().flatten() for direction in basis_DR.unbind(1)]
    singular = torch.linalg.svdvals(torch.stack(rows).detach())
    return float(singular.clamp(min=LEAST_SINGULAR).log().mean())


def lpips_distance(network: str) -> Distance:
    """The distance of the package `lpips` with the weights it has for a network, one of
    `LPIPS_NETWORKS`. Raises ArgumentError where the package is missing, InputError where it cannot
    load the network."""
    try:
        package = importlib.import_module("lpips")
        return package.LPIPS(net=network, verbose=False).eval()
    except ModuleNotFoundError as error:
        raise ArgumentError(
            "t-LPIPS needs the package lpips",
            got=f"no module {error.name}",
            todo="pip install 'mmpl[lpips]', or give a function of yours as MODULE:NAME",
        ) from error
    except (OSError, RuntimeError) as error:  # no way to its weights, or a torchvision for others
        raise InputError(
            "the package lpips cannot load its network",
            got=f"{type(error).__name__}: {str(error)[:120]}",
            todo="mend it, or give a function of yours as MODULE:NAME",
        ) from error


@torch.no_grad()
def joint_distances(
    distance: Distance, frames_HWC: Iterable[NDArray[np.uint8]], joints: Container[int]
) -> dict[int, float]:
    """t-LPIPS: at each joint, the distance of its frame from the one before, by frame number.

    Of frames in film order, uint8 RGB, of which two are held at a time. Raises ArgumentError for a
    distance that is not one number.
    """
    found: dict[int, float] = {}
    before: NDArray[np.uint8] | None = None
    for number, pixels_HWC in enumerate(frames_HWC):
        if before is not None and number in joints:
            value = distance(2 * _picture(before) - 1, 2 * _picture(pixels_HWC) - 1)
            if isinstance(value, Tensor) and value.numel() != 1:
                raise ArgumentError(
                    "what the distance returns", got=tuple(value.shape), wanted="one number"
                )
            found[number] = float(value)
        before = pixels_HWC
    return found


def _picture(pixels_HWC: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels_HWC)).permute(2, 0, 1)[None].float() / 255


def _features(encoder: Encoder, x_BCHW: Tensor) -> Tensor:
    found = encoder(x_BCHW)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(x_BCHW):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ArgumentError("what the encoder returns", got=got, wanted="features [B, D]")
    return found
