"""The paper's step over encoded clips: what it draws, what it learns from, how it is shared."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmpl.errors import ArgumentError, InputError
from mmpl.layout.presets import mmpl_t2v
from mmpl.train.accumulate import summed
from mmpl.train.loop import Weights
from mmpl.train.trainable import trained
from mmpl.train.tuning import Tuning
from mmpl.train.wan_loss import Draw, check_clips, draw, samples_of, teaching, tuning_loss
from mmpl.wan.dit import DiTParams, dit_from_flat
from mmpl.wan.params import to_flat
from tests.small import CONFIGS, small_dit
from tests.train.encoded import FakeClips

CONFIG = CONFIGS.dit
CLIPS = FakeClips(CONFIG)
FLAT = to_flat(small_dit())


def draws(tuning: Tuning, steps: int, clips: FakeClips = CLIPS) -> list[list[Draw]]:
    shared = teaching(CONFIG, tuning)
    return [[draw(shared, step, n, clips) for n in range(tuning.batch)] for step in range(steps)]


def flattened(steps: list[list[Draw]]) -> list[Draw]:
    return [one for step in steps for one in step]


@pytest.mark.parametrize(
    ("timesteps", "together"),
    [
        ("group", [group.frames for group in mmpl_t2v().groups]),
        ("block3", [range(start, start + 3) for start in range(0, 21, 3)]),
    ],
)
def test_frames_that_share_a_timestep(timesteps: str, together: list[tuple[int, ...]]) -> None:
    drawn = flattened(draws(Tuning(timesteps=timesteps, batch=4), 3))
    for one in drawn:
        each = [set(one.t_T[list(frames)].tolist()) for frames in together]
        assert [len(values) for values in each] == [1] * len(together)
    assert len({t for one in drawn for t in one.t_T.tolist()}) > len(together)


def test_timesteps_are_those_of_the_shifted_schedule() -> None:
    """Their median is 5/6 of the scale with a shift of 5, and 1/2 without."""
    for shift, median in ((5.0, 1000 * 5 / 6), (1.0, 500.0)):
        drawn = flattened(draws(Tuning(shift=shift, timesteps="block3", batch=20), 8))
        t = torch.cat([one.t_T for one in drawn])
        assert t.median().item() == pytest.approx(median, abs=40)


def test_a_whole_batch_loses_its_prompt() -> None:
    steps = draws(Tuning(prompt_dropout=0.3, batch=3), 100)
    kinds = [{one.text for one in step} for step in steps]
    lost = [None in found for found in kinds]
    assert 15 < sum(lost) < 45
    assert all(found == {None} for found, none in zip(kinds, lost, strict=True) if none)


def test_captions_are_mixed() -> None:
    drawn = flattened(draws(Tuning(prompt_dropout=0.0, dense_captions=0.8, batch=4), 60))
    count = Counter(one.text for one in drawn)
    assert 0.7 < count["dense"] / len(drawn) < 0.9
    assert count["dense"] + count["short"] == len(drawn)


def test_every_clip_comes_before_any_comes_again() -> None:
    clips = FakeClips(CONFIG, 5)
    chosen = [one.clip for one in flattened(draws(Tuning(batch=3), 5, clips))]
    turns = [chosen[start : start + 5] for start in (0, 5, 10)]
    assert [sorted(turn) for turn in turns] == [list(range(5))] * 3
    assert turns[0] != turns[1] or turns[1] != turns[2]
    name_of = samples_of(clips, Tuning(batch=3))
    assert [name for step in range(5) for name in name_of(step)] == [f"clip {n}" for n in chosen]


def test_a_draw_depends_on_seed_step_and_number_alone() -> None:
    one, again = (flattened(draws(Tuning(batch=2), 2)) for _ in range(2))
    more = draws(Tuning(batch=2), 2)[1]
    for left, right in zip(one[2:], more, strict=True):
        assert torch.equal(left.noise_CTHW, right.noise_CTHW)
    assert all(torch.equal(a.t_T, b.t_T) for a, b in zip(one, again, strict=True))
    others = flattened(draws(Tuning(batch=2, seed=1), 2))
    noises = [tuple(d.noise_CTHW.flatten()[:4].tolist()) for d in (*one, *others)]
    assert len(set(noises)) == len(noises)


def test_clean_frames_are_noised_on_request_only() -> None:
    assert all(one.clean_noise_CTHW is None for one in draws(Tuning(batch=3), 1)[0])
    noised = draws(Tuning(batch=3, clean_noise=0.5), 1)[0]
    assert all(0 < one.sigma < 0.5 and one.clean_noise_CTHW is not None for one in noised)


# ------------------------------------------------------------------------------- what is learned


def learned(
    tuning: Tuning,
    *,
    share: tuple[int, int] = (0, 1),
    trains: str = "self-attention",
    step: int = 0,
    clips: FakeClips = CLIPS,
) -> tuple[float, Weights, dict[str, float]]:
    """Loss, gradients and metrics of a step."""
    weights = {n: FLAT[n].clone().requires_grad_() for n in trained(trains, FLAT)}

    def params_of(weights: Weights) -> DiTParams:
        return dit_from_flat({**FLAT, **weights}, CONFIG)

    loss = tuning_loss(CONFIG, params_of, clips, tuning, share=share)(weights)
    value, metrics = loss(step)
    value.backward()
    found = {name: leaf.grad for name, leaf in weights.items() if leaf.grad is not None}
    return value.item(), found, metrics


def test_shares_of_a_batch_are_the_whole() -> None:
    tuning = Tuning(batch=4)
    whole, gradients, metrics = learned(tuning)
    parts = [learned(tuning, share=(rank, 2)) for rank in range(2)]
    assert sum(part[0] for part in parts) / 2 == pytest.approx(whole, rel=1e-6)
    for name, gradient in gradients.items():
        mean = (parts[0][1][name] + parts[1][1][name]) / 2
        torch.testing.assert_close(mean, gradient, rtol=1e-4, atol=1e-6)
    assert list(metrics) == [group.name for group in mmpl_t2v().groups]
    for name, value in metrics.items():
        assert sum(part[2][name] for part in parts) / 2 == pytest.approx(value, rel=1e-5)
    frames = {group.name: len(group.frames) for group in mmpl_t2v().groups}
    mean = sum(metrics[name] * count for name, count in frames.items()) / 21
    assert mean == pytest.approx(whole, rel=1e-5)


def test_the_gradient_is_that_of_the_loss() -> None:
    """By a step along it, of all weights that are trained."""
    tuning, rate = Tuning(batch=2), 1e-4
    before, gradients, _ = learned(tuning)
    kept = {name: FLAT[name].clone() for name in gradients}
    try:
        for name, gradient in gradients.items():
            FLAT[name].sub_(rate * gradient)
        after, _, _ = learned(tuning)
    finally:
        for name, tensor in kept.items():
            FLAT[name].copy_(tensor)
    slope = sum(g.square().sum().item() for g in gradients.values())
    assert (before - after) / rate == pytest.approx(slope, rel=0.05)


def test_clean_noise_and_dropped_prompts_reach_the_loss() -> None:
    plain = learned(Tuning(batch=1, prompt_dropout=0.0))[0]
    for change in ({"prompt_dropout": 1.0}, {"clean_noise": 0.9}, {"weighting": "none"}):
        usual = {"prompt_dropout": 0.0, **change}
        assert learned(replace(Tuning(batch=1), **usual))[0] != pytest.approx(plain, rel=1e-4)


def test_parts_are_summed_without_keeping_them() -> None:
    a, b = (torch.randn(3, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    weights = [a.requires_grad_(), b.requires_grad_(), torch.ones(2, requires_grad=True)]
    alive: list[Tensor] = []

    def first() -> Tensor:
        return (a * b).sum()

    def second() -> Tensor:
        alive.extend(w.grad for w in weights if w.grad is not None)
        return a.square().sum()

    (3 * summed([first, second], weights)).backward()
    assert alive == []
    assert weights[2].grad is None
    assert a.grad is not None
    assert b.grad is not None
    torch.testing.assert_close(a.grad, 3 * (b + 2 * a).detach())
    torch.testing.assert_close(b.grad, 3 * a.detach())


# ------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layout": "mmpl"}, "layout is unknown; got mmpl; wanted mmpl_t2v"),
        ({"timesteps": "frame"}, "timesteps is unknown"),
        ({"weighting": "bells"}, "weighting is unknown"),
        ({"batch": 0}, "batch is out of range; got 0"),
        ({"shift": float("nan")}, "shift is out of range"),
        ({"prompt_dropout": 1.1}, "prompt_dropout is out of range"),
        ({"clean_noise": -0.1}, "clean_noise is out of range"),
    ],
)
def test_settings_out_of_range(change: dict, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        Tuning(**change)


def test_a_batch_that_cannot_be_shared() -> None:
    with pytest.raises(ArgumentError, match="got 4 segments for 3 processes"):
        learned(Tuning(batch=4), share=(0, 3))


@pytest.mark.parametrize(
    ("clips", "words"),
    [
        (FakeClips(CONFIG, 0), "there are no clips"),
        (FakeClips(CONFIG, frames=20), "clip 0: .*another model; got latents 4 x 20 x 2 x 4"),
        (FakeClips(CONFIG, size=(3, 4)), "got latents 4 x 21 x 3 x 4; wanted 4 x 21 x multiples"),
        (FakeClips(replace(CONFIG, in_dim=8)), "got latents 8 x 21"),
        (FakeClips(replace(CONFIG, text_dim=8)), "got text 2 x 8; wanted at most 8 x 16"),
    ],
)
def test_clips_that_do_not_fit(clips: FakeClips, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_clips(clips, CONFIG, 21)


def test_captions_that_are_too_long() -> None:
    with pytest.raises(InputError, match="got text 5 x 16; wanted at most 4 x 16"):
        check_clips(CLIPS, replace(CONFIG, text_len=4), 21)
