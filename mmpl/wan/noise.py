"""Gaussian noise as a function of what it is for, not of when it is drawn.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) turns a key and
a counter into random words; Box-Muller in float64 turns those into normals. There is no stream, so
the noise of a latent frame does not depend on ranks, order, crash or resume.

Layout, fixed for ever (a change here changes every film):
    key      word 0: low half of the seed     word 1: high half of the seed
    counter  word 0: block number             word 1: segment
             word 2: latent frame             word 3: purpose * 2^16 + step
A block is four words and gives four normals: words 0, 1 the first two (cosine, then sine), words
2, 3 the others. So the first n numbers are the same whatever the shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.wan.choices import NOISE_MODES, NoiseMode

# start: what a latent frame is denoised from; renoise: what few-step sampling (`flow.few_step`)
# noises a prediction with again.
Purpose = Literal["start", "renoise"]
PURPOSES: tuple[str, ...] = get_args(Purpose)  # a purpose's number is its place here: only append

_Words = NDArray[np.uint64]
_Floats = NDArray[np.float64]

_WORD = 2**32
_STEPS = 2**16
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def normal(
    shape: Sequence[int],
    *,
    seed: int,
    segment: int,
    frame: int,
    step: int = 0,
    purpose: Purpose = "start",
) -> Tensor:
    """Standard normals, float32 on the CPU, bit-identical on every machine.

    `seed` has 64 bits; `segment`, latent `frame` and `step` count from 0. Different arguments give
    independent numbers, and a longer shape only adds numbers at the end. Raises ArgumentError for
    an argument out of range.
    """
    bits = words(
        math.prod(shape), seed=seed, segment=segment, frame=frame, step=step, purpose=purpose
    )
    return torch.from_numpy(_box_muller(bits)[: math.prod(shape)]).reshape(tuple(shape))


def words(
    count: int, *, seed: int, segment: int, frame: int, step: int = 0, purpose: Purpose = "start"
) -> _Words:
    """Random 32-bit words held as uint64: `count` of them, rounded up to whole blocks of four.

    Arguments as for `normal`, whose numbers are made from these words.
    """
    if purpose not in PURPOSES:
        raise ArgumentError("unknown purpose of noise", got=purpose, wanted=", ".join(PURPOSES))
    blocks = -(-count // 4)
    _in_range("number of random words", count, 4 * _WORD)
    _in_range("seed", seed, _WORD**2)
    _in_range("segment", segment, _WORD)
    _in_range("frame", frame, _WORD)
    _in_range("step", step, _STEPS)
    counter = np.empty((4, blocks), dtype=np.uint64)
    counter[0] = np.arange(blocks, dtype=np.uint64)
    counter[1] = segment
    counter[2] = frame
    counter[3] = PURPOSES.index(purpose) * _STEPS + step
    return philox(counter, (seed % _WORD, seed // _WORD)).T.reshape(-1)


def philox(counter: _Words, key: tuple[int, int]) -> _Words:
    """Philox4x32-10 of counters [4, n] under one key: words [4, n], all 32-bit held as uint64."""
    c0, c1, c2, c3 = (row.copy() for row in counter)
    low, half = np.uint64(_WORD - 1), np.uint64(32)
    for turn in range(_ROUNDS):
        k0, k1 = (np.uint64((k + turn * s) % _WORD) for k, s in zip(key, _KEY_STEPS, strict=True))
        p0, p1 = (np.uint64(m) * c for m, c in zip(_MULTIPLIERS, (c0, c2), strict=True))
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
    return np.stack([c0, c1, c2, c3])


def mix_anchor_noise(
    mode: NoiseMode,
    own: Tensor,
    near: Tensor,
    far: Tensor,
    alpha: float = 0.5,
    beta: float = 1.0,
) -> Tensor:
    """Starting noise of the first latent frame filled in after a pair of anchors.

    `near` and `far` are the noise that the nearer and the farther anchor started from, `own` is
    fresh; all have one shape. Modes:
    - "off": `own`.
    - "paper": alpha near + (1 - alpha) far, Eq. 14. Its variance alpha^2 + (1 - alpha)^2 is below
      the 1 that the model was trained on.
    - "unit": (alpha near + (1 - alpha) far + beta own), divided to variance 1.
    """
    if mode not in NOISE_MODES:
        raise ArgumentError("unknown noise mode", got=mode, wanted=", ".join(NOISE_MODES))
    if not (0.0 <= alpha <= 1.0 and 0.0 <= beta < math.inf):
        raise ArgumentError(
            "shares of the anchor noise",
            got=f"alpha {alpha}, beta {beta}",
            wanted="alpha from 0 to 1, beta at least 0",
        )
    if mode == "off":
        return own
    anchors = alpha * near + (1.0 - alpha) * far
    if mode == "paper":
        return anchors
    return (anchors + beta * own) / math.sqrt(
        alpha * alpha + (1.0 - alpha) * (1.0 - alpha) + beta * beta
    )


def _box_muller(bits: _Words) -> NDArray[np.float32]:
    """Two normals from each two words: radius from the first, angle from the second."""
    uniform = (bits[0::2].astype(np.float64) + 0.5) / _WORD
    radius = np.sqrt(-2.0 * _log(uniform))
    cosine, sine = _turn(bits[1::2])
    return np.stack([radius * cosine, radius * sine], axis=-1).astype(np.float32).reshape(-1)


# A library's log, sin and cos differ in the last bit from one processor to the next. These use
# only operations whose result IEEE 754 fixes, and are good to about 1e-13, far below float32.

_LOG_2 = 0.6931471805599453
_LOG_TERMS = tuple(1.0 / k for k in range(1, 18, 2))
_COSINE_TERMS = tuple((-1.0) ** k / math.factorial(2 * k) for k in range(8))
_SINE_TERMS = tuple((-1.0) ** k / math.factorial(2 * k + 1) for k in range(8))


def _log(x: _Floats) -> _Floats:
    """log(2^e m) = e log 2 + 2 atanh((m - 1) / (m + 1)), with m between 1/sqrt(2) and sqrt(2)."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < math.sqrt(0.5)
    mantissa = np.where(small, 2.0 * mantissa, mantissa)
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    return (exponent - small) * _LOG_2 + 2.0 * ratio * _series(_LOG_TERMS, ratio * ratio)


def _turn(angle: _Words) -> tuple[_Floats, _Floats]:
    """Cosine and sine of `angle` / 2^32 of a full turn, by quarters that centre on the axes."""
    quarter = (angle + np.uint64(_WORD // 8)) >> np.uint64(30)
    rest = angle.view(np.int64) - (quarter << np.uint64(30)).view(np.int64)
    radians = rest * (2.0 * math.pi / _WORD)
    square = radians * radians
    cosine, sine = _series(_COSINE_TERMS, square), radians * _series(_SINE_TERMS, square)
    odd = (quarter & np.uint64(1)).astype(bool)
    flip = np.where(quarter & np.uint64(2), -1.0, 1.0)
    return flip * np.where(odd, -sine, cosine), flip * np.where(odd, cosine, sine)


def _series(terms: Sequence[float], x: _Floats) -> _Floats:
    """terms[0] + terms[1] x + terms[2] x^2 + ..."""
    total = np.full_like(x, terms[-1])
    for term in reversed(terms[:-1]):
        total *= x
        total += term
    return total


def _in_range(name: str, value: int, limit: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
        raise ArgumentError(name, got=repr(value), wanted=f"a whole number, 0 to {limit - 1}")
