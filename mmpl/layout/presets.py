"""The layouts mmpl knows by name: MMPL, the paper's ablations, and the baselines.

A model's config.json says by name which layout it was trained for; `by_name` reads it. Frame
numbers are literal here, and only here: they are the method (paper section E.1, Figure 11).
"""

from __future__ import annotations

from collections.abc import Callable

from mmpl.errors import ArgumentError
from mmpl.layout.layout import Group, Layout

SEGMENT_LATENTS = 21


def mmpl_t2v(*, head_sees_terminal: bool = False) -> Layout:
    """MMPL text-to-video: init {0,1}, plan, fill_head, fill_tail.

    fill_head looks at the early and middle keyframes only, as in Eq. 3 and the released model;
    `head_sees_terminal` lets it look at the terminal keyframes 19,20 too.
    """
    init = Group("init", (0, 1))
    plan = Group("plan", (2, 3, 10, 11, 12, 19, 20), init.frames)
    visible = (*init.frames, *plan.frames) if head_sees_terminal else (0, 1, 2, 3, 10, 11, 12)
    name = "mmpl_t2v_head_sees_terminal" if head_sees_terminal else "mmpl_t2v"
    return _filled(name, (init, plan), Group("fill_head", _span(4, 10), visible), midpoint=12)


def mmpl_i2v() -> Layout:
    """MMPL image-to-video: {0} is the given image, then {1}, plan, fill_head, fill_tail.

    Latent frames 0 and 1 are separate steps, in later segments too, and fill_head sees 19,20.
    """
    first = Group("first", (0,))
    second = Group("second", (1,), first.frames)
    plan = Group("plan", (2, 3, 10, 11, 12, 19, 20), (0, 1))
    head = Group("fill_head", _span(4, 10), (0, 1, *plan.frames))
    return _filled("mmpl_i2v", (first, second, plan), head, midpoint=12)


def without_early() -> Layout:
    """Ablation of Table 2: no early keyframes; fill_head makes 2..9."""
    init = Group("init", (0, 1))
    plan = Group("plan", (10, 11, 12, 19, 20), init.frames)
    head = Group("fill_head", _span(2, 10), (0, 1, 10, 11, 12))
    return _filled("without_early", (init, plan), head, midpoint=12)


def without_midpoint() -> Layout:
    """Ablation of Table 2: no middle keyframes; fill_head makes 4..10 with nothing ahead of it."""
    init = Group("init", (0, 1))
    plan = Group("plan", (2, 3, 19, 20), init.frames)
    head = Group("fill_head", _span(4, 11), (0, 1, 2, 3))
    return _filled("without_midpoint", (init, plan), head, midpoint=None)


def chunked(
    frames: int, chunk: int, *, first: int | None = None, window: int | None = None, sink: int = 0
) -> Layout:
    """Chunk-by-chunk autoregression, as Self-Forcing and CausVid do it.

    `chunk` latent frames per group, the first group of `first` frames (default `chunk`), the
    last of whatever is left. Each group sees everything before it, or, with `window`, only as
    much as a cache of `window` frames holds: its own chunk, the first `sink` frames, and the
    most recent ones in between. Raises ArgumentError for sizes that cannot be.
    """
    first = chunk if first is None else first
    if min(frames, chunk, first) < 1 or first > frames:
        raise ArgumentError(
            "chunks do not fit the segment",
            got=f"{frames} frames, chunk {chunk}, first {first}",
            wanted="sizes of at least 1, the first no longer than the segment",
        )
    largest = max(chunk, first)
    if sink < 0 or (window is None and sink) or (window is not None and window < sink + largest):
        raise ArgumentError(
            "the attention window does not hold its sink and one chunk",
            got=f"window {window}, sink {sink}, chunk {largest}",
            wanted=f"window >= {max(sink, 0) + largest}, sink >= 0",
        )
    starts = (0, *range(first, frames, chunk))
    groups = []
    for number, (start, stop) in enumerate(zip(starts, (*starts[1:], frames), strict=True), 1):
        oldest = 0 if window is None else stop - (window - sink)
        sees = tuple(frame for frame in range(start) if frame < sink or frame >= oldest)
        groups.append(Group(f"chunk_{number}", _span(start, stop), sees))
    sizes = f"{chunk}" if first == chunk else f"{first}_{chunk}"
    tail = "" if window is None else f"_window_{window}" + (f"_sink_{sink}" if sink else "")
    return Layout(f"chunked_{sizes}{tail}", frames, tuple(groups))


