"""What a distillation takes of a device's memory, before anything is loaded: three networks at
once, and the larger of its two kinds of updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from mmpl.layout.layout import Layout
from mmpl.layout.presets import bidirectional_window
from mmpl.layout.slots import slot_plan
from mmpl.train.memory import Footprint, Passes, activations, footprint, in_gib, one_pass
from mmpl.train.rollout import Reader, open_memory, velocity
from mmpl.train.teacher_forcing import lesson
from mmpl.wan.cache import kv_commit
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit import dit_shapes
from mmpl.wan.ops import Precision


@dataclass(frozen=True, slots=True)
class DistilMemory:
    """Bytes in one process. `student`, `critic`, `teacher`: weights, averages and optimizers.
    `update`: what comes on top in the update that takes most, by name: gradients, what FSDP has
    whole, the rollout's cache, and what autograd keeps."""

    student: int
    critic: int
    teacher: int
    update: Mapping[str, int]

    @property
    def total(self) -> int:
        return self.student + self.critic + self.teacher + sum(self.update.values())

    def lines(self) -> list[str]:
        """One line per part, in GiB, and their sum."""
        lasting = {name: getattr(self, name) for name in ("student", "critic", "teacher")}
        return in_gib({**lasting, **self.update, "total": self.total})


def distil_memory(  # noqa: PLR0913
    student: DiTConfig,
    teacher: DiTConfig,
    layouts: Sequence[Layout],
    latent_size: tuple[int, int],
    *,
    bidirectional: bool,
    shards: int,
    precision: Precision,
    frozen: torch.dtype,
    checkpointing: bool,
) -> DistilMemory:
    """For one clip at a time, of latents of this height and width. `bidirectional`: the scores are
    of whole clips, not of groups over a clean context. The teacher is stored as `frozen`, student
    and critic in float32. Not counted: buffers of single operations and of passes without gradient,
    the VAE, and what the allocator wastes, to be allowed for with about a tenth."""
    own = footprint(student, set(dit_shapes(student)), shards=shards, frozen=frozen)
    critic = footprint(teacher, set(dit_shapes(teacher)), shards=shards, frozen=frozen)
    real = footprint(teacher, (), shards=shards, frozen=frozen)
    gathered = own.root + critic.root + real.root + max(own.blocks, critic.blocks)
    size_BHW = (1, *latent_size)

    def kept(config: DiTConfig, passes: Passes) -> int:
        return activations(
            config,
            set(dit_shapes(config)),
            passes,
            precision=precision,
            frozen=frozen,
            checkpointing=checkpointing,
        )

    def update(moves: Footprint, cache: int, kept: int) -> dict[str, int]:
        parts = {"gradients": moves.moved, "gathered": gathered + moves.gradients}
        return parts | {"cache": cache, "activations": kept}

    seen = [
        bidirectional_window(layout.frames, 0) if bidirectional else layout for layout in layouts
    ]
    updates = [
        *(
            update(
                own,
                _cache_bytes(student, layout, latent_size, precision),
                kept(student, _rollout(layout, latent_size)),
            )
            for layout in layouts
        ),
        *(
            update(critic, 0, kept(teacher, one_pass(lesson(layout).positions(), size_BHW)))
            for layout in set(seen)
        ),
    ]
    return DistilMemory(
        student=own.weights + own.optimizer + own.moved,
        critic=critic.weights + critic.optimizer,
        teacher=real.weights,
        update=max(updates, key=lambda parts: sum(parts.values())),
    )


def _rollout(layout: Layout, latent_size: tuple[int, int]) -> Passes:
    """The passes of a rollout that have a gradient: one of every group, over those before."""

    def passes(reader: Reader) -> None:
        memory = open_memory(reader, layout, latent_size)
        done = kv_commit(memory.cache, range(memory.cache.slots))
        for group in layout.groups:
            shape = (1, reader.config.in_dim, len(group.frames), *latent_size)
            velocity(replace(memory, cache=done), group, torch.empty(shape, device="meta"), 0.0)

    return passes


def _cache_bytes(
    config: DiTConfig, layout: Layout, latent_size: tuple[int, int], precision: Precision
) -> int:
    """Of keys and values of a rollout."""
    tokens = slot_plan(layout).stored * config.frame_tokens(*latent_size)
    return 2 * config.num_layers * tokens * config.dim * precision.compute.itemsize
