"""The plan alone: which keyframes there are, and that they are those of the film."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmpl.film.storyboard import keyframes
from mmpl.generate import (
    Frames,
    Made,
    Planned,
    Request,
    Store,
    film_of,
    generate,
    job_of,
    read_plan,
    stills,
)
from mmpl.media.storyboard import Row, SheetSize, storyboard
from mmpl.wan import vae
from tests.small import small_model

REQUEST = Request("a red circle", seed=1, frames=170)  # three segments, the last of 18 frames


def test_only_the_plan_is_made() -> None:
    events = list(generate(small_model(), REQUEST, only_plan=True))
    assert not any(isinstance(event, Frames) for event in events)
    made = [event.task for event in events if isinstance(event, Made)]
    assert {task.kind for task in made} == {"make", "hand_over"}
    assert {task.group for task in made if task.kind == "make"} == {"init", "plan"}
    assert [event.segment for event in events if isinstance(event, Planned)] == [0, 1, 2]


def test_its_keyframes_are_those_of_the_film() -> None:
    model = small_model()
    alone = [e for e in generate(model, REQUEST, only_plan=True) if isinstance(e, Planned)]
    whole = [e for e in generate(model, REQUEST) if isinstance(e, Planned)]
    for one, other in zip(alone, whole, strict=True):
        assert one.latents.keys() == other.latents.keys()
        assert all(torch.equal(one.latents[k], other.latents[k]) for k in one.latents)


def test_stills_and_the_plan_in_a_store(tmp_path: Path) -> None:
    model = small_model()
    film = film_of(model, REQUEST)
    store = Store(tmp_path / "job", job_of(model, film))
    events = generate(model, REQUEST, store=store, only_plan=True)
    seen = [still for e in events if isinstance(e, Planned) for still in stills(model, film, e)]
    read = [still for e in read_plan(film, store) for still in stills(model, film, e)]
    frames = [still.frame for still in seen]
    assert frames == sorted(set(frames)), "each once, in the order of the film"
    assert max(frames) < film.frames
    rows = keyframes(film)
    assert [(s.segment, s.latent, s.frame) for s in seen] == [
        (segment, latent, frame) for segment in rows for latent, frame in rows[segment]
    ]
    assert [s.latent for s in seen if s.segment == 0] == [0, 1, 2, 3, 10, 11, 12, 19, 20]
    assert [s.latent for s in seen if s.segment == 1] == [2, 3, 10, 11, 12, 19, 20]
    for one, other in zip(seen, read, strict=True):
        assert np.array_equal(one.pixels_HWC, other.pixels_HWC)


def test_stills_beside_the_beginning_are_what_the_film_shows() -> None:
    """Their history is whole; that of later keyframes is a stand-in."""
    model = small_model()
    film = film_of(model, REQUEST)
    events = list(generate(model, REQUEST))
    pixels = np.concatenate([e.pixels_FHWC for e in events if isinstance(e, Frames)]).astype(int)
    plans = [e for e in events if isinstance(e, Planned)]
    seen = {(s.segment, s.latent): s for plan in plans for s in stills(model, film, plan)}
    for place in ((0, 0), (0, 1), (0, 2), (0, 3), (1, 2), (1, 3)):
        still = seen[place]
        assert np.abs(still.pixels_HWC - pixels[still.frame]).max() <= 1, place


def test_a_still_decodes_no_more_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latent frames that are decoded: each run once, with two before it unless it begins the
    segment, and nothing after the last that the film shows."""
    model = small_model()
    film = film_of(model, REQUEST)
    plans = [e for e in generate(model, REQUEST, only_plan=True) if isinstance(e, Planned)]
    decoded = []
    decode = vae.decode

    def counted(params: Any, config: Any, z_BCTHW: torch.Tensor, state: Any = None) -> Any:
        decoded.append(z_BCTHW.shape[2])
        return decode(params, config, z_BCTHW, state)

    monkeypatch.setattr(vae, "decode", counted)
    counts = []
    for plan in plans:
        decoded.clear()
        counts.append((len(list(stills(model, film, plan))), sum(decoded)))
    assert counts == [(9, 9 + 2 + 2), (7, 9 + 2 + 2), (2, 4)]


def test_the_sheet_shows_every_still() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    cells = [np.full((32, 32, 3), colour, np.uint8) for colour in colours]
    rows = [Row("one", [("0:00", cells[0]), ("0:01", cells[1])]), Row("two", [("0:02", cells[2])])]
    size = SheetSize(rows=2, columns=2, still_height=32, still_width=32)
    sheet = np.concatenate(list(storyboard(size, "a title " * 100, rows)))
    assert sheet.shape == (size.height, size.width, 3)
    for colour in colours:
        area = (sheet == colour).all(axis=2).sum()
        assert area >= 110 * 110
    plain = np.concatenate(list(storyboard(size, "", rows)))
    assert not np.array_equal(plain, sheet), "the title is drawn"


def test_a_row_is_drawn_as_it_comes() -> None:
    """A long film has many: no more than one is held."""
    still = np.zeros((32, 32, 3), np.uint8)
    asked = []

    def rows() -> Iterator[Row]:
        for index in range(3):
            asked.append(index)
            yield Row("", [("", still)])

    bands = storyboard(SheetSize(3, 1, 32, 32), "", rows())
    next(bands)
    assert asked == []
    next(bands)
    assert asked == [0]
