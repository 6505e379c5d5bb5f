"""A segment in the making: every group over the context that it has in a film."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmpl.film.denoise import Context, Network, commit, open_context, place, velocities
from mmpl.layout.layout import Group, Layout
from mmpl.layout.presets import mmpl_t2v
from mmpl.layout.slots import slot_plan, stored_slots
from mmpl.wan.dit import CrossKV, Engine, encode_context
from mmpl.wan.dit_params import DiTParams
from tests.bench.gpu.flops import group_tokens, pass_flops
from tests.bench.gpu.lab import Lab, Size

TEXT = 40  # tokens of the prompt
TIME = 900.0  # of the passes, on the scale to 1000


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A segment of random latents. `contexts`: of each group, with what is committed before it;
    all share their memory."""

    size: Size
    layout: Layout
    network: Network
    contexts: dict[str, Context]

    def latents(self, lab: Lab, group: Group) -> Tensor:
        """Noise of a group's shape."""
        return lab.noise(1, self.size.dit.in_dim, len(group.frames), *self.size.latent_size)

    def pass_call(
        self, lab: Lab, group: Group, engine: Engine | None = None, *, branches: int = 1
    ) -> Callable[[], Any]:
        """A denoising step's forward of a group, by some of the branches of guidance."""
        whole, x_BCTHW = self.contexts[group.name], self.latents(lab, group)
        context = replace(whole, branches=whole.branches[:branches])
        network = self.network if engine is None else replace(self.network, engine=engine)
        placed = place(network, context, group, x_BCTHW)
        return lambda: velocities(network, context, group, x_BCTHW, TIME, placed)

    def flops(self, group: Group) -> int:
        """Operations of that, for one branch."""
        slots = slot_plan(self.layout)
        return pass_flops(self.size.dit, *group_tokens(slots, group.name, self.size.frame_tokens))


def texts_of(lab: Lab, params: DiTParams, size: Size, engine: Engine, count: int) -> list[CrossKV]:
    """What the branches read."""
    tokens = min(TEXT, size.dit.text_len)
    words = [lab.noise(tokens, size.dit.text_dim, dtype=lab.compute) for _ in range(count)]
    return [encode_context(params, size.dit, [text], engine=engine) for text in words]


@torch.no_grad()
def segment(lab: Lab, size: Size, *, branches: int = 1, kind: str | None = None) -> Scene:
    """A segment of a film of this size, with the memory that a film has for it; `kind`: of 8-bit
    matrices."""
    layout, engine = mmpl_t2v(), lab.engine()
    network = Network(lab.transformer(size.dit, kind), size.dit, engine)
    texts = tuple(texts_of(lab, network.params, size, engine, branches))
    context = open_context(
        network,
        layout,
        texts,
        latent_size=size.latent_size,
        device=lab.device,
        stored=stored_slots(layout, {group.name for group in layout.groups}),
    )
    return begun(lab, size, layout, network, context)


def begun(lab: Lab, size: Size, layout: Layout, network: Network, context: Context) -> Scene:
    """A segment whose groups are all made but the last, from an empty context."""
    scene = Scene(size, layout, network, {})
    for group in layout.groups:
        scene.contexts[group.name] = context
        if group is not layout.groups[-1]:
            context = commit(network, context, group, scene.latents(lab, group))
    return scene
