"""Both branches of guidance as one batch: the same bits, and only where they are the same."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from mmpl.film import together
from mmpl.film.studio import Studio, open_studio, readied
from mmpl.generate import Made, Model, Request, film_of, generate
from mmpl.wan.ops import linear
from mmpl.wan.params import Linear
from tests.small import small_model

REQUEST = Request("a red circle", seed=3, segments=2)


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model()


def studio(model: Model, request: Request = REQUEST) -> Studio:
    film = film_of(model, request)
    return open_studio(model, film, readied(model, film))


def latents(model: Model) -> list[Tensor]:
    made = [event for event in generate(model, REQUEST) if isinstance(event, Made)]
    return [event.z_BCTHW for event in made if event.z_BCTHW is not None]


def test_a_film_has_the_bits_of_one_branch_after_the_other(model: Model) -> None:
    assert [branch.context.clips for branch in studio(model).new_context().branches] == [2]
    got = latents(model)
    with patch.object(together, "MOST_TOKENS", 0):
        assert [branch.context.clips for branch in studio(model).new_context().branches] == [1, 1]
        wanted = latents(model)
    assert len(got) == len(wanted) > 2
    assert all(torch.equal(one, other) for one, other in zip(got, wanted))


def test_without_guidance_there_is_one_branch_of_one_clip(model: Model) -> None:
    alone = studio(model, Request("a red circle", seed=3, guidance_scale=1.0))
    assert [branch.context.clips for branch in alone.new_context().branches] == [1]


def test_rows_that_depend_on_their_number_are_seen(model: Model) -> None:
    """As with a library that picks another kernel for more rows, which sums in another order."""

    def fickle(params: Linear, x: Tensor, dtype: torch.dtype) -> Tensor:
        if len(x) > 1 and x.shape[-1] == model.dit_config.ffn_dim:
            x = x.flip(-1)
            params = Linear(params.weight.flip(-1), params.bias)
        return linear(params, x, dtype)

    assert together.rows_stand_alone(model.dit, 7)
    with patch.object(together, "linear", fickle):
        assert not together.rows_stand_alone(model.dit, 7)
        assert [branch.context.clips for branch in studio(model).new_context().branches] == [1, 1]


def test_long_passes_keep_to_one_branch(model: Model) -> None:
    assert together.together(model.dit, (8, together.MOST_TOKENS))
    assert not together.together(model.dit, (8, together.MOST_TOKENS + 1))
