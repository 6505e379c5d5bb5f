"""The procedural clips: what a seed promises, and that the pixels keep it."""

import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmpl.errors import ArgumentError
from mmpl.train import grammar
from mmpl.train.clip_spec import CANVAS, REACH, Background, draw_spec_of
from mmpl.train.clips import (
    ClipSpec,
    caption,
    draw_spec,
    held_out,
    render,
    render_batch,
    track,
)

FIRST = (0, 81)
SPECS = [draw_spec(seed, held_out=None) for seed in range(250)]


def test_a_seed_is_a_clip() -> None:
    assert draw_spec(7) == draw_spec(7)
    assert len({(s.hue, s.near) for s in SPECS}) == len(SPECS)


def test_the_clips_of_the_trained_bundle_stay_the_same() -> None:
    """Another draw order would change the data of a recorded training without a word."""
    spec = draw_spec(0)
    assert (spec.shape, spec.motion, spec.hue_bin) == ("star", "down-right", "blue")
    assert spec.hue == pytest.approx(210.48177277)
    assert spec.background.phase == pytest.approx(-2.57137445)


def test_every_word_is_drawn() -> None:
    assert {s.shape for s in SPECS} == set(grammar.SHAPES)
    assert {s.hue_bin for s in SPECS} == set(grammar.HUES)
    assert {s.motion for s in SPECS} == set(grammar.MOTIONS)


@pytest.mark.parametrize("frames", [FIRST, (0, 700)])
def test_the_object_is_always_fully_inside(frames: tuple[int, int]) -> None:
    for spec in SPECS:
        path = track(spec, frames)
        reach = path.size * REACH[spec.shape]
        for centre in (path.x, path.y):
            assert (centre - reach).min() > 0.0
            assert (centre + reach).max() < CANVAS


def test_the_named_motion_is_plain_in_the_first_segment() -> None:
    for spec in SPECS:
        path = track(spec, FIRST)
        dx, dy = path.x[-1] - path.x[0], path.y[-1] - path.y[0]
        ratio = path.size[-1] / path.size[0]
        if spec.motion in grammar.DIRECTIONS:
            for step, net in zip(grammar.DIRECTIONS[spec.motion], (dx, dy)):
                assert step * net >= 9.0 if step else abs(net) < 5.0, spec
        elif spec.motion in ("grows", "shrinks"):
            assert (ratio if spec.motion == "grows" else 1.0 / ratio) > 1.35
        elif spec.motion in ("clockwise", "counterclockwise"):
            angle = np.unwrap(np.arctan2(path.y - spec.near[1], path.x - spec.near[0]))
            sign = 1.0 if spec.motion == "clockwise" else -1.0
            assert sign * (angle[-1] - angle[0]) > math.radians(200.0)
        elif spec.motion == "bounces":
            assert np.ptp(path.y) > 1.5 * np.ptp(path.x)
            assert np.ptp(path.y) > 8.0
        else:
            assert max(np.ptp(path.x), np.ptp(path.y)) < 5.0


def test_motion_is_smooth_but_for_bounces() -> None:
    for spec in SPECS:
        path = track(spec, (0, 600))
        if spec.motion != "bounces":
            assert np.abs(np.diff(path.x, 2)).max() < 0.25
            assert np.abs(np.diff(path.y, 2)).max() < 0.25


def test_continuation_is_a_later_window_of_the_same_clip() -> None:
    fresh, later = draw_spec(11), draw_spec(11, continuation=True)
    offset = later.start_frame
    assert offset > 0
    assert replace(later, start_frame=0) == fresh
    assert torch.equal(render(later, (0, 4)), render(fresh, (offset, offset + 4)))
    assert caption(later, 3) == caption(fresh, 3)


@pytest.mark.parametrize("shape", grammar.SHAPES)
def test_any_part_is_rendered_alone(shape: str) -> None:
    spec = next(s for s in SPECS if s.shape == shape)
    whole = render(spec, range(0, 30))
    assert whole.shape == (3, 30, 64, 64)
    assert whole.dtype == torch.float32
    part = render(spec, (10, 25), crop=(16, 24, 32, 17))
    torch.testing.assert_close(part, whole[:, 10:25, 16:48, 24:41], rtol=0, atol=2e-5)
    # At twice the resolution, blocks of four pixels average to one.
    fine = render(spec, (0, 2), size=128)
    coarse = torch.nn.functional.avg_pool2d(fine, 2)
    assert (coarse - whole[:, :2]).abs().mean() < 2e-3


def test_a_batch_is_its_clips() -> None:
    specs, frames = SPECS[:6], [(i, i + 3) for i in range(6)]
    crops = [(i, 2 * i, 20, 24) for i in range(6)]
    batch = render_batch(specs, frames, crops=crops)
    for i, spec in enumerate(specs):
        alone = render(spec, frames[i], crop=crops[i])
        torch.testing.assert_close(batch[i], alone, rtol=0, atol=1e-6)
    with pytest.raises(ArgumentError, match="one length"):
        render_batch(specs[:2], [(0, 3), (0, 4)])
    with pytest.raises(ArgumentError, match="once per clip"):
        render_batch(specs[:2], [(0, 3)])


