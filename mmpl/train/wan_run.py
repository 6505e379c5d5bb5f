"""The tuning of a Wan-family transformer in a run folder, from a model to a checkpoint.

The folder holds what was trained and knows the model that it was trained from; the rest of the
weights stay there, and are put together with the trained ones at the end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mmpl.checkpoint.bundle import Transformer
from mmpl.checkpoint.write import write_transformer
from mmpl.errors import CheckpointError
from mmpl.train.loop import Progress, Recipe, train
from mmpl.train.memory import MemoryPlan, memory_plan
from mmpl.train.origin import origin_of
from mmpl.train.parallel import Network, sharded, whole
from mmpl.train.state import averaged_weights, last_weights
from mmpl.train.trainable import trained
from mmpl.train.tuning import Tuning
from mmpl.train.wan_loss import Clips, samples_of, teaching, tuning_loss
from mmpl.train.world import ALONE, World
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit import DEFAULT_ENGINE, Engine, dit_cast, dit_from_flat, dit_shapes
from mmpl.wan.ops import FLOAT32, natural_precision
from mmpl.wan.params import to_flat


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is tuned. `trains`: see `trainable`. Passes compute in `dtype`; `flex` hides by
    FlexAttention, not by dense pieces; `shard` spreads the weights over the processes."""

    trains: str
    tuning: Tuning
    recipe: Recipe
    dtype: torch.dtype
    flex: bool = False
    shard: bool = False


def tune(
    transformer: Transformer,
    clips: Clips,
    run: Path,
    plan: Plan,
    *,
    device: str = "cpu",
    engine: Engine = DEFAULT_ENGINE,
    world: World = ALONE,
    save_every: int = 100,
) -> Iterator[Progress]:
    """Trains in the folder `run`, resuming what is there; yields progress every step.

    Trained weights are held in float32, the frozen ones as passes read them. Raises what `train`
    and `tuning_loss` do.
    """
    engine = replace(engine, precision=natural_precision(plan.dtype))
    network = network_of(
        transformer,
        trained(plan.trains, transformer.flat),
        device=device,
        engine=engine,
        world=world,
        shard=plan.shard,
    )
    loss = tuning_loss(
        transformer.config,
        network.params_of,
        clips,
        plan.tuning,
        engine=network.engine,
        share=(world.rank, world.size),
        flex=plan.flex,
    )
    yield from train(
        network.start,
        network.around(loss),
        plan.recipe,
        run,
        setting={
            "network": transformer.config,
            "model": transformer.digest,
            "trains": plan.trains,
            "tuning": plan.tuning,
            "dtype": str(plan.dtype),
            "data": sorted(clips.made.items()),
        },
        save_every=save_every,
        report_every=1,
        samples_of=samples_of(clips, plan.tuning),
        world=world,
    )


def network_of(
    transformer: Transformer,
    names: Collection[str],
    *,
    device: str,
    engine: Engine,
    world: World,
    shard: bool,
) -> Network:
    """A stored transformer on the device, about to be trained: the weights `names` in float32, the
    others as passes of the engine's precision read them, spread over the processes if `shard`."""
    flat, masters, config = transformer.flat, set(names), transformer.config
    read: Mapping[str, Tensor] = {}
    if masters < flat.keys():
        read = to_flat(dit_cast(dit_from_flat(flat, config), engine.precision or FLOAT32))
    used = {name: flat[name].float() if name in masters else read[name] for name in flat}
    if shard:  # which moves block after block to the device, where no network may fit whole
        return sharded(used, config, names, world, engine)
    used = {name: tensor.to(device) for name, tensor in used.items()}
    return whole(used, config, names, engine)


def export(run: Path, transformer: Transformer, path: str | Path, *, raw: bool = False) -> int:
    """Writes the whole transformer in official keys, as `write_transformer` does; returns the
    run's step.

    The weights are the averaged ones (EMA), or the last ones if `raw`; a .pt holds both unless
    `raw`. Trained weights are written in float32, the others as they are stored. Raises
    CheckpointError for another transformer than the run began with, and what `averaged_weights`
    does.
    """
    origin = origin_of(run)
    if transformer.digest != origin.digest:
        raise CheckpointError(
            "this run was begun with another transformer",
            where=origin.checkpoint or origin.model_path,
            got=f"digest {transformer.digest[:12]}",
            wanted=origin.digest[:12],
            todo="put the old file back, or give --model_path and --checkpoint where it is now",
        )
    if not trained(origin.trains, transformer.flat):
        write_transformer(path, transformer.flat)
        return 0
    last, step = last_weights(run)
    averaged = None if raw else {**transformer.flat, **averaged_weights(run)[0]}
    write_transformer(path, {**transformer.flat, **last}, averaged)
    return step


def plan_of_memory(
    config: DiTConfig, plan: Plan, latent_size: tuple[int, int], *, shards: int, checkpointing: bool
) -> MemoryPlan:
    """What `tune` takes of a device, for latents of this height and width."""
    return memory_plan(
        config,
        trained(plan.trains, dit_shapes(config)),
        teaching(config, plan.tuning).lesson.positions(),
        (1, *latent_size),
        shards=shards,
        precision=natural_precision(plan.dtype),
        frozen=plan.dtype,
        checkpointing=checkpointing,
    )
