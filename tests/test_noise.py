"""Keyed noise: known answers of Philox, statistics, independence of keys, and frozen bits."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmpl.errors import ArgumentError
from mmpl.wan import noise

# Random123's kat_vectors for philox4x32, 10 rounds: counter, key, words.
KNOWN = [
    ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
LARGE = 200_000
FRAME = {"seed": 5, "segment": 2, "frame": 7, "step": 3, "purpose": "renoise"}


def numbers(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def draw(count: int, **changes: object) -> torch.Tensor:
    return noise.normal((count,), **{**FRAME, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    low, high = numbers(key)
    column = np.array(numbers(counter), dtype=np.uint64)[:, None]
    assert noise.philox(column, (low, high))[:, 0].tolist() == numbers(answer)


def test_layout_of_key_and_counter() -> None:
    made = noise.words(8, seed=0x0123456789ABCDEF, segment=3, frame=4, step=5, purpose="renoise")
    purpose = noise.PURPOSES.index("renoise")
    counters = np.array([[n, 3, 4, purpose * 2**16 + 5] for n in range(2)], dtype=np.uint64).T
    assert made.tolist() == noise.philox(counters, (0x89ABCDEF, 0x01234567)).T.flatten().tolist()


def test_normals_are_box_muller_of_the_words() -> None:
    bits = noise.words(LARGE, **FRAME).astype(np.float64)  # type: ignore[arg-type]
    radius = np.sqrt(-2.0 * np.log((bits[0::2] + 0.5) / 2**32))
    angle = bits[1::2] * (2.0 * np.pi / 2**32)
    wanted = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1)
    assert np.abs(draw(LARGE).numpy() - wanted).max() < 5e-7  # float32 of numbers up to 7


def test_every_quarter_turn() -> None:
    edges = [q * 2**30 + d for q in range(4) for d in (0, 1, 2**29 - 1, 2**29, 2**29 + 1)]
    angle = np.array([*edges, 2**32 - 1], dtype=np.uint64)
    cosine, sine = noise._turn(angle)
    radians = angle * (2.0 * np.pi / 2**32)
    assert np.abs(cosine - np.cos(radians)).max() < 1e-14
    assert np.abs(sine - np.sin(radians)).max() < 1e-14


def test_frozen_bits() -> None:
    """A film made today must be made again tomorrow: this hash may never change."""
    made = noise.normal((2, 3, 5), seed=2**63 + 1, segment=1, frame=20, step=4, purpose="start")
    digest = hashlib.sha256(made.numpy().astype("<f4").tobytes()).hexdigest()
    assert digest == "51ab9dde52b619cd4061f6ac857cb47f0e8409fe68a4ca4f2ebb9ee6ed6c130b"


def test_moments() -> None:
    z = draw(LARGE).double()
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        variance = {1: 1, 2: 2, 3: 15, 4: 96}[power]
        error = (z**power).mean().item() - moment
        assert abs(error) < 5.0 * (variance / LARGE) ** 0.5, power
    quantiles = torch.tensor([0.001, 0.1, 0.5, 0.9, 0.999], dtype=torch.float64)
    wanted = torch.special.ndtri(quantiles)
    assert (z.quantile(quantiles) - wanted).abs().max() < 0.08


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 6}, {"seed": 5 + 2**32}, {"segment": 3}, {"frame": 8}, {"step": 4},
        {"purpose": "start"},
    ],
    ids=str,
)  # fmt: skip
def test_neighbouring_keys_are_independent(change: dict[str, object]) -> None:
    one, other = draw(LARGE), draw(LARGE, **change)
    assert not torch.equal(one[:100], other[:100])
    assert abs((one * other).mean().item()) < 5.0 / LARGE**0.5


def test_neighbouring_numbers_are_independent() -> None:
    z = draw(LARGE)
    for lag in (1, 2, 3, 4, 104):
        assert abs((z[lag:] * z[:-lag]).mean().item()) < 5.0 / LARGE**0.5


def test_no_two_keys_meet() -> None:
    """Fields do not run into each other in the counter."""
    values = itertools.product((0, 1), (0, 1), (0, 1), (0, 2**16 - 1), noise.PURPOSES)
    heads = {
        tuple(noise.words(4, seed=a, segment=b, frame=c, step=d, purpose=e).tolist())  # type: ignore[arg-type]
        for a, b, c, d, e in values
    }
    assert len(heads) == 2**4 * len(noise.PURPOSES)


@given(short=st.integers(0, 70), more=st.integers(0, 70))
def test_prefix_stable(short: int, more: int) -> None:
    assert torch.equal(draw(short + more)[:short], draw(short))


def test_shape_only_folds_the_numbers() -> None:
    made = noise.normal((3, 5, 7), seed=1, segment=0, frame=0)
    assert made.shape == (3, 5, 7)
    assert made.dtype == torch.float32
    assert torch.equal(made.flatten(), noise.normal((105,), seed=1, segment=0, frame=0))


def test_global_generators_and_threads_play_no_part() -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.manual_seed(1)
    first = draw(1000)
    torch.manual_seed(2)
    np.random.seed(3)
    state = torch.get_rng_state()
    torch.set_num_threads(1)
    try:
        assert torch.equal(first, draw(1000))
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(before)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1}, {"seed": 2**64}, {"segment": -1}, {"frame": 2**32}, {"step": 2**16},
        {"step": 1.0}, {"purpose": "other"},
    ],
    ids=str,
)  # fmt: skip
def test_out_of_range_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(change))):
        draw(4, **change)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_anchor_modes(alpha: float, beta: float) -> None:
    own, near, far = draw(LARGE, purpose="start"), draw(LARGE), draw(LARGE, frame=8)
    assert noise.mix_anchor_noise("off", own, near, far, alpha, beta) is own

    paper = noise.mix_anchor_noise("paper", own, near, far, alpha, beta)
    assert torch.equal(paper, alpha * near + (1.0 - alpha) * far)
    assert variance(paper) == pytest.approx(alpha**2 + (1 - alpha) ** 2, rel=0.02)

    unit = noise.mix_anchor_noise("unit", own, near, far, alpha, beta)
    assert variance(unit) == pytest.approx(1.0, rel=0.02)
    share = alpha / (alpha**2 + (1 - alpha) ** 2 + beta**2) ** 0.5
    assert (unit * near).mean().item() == pytest.approx(share, abs=0.02)


def variance(x: torch.Tensor) -> float:
    return x.double().var().item()


def test_default_mix_correlates_equally_with_both_anchors() -> None:
    own, near, far = draw(LARGE, purpose="start"), draw(LARGE), draw(LARGE, frame=8)
    unit = noise.mix_anchor_noise("unit", own, near, far)
    for anchor in (near, far):
        assert (unit * anchor).mean().item() == pytest.approx(0.41, abs=0.01)


@pytest.mark.parametrize(
    ("mode", "alpha", "beta"), [("other", 0.5, 1.0), ("unit", 1.1, 1.0), ("paper", 0.5, -1.0)]
)
def test_bad_anchor_arguments_are_refused(mode: str, alpha: float, beta: float) -> None:
    z = draw(4)
    with pytest.raises(ArgumentError):
        noise.mix_anchor_noise(mode, z, z, z, alpha, beta)  # type: ignore[arg-type]
