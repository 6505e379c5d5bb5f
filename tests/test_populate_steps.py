"""Groups between keyframes may take fewer steps than the keyframes: those stay as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmpl.checkpoint.defaults import Defaults
from mmpl.errors import ArgumentError
from mmpl.film.given_file import read_given
from mmpl.film.job import read_job, revise, revised
from mmpl.film.measure import costs_of
from mmpl.film.revise import finish, revised_request
from mmpl.film.settings import Film, resolve
from mmpl.generate import Made, Pinned, Request, Stepped, Store, film_of, generate, job_of
from mmpl.layout.presets import PRESETS
from tests.small import DEFAULTS, small_model

REQUEST = Request("a red circle", seed=1, segments=2, steps=3, populate_steps=1)
FILLS = {"fill_head", "fill_tail"}
Latents = dict[tuple[int, str], torch.Tensor]


def latents(request: Request | Pinned, store: Store | None = None) -> Latents:
    events = [e for e in generate(small_model(), request, store=store) if isinstance(e, Made)]
    return {
        (e.task.segment, e.task.group or e.task.kind): e.z_BCTHW
        for e in events
        if e.z_BCTHW is not None
    }


def film(request: Request, defaults: Defaults = DEFAULTS) -> Film:
    return resolve(request, defaults, temporal_stride=4, pixel_step=16)


def test_keyframes_are_the_same_and_fills_are_not() -> None:
    few, all_ = latents(REQUEST), latents(replace(REQUEST, populate_steps=None))
    assert few.keys() == all_.keys()
    for (segment, name), z_BCTHW in few.items():
        same = torch.equal(z_BCTHW, all_[segment, name])
        assert same == (name not in FILLS), (segment, name)


def test_fills_are_those_of_a_plan_that_is_given(tmp_path: Path) -> None:
    """The keyframes of a film of equal steps, populated again with one."""
    wanted, before = latents(REQUEST), replace(REQUEST, populate_steps=3)
    planned = film_of(small_model(), before)
    latents(before, Store(tmp_path, job_of(small_model(), planned)))
    revision = finish(planned, tmp_path, {"populate_steps": 1}, {})
    revise(tmp_path, revised(read_job(tmp_path) or {}, revision), revision)
    again = revised_request(before, revision)
    given: dict[int, dict[int, torch.Tensor]] = {}
    for pin, array in read_given(tmp_path, film_of(small_model(), again).pins).items():
        given.setdefault(pin.segment, {})[pin.latent] = torch.from_numpy(array)
    found = latents(Pinned(again, given))
    for (segment, name), z_BCTHW in found.items():
        if name in FILLS:
            assert torch.equal(z_BCTHW, wanted[segment, name]), (segment, name)


def test_progress_counts_the_steps_there_are() -> None:
    steps = [e for e in generate(small_model(), REQUEST) if isinstance(e, Stepped)]
    taken = {e.group: e.steps for e in steps}
    assert taken == {"init": 3, "plan": 3, "fill_head": 1, "fill_tail": 1}
    assert max(e.step for e in steps if e.group == "plan") == 3
    assert steps[-1].work_done == steps[-1].work


def test_costs_that_are_measured_count_the_steps_of_each_group() -> None:
    costs = costs_of(film(REQUEST), [[0.5, 1.0, 2.0, 4.0, 0.1]])
    names = [group.name for group in film(REQUEST).layout.groups]
    assert [costs.make[name] / costs.refresh[name] for name in names] == [
        1 if name in FILLS else 3 for name in names
    ]


@given(
    asked=st.none() | st.integers(1, 60),
    populate=st.none() | st.integers(1, 60),
    usual=st.integers(1, 60),
    usual_populate=st.none() | st.integers(1, 60),
    layout=st.sampled_from(sorted(PRESETS)),
)
def test_what_is_not_said_is_as_the_model_says_but_never_more(
    asked: int | None, populate: int | None, usual: int, usual_populate: int | None, layout: str
) -> None:
    defaults = replace(DEFAULTS, steps=usual, populate_steps=usual_populate)
    request = Request("red", 1, steps=asked, populate_steps=populate, layout=layout, segments=1)
    made = film(request, defaults)
    assert made.steps == (asked or usual)
    assert made.populate_steps == (populate or min(made.steps, usual_populate or made.steps))
    for groups, steps in (
        (made.planning(0), made.steps),
        (made.populating(0), made.populate_steps),
    ):
        assert {made.steps_of[group.name] for group in groups} <= {steps}


@pytest.mark.parametrize("number", [0, -1, 1001])
def test_numbers_out_of_range(number: int) -> None:
    with pytest.raises(ArgumentError, match="populate_steps is out of range"):
        film(replace(REQUEST, populate_steps=number))
    with pytest.raises(ArgumentError, match="populate_steps is out of range"):
        Defaults(populate_steps=number)
