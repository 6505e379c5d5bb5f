"""Films on a device of their own: nothing of the host's memory gets between its tensors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mmpl.film import runtime
from mmpl.film.runtime import Alone, Frames, Made, carry_out
from mmpl.film.settings import Film, Request
from mmpl.film.studio import Studio, open_studio, readied
from mmpl.generate import film_of
from mmpl.layout.schedule import Costs, build_schedule
from mmpl.layout.work import Task
from mmpl.wan.choices import SOLVERS
from mmpl.wan.dit_params import dit_held
from mmpl.wan.offload import Offload
from mmpl.wan.params import tree_map
from tests.one_device import OneDevice, truth
from tests.small import small_model

META = "meta"


def studio_on_meta(film_request: Request, quantize: str | None = None) -> Studio:
    model = small_model()
    film = film_of(model, film_request)
    dit = dit_held(model.dit, torch.bfloat16, quantize)
    parts = (tree_map(lambda leaf: leaf.to(META), part) for part in (dit, model.vae, model.text))
    dit, vae, text = parts
    model = replace(model, dit=dit, vae=vae, text=text, offload=Offload("none", META))
    return open_studio(model, film, readied(model, film, "sdpa"))


@pytest.fixture(autouse=True)
def nothing_is_asked_of_what_has_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "isfinite", truth)
    monkeypatch.setattr(
        runtime, "to_uint8", lambda x_CFHW: np.zeros((*x_CFHW.shape[1:], 3), dtype=np.uint8)
    )


def made(studio: Studio, done: frozenset[Task] = frozenset()) -> list[Task | int]:
    """The tasks that are done of the film, and how many frames came."""
    film = studio.film
    shares = {group.name: 1.0 for group in film.layout.groups}
    costs = Costs(shares, shares)
    plan = build_schedule(film.work, 1, costs, order="plan_first", done=done)
    found: list[Task | int] = []
    with OneDevice():
        for event in carry_out(studio, plan, 0, Alone(), lambda task: latents(film, task)):
            if isinstance(event, Made):
                found.append(event.task)
                assert event.z_BCTHW is None or event.z_BCTHW.device.type == META
            if isinstance(event, Frames):
                found.append(len(event.pixels_FHWC))
    return found


def latents(film: Film, task: Task) -> Tensor:
    """What a store has of a task: in the host's memory."""
    frames = 2 if task.kind == "hand_over" else len(film.layout.group(task.group).frames)
    return torch.zeros(1, 4, frames, 4, 4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_stays_on_the_device(solver: str) -> None:
    quantize = {"euler": "fp8", "dpm++": "int8"}.get(solver)
    studio = studio_on_meta(Request("red", 1, frames=9, solver=solver, steps=3), quantize)
    assert sum(one for one in made(studio) if isinstance(one, int)) == 9


def test_what_was_finished_before_goes_to_the_device() -> None:
    studio = studio_on_meta(Request("red", 1, segments=2, steps=1))
    work = studio.film.work
    first = [task for task in work.tasks if task.segment == 0 and task.kind != "decode"]
    for done in (first[:-1], first):
        found = made(studio, frozenset(done))
        assert {one for one in found if isinstance(one, Task)} == {*work.tasks} - {*done}
