"""Where a rank stands: which team of the mesh it belongs to, and with whom it shares what."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist

from mmpl.errors import ArgumentError
from mmpl.layout.mesh import Mesh, check_mesh


@dataclass(frozen=True, slots=True, eq=False)
class Team:
    """A rank's place in a mesh. Ranks of a team follow each other; the first one leads: it alone
    sends, receives and decodes. `together`: the ranks of the team, in host memory. `pair`: the
    ranks that take one branch of guidance each. `ulysses`: the ranks that share a pass."""

    index: int
    leads: bool
    size: int
    together: dist.ProcessGroup | None = None
    pair: dist.ProcessGroup | None = None
    ulysses: dist.ProcessGroup | None = None

    def leader_of(self, team: int) -> int:
        """The rank that leads a team."""
        return team * self.size


ALONE = Team(index=0, leads=True, size=1)


def form_team(group: dist.ProcessGroup, mesh: Mesh, *, heads: int, branches: int) -> Team:
    """This rank's team, with the process groups it needs; every rank of `group` must call it.

    Raises ArgumentError for a mesh of another number of ranks, or that the model does not allow.
    """
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    if mesh.ranks != ranks:
        raise ArgumentError(
            "the mesh is of another number of ranks", got=f"{mesh}", wanted=f"{ranks} in all"
        )
    check_mesh(mesh, heads, branches)
    size = mesh.cfg * mesh.ulysses
    index, place = divmod(rank, size)
    half, column = divmod(place, mesh.ulysses)
    first = index * size
    return Team(
        index=index,
        leads=place == 0,
        size=size,
        together=_subgroup(group, range(first, first + size), host=True),
        pair=_subgroup(group, range(first + column, first + size, mesh.ulysses)),
        ulysses=_subgroup(
            group, range(first + half * mesh.ulysses, first + (half + 1) * mesh.ulysses)
        ),
    )


def host_group(group: dist.ProcessGroup) -> dist.ProcessGroup:
    """The group, or one of the same ranks that can move host memory."""
    if "cpu" in dist.get_backend_config(group):
        return group
    return _made(dist.get_process_group_ranks(group), "gloo")


def _subgroup(
    group: dist.ProcessGroup, ranks: range, *, host: bool = False
) -> dist.ProcessGroup | None:
    """Some ranks of `group`, this one among them; None where that is nobody else."""
    if len(ranks) == 1:
        return None
    everyone = dist.get_process_group_ranks(group)
    return _made([everyone[rank] for rank in ranks], "gloo" if host else None)


def _made(ranks: list[int], backend: str | None) -> dist.ProcessGroup:
    made = dist.new_group(ranks, backend=backend, use_local_synchronization=True)
    if not isinstance(made, dist.ProcessGroup):
        raise ArgumentError("this process is not in the process group", got=ranks)
    return made
