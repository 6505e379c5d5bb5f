"""How the ranks of a machine are divided into teams, what a mesh costs, and which one to take.

A cost model of arithmetic and of bytes over links; it knows sizes and rates, not tensors. Its
answers are predictions: measured stage times, where there are any, go to `schedule` instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mmpl.errors import ArgumentError
from mmpl.layout.layout import Group, Layout
from mmpl.layout.schedule import Costs, Schedule, build_schedule
from mmpl.layout.simulate import Timeline, makespan_bound, simulate
from mmpl.layout.slots import stored_slots
from mmpl.layout.work import Work

HALF, FULL = 2, 4  # bytes of a number: in keys, values and activations; in latents
EXCHANGES = 4  # all-to-all of queries, keys, values, and of what attention returns


@dataclass(frozen=True, slots=True)
class Mesh:
    """`teams` teams work on different segments. In each, `cfg` halves take one branch of guidance
    apiece (1: one takes both), and within a half `ulysses` ranks share the sequence and, during
    attention, the heads."""

    teams: int
    cfg: int = 1
    ulysses: int = 1

    def __post_init__(self) -> None:
        if self.teams < 1 or self.cfg not in (1, 2) or self.ulysses < 1:
            raise ArgumentError(
                "no such mesh", got=str(self), wanted="teams x cfg (1, 2) x ulysses"
            )

    @property
    def ranks(self) -> int:
        return self.teams * self.cfg * self.ulysses

    def __str__(self) -> str:
        return f"{self.teams} x cfg {self.cfg} x ulysses {self.ulysses}"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the cost of a transformer depends on.

    `frame_tokens`: of a latent frame. `text_tokens`: of a prompt, padded. `token_values`: numbers
    of the latent in a token. `weight_bytes`: parameters as they are kept on every rank.
    """

    dim: int
    ffn_dim: int
    heads: int
    layers: int
    frame_tokens: int
    text_tokens: int
    token_values: int
    weight_bytes: float = 0.0

    def flops(self, group: Group) -> float:
        """Floating-point operations of one pass of one branch over the group's frames (a multiply
        and an add are two). Keys and values of the text are there already."""
        tokens = len(group.frames) * self.frame_tokens
        linear = self.layers * (12 * self.dim**2 + 4 * self.dim * self.ffn_dim)
        keys = len(group.reads) * self.frame_tokens + self.text_tokens
        ends = 4 * self.token_values * self.dim  # patch embedding and head
        return float(tokens) * (linear + 4 * self.layers * self.dim * keys + ends)


@dataclass(frozen=True, slots=True)
class Machine:
    """What one rank achieves: floating-point operations a second, and bytes a second to each of
    its peers. `hand_over_s`, `decode_s`: of the VAE on one rank; both run aside. `ulysses_loss`:
    share of speed lost with every doubling of `ulysses`, as pieces get smaller. `memory_bytes`:
    of a rank, for weights, keys and values."""

    flops: float
    bandwidth: float
    hand_over_s: float = 0.0
    decode_s: float = 0.0
    ulysses_loss: float = 0.02
    memory_bytes: float = math.inf

    def __post_init__(self) -> None:
        if not (self.flops > 0 and self.bandwidth > 0 and self.memory_bytes > 0):
            raise ArgumentError(
                "a machine without speed or memory",
                got=f"{self.flops} FLOP/s, {self.bandwidth} B/s, {self.memory_bytes} B",
                wanted="more than 0",
            )


@dataclass(frozen=True, slots=True)
class Choice:
    """A mesh with what it promises: costs, schedule and times by the simulator, bytes a rank."""

    mesh: Mesh
    costs: Costs
    schedule: Schedule
    timeline: Timeline
    rank_bytes: float


def meshes(ranks: int, heads: int, branches: int) -> tuple[Mesh, ...]:
    """Every mesh of exactly `ranks` ranks for a model of `heads` heads; `branches` of guidance."""
    return tuple(mesh for mesh in _widest(ranks, heads, branches) if mesh.ranks == ranks)


def check_mesh(mesh: Mesh, heads: int, branches: int) -> None:
    """Raises ArgumentError for a mesh that the model does not allow."""
    if heads % mesh.ulysses:
        fits = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise ArgumentError(
            "ulysses does not divide the heads",
            got=f"ulysses {mesh.ulysses}, {heads} heads",
            wanted=f"one of {fits}",
        )
    if mesh.cfg > branches:
        raise ArgumentError(
            "cfg 2 shares out the two branches of guidance, but guidance is off",
            got=str(mesh),
            wanted="cfg 1",
        )


