"""A compiled block: one graph, equal results, one compilation per step of the layout."""

from __future__ import annotations

import torch

from mmpl.layout.presets import mmpl_t2v
from mmpl.layout.slots import slot_plan
from mmpl.wan.cache import KVCache, SlotView, kv_allocate, kv_commit
from mmpl.wan.dit import Engine, Positions, block, dit, encode_context
from tests.small import CONFIGS, small_dit

CONFIG = CONFIGS.dit
HEIGHT, WIDTH = 2, 2


@torch.no_grad()
def test_one_compilation_per_group_whatever_the_number_of_segments() -> None:
    torch._dynamo.reset()  # torch counts all compilations of a function towards one limit
    graphs: list[torch.fx.GraphModule] = []

    def counting(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(block, fullgraph=True, dynamic=False, backend=counting)
    generator = torch.Generator().manual_seed(0)
    params = small_dit()
    text = encode_context(params, CONFIG, [torch.randn(1, CONFIG.text_dim, generator=generator)])
    plan = slot_plan(mmpl_t2v())

    for _ in range(2):
        eager, fast = empty(plan.slots), empty(plan.slots)
        for step in plan.passes:
            frames = Positions(step.frames, SlotView(step.write, step.read, step.gather))
            size = (1, CONFIG.in_dim, len(step.frames), HEIGHT, WIDTH)
            for timestep in (800.0, 0.0):
                x = torch.randn(size, generator=generator)
                t = torch.full((1, len(step.frames)), timestep)
                wanted = dit(params, CONFIG, x, t, text, eager, frames=frames)
                engine = Engine(block_fn=compiled)
                got = dit(params, CONFIG, x, t, text, fast, frames=frames, engine=engine)
                assert torch.allclose(got, wanted, atol=1e-5)
            eager, fast = (kv_commit(cache, range(*step.write)) for cache in (eager, fast))
        assert torch.allclose(eager.k_IBSNK, fast.k_IBSNK, atol=1e-5)
        assert len(graphs) == len(plan.passes)


def empty(slots: int) -> KVCache:
    frame_tokens = CONFIG.frame_tokens(HEIGHT, WIDTH)
    return kv_allocate(CONFIG, batch=1, slots=slots, frame_tokens=frame_tokens)
