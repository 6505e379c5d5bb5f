"""Bytes that live at once, counted while code runs; and what the networks take by that count."""

from __future__ import annotations

import pytest
import torch

from mmpl.wan import vae
from mmpl.wan.ledger import Ledger
from mmpl.wan.params import Linear
from tests.small import CONFIGS, small_model

KB = 1000


def floats(count: int, device: str) -> torch.Tensor:
    return torch.empty(count, device=device)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_lives_counts_once_and_as_long_as_it_lives(device: str) -> None:
    before = floats(KB, device)
    ledger = Ledger()
    with ledger.peak_of() as peak:
        a = floats(KB, device)
        view = a.view(10, -1)
        del a
        assert ledger.bytes == 4 * KB  # the view keeps it
        b = view * 2 + before[:10, None]
        del view
        assert ledger.bytes == 4 * KB
    assert peak() == 4 * 3 * KB  # the view, twice that, the sum
    with ledger.peak_of() as later:
        b.add_(1)
    assert (later(), ledger.peak) == (4 * KB, peak())
    del b
    assert ledger.bytes == 0


def test_what_is_held_counts_until_it_is_gone() -> None:
    layer = Linear(floats(KB, "meta"), floats(KB, "meta").bfloat16())
    ledger = Ledger()
    ledger.hold(layer)
    ledger.hold(layer)
    with ledger:
        assert layer.weight[1:].shape == (KB - 1,)
    assert ledger.bytes == ledger.peak == 6 * KB
    del layer
    assert ledger.bytes == 0


def test_a_state_that_is_given_away_is_not_in_memory_twice() -> None:
    """A decode that goes on lets go of the tails that it has used."""
    params, z_BCTHW = small_model().vae, torch.zeros(1, CONFIGS.vae.z_dim, 1, 8, 8)

    def next_latent(states: list[vae.State | None], *, give_away: bool) -> int:
        ledger = Ledger()
        with torch.no_grad(), ledger:
            _, state = vae.decode(params, CONFIGS.vae, z_BCTHW)
            states.append(state)
            del state
            with ledger.peak_of() as peak:
                vae.decode(params, CONFIGS.vae, z_BCTHW, states.pop() if give_away else states[0])
        return peak()

    assert next_latent([], give_away=True) < 0.9 * next_latent([], give_away=False)
