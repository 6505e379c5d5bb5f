"""A transformer as `train` takes it: whole in every process, or sharded over them by FSDP2.

FSDP gathers the parameters of a module when that is called and shards their gradients after it, so
it needs modules: the only ones of this package, shells around the functions of `mmpl.wan.dit`. A
shell is read like the parameters it stands for; what it holds is whole while it is being called.

    world = World(dist.group.WORLD, device)  # under torchrun, once the group is joined
    network = sharded(flat, config, trained, world, engine)
    train(network.start, network.around(loss_of), recipe, run, world=world)

where `loss_of(weights)` uses `network.params_of(weights)`, `network.engine` and its
`world.share(batch)`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from mmpl.errors import ArgumentError
from mmpl.train.loop import Loss, LossOf, Weights
from mmpl.train.world import World
from mmpl.wan.cache import LayerKV
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit import DEFAULT_ENGINE, DiTParams, Engine, dit_from_flat
from mmpl.wan.dit_block import BlockFn, Shared, TextFn
from mmpl.wan.dit_params import BlockParams
from mmpl.wan.ops import Precision
from mmpl.wan.params import to_flat

Value = TypeVar("Value")


class Within(Protocol):
    """Does something with a network's parameters, which may be read nowhere else."""

    def __call__(self, action: Callable[[], Value], /) -> Value: ...


def plainly(action: Callable[[], Value]) -> Value:
    """The `Within` of parameters that are always there."""
    return action()


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A transformer about to be trained.

    `start`: the trained weights, for `train`. `params_of`: all parameters, from the weights that
    `train` hands to a loss. `engine`: to be used with them. `within`: where they may be used.
    """

    start: Weights
    params_of: Callable[[Weights], DiTParams]
    engine: Engine
    within: Within = plainly

    def around(self, loss_of: LossOf) -> LossOf:
        """The loss as `train` must get it, from one that uses the parameters freely."""

        def within(weights: Weights) -> Loss:
            loss = loss_of(weights)
            return lambda step: self.within(lambda: loss(step))

        return within


def whole(
    flat: Mapping[str, Tensor],
    config: DiTConfig,
    trained: Collection[str],
    engine: Engine = DEFAULT_ENGINE,
) -> Network:
    """The network with every weight in every process. `flat`: official keys; `trained`: those of
    them that training moves, as float32 copies whatever they are stored as. ArgumentError for
    others."""
    start = {n: t.detach().clone().requires_grad_() for n, t in _chosen(flat, trained).items()}
    frozen = {name: tensor for name, tensor in flat.items() if name not in start}
    return Network(start, lambda w: dit_from_flat({**frozen, **w}, config), engine)


def sharded(
    flat: Mapping[str, Tensor],
    config: DiTConfig,
    trained: Collection[str],
    world: World,
    engine: Engine = DEFAULT_ENGINE,
) -> Network:
    """The network with every weight, trained or not, spread over the processes of `world`.

    All of them must call this with the same weights. A block is whole only while it computes, which
    is why its function must not keep parts of it: `checkpointed` sees to that in narrow formats,
    where autograd would keep a narrow copy of every weight. ArgumentError for a lone process.
    """
    if world.group is None:
        raise ArgumentError("one process alone has nothing to shard the weights over")
    chosen = _chosen(flat, trained)
    params = dit_from_flat({**flat, **chosen}, config)
    root = _Root(params, set(map(id, chosen.values())))
    mesh = DeviceMesh.from_group(world.group, torch.device(world.device).type)
    for shell in root.blocks:
        fully_shard(shell, mesh=mesh)
        register_fsdp_forward_method(shell, "text_kv")
    fully_shard(root, mesh=mesh)
    official = {id(tensor): name for name, tensor in to_flat(params).items()}
    start = {official[key]: weight for key, weight in root.held() if official[key] in chosen}

    engine = replace(engine, block_fn=_called(engine.block_fn), text_fn=_text_called(engine))
    return Network(start, lambda _: cast("DiTParams", root), engine, root)


class _Shell(nn.Module):
    """A tree of parameters as modules of the same field names. `trained`: ids of the tensors that
    get gradients."""

    def __init__(self, tree: object, trained: set[int]) -> None:
        super().__init__()
        self._came_from: dict[str, int] = {}
        for field in fields(tree):  # type: ignore[arg-type]
            name, value = field.name, getattr(tree, field.name)
            if isinstance(value, Tensor):
                self.register_parameter(name, nn.Parameter(value, id(value) in trained))
                self._came_from[name] = id(value)
            elif isinstance(value, tuple):
                self.add_module(name, nn.ModuleList(_Block(part, trained) for part in value))
            else:
                self.add_module(name, _Shell(value, trained))

    def held(self) -> list[tuple[int, Tensor]]:
        """All parameters as they are now, each with the id of the tensor it was made from."""
        shells = [module for module in self.modules() if isinstance(module, _Shell)]
        return [(key, getattr(s, name)) for s in shells for name, key in s._came_from.items()]


class _Block(_Shell):
    """One block; to FSDP a unit of its own. FSDP finds what is returned only as tensors in tuples,
    and warns of views, which blocks return: hence the copies."""

    def forward(
        self,
        block_fn: BlockFn,
        config: DiTConfig,
        x_BLD: Tensor,
        shared: Shared,
        text: LayerKV,
        cached: LayerKV | None,
    ) -> Tensor:
        return block_fn(cast("BlockParams", self), config, x_BLD, shared, text, cached).clone()

    def text_kv(
        self, text_fn: TextFn, config: DiTConfig, y_BJD: Tensor, precision: Precision
    ) -> tuple[Tensor, Tensor]:
        made = text_fn(cast("BlockParams", self), config, y_BJD, precision)
        return made.k_BSNK.clone(), made.v_BSNK.clone()


class _Root(_Shell):
    """The whole network. Calling it does something with what no block holds gathered."""

    blocks: nn.ModuleList

    def forward(self, action: Callable[[], Value]) -> Value:
        return action()


def _called(block_fn: BlockFn) -> BlockFn:
    """`block_fn` inside a call of the block that it is given."""

    def block(
        params: BlockParams,
        config: DiTConfig,
        x_BLD: Tensor,
        shared: Shared,
        text: LayerKV,
        cached: LayerKV | None,
    ) -> Tensor:
        return cast("_Block", params)(block_fn, config, x_BLD, shared, text, cached)

    return block


def _text_called(engine: Engine) -> TextFn:
    def text(
        params: BlockParams, config: DiTConfig, y_BJD: Tensor, precision: Precision
    ) -> LayerKV:
        return LayerKV(*cast("_Block", params).text_kv(engine.text_fn, config, y_BJD, precision))

    return text


def _chosen(flat: Mapping[str, Tensor], trained: Collection[str]) -> Weights:
    wanted = set(trained)
    unknown = sorted(wanted - set(flat))
    if unknown:
        raise ArgumentError("no such weights to train", got=", ".join(unknown[:3]))
    return {name: tensor.float() for name, tensor in flat.items() if name in wanted}
