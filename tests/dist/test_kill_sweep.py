"""SIGKILL at every fault point of every rank; then the film is gone on with, and is the same.

What is durable is never lost or made again, each rank loses the task it had begun and no more, no
bit differs, and no process and no temporary file stays behind.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.dist.kills import Outcome, sweep


def check(outcomes: list[Outcome]) -> None:
    """Raises AssertionError for the first kill that cost more than it may."""
    for outcome in outcomes:
        assert not outcome.faults, outcome
        assert (outcome.lost, outcome.differing) == (0, 0), outcome
        assert (outcome.orphans, outcome.left) == (0, 0), outcome
        assert max(outcome.recomputed) <= 1, outcome


def table(outcomes: list[Outcome]) -> str:
    """A line for each number of ranks: sums, but for the most that one rank had to make again.
    `stopped` survivors were slow to see that a rank was gone, and ended by their parent."""
    names = ("lost", "differing", "orphans", "stopped", "left", "seconds")
    lines = ["".join(f"{name:>11}" for name in ("ranks", "kills", "recomputed", "most", *names))]
    for ranks in sorted({outcome.kill.ranks for outcome in outcomes}):
        own = [outcome for outcome in outcomes if outcome.kill.ranks == ranks]
        again = [outcome.recomputed[outcome.kill.victim] for outcome in own]
        most = max(max(outcome.recomputed) for outcome in own)
        sums = [round(sum(getattr(outcome, name) for outcome in own)) for name in names]
        values = [ranks, len(own), sum(again), most, *sums]
        lines.append("".join(f"{value:>11}" for value in values))
    return "\n".join(lines)


def test_some_kills() -> None:
    outcomes = sweep(90, {1: 6, 2: 4, 3: 2})
    print(table(outcomes))
    check(outcomes)
    assert {outcome.kill.ranks for outcome in outcomes} == {1, 2, 3}
    assert len(outcomes) >= 12
    assert len({outcome.where for outcome in outcomes}) > 5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kill_at_every_point() -> None:
    """More than a thousand, in some minutes; the table is shown with `-s`."""
    outcomes = sweep(90, {1: 1000, 2: 115}) + sweep(160, {3: 45})
    print(table(outcomes))
    print(Counter(outcome.where for outcome in outcomes).most_common())
    check(outcomes)
    assert len(outcomes) >= 1000
