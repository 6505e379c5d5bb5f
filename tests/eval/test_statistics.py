"""Intervals on numbers whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmpl.eval.statistics import Key, interval, paired


def numbers(values: np.ndarray) -> dict[Key, float]:
    """Of [programs, seeds]."""
    return {(p, s): float(v) for p, row in enumerate(values) for s, v in enumerate(row)}


@pytest.mark.parametrize(("programs", "seeds"), [(6, 1), (16, 1), (8, 3)])
def test_coverage_of_a_normal(programs: int, seeds: int) -> None:
    """Programs differ by 1, seeds of one by 0.5; 95 % of the intervals should hold the mean, 0."""
    rng = np.random.default_rng([programs, seeds])
    held = 0
    for trial in range(300):
        values = rng.normal(size=(programs, 1)) + 0.5 * rng.normal(size=(programs, seeds))
        found = interval(numbers(values), seed=trial, draws=400)
        assert found is not None
        assert found.low <= found.mean <= found.high
        held += found.low <= 0.0 <= found.high
    print(f"{programs} programs x {seeds} seeds: {held / 300:.1%} of 95 % intervals")
    assert 0.92 <= held / 300 <= 0.985


def test_width_is_that_of_students_t() -> None:
    values = np.random.default_rng(1).normal(size=(20, 1))
    found = interval(numbers(values))
    assert found is not None
    half = 2.093 * values.std(ddof=1) / math.sqrt(20)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.08)


def test_a_constant_offset_is_exact() -> None:
    one = numbers(np.random.default_rng(2).normal(size=(9, 2)))
    found = paired(one, {key: value + 0.25 for key, value in one.items()})
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    assert found.programs == 9


def test_pairs_are_those_that_both_have() -> None:
    one, other = {(0, 0): 1.0, (1, 0): 2.0, (3, 0): 9.0}, {(0, 0): 2.0, (1, 0): 4.0, (2, 0): 7.0}
    found = paired(one, other)
    assert found is not None
    assert (found.mean, found.programs) == (1.5, 2)
    assert paired(one, {(5, 0): 1.0}) is None


def test_seeds_are_nested_in_programs() -> None:
    """Many seeds of two programs are still two programs: each counts once, whatever its seeds."""
    many = {(0, s): 0.0 for s in range(50)} | {(1, 0): 1.0}
    found = interval(many)
    assert found is not None
    assert found.mean == 0.5
    assert (found.low, found.high) == (0.0, 1.0)


def test_one_program_says_nothing_about_others() -> None:
    found = interval({(0, 0): 3.0, (0, 1): 5.0})
    assert found is not None
    assert (found.mean, found.low, found.high) == (4.0, -math.inf, math.inf)
    assert interval({}) is None


def test_the_same_numbers_give_the_same_interval() -> None:
    values = numbers(np.random.default_rng(3).normal(size=(7, 2)))
    turned = dict(reversed(values.items()))
    assert interval(values) == interval(turned)
    assert interval(values) != interval(values, seed=1)