def bidirectional_window(frames: int, given: int) -> Layout:
    """All frames at once after the first `given` frames: a sliding window of the plain model.

    With `given` 0 this is the bidirectional model itself, one group.
    """
    if not 0 <= given < frames:
        raise ArgumentError(
            "given frames do not fit the segment", got=given, wanted=f"0..{frames - 1}"
        )
    if not given:
        return Layout("bidirectional", frames, (Group("window", _span(0, frames)),))
    init = Group("init", _span(0, given))
    window = Group("window", _span(given, frames), init.frames)
    return Layout(f"bidirectional_{given}", frames, (init, window))


def inverted(frames: int, given: int, chunk: int) -> Layout:
    """The end first, then backwards to the start: FramePack's inverted anti-drift order.

    After the first `given` frames the last group is made, of `chunk` frames and what does not
    fill a chunk, then the chunk before it, and so on. Every group sees the given frames, which
    are good, and all that was made after it in time; so each error is between two known ends.
    Source: Zhang and Agrawala 2025, section 3.3.
    """
    if not (1 <= given < frames and 1 <= chunk <= frames - given):
        raise ArgumentError(
            "chunks do not fit the segment",
            got=f"{frames} frames, {given} given, chunk {chunk}",
            wanted="1 <= given < frames, 1 <= chunk <= frames - given",
        )
    starts = range(given, frames - chunk + 1, chunk)
    stops = (*starts[1:], frames)
    groups = [Group("init", _span(0, given))]
    for number, (start, stop) in enumerate(reversed(tuple(zip(starts, stops, strict=True))), 1):
        sees = (*_span(0, given), *_span(stop, frames))
        groups.append(Group(f"back_{number}", _span(start, stop), sees))
    return Layout(f"inverted_{given}_{chunk}", frames, tuple(groups))


PRESETS: dict[str, Callable[[], Layout]] = {
    "mmpl_t2v": mmpl_t2v,
    "mmpl_t2v_head_sees_terminal": lambda: mmpl_t2v(head_sees_terminal=True),
    "mmpl_i2v": mmpl_i2v,
    "without_early": without_early,
    "without_midpoint": without_midpoint,
    "chunked_3": lambda: chunked(SEGMENT_LATENTS, 3),
    "chunked_2_3": lambda: chunked(SEGMENT_LATENTS, 3, first=2),
    "chunked_1": lambda: chunked(SEGMENT_LATENTS, 1),
    "bidirectional": lambda: bidirectional_window(SEGMENT_LATENTS, 0),
    "bidirectional_2": lambda: bidirectional_window(SEGMENT_LATENTS, 2),
    "inverted_2_3": lambda: inverted(SEGMENT_LATENTS, 2, 3),
}


def by_name(name: str) -> Layout:
    """The layout a model's config.json names; ArgumentError lists the known names."""
    if name not in PRESETS:
        raise ArgumentError("unknown layout", got=name, wanted=f"one of {', '.join(PRESETS)}")
    return PRESETS[name]()


def _filled(name: str, before: tuple[Group, ...], head: Group, *, midpoint: int | None) -> Layout:
    """`before`, then fill_head, then fill_tail: the frames still missing, which see all others."""
    groups = (*before, head)
    seen = tuple(sorted(frame for group in groups for frame in group.frames))
    rest = tuple(frame for frame in range(SEGMENT_LATENTS) if frame not in seen)
    tail = Group("fill_tail", rest, seen)
    return Layout(name, SEGMENT_LATENTS, (*groups, tail), midpoint)


def _span(start: int, stop: int) -> tuple[int, ...]:
    return tuple(range(start, stop))
