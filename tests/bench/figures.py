"""Figures that depend on no clock: what a block and a denoising step do, counted.

`python -m tests.bench` prints them; `test_figures.py` holds them to their limits.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._inductor import config as inductor_config
from torch._inductor import metrics
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import MultiOutput
from torch._inductor.scheduler import ExternKernelSchedulerNode

from mmpl.film import denoise as stage
from mmpl.film.denoise import Context, Network, Sampler
from mmpl.layout.layout import Group
from mmpl.layout.presets import mmpl_t2v
from mmpl.wan import dit
from mmpl.wan.compiled import compiled_block as block_of_films
from mmpl.wan.dit import Engine, encode_context
from mmpl.wan.dit_block import BlockFn, block
from mmpl.wan.flow import schedule
from mmpl.wan.ops import FLOAT32, Precision
from tests.bench.cases import Row, block_call, inputs, params
from tests.bench.counter import Counts, count

BLOCK = Row(384, 1024, 6, 1, (3, 12, 20))
STEP = Row(96, 128, 2, 2, (6, 4, 4))
STEPS = 3
Figures = dict[str, float]


def block_figures(counts: Counts, row: Row) -> Figures:
    """What a pass through all blocks of `row` did, per block. `peak`: in activations of float32
    [tokens, dim], what the pass was given not counted."""
    numbers = row.tokens * row.dim
    return {
        "kernels": counts.total / row.layers,
        "bytes per token-channel": counts.other_bytes / numbers / row.layers,
        "peak activations": counts.peak_bytes / numbers / 4,
        "allocations": counts.allocations / row.layers,
        "syncs": counts.syncs,
    }


def eager_block(precision: Precision, *, cached: bool, row: Row = BLOCK) -> Figures:
    """Of our block, by itself or reading as many keys again as it writes."""
    call = block_call(row, precision, cached=cached)
    return block_figures(count(call), row)


def compiled_block(precision: Precision, row: Row = BLOCK) -> Figures:
    """Of our block as inductor compiles it for a CPU. `kernels` are the calls in its program: those
    generated, products and attention; `loop nests` is inductor's own count of what it generated;
    bytes are of the generated ones, by inductor's own reckoning."""
    moved = 0
    generated = external = 0
    lower = GraphLowering.codegen

    def lowered(graph: GraphLowering) -> Any:
        nonlocal moved, generated, external
        made = lower(graph)
        outside = [n for n in graph.scheduler.nodes if isinstance(n, ExternKernelSchedulerNode)]
        inside = [n for n in graph.scheduler.nodes if n not in outside]
        moved += sum(node.get_read_write_buffers_sizes() for node in inside)
        external += sum(not isinstance(node.node, MultiOutput) for node in outside)
        source = made[0].value if hasattr(made[0], "value") else str(made[0])
        generated += source.count("async_compile.cpp_pybinding(")
        return made

    torch._dynamo.reset()
    metrics.reset()
    with (
        patch.object(GraphLowering, "codegen", lowered),
        inductor_config.patch(force_disable_caches=True),
    ):
        compiled: BlockFn = torch.compile(block, fullgraph=True, dynamic=False)
        block_call(row, precision, block_fn=compiled)()
    return {
        "kernels": generated + external,
        "generated": generated,
        "loop nests": metrics.generated_kernel_count,
        "bytes per token-channel": moved / (row.tokens * row.dim),
    }


def graphs_per_group(row: Row = STEP) -> Figures:
    """Graphs of the block that each of two segments compiles, for each group of the layout."""
    graphs: list[torch.fx.GraphModule] = []

    def counting(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    network, context = _opened(row, Engine(block_fn=block_of_films(counting)))
    layout, ends = mmpl_t2v(), [0]
    for _ in range(2):
        context = stage.reset(context)
        for group in layout.groups:
            context = _made(network, context, row, group)
        ends.append(len(graphs))
    per_group = [(stop - start) / len(layout.groups) for start, stop in pairwise(ends)]
    return {"first segment": per_group[0], "second segment": per_group[1]}


def step_figures(row: Row = STEP, *, stored: int | None = None) -> Figures:
    """Denoising fill_tail with guidance, its 15 context latents committed, per step. `stored`: how
    many slots have memory, see `open_context`.

    Copied bytes: `of own K and V`, which have to be stored, in all; `besides`, of anything else, in
    latents of the group; `largest`, in the context that one block reads. Calls: of the text's keys
    and values and of the RoPE table in the whole group, of the time embedding per step.
    """
    network, context = _opened(row, Engine(), stored)
    *first, group = mmpl_t2v().groups
    for one in first:
        context = _made(network, context, row, one)
    noise = _latents(row, group)
    sampler = Sampler("euler", schedule("euler", STEPS, 5.0), 5.0)
    with (
        patch.object(stage, "rope_table", wraps=stage.rope_table) as tables,
        patch.object(dit, "rope_table", wraps=dit.rope_table) as more_tables,
        patch.object(dit, "time_embedding", wraps=dit.time_embedding) as times,
        patch.object(dit, "text_embedding", wraps=dit.text_embedding) as texts,
    ):
        counts = count(lambda: list(stage.denoise(network, context, group, noise, sampler)))
    per_latent = row.dim * 4 * row.grid[1] * row.grid[2]
    own = 2 * len(group.frames) * per_latent * row.layers * len(context.branches)
    return {
        "copies of own K and V": counts.copies_bytes / STEPS / own,
        "copied besides": (counts.moved_bytes - counts.copies_bytes) / STEPS / noise.nbytes,
        "largest copy": counts.largest_move / (len(group.sees) * per_latent),
        "syncs": (counts.syncs - 1) / STEPS,  # the one looks whether the result is finite
        "RoPE tables": tables.call_count + more_tables.call_count,
        "time embeddings": times.call_count / STEPS,
        "texts": texts.call_count,
    }


def _opened(row: Row, engine: Engine, stored: int | None = None) -> tuple[Network, Context]:
    config, weights = row.config, params(row.config, FLOAT32)
    generator = torch.Generator().manual_seed(3)
    texts = torch.randn(2, 4, config.text_dim, generator=generator)
    with torch.no_grad():
        keys = tuple(encode_context(weights, config, [text]) for text in texts)
    size = _latents(row, mmpl_t2v().groups[0]).shape[3:]
    network = Network(weights, config, engine)
    context = stage.open_context(
        network, mmpl_t2v(), keys, latent_size=(size[0], size[1]), stored=stored
    )
    return network, context


def _made(network: Network, context: Context, row: Row, group: Group) -> Context:
    z_BCTHW = _latents(row, group)
    stage.velocities(network, context, group, z_BCTHW, 900.0)
    return stage.commit(network, context, group, z_BCTHW)


def _latents(row: Row, group: Group) -> Tensor:
    return inputs(replace(row, grid=(len(group.frames), *row.grid[1:])))[0]