def stage_costs(
    layout: Layout,
    sizes: Sizes,
    machine: Machine,
    mesh: Mesh,
    *,
    steps: Mapping[str, int],
    branches: int,
) -> Costs:
    """What the stages cost on a team of `mesh`. `steps`: of each group, by its name.

    The all-to-all of Ulysses is not overlapped with arithmetic; the halves of a guidance pair
    exchange the group's velocity after every pass. Latents travel between teams at full precision.
    """
    check_mesh(mesh, sizes.heads, branches)
    one_pass = {
        group.name: branches / mesh.cfg * _pass_s(group, sizes, machine, mesh)
        for group in layout.groups
    }
    largest = max(len(group.frames) for group in layout.groups)
    return Costs(
        make={name: steps[name] * seconds for name, seconds in one_pass.items()},
        refresh=one_pass,
        hand_over=machine.hand_over_s,
        decode=machine.decode_s,
        transfer=_latent_bytes(sizes, largest) / machine.bandwidth,
        aside=("hand_over", "decode"),
    )


def rank_bytes(work: Work, sizes: Sizes, mesh: Mesh, branches: int) -> float:
    """Memory of one rank: all weights, and its share of the keys and values that are kept."""
    tokens = stored_slots(work.layout, work.made) * sizes.frame_tokens
    both = 2 * tokens * sizes.dim * sizes.layers * HALF  # keys and values
    return sizes.weight_bytes + both * branches / mesh.cfg / mesh.ulysses


def choose_mesh(
    work: Work,
    ranks: int,
    sizes: Sizes,
    machine: Machine,
    *,
    steps: Mapping[str, int],
    branches: int,
    order: str = "film_first",
) -> Choice:
    """The mesh of at most `ranks` ranks with the shortest makespan by the adaptive schedule; of
    equal ones the one with the fewest ranks.

    Raises ArgumentError if the model fits the memory of no mesh.
    """
    layout = work.layout
    promising: list[tuple[float, int, Mesh, Costs]] = []
    for mesh in _widest(ranks, sizes.heads, branches):
        if rank_bytes(work, sizes, mesh, branches) <= machine.memory_bytes:
            costs = stage_costs(layout, sizes, machine, mesh, steps=steps, branches=branches)
            bound = makespan_bound(work, mesh.teams, costs)
            promising.append((bound, mesh.ranks, mesh, costs))
    if not promising:
        least = min(
            rank_bytes(work, sizes, mesh, branches)
            for mesh in _widest(ranks, sizes.heads, branches)
        )
        raise ArgumentError(
            "weights, keys and values do not fit into the memory of a rank",
            got=f"{machine.memory_bytes / 1e9:.1f} GB a rank, {ranks} ranks",
            wanted=f"{least / 1e9:.1f} GB at least",
        )
    best: Choice | None = None
    for bound, _, mesh, costs in sorted(promising, key=lambda entry: entry[:2]):
        if best is not None and bound >= best.timeline.makespan_s:
            break  # this one and all that follow cannot be better
        schedule = build_schedule(work, mesh.teams, costs, order=order)
        timeline = simulate(schedule, costs)
        if best is None or timeline.makespan_s < best.timeline.makespan_s:
            best = Choice(mesh, costs, schedule, timeline, rank_bytes(work, sizes, mesh, branches))
    assert best is not None  # there was at least one
    return best


def _widest(ranks: int, heads: int, branches: int) -> list[Mesh]:
    """For every way to build a team, as many teams as `ranks` allow; some ranks may be left."""
    if min(ranks, heads, branches) < 1:
        raise ArgumentError(
            "no ranks, heads or branches", got=f"{ranks}, {heads}, {branches}", wanted=">= 1 each"
        )
    return [
        Mesh(ranks // (cfg * ulysses), cfg, ulysses)
        for cfg in range(1, min(branches, 2, ranks) + 1)
        for ulysses in range(1, ranks // cfg + 1)
        if heads % ulysses == 0
    ]


def _pass_s(group: Group, sizes: Sizes, machine: Machine, mesh: Mesh) -> float:
    """Seconds of one pass of one branch on the ranks that share it."""
    share = mesh.ulysses
    loss = (1 + machine.ulysses_loss) ** math.floor(math.log2(share))
    compute = sizes.flops(group) / share / machine.flops * loss
    tokens = len(group.frames) * sizes.frame_tokens / share
    sent = EXCHANGES * tokens * sizes.dim * HALF * (share - 1) / share * sizes.layers
    swapped = _latent_bytes(sizes, len(group.frames)) if mesh.cfg > 1 else 0.0
    return compute + (sent + swapped) / machine.bandwidth


def _latent_bytes(sizes: Sizes, frames: int) -> float:
    return float(frames * sizes.frame_tokens * sizes.token_values * FULL)