@pytest.mark.parametrize("shape", grammar.SHAPES)
def test_outlines_have_the_area_of_their_shape(shape: str) -> None:
    area = {
        "circle": math.pi,
        "square": 2.0,
        "triangle": 0.75 * math.sqrt(3.0),
        "star": 5.0 * 0.45 * math.sin(math.pi / 5.0),
    }[shape]
    for spec in [s for s in SPECS if s.shape == shape][:5]:
        white = replace(spec, saturation=0.0, value=1.0, background=_flat(spec, 0.0))
        covered = (render(white, (0, 3)) * 0.5 + 0.5).mean(0).sum((1, 2)).numpy()
        reach = track(white, (0, 3)).size * REACH[shape]
        np.testing.assert_allclose(covered, area * reach**2, rtol=0.03)


def test_object_stands_out_and_backgrounds_span_the_range() -> None:
    tones = []
    for spec in SPECS:
        first, second = (np.array(c) for c in (spec.background.first, spec.background.second))
        for share in np.linspace(0.0, 1.0, 9):
            behind = first + share * (second - first)
            assert np.linalg.norm(behind - np.array(spec.rgb)) > 0.45
        tones.append(first)
    tones = np.array(tones)
    for channel in range(3):
        assert tones[:, channel].min() < 0.05
        assert tones[:, channel].max() > 0.95
    names = {grammar.colour_name(tone) for tone in tones}
    assert {"black", "white", "gray", "dark gray", "light gray"} <= names
    assert {hue for hue in grammar.HUES if any(hue in name for name in names)} == set(grammar.HUES)


def test_captions_say_what_is_there_with_the_hue_left_out_half_of_the_time() -> None:
    words = set(grammar.vocabulary())
    with_hue = 0
    for variant, spec in enumerate(SPECS):
        text = caption(spec, variant)
        assert text == caption(spec, variant)
        assert set(text.split()) <= words
        assert any(phrase in text for phrase in grammar.PHRASES[spec.motion])
        subject = text.split(f" {spec.shape} ")[0]
        with_hue += spec.hue_bin in subject.split()
        assert not set(subject.split()) & (set(grammar.HUES) - {spec.hue_bin})
    assert 0.4 < with_hue / len(SPECS) < 0.6
    for share in (0.0, 0.4, 1.0):
        named = sum("background" in caption(s, v, backgrounds=share) for v, s in enumerate(SPECS))
        assert abs(named / len(SPECS) - share) < 0.1


def test_held_out_triples_are_one_in_eight_and_never_trained() -> None:
    total = len(grammar.SHAPES) * len(grammar.HUES) * len(grammar.MOTIONS)
    triples = [
        (shape, hue, motion)
        for shape in grammar.SHAPES
        for hue in grammar.HUES
        for motion in grammar.MOTIONS
        if grammar.is_held_out(shape, hue, motion)
    ]
    assert len(triples) * 8 == total
    pairs = Counter((shape, motion) for shape, _, motion in triples)
    assert set(pairs.values()) == {1}
    assert not any(held_out(draw_spec(seed)) for seed in range(200))
    assert all(held_out(draw_spec(seed, held_out=True)) for seed in range(20))
    assert any(held_out(spec) for spec in SPECS)


def test_held_out_prompts_cover_everything_evenly() -> None:
    prompts = grammar.held_out_prompts(32)
    assert len({prompt for prompt, *_ in prompts}) == 32
    for prompt, shape, hue, motion in prompts:
        assert grammar.is_held_out(shape, hue, motion)
        assert prompt == grammar.sentence(shape, motion, hue=hue)
    for place, kinds in ((1, grammar.SHAPES), (2, grammar.HUES), (3, grammar.MOTIONS)):
        counts = Counter(row[place] for row in prompts)
        assert set(counts) == set(kinds)
        assert max(counts.values()) - min(counts.values()) <= 2


def test_a_clip_of_every_held_out_prompt() -> None:
    for seed, (_, *wanted) in enumerate(grammar.held_out_prompts(32)):
        spec = draw_spec_of(seed, *wanted)
        assert [spec.shape, spec.hue_bin, spec.motion] == wanted
        assert spec == draw_spec_of(seed, *wanted)
        assert spec != draw_spec_of(seed + 1, *wanted)


def test_unknown_words_are_found() -> None:
    assert grammar.unknown_words("A red circle moves right on a blue background.") == []
    assert grammar.unknown_words("a Zebra eats a red zebra") == ["zebra", "eats"]
    assert grammar.unknown_words("a red cat", known=["a", "cat"]) == ["red"]
    for example in grammar.example_prompts():
        assert grammar.unknown_words(example) == []


@pytest.mark.parametrize(
    ("degrees", "name"),
    [(0, "red"), (359, "red"), (345, "red"), (344.9, "pink"), (15, "orange"), (60, "yellow"),
     (120, "green"), (180, "cyan"), (-120, "blue"), (270, "purple"), (300 + 720, "pink")],
)  # fmt: skip
def test_hue_bins_tile_the_circle(degrees: float, name: str) -> None:
    assert grammar.hue_bin(degrees) == name


def test_the_grammar_needs_no_torch() -> None:
    code = "import sys, mmpl.train.grammar; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _flat(spec: ClipSpec, level: float) -> Background:
    colour = (level, level, level)
    return replace(spec.background, first=colour, second=colour)
