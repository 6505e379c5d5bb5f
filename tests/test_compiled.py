"""The compiled block where films are made: compiled once per group, chosen by name, left out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.film import studio, together
from mmpl.generate import Made, Mesh, Model, Request, Started, film_of, generate, job_of
from mmpl.layout.work import Task
from mmpl.wan import compiled
from mmpl.wan.choices import OFFLOADS, QUANTISED
from mmpl.wan.compiled import CompiledBlock, compiled_block, resolve_compiled
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit_params import dit_held
from mmpl.wan.offload import Offload
from tests.small import small_model

REQUEST = Request("red", 1, segments=2, steps=2, guidance_scale=2.0)
GROUPS = 4


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """What is compiled, as far as the graph: a compiler takes a minute."""
    found: list[torch.fx.GraphModule] = []

    def counting(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        found.append(graph)
        return graph

    torch._dynamo.reset()
    monkeypatch.setattr(studio, "compiled_block", partial(compiled_block, counting))
    return found


def latents(
    model: Model, request: Request = REQUEST, choice: str = "yes", see: Callable[[Any], Any] = id
) -> dict[Task, Tensor]:
    made: dict[Task, Tensor] = {}
    for event in generate(model, request, compiled=choice, order="film_first"):
        see(event)
        if isinstance(event, Made) and event.z_BCTHW is not None:
            made[event.task] = event.z_BCTHW
    return made


def near(found: dict[Task, Tensor], wanted: dict[Task, Tensor], most: float = 1e-4) -> bool:
    assert found.keys() == wanted.keys()
    return max(float((found[task] - wanted[task]).abs().max()) for task in found) < most


@pytest.mark.parametrize("most_tokens", [0, together.MOST_TOKENS], ids=["apart", "one batch"])
def test_a_film_compiles_each_group_once_and_nothing_after_its_first_segment(
    graphs: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch, most_tokens: int
) -> None:
    monkeypatch.setattr(together, "MOST_TOKENS", most_tokens)
    model, seen = small_model(), {}

    def note(event: Any) -> None:
        if isinstance(event, Made) and event.task.kind == "make":
            seen[event.task] = len(graphs)

    found = latents(model, see=note)
    assert near(found, latents(model, choice="no"))
    first = [count for task, count in seen.items() if task.segment == 0]
    assert first == [1, 2, 3, 4]
    assert max(seen.values()) == len(graphs) == GROUPS
    latents(model, replace(REQUEST, seed=2, segments=1))
    assert len(graphs) == GROUPS  # nor of the next film of this size


@pytest.mark.parametrize("kind", OFFLOADS[1:])
def test_offloaded_blocks_are_compiled_as_those_that_are_there(
    graphs: list[torch.fx.GraphModule], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "MOST_TOKENS", 0)
    model, request = small_model(), replace(REQUEST, segments=None, frames=9)
    wanted = latents(model, request)
    count = len(graphs)
    found = latents(replace(model, offload=Offload(kind)), request)
    assert all(torch.equal(found[task], wanted[task]) for task in wanted)
    assert len(graphs) == count > 0


@pytest.mark.parametrize("kind", QUANTISED)
def test_blocks_in_8_bits_are_compiled(graphs: list[torch.fx.GraphModule], kind: str) -> None:
    model = small_model()
    model = replace(model, dit=dit_held(model.dit, torch.float32, kind))
    request = replace(REQUEST, segments=None, frames=9)
    assert near(latents(model, request), latents(model, request, "no"))
    assert len(graphs) > 0


def test_layouts_of_more_groups_than_torch_compiles_by_itself(
    graphs: list[torch.fx.GraphModule],
) -> None:
    limit = torch._dynamo.config.recompile_limit
    latents(small_model(), Request("red", 1, frames=33, steps=1, layout="chunked_1"))
    assert len(graphs) == 9 > limit
    assert torch._dynamo.config.recompile_limit == limit


def test_what_cannot_be_compiled_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch says it. It does not say so here: after a failure its frames stay in place of
    Python's, which let go of nothing that is given away, and tests of memory would see it."""

    def broken(*_: object) -> Tensor:
        raise torch._dynamo.exc.TorchDynamoException("no compiler\nof any kind")  # pyright: ignore[reportAttributeAccessIssue]

    monkeypatch.setattr(studio, "compiled_block", lambda: CompiledBlock(broken, nullcontext()))
    with pytest.raises(ArgumentError, match="cannot compile.*no compiler.*--compile no") as error:
        latents(small_model())
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------- the choice

LARGE, SMALL = DiTConfig(), DiTConfig(dim=96, num_heads=2)


@pytest.fixture
def all_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that has what it takes to compile for a GPU."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(compiled, "find_spec", lambda name: name)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: name)
    monkeypatch.setattr(compiled.sysconfig, "get_path", lambda name: str(tmp_path))


@pytest.mark.usefixtures("all_there")
@pytest.mark.parametrize(
    ("name", "device", "config", "ulysses", "taken"),
    [
        ("auto", "cuda", LARGE, False, True),
        ("auto", "cuda:1", LARGE, False, True),
        ("auto", "cuda", SMALL, False, False),
        ("auto", "cpu", LARGE, False, False),
        ("yes", "cpu", SMALL, True, True),
        ("no", "cuda", LARGE, False, False),
    ],
)
def test_the_choice(name: str, device: str, config: DiTConfig, ulysses: bool, taken: bool) -> None:
    assert resolve_compiled(name, device, config, ulysses=ulysses) == (taken, "")


@pytest.mark.usefixtures("all_there")
@pytest.mark.parametrize(
    ("missing", "why"),
    [("triton", "Triton"), ("gcc", "C compiler"), ("headers", "python3-dev"), ("", "Ulysses")],
)
def test_what_is_missing_on_a_gpu_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str, why: str
) -> None:
    if missing == "triton":
        monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    if missing == "gcc":
        monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    if missing == "headers":
        (tmp_path / "Python.h").unlink()
    found, told = resolve_compiled("auto", "cuda", LARGE, ulysses=not missing)
    assert not found
    assert why in told


def test_another_choice_is_refused() -> None:
    with pytest.raises(ArgumentError, match="auto, yes, no"):
        resolve_compiled("maybe", "cpu", SMALL)


def test_a_job_knows_how_its_latents_were_made(graphs: list[torch.fx.GraphModule]) -> None:
    model = small_model()
    film = film_of(model, REQUEST)
    for choice, taken in (("yes", "yes"), ("no", "no"), ("auto", "no")):
        assert job_of(model, film, "auto", choice, Mesh(1, 1, 2))["settings"]["compile"] == taken
        started = next(generate(model, REQUEST, compiled=choice))
        assert isinstance(started, Started)
        assert started.compiled == (taken == "yes")
    assert graphs == []  # before a pass
