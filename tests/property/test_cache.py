"""Passes group by group over the cache against one pass under the full mask."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache as memoised

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.wan.attention import Piece, token_mask
from mmpl.wan.cache import KVCache, SlotView, kv_allocate, kv_commit, kv_reset
from mmpl.wan.dit import (
    CrossKV,
    DiTParams,
    Positions,
    dit,
    dit_from_flat,
    dit_shapes,
    encode_context,
)
from mmpl.wan.params import to_flat, tree_map
from tests.small import CONFIGS, small_dit

TOLERANCE = 1e-5
CONFIG = CONFIGS.dit
HEIGHT, WIDTH = 2, 4
FRAME_TOKENS = CONFIG.frame_tokens(HEIGHT, WIDTH)
seeds = st.integers(0, 2**31)


@dataclass(frozen=True)
class Group:
    """Frames made together, in slot order, and the earlier frames they see."""

    frames: tuple[int, ...]
    sees: tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A random layout. `order[slot]` is a frame; a group's frames are neighbours in it."""

    groups: tuple[Group, ...]

    @property
    def order(self) -> tuple[int, ...]:
        return tuple(frame for group in self.groups for frame in group.frames)

    def span(self, group: Group) -> tuple[int, int]:
        first = self.order.index(group.frames[0])
        return first, first + len(group.frames)

    def view(self, group: Group, *, store: bool = True) -> SlotView:
        """What a pass of the group writes and reads; a gather unless the slots are neighbours."""
        own = range(*self.span(group)) if store else ()
        read = sorted([*own, *map(self.order.index, group.sees)])
        write = self.span(group) if store else None
        if not read or read[-1] - read[0] == len(read) - 1:
            return SlotView(write, (read[0], read[-1] + 1) if read else (0, 0))
        return SlotView(write, (read[0], read[-1] + 1), tuple(read))

    def mask_TT(self) -> Tensor:
        """Frames in slot order."""
        seen = {f: {*group.sees, *group.frames} for group in self.groups for f in group.frames}
        return torch.tensor([[key in seen[query] for key in self.order] for query in self.order])

    def pieces(self) -> tuple[Piece, ...]:
        def keys(group: Group) -> tuple[tuple[int, int], ...]:
            slots = sorted(map(self.order.index, (*group.sees, *group.frames)))
            return tuple((slot, slot + 1) for slot in slots)

        return tuple(Piece(self.span(group), keys(group)) for group in self.groups)


@st.composite
def layouts(draw: st.DrawFn) -> Case:
    order = draw(st.permutations(range(draw(st.integers(1, 6)))))
    groups: list[Group] = []
    while order:
        size = draw(st.integers(1, len(order)))
        earlier = [frame for group in groups for frame in group.frames]
        sees = draw(st.sets(st.sampled_from(earlier))) if earlier else ()
        groups.append(Group(tuple(order[:size]), tuple(sees)))
        order = order[size:]
    return Case(tuple(groups))


@memoised
def params() -> DiTParams:
    return small_dit()


