"""The masks of the presets, as literal tables."""

from __future__ import annotations

import itertools

from mmpl.layout.mask import (
    Block,
    Mask,
    causal_mask,
    dense_blocks,
    released_i2v_mask,
    training_mask,
)
from mmpl.layout.presets import (
    bidirectional_window,
    chunked,
    mmpl_i2v,
    mmpl_t2v,
    without_early,
    without_midpoint,
)

# One row per query frame, one digit per key frame 0..20; clean keys | noisy keys.
#                 0 1 2 3 4 . . . . 9 10. 12. . . . . 18. 20
INIT = "110000000000000000000"
KEYS = "111100000011100000000"  # init and plan without 19,20
ALL_KEYS = "111100000011100000011"
HEAD = "111111111111100000000"
HEAD_TERMINAL = "111111111111100000011"
TAIL = "111111111111111111111"
PLAN_OWN = "001100000011100000011"
HEAD_OWN = "000011111100000000000"
TAIL_OWN = "000000000000011111100"
FIRST = "100000000000000000000"
SECOND_OWN = "010000000000000000000"
NONE = "000000000000000000000"

T2V_CLEAN = [INIT] * 2 + [ALL_KEYS] * 2 + [HEAD] * 6 + [ALL_KEYS] * 3 + [TAIL] * 6 + [ALL_KEYS] * 2
T2V_NOISY = (
    [NONE + INIT] * 2
    + [INIT + PLAN_OWN] * 2
    + [KEYS + HEAD_OWN] * 6
    + [INIT + PLAN_OWN] * 3
    + [HEAD_TERMINAL + TAIL_OWN] * 6
    + [INIT + PLAN_OWN] * 2
)
I2V_CLEAN = (
    [FIRST, INIT]
    + [ALL_KEYS] * 2
    + [HEAD_TERMINAL] * 6
    + [ALL_KEYS] * 3
    + [TAIL] * 6
    + [ALL_KEYS] * 2
)
I2V_NOISY = (
    [NONE + FIRST, FIRST + SECOND_OWN]
    + [INIT + PLAN_OWN] * 2
    + [ALL_KEYS + HEAD_OWN] * 6
    + [INIT + PLAN_OWN] * 3
    + [HEAD_TERMINAL + TAIL_OWN] * 6
    + [INIT + PLAN_OWN] * 2
)


def rows(mask: Mask) -> list[str]:
    return ["".join(str(one) for one in row) for row in mask]


def ones(mask: Mask) -> int:
    return sum(map(sum, mask))


def test_t2v_mask_literal() -> None:
    mask = training_mask(mmpl_t2v())
    assert rows(mask) == [row + NONE for row in T2V_CLEAN] + T2V_NOISY
    assert ones(mask) == 542


def test_i2v_mask_literal() -> None:
    mask = training_mask(mmpl_i2v())
    assert rows(mask) == [row + NONE for row in I2V_CLEAN] + I2V_NOISY
    assert ones(mask) == 564


def test_released_i2v_mask_literal() -> None:
    clean = [KEYS if row == ALL_KEYS else row for row in I2V_CLEAN]
    mask = released_i2v_mask()
    assert rows(mask) == [row + NONE for row in clean] + I2V_NOISY
    assert ones(mask) == 550


def test_small_masks_literal() -> None:
    assert rows(training_mask(chunked(4, 2))) == [
        "11000000",
        "11000000",
        "11110000",
        "11110000",
        "00001100",
        "00001100",
        "11000011",
        "11000011",
    ]
    assert rows(causal_mask(chunked(4, 2, first=1))) == ["1000", "1110", "1110", "1111"]
    assert rows(causal_mask(chunked(5, 1, window=3))) == [
        "10000",
        "11000",
        "11100",
        "01110",
        "00111",
    ]
    assert rows(causal_mask(chunked(5, 1, window=3, sink=1))) == [
        "10000",
        "11000",
        "11100",
        "10110",
        "10011",
    ]
    assert rows(training_mask(bidirectional_window(3, 1))) == [
        "100000",
        "111000",
        "111000",
        "000100",
        "100011",
        "100011",
    ]
    assert rows(causal_mask(bidirectional_window(2, 0))) == ["11", "11"]


def test_head_may_see_the_terminal_keyframes() -> None:
    seen = training_mask(mmpl_t2v(head_sees_terminal=True))
    hidden = training_mask(mmpl_t2v())
    extra = {
        (query, key)
        for query, key in itertools.product(range(42), range(42))
        if seen[query][key] != hidden[query][key]
    }
    head = range(4, 10)
    assert extra == {(half + q, key) for half in (0, 21) for q in head for key in (19, 20)}


def test_ablations_are_those_of_table_2() -> None:
    early, middle = without_early(), without_midpoint()
    assert [g.frames for g in early.groups] == [
        (0, 1),
        (10, 11, 12, 19, 20),
        (2, 3, 4, 5, 6, 7, 8, 9),
        (13, 14, 15, 16, 17, 18),
    ]
    assert early.group("fill_head").sees == (0, 1, 10, 11, 12)
    assert [g.frames for g in middle.groups] == [
        (0, 1),
        (2, 3, 19, 20),
        (4, 5, 6, 7, 8, 9, 10),
        (11, 12, 13, 14, 15, 16, 17, 18),
    ]
    assert middle.group("fill_head").sees == (0, 1, 2, 3)


def test_dense_blocks_of_t2v() -> None:
    keys, head, tail = (2, 3, 10, 11, 12, 19, 20), (4, 5, 6, 7, 8, 9), (13, 14, 15, 16, 17, 18)
    behind = (0, 1, 2, 3, 10, 11, 12)
    blocks = dense_blocks(mmpl_t2v())
    assert blocks == (
        Block("init", True, (), (0, 1)),
        Block("plan", True, (0, 1), keys),
        Block("fill_head", True, behind, head),
        Block("init", False, (), (0, 1)),
        Block("plan", False, (0, 1), keys),
        Block("fill_head", False, behind, head),
        Block("fill_tail", False, (*range(13), 19, 20), tail),
    )
    assert sum(block.pairs for block in blocks) == 416
