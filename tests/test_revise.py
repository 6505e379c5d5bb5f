"""A job changed from Python: the same as the verbs of the command line do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mmpl.errors import ArgumentError
from mmpl.film.given_file import read_given
from mmpl.film.job import Revision, read_job, revise, revised
from mmpl.film.revise import extend, finish, reroll, revised_request
from mmpl.generate import Frames, Made, Model, Pinned, Request, Store, film_of, generate, job_of
from tests.small import small_model

REQUEST = Request("a red circle", seed=1, frames=170)  # three segments


def made(model: Model, folder: Path, request: Request) -> tuple[np.ndarray, set[tuple[int, str]]]:
    """The film, and what was made for it now."""
    film = film_of(model, request)
    given: dict[int, dict[int, torch.Tensor]] = {}
    for pin, array in read_given(folder, film.pins).items():
        given.setdefault(pin.segment, {})[pin.latent] = torch.from_numpy(array)
    events = list(generate(model, Pinned(request, given), store=Store(folder, job_of(model, film))))
    now = {(e.task.segment, e.task.group) for e in events if isinstance(e, Made) and e.task.group}
    return np.concatenate([e.pixels_FHWC for e in events if isinstance(e, Frames)]), now


def change(folder: Path, revision: Revision) -> Request:
    revise(folder, revised(read_job(folder) or {}, revision), revision)
    return revised_request(REQUEST, revision)


def test_a_segment_rolled_again(tmp_path: Path) -> None:
    model, film = small_model(), film_of(small_model(), REQUEST)
    before, _ = made(model, tmp_path, REQUEST)
    request = change(tmp_path, reroll(film, tmp_path, 1, seed=9, prompt="a blue square"))
    assert request.prompt == "#1: a red circle\n#2: a blue square\n#3: a red circle"
    after, now = made(model, tmp_path, request)
    assert {segment for segment, _ in now} == {1, 2}
    assert np.array_equal(after[:81], before[:81])
    assert not np.array_equal(after[81:157], before[81:157])


def test_a_segment_rolled_again_that_keeps_its_end(tmp_path: Path) -> None:
    model, film = small_model(), film_of(small_model(), REQUEST)
    before, _ = made(model, tmp_path, REQUEST)
    request = change(tmp_path, reroll(film, tmp_path, 1, seed=9, keep_tail=True))
    after, now = made(model, tmp_path, request)
    assert {segment for segment, _ in now} == {1}
    assert np.array_equal(after[157:], before[157:])
    assert not np.array_equal(after[81:157], before[81:157])


def test_a_longer_film(tmp_path: Path) -> None:
    model, film = small_model(), film_of(small_model(), REQUEST)
    before, _ = made(model, tmp_path, REQUEST)
    longer = film_of(model, Request("a red circle", seed=1, frames=200))
    request = change(tmp_path, extend(film, longer))
    after, _ = made(model, tmp_path, request)
    assert len(after) == 200
    assert np.array_equal(after[:170], before)
    with pytest.raises(ArgumentError, match="not longer"):
        extend(longer, film)


def test_keyframes_kept(tmp_path: Path) -> None:
    model, film = small_model(), film_of(small_model(), REQUEST)
    made(model, tmp_path, REQUEST)
    request = change(tmp_path, finish(film, tmp_path, {"populate_steps": 3}, {}))
    _, now = made(model, tmp_path, request)
    assert {group for _, group in now} == {"fill_head", "fill_tail"}


@pytest.mark.parametrize(("segment", "seed"), [(3, 1), (-1, 1), (0, -1), (0, 2**63)])
def test_what_cannot_be_rolled(tmp_path: Path, segment: int, seed: int) -> None:
    with pytest.raises(ArgumentError):
        reroll(film_of(small_model(), REQUEST), tmp_path, segment, seed=seed)