def inputs(batch: int, frames: int, seed: int) -> tuple[Tensor, Tensor, CrossKV]:
    """Latents in slot order, a timestep for every frame, and texts of unequal length."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, CONFIG.in_dim, frames, HEIGHT, WIDTH, generator=generator)
    t = 1000 * torch.rand(batch, frames, generator=generator)
    lengths = [1 + i % CONFIG.text_len for i in range(batch)]
    texts = [torch.randn(length, CONFIG.text_dim, generator=generator) for length in lengths]
    return x, t, encode_context(params(), CONFIG, texts)


def empty(batch: int, slots: int) -> KVCache:
    return kv_allocate(CONFIG, batch=batch, slots=slots, frame_tokens=FRAME_TOKENS)


@torch.no_grad()
def run(
    x: Tensor, t: Tensor, text: CrossKV, cache: KVCache | None, positions: tuple[int, ...],
    view: SlotView | None = None, mask_TT: Tensor | None = None,
) -> Tensor:  # fmt: skip
    mask_LL = None if mask_TT is None else token_mask(mask_TT, FRAME_TOKENS)
    where = Positions(positions, slots=view, mask_LL=mask_LL)
    return dit(params(), CONFIG, x, t, text, cache, frames=where)


def run_groups(case: Case, x: Tensor, t: Tensor, text: CrossKV) -> tuple[Tensor, KVCache]:
    cache, out = empty(len(x), len(case.order)), []
    for group in case.groups:
        own = slice(*case.span(group))
        out.append(run(x[:, :, own], t[:, own], text, cache, group.frames, case.view(group)))
        cache = kv_commit(cache, range(*case.span(group)))
    return torch.cat(out, dim=2), cache


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= TOLERANCE)


@settings(max_examples=25, deadline=None)
@given(case=layouts(), seed=seeds)
def test_cached_groups_equal_the_full_mask(case: Case, seed: int) -> None:
    x, t, text = inputs(1, len(case.order), seed)
    out, cache = run_groups(case, x, t, text)
    assert close(out, run(x, t, text, None, case.order, mask_TT=case.mask_TT()))
    assert cache.committed == frozenset(range(len(case.order)))


@settings(max_examples=15, deadline=None)
@given(case=layouts(), seed=seeds)
def test_an_unstored_group_equals_a_stored_one(case: Case, seed: int) -> None:
    x, t, text = inputs(1, len(case.order), seed)
    out, cache = run_groups(case, x, t, text)
    before = cache.k_IBSNK.clone()
    last = case.groups[-1]
    own = slice(*case.span(last))
    view = case.view(last, store=False)
    assert close(run(x[:, :, own], t[:, own], text, cache, last.frames, view), out[:, :, own])
    assert torch.equal(cache.k_IBSNK, before)


@settings(max_examples=15, deadline=None)
@given(case=layouts(), seed=seeds)
def test_pieces_equal_the_mask_and_so_do_their_gradients(case: Case, seed: int) -> None:
    x, t, text = inputs(1, len(case.order), seed)
    mask_LL = token_mask(case.mask_TT(), FRAME_TOKENS)
    results = []
    for frames in (
        Positions(case.order, mask_LL=mask_LL),
        Positions(case.order, pieces=case.pieces()),
    ):
        leaves = tree_map(lambda w: w.clone().requires_grad_(), params())
        out = dit(leaves, CONFIG, x, t, text, frames=frames)
        gradient = torch.autograd.grad(out.square().mean(), leaves.blocks[0].self_attn.k.weight)
        results.append((out, gradient[0]))
    (out, gradient), (out_pieces, gradient_pieces) = results
    assert close(out, out_pieces)
    assert close(gradient, gradient_pieces)
    assert gradient.abs().max() > 0


@settings(max_examples=15, deadline=None)
@given(case=layouts(), seed=seeds)
def test_a_group_may_be_rewritten_and_touches_no_other_slot(case: Case, seed: int) -> None:
    x, t, text = inputs(1, len(case.order), seed)
    out, full = run_groups(case, x, t, text)
    cache = replace(full, k_IBSNK=full.k_IBSNK.clone(), v_IBSNK=full.v_IBSNK.clone())
    last = case.groups[-1]
    own = slice(*case.span(last))
    cache = kv_commit(kv_reset(cache), range(own.start))
    noisy = x[:, :, own] + 1
    for latents in (noisy, noisy * 2, x[:, :, own], x[:, :, own]):
        got = run(latents, t[:, own], text, cache, last.frames, case.view(last))
    assert torch.equal(got, out[:, :, own])
    assert torch.equal(cache.k_IBSNK, full.k_IBSNK)
    assert torch.equal(cache.v_IBSNK, full.v_IBSNK)


@settings(max_examples=10, deadline=None)
@given(case=layouts(), batch=st.integers(2, 3), seed=seeds)
def test_batch_rows_are_independent(case: Case, batch: int, seed: int) -> None:
    x, t, text = inputs(batch, len(case.order), seed)
    out, _ = run_groups(case, x, t, text)
    for row in (slice(i, i + 1) for i in range(batch)):
        alone = CrossKV(text.k_IBJNK[:, row], text.v_IBJNK[:, row])
        assert close(run_groups(case, x[row], t[row], alone)[0], out[row])


@settings(max_examples=10, deadline=None)
@given(slots=st.sets(st.integers(0, 5), min_size=1), again=st.integers(0, 5))
def test_a_slot_is_committed_once(slots: set[int], again: int) -> None:
    cache = kv_commit(empty(1, 6), slots)
    assert cache.committed == slots
    if again in slots:
        with pytest.raises(ArgumentError, match="committed twice"):
            kv_commit(cache, (again,))
    else:
        assert kv_commit(cache, (again,)).committed == {*slots, again}
    assert kv_reset(cache).committed == frozenset()
    assert kv_reset(cache).k_IBSNK is cache.k_IBSNK


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (SlotView((0, 2), (0, 2)), "committed slots"),
        (SlotView((3, 5), (0, 3)), "never committed"),
        (SlotView((2, 4), (2, 5)), "never committed"),
        (SlotView((2, 5), (0, 5)), "one slot for every latent frame"),
        (SlotView((5, 7), (0, 2)), "lie in the cache"),
        (SlotView((2, 4), (0, 4), (0, 0, 2, 3)), "slots must differ"),
        (None, "go together"),
    ],
)
def test_a_view_that_does_not_fit_is_refused(view: SlotView | None, message: str) -> None:
    x, t, text = inputs(1, 2, seed=0)
    cache = kv_commit(empty(1, 6), range(2))
    with pytest.raises(ArgumentError, match=message):
        run(x, t, text, cache, (2, 3), view)


def test_a_writing_pass_needs_no_grad_and_a_reading_one_has_gradients() -> None:
    x, t, text = inputs(1, 2, seed=0)
    cache = kv_commit(empty(1, 4), range(2))
    stored = Positions((2, 3), SlotView((2, 4), (0, 4)))
    with pytest.raises(ArgumentError, match="no gradient"):
        dit(params(), CONFIG, x, t, text, cache, frames=stored)
    unstored = Positions((2, 3), SlotView(None, (0, 2)))
    x.requires_grad_()
    dit(params(), CONFIG, x, t, text, cache, frames=unstored).sum().backward()
    assert x.grad is not None


def test_parameters_survive_the_round_trip() -> None:
    flat = to_flat(params())
    assert {name: tuple(x.shape) for name, x in flat.items()} == dit_shapes(CONFIG)
    again = to_flat(dit_from_flat(flat, CONFIG))
    assert all(again[name] is x for name, x in flat.items())
