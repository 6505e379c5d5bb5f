"""The measures by an encoder against their definitions, on networks small enough for those."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import jacrev

from mmpl.errors import ArgumentError
from mmpl.eval.drift import evenly
from mmpl.eval.features import LEAST_SINGULAR, jepa_score, measure_features


def small_encoder(features: int = 6, pixels: int = 3 * 4 * 4) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(pixels, 10),
        torch.nn.Tanh(),
        torch.nn.Linear(10, features),
    )


def exact(encoder: torch.nn.Module, x_BCHW: Tensor, rank: int) -> float:
    jacobian = jacrev(lambda x: encoder(x)[0])(x_BCHW)
    assert isinstance(jacobian, Tensor)
    values = torch.linalg.svdvals(jacobian.detach().flatten(1).double())[:rank]
    return float(values.clamp(min=LEAST_SINGULAR).log().mean())


@pytest.mark.parametrize("seed", range(4))
def test_with_all_directions_the_score_is_exact(seed: int) -> None:
    encoder = small_encoder()
    x_BCHW = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    assert jepa_score(encoder, x_BCHW, rank=6, seed=seed) == pytest.approx(
        exact(encoder, x_BCHW, 6), abs=1e-4
    )


def test_with_few_directions_it_is_near() -> None:
    """Of a Jacobian whose singular values fall, as those of real encoders do."""
    torch.manual_seed(1)
    left, _ = torch.linalg.qr(torch.randn(40, 40))
    right, _ = torch.linalg.qr(torch.randn(48, 40))
    matrix = left @ torch.diag(0.7 ** torch.arange(40.0)) @ right.T

    def encoder(x_BCHW: Tensor) -> Tensor:
        return x_BCHW.flatten(1) @ matrix.T

    x_BCHW = torch.rand(1, 3, 4, 4)
    wanted = float((0.7 ** torch.arange(12.0)).log().mean())
    found = [jepa_score(encoder, x_BCHW, rank=12, seed=seed) for seed in range(5)]
    assert np.mean(found) == pytest.approx(wanted, abs=0.25)
    assert max(found) <= wanted + 1e-4, "a subspace has no larger values"


def test_a_dead_direction_counts_as_the_least() -> None:
    def encoder(x_BCHW: Tensor) -> Tensor:
        first = x_BCHW.flatten(1)[:, :1]
        return torch.cat([first, 0 * first], dim=1)

    score = jepa_score(encoder, torch.rand(1, 3, 4, 4), rank=2)
    assert score == pytest.approx(np.log(LEAST_SINGULAR) / 2, abs=1e-4)


def test_consistency_is_the_cosine() -> None:
    def encoder(x_BCHW: Tensor) -> Tensor:  # an angle told by the red of the first pixel
        angle = x_BCHW[:, 0, 0, 0] * (255 / 180) * torch.pi
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    frames = np.zeros((3, 4, 4, 3), np.uint8)
    frames[:, 0, 0, 0] = 0, 60, 120  # degrees
    found = measure_features(encoder, frames)
    assert found.consistency == pytest.approx(((0.5 + 0.5) / 2 + (-0.5 + 0.5) / 2) / 2, abs=1e-6)
    assert found.jepa_score_std is None
    same = measure_features(small_encoder(), np.full((4, 4, 4, 3), 9, np.uint8), rank=6)
    assert same.consistency == pytest.approx(1.0)
    assert same.jepa_score_std == pytest.approx(0.0, abs=1e-6)
    assert same.jepa_score_first_last_diff == pytest.approx(0.0, abs=1e-6)


def test_even_frames() -> None:
    assert evenly(480, 4) == [0, 160, 319, 479]
    assert evenly(3, 8) == [0, 1, 2]
    assert evenly(1, 8) == [0]


def test_what_is_refused() -> None:
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ArgumentError, match="2 or more"):
        measure_features(small_encoder(), frames[:1])
    with pytest.raises(ArgumentError, match=r"features \[B, D\]"):
        measure_features(lambda x: x, frames)
    with pytest.raises(ArgumentError, match="1 or more"):
        jepa_score(small_encoder(), torch.rand(1, 3, 4, 4), rank=0)
