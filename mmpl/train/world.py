"""The processes that train one network together, each on its share of every batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmpl.errors import ArgumentError

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """A process's place among those of `group`; without one it is alone. `device` is where the
    group can move numbers."""

    group: dist.ProcessGroup | None = None
    device: str = "cpu"

    @property
    def size(self) -> int:
        return 1 if self.group is None else self.group.size()

    @property
    def rank(self) -> int:
        return 0 if self.group is None else self.group.rank()

    @property
    def leads(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def share(self, batch: Sequence[Item]) -> Sequence[Item]:
        """This process's part of a batch that all of them draw alike. The mean over the parts is
        the mean over the batch because they are equally long; ArgumentError if they cannot be."""
        each, rest = divmod(len(batch), self.size)
        if rest or not each:
            raise ArgumentError(
                "the batch does not split over the processes",
                got=f"{len(batch)} samples for {self.size} processes",
                wanted=f"a multiple of {self.size}",
            )
        return batch[self.rank * each : (self.rank + 1) * each]

    def mean(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The means over the processes of numbers that all of them name alike."""
        names = sorted(numbers)
        values = [numbers[name] for name in names]
        if self.group is not None:
            summed = torch.tensor(values, dtype=torch.float64, device=self.device)
            dist.all_reduce(summed, group=self.group)
            values = (summed / self.size).tolist()
        return dict(zip(names, values))

    def any(self, here: bool) -> bool:
        """Whether it is so in one of the processes."""
        return self.mean({"": float(here)})[""] > 0

    def average_gradients_(self, weights: Sequence[Tensor]) -> None:
        """Makes the gradients of replicated weights those of the whole batch. Sharded weights are
        left alone: FSDP has done so. A weight that some process has a gradient of gets one on all.
        """
        replicated = [weight for weight in weights if not isinstance(weight, DTensor)]
        if self.group is None or not replicated:
            return
        touched = torch.tensor([w.grad is not None for w in replicated], device=self.device).int()
        dist.all_reduce(touched, group=self.group)
        for weight, times in zip(replicated, touched.tolist()):
            if not times:
                continue
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            dist.all_reduce(weight.grad, group=self.group)
            weight.grad.div_(self.size)

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.group is not None:
            dist.barrier(self.group)


ALONE = World()


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process has, sharing its memory; others unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
