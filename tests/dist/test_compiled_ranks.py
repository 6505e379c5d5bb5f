"""Blocks compiled on ranks that share passes, and stage times that compiling is no part of."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mmpl.film import measure, studio
from mmpl.generate import Made, Mesh, Ranks, Request, film_of, generate
from mmpl.wan.compiled import compiled_block
from mmpl.wan.dit import block
from tests.dist.ranks import run_ranks
from tests.small import small_model

REQUEST = Request("red", 1, frames=5, steps=1, guidance_scale=2.0)
COMPILE_S = 0.2


def made_on(rank: int) -> tuple[int, list[Tensor], list[Tensor]]:
    """How many graphs a rank of two compiles that share passes by Ulysses, and its latents of the
    plain film and the compiled one."""
    graphs: list[torch.fx.GraphModule] = []

    def counting(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    studio.compiled_block = partial(compiled_block, counting)
    group = dist.group.WORLD
    assert group is not None
    model, ranks = small_model(), Ranks(group, Mesh(1, 1, 2))
    found = []
    for choice in ("no", "yes"):
        events = generate(model, REQUEST, ranks=ranks, compiled=choice)
        made = [event.z_BCTHW for event in events if isinstance(event, Made)]
        found.append([z_BCTHW for z_BCTHW in made if z_BCTHW is not None])
    return len(graphs), *found


@pytest.mark.slow  # two processes that load the compiler
def test_shared_passes_are_compiled_in_one_graph_for_each_group() -> None:
    for graphs, plain, compiled in run_ranks(2, made_on):
        assert graphs == len(plain) == 1
        torch.testing.assert_close(compiled[0], plain[0], rtol=0, atol=1e-4)


def test_stage_times_are_those_of_compiled_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    film = film_of(model, Request("red", 1, segments=1))
    opened = studio.open_studio(model, film, studio.readied(model, film))
    compiled: set[str] = set()

    def slow_at_first(network: Any, context: Any, group: Any, z_BCTHW: Tensor) -> Any:
        if group.name not in compiled:
            time.sleep(COMPILE_S)
            compiled.add(group.name)
        return commit(network, context, group, z_BCTHW)

    def another_block(*given: Any) -> Tensor:
        return block(*given)

    commit = measure.commit
    monkeypatch.setattr(measure, "commit", slow_at_first)
    engine = replace(opened.network.engine, block_fn=another_block)
    opened = replace(opened, network=replace(opened.network, engine=engine))
    seconds = measure._passes_s(opened, lambda: None)
    assert compiled == {group.name for group in film.layout.groups}
    assert 0 < max(seconds) < COMPILE_S
