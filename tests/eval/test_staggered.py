"""Staggered noise levels: the timetables as integers, and the pipeline against one masked pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmpl.eval import staggered
from mmpl.eval.rolling import Window, rolled
from mmpl.eval.stage import Shot, Stage, film_of, open_stage
from mmpl.eval.staggered import Block, Fifo, Forcing, Pipeline, joint, partitions, timetable
from mmpl.eval.windows import made
from mmpl.layout.presets import bidirectional_window
from mmpl.wan.attention import token_mask
from mmpl.wan.dit import Positions, dit
from mmpl.wan.flow import SolverState
from tests.small import DEFAULTS, small_dit, small_model

CLOSE = 5e-5
STEPS = 4


@cache
def stage(solver: str = "unipc") -> Stage:
    model = replace(small_model(replace(DEFAULTS, width=32, height=16)), dit=small_dit())
    shot = Shot("red circle moves right", seed=5, segments=1, steps=STEPS, solver=solver)
    return open_stage(model, film_of(model, shot))


def clip(latents: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(latents), dim=2)


def worst(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 12))
def test_every_block_takes_every_step_once(blocks: int, steps: int, lag: int) -> None:
    ticks = list(timetable(blocks, steps, lag))
    for block in range(blocks):
        assert [i for tick in ticks for b, i in tick if b == block] == list(range(steps))
    for tick in ticks:
        assert [b for b, _ in tick] == sorted(b for b, _ in tick)
        for (one, ahead), (other, behind) in pairwise(tick):
            assert other == one + 1, "no block between two noisy ones is finished or not begun"
            assert ahead - behind == lag, "noise does not fall along time"
    leaving = [b for tick in ticks for b, i in tick if i == steps - 1]
    assert leaving == list(range(blocks)), "they leave in the order of the film"


@given(st.integers(1, 30), st.integers(1, 25))
def test_a_queue_has_one_block_on_every_level(blocks: int, steps: int) -> None:
    full = [tick for tick in timetable(blocks, steps, lag=1) if len(tick) == steps]
    assert len(full) == max(0, blocks - steps + 1)
    assert all([i for _, i in tick] == list(reversed(range(steps))) for tick in full)
    assert Fifo().block(steps) * min(steps, 21) <= 21


@given(st.integers(1, 100), st.integers(1, 30))
def test_partitions_are_even(count: int, most: int) -> None:
    tick = tuple((n, 0) for n in range(count))
    parts = partitions(tick, most)
    assert tuple(entry for part in parts for entry in part) == tick
    sizes = [len(part) for part in parts]
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == -(-count // most)


@pytest.mark.parametrize(("steps", "most"), [(1, 1), (4, 4), (5, 3), (16, 4), (50, 4)])
def test_at_most_four_chunks_at_once(steps: int, most: int) -> None:
    ticks = timetable(40, steps, -(-steps // Pipeline(Window()).at_once))
    assert max(len(tick) for tick in ticks) == most


@given(st.booleans(), st.integers(1, 21))
def test_blocks_of_a_window(continues: bool, latents: int) -> None:
    blocks = Forcing().blocks(continues, latents)
    frames = [frame for block in blocks for frame in block]
    start = 5 if continues else 0
    assert frames == list(range(start, start + len(frames)))
    assert latents <= start + len(frames) <= 21


@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler"])
def test_a_pipeline_of_one_is_the_rolling_window(solver: str) -> None:
    window = Window(6, 3)
    got = clip(Pipeline(window, at_once=1).chunks(stage(solver), 12))
    assert torch.equal(got, clip(rolled(stage(solver), window, 12)))
    assert worst(got, clip(Pipeline(window, at_once=2).chunks(stage(solver), 12))) > 100 * CLOSE


@torch.no_grad()
def by_one_masked_pass(window: Window, chunks: int, at_once: int) -> Tensor:
    """All chunks that have begun in one pass under a block-causal mask; the finished at t=0."""
    own, size = stage(), window.chunk
    times = own.sampler.schedule.timesteps
    blocks: dict[int, Block] = {}
    for tick in timetable(chunks, STEPS, -(-STEPS // at_once)):
        for number, index in tick:
            if index == 0:
                noise_BCTHW = own.noise(window.group(number).frames)
                blocks[number] = Block(noise_BCTHW, SolverState())
        levels = dict.fromkeys(blocks, 0.0) | {n: times[index] for n, index in tick}
        x_BCTHW = torch.cat([blocks[n].x_BCTHW for n in blocks], dim=2)
        t_BT = torch.tensor([[levels[n] for n in blocks for _ in range(size)]])
        count = len(t_BT[0])
        mask_TT = torch.tensor(
            [[k // size <= q // size for k in range(count)] for q in range(count)]
        )
        tokens = own.network.config.frame_tokens(*own.latent_shape[1:])
        frames = Positions(tuple(range(count)), mask_LL=token_mask(mask_TT, tokens))
        params, config = own.network.params, own.network.config
        v_BCTHW = own.guided(
            [dit(params, config, x_BCTHW, t_BT, text, frames=frames) for text in own.texts]
        )
        found = dict(zip(blocks, v_BCTHW.split(size, dim=2)))
        for number, index in tick:
            blocks[number] = blocks[number].after(own.sampler, index, found[number])
    return torch.cat([block.x_BCTHW for block in blocks.values()], dim=2)


@pytest.mark.parametrize("at_once", [2, 4])
def test_a_pipeline_is_one_block_causal_pass(at_once: int) -> None:
    window = Window(12, 3)
    got = clip(Pipeline(window, at_once).chunks(stage(), 12))
    assert worst(got, by_one_masked_pass(window, 4, at_once)) < CLOSE


def test_blocks_that_go_together_are_one_clip() -> None:
    """With no lag the windows of diffusion forcing are the plain bidirectional model."""
    film = replace(stage().film, layout=bidirectional_window(9, 0), noise="off")
    wanted = made(replace(stage(), film=film), 0, {}, 9)
    got = Sync(frames=9, history=1, block=4).filled(stage(), 0, {}, 9)
    assert all(worst(got[frame], wanted[frame]) < CLOSE for frame in range(9))


class Sync(Forcing):
    """All blocks of a window on one level."""

    __slots__ = ()

    def steps_behind(self, steps: int) -> int:
        return 0


def test_levels_of_diffusion_forcing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Along time: history nearly clean, then clean, then noise that never falls; all in a pass."""
    seen: list[list[float]] = []

    def noting(own: Stage, parts: list[tuple[Tensor, float]]) -> list[Tensor]:
        seen.append([level for x_BCTHW, level in parts for _ in range(x_BCTHW.shape[2])])
        for frame, z_BCHW in history.items():
            assert 0.01 < worst(parts[frame][0][:, :, 0], 0.98 * z_BCHW) < 0.1
        return joint(own, parts)

    monkeypatch.setattr(staggered, "joint", noting)
    history = dict(enumerate(stage().noise(range(5)).unbind(2)))
    latents = Forcing().filled(stage(), 1, history, 21)
    assert sorted(latents) == list(range(21))
    assert all(torch.equal(latents[frame], history[frame]) for frame in history)
    assert all(levels[:5] == [20.0] * 5 for levels in seen)
    assert all(rest == sorted(rest) for rest in (levels[5:] for levels in seen))
    assert max(len(levels) for levels in seen) == 21
    assert len(seen) == STEPS + 3 * Forcing().steps_behind(STEPS)


def test_each_noise_level_of_a_queue_is_met_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    times = stage().sampler.schedule.timesteps
    seen: list[list[float]] = []

    def noting(own: Stage, parts: list[tuple[Tensor, float]]) -> list[Tensor]:
        seen.append([level for _, level in parts])
        assert {x_BCTHW.shape[2] for x_BCTHW, _ in parts} == {5}
        return joint(own, parts)

    monkeypatch.setattr(staggered, "joint", noting)
    latents = list(Fifo().queue(stage(), 21))
    assert len(latents) == 25
    assert seen[STEPS - 1] == list(reversed(times))
    assert len(seen) == 5 + STEPS - 1
