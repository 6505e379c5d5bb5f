"""Prompts over time and cuts: read, placed, refused; and what they change in a film."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpl.errors import ArgumentError
from mmpl.film.script import Cue, cuts_text, joined, read_cuts, read_script, script_text, start_s
from mmpl.generate import Event, Frames, Made, Request, film_of, generate
from mmpl.layout.timeline import Chain
from tests.small import small_model

CHAIN, FRAMES, FPS = Chain(21, 4), 480, 16  # 30 s, 7 segments


def script(text: str) -> list[tuple[int, str]]:
    return [(cue.segment, cue.prompt) for cue in read_script(text, CHAIN, FRAMES, FPS)]


def test_one_prompt() -> None:
    assert script("a red circle") == [(0, "a red circle")]
    assert script("two\nlines: of 10s") == [(0, "two\nlines: of 10s")]


def test_cues() -> None:
    assert script("0s: red\n10s: blue\n#6: green") == [(0, "red"), (2, "blue"), (5, "green")]
    assert script("red\n0m10.5s: blue") == [(0, "red"), (2, "blue")]
    assert script("\n 0s:red\n\n 1m0s: x".replace("1m0s", "29.9s")) == [(0, "red"), (6, "x")]


@given(st.integers(0, FRAMES - 1))
def test_a_time_means_the_segment_that_begins_nearest(frame: int) -> None:
    time_s, starts = frame / FPS, [start_s(s, CHAIN, FRAMES, FPS) for s in range(7)]
    try:
        (segment,) = read_cuts(f"{time_s}s", CHAIN, FRAMES, FPS)
    except ArgumentError:
        segment = 0
    assert abs(starts[segment] - time_s) == min(abs(start - time_s) for start in starts)


def test_where_segments_begin() -> None:
    assert [start_s(s, CHAIN, FRAMES, FPS) for s in (0, 1, 2)] == [0, 81 / 16, (81 + 76) / 16]


@given(
    st.dictionaries(
        st.integers(1, 6),
        st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1),
    )
)
def test_a_script_is_written_and_read_again(later: dict[int, str]) -> None:
    cues = (Cue(0, "first"), *(Cue(segment, later[segment]) for segment in sorted(later)))
    assert read_script(script_text(cues), CHAIN, FRAMES, FPS) == cues


def test_cuts() -> None:
    assert read_cuts("", CHAIN, FRAMES, FPS) == ()
    assert read_cuts("10s, #5,#3", CHAIN, FRAMES, FPS) == (2, 4)
    assert cuts_text((2, 4)) == "#3,#5"


def test_prompts_given_one_after_the_other() -> None:
    assert joined(["one"]) == "one"
    assert script(joined(["a", "b\nc"])) == [(0, "a"), (1, "b c")]
    assert script(joined(["0s: a", "10s: b"])) == [(0, "a"), (2, "b")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (" ", "the prompt is empty"),
        ("0s:", "a prompt is empty"),
        ("5s: late", "no prompt at its start"),
        ("0s: a\n1s: b", "two prompts for segment 1"),
        ("0s: a\n#1: b", "two prompts for segment 1"),
        ("0s: a\n30s: b", "after the end of the film"),
        ("0s: a\n#8: b", "no such segment"),
        ("0s: a\n#0: b", "no such segment"),
    ],
)
def test_scripts_that_cannot_be(text: str, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        script(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0s", "cut at the start"),
        ("#1", "cut at the start"),
        ("31s", "after the end"),
        ("soon", "not a time"),
        ("10", "not a time"),
        ("-5s", "not a time"),
    ],
)
def test_cuts_that_cannot_be(text: str, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        read_cuts(text, CHAIN, FRAMES, FPS)


# --------------------------------------------------------------------------------- in a film


def film(prompt: str, cut: str = "") -> tuple[dict[int, np.ndarray], list[Event]]:
    """The frames of each segment, and all events."""
    request = Request(prompt, seed=1, segments=3, cut=cut)
    events = list(generate(small_model(), request))
    pieces: dict[int, list[np.ndarray]] = {}
    for event in events:
        if isinstance(event, Frames):
            pieces.setdefault(event.segment, []).append(event.pixels_FHWC)
    return {segment: np.concatenate(found) for segment, found in pieces.items()}, events


def test_a_prompt_changes_what_follows_and_nothing_before() -> None:
    plain, _ = film("red")
    changed, _ = film("#1: red\n#2: circle")
    assert np.array_equal(plain[0], changed[0])
    assert not np.array_equal(plain[1], changed[1])
    assert not np.array_equal(plain[2], changed[2])


def test_a_cut_forgets_what_was_before() -> None:
    one, events = film("#1: red\n#2: circle", cut="#2")
    other, _ = film("#1: square\n#2: circle", cut="#2")
    seeded, _ = film("#1: square\n#2: circle")
    assert not np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])
    assert np.array_equal(one[2], other[2])
    assert not np.array_equal(one[1], seeded[1])
    made = [(e.task.segment, e.task.kind, e.task.group) for e in events if isinstance(e, Made)]
    assert (1, "make", "init") in made
    assert [segment for segment, kind, _ in made if kind == "hand_over"] == [1]


def test_its_settings_are_read_again() -> None:
    model = small_model()
    request = Request("0s: red\n10s: blue", seed=1, segments=4, cut="10s")
    once = film_of(model, request)
    again = film_of(model, Request(once.prompt, 1, segments=4, cut=cuts_text(once.cuts)))
    assert once == again
    assert once.cuts == (2,)
    assert [once.cue(segment) for segment in range(4)] == [0, 0, 1, 1]
