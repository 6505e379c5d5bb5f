"""One segment on its own, made group by group in one go: plan and fill together."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mmpl.film.denoise import Context, Network, Sampler
from mmpl.film.segment import Latents, make_group, stack
from mmpl.layout.layout import Group, Layout, needed


def make_segment(
    network: Network,
    layout: Layout,
    context: Context,
    given: Latents,
    sampler: Sampler,
    noise_of: Callable[[Group], Tensor],
) -> dict[int, Tensor]:
    """All latents of a segment, those in `given` as they are; `context` is empty."""
    latents, held = dict(given), set()
    for group in layout.groups:
        if all(frame in latents for frame in group.frames):
            continue
        seen = [g.name for g in needed(layout, group.sees) if g.name not in held]
        held.update(seen)
        making = make_group(
            network, layout, group, seen, context, latents, noise_of(group), sampler
        )
        while True:
            try:
                next(making)
            except StopIteration as end:
                z_BCTHW, context = end.value
                break
        latents.update(zip(group.frames, z_BCTHW.unbind(2), strict=True))
    assert stack(latents, range(layout.frames)).isfinite().all()
    return latents
