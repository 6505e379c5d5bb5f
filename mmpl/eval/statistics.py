"""Intervals of means by the bootstrap, over programs, with their seeds nested; plain and paired.

A program (a prompt) is what a result should generalise to, so programs are drawn anew, and within
each the seeds. Percentiles alone are too narrow for few programs; they are widened as Hesterberg
2015 says ("What teachers should know about the bootstrap", expanded percentile intervals).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
DRAWS = 4000

Key = tuple[int, int]  # program, seed


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over `programs` programs and the interval that covers the true one in `LEVEL` of
    cases, half of the others on each side."""

    mean: float
    low: float
    high: float
    programs: int


def interval(values: Mapping[Key, float], *, seed: int = 0, draws: int = DRAWS) -> Interval | None:
    """Of the mean over programs of the means over their seeds; None without values. Of one program
    the interval has no ends: -inf to inf."""
    programs: dict[int, list[float]] = {}
    for (program, _), value in sorted(values.items()):
        programs.setdefault(program, []).append(value)
    if not programs:
        return None
    groups = [np.array(group, np.float64) for group in programs.values()]
    mean = float(np.mean([group.mean() for group in groups]))
    if len(groups) < 2:
        return Interval(mean, -math.inf, math.inf, 1)
    means = _resampled(groups, np.random.default_rng([seed, len(groups)]), draws)
    tail = _widened_tail(len(groups))
    low, high = np.quantile(means, [tail, 1 - tail])
    # The mean of the sample is in it by definition; the quantiles of few draws could miss it.
    return Interval(mean, min(float(low), mean), max(float(high), mean), len(groups))


def paired(
    one: Mapping[Key, float], other: Mapping[Key, float], *, seed: int = 0
) -> Interval | None:
    """Of the mean of `other` - `one`, over the programs and seeds that both have."""
    return interval({key: other[key] - one[key] for key in one if key in other}, seed=seed)


def _resampled(
    groups: list[NDArray[np.float64]], rng: np.random.Generator, draws: int
) -> NDArray[np.float64]:
    """Means of `draws` samples: programs drawn with replacement, then the seeds of each."""
    sizes = np.array([len(group) for group in groups])
    table = np.zeros((len(groups), sizes.max()))
    for row, group in zip(table, groups, strict=True):
        row[: len(group)] = group
    chosen = rng.integers(len(groups), size=(draws, len(groups)))
    if sizes.max() == 1:
        return table[chosen, 0].mean(1)
    picks = rng.random((draws, len(groups), int(sizes.max())))
    within = np.minimum(
        (picks * sizes[chosen][..., None]).astype(int), sizes[chosen][..., None] - 1
    )
    taken = np.take_along_axis(table[chosen], within, axis=2)
    counted = np.arange(sizes.max()) < sizes[chosen][..., None]
    return ((taken * counted).sum(2) / sizes[chosen]).mean(1)


def _widened_tail(count: int) -> float:
    """What to cut off at each end so that `count` programs are covered as by Student's t."""
    degrees = count - 1
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    # Abramowitz and Stegun 26.7.5: Student's quantile from the normal one.
    t = (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )
    return NormalDist().cdf(-t * math.sqrt(count / degrees))
