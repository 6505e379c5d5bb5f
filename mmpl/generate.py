"""From a prompt to a film: the page to read first, and the interface for other programs.

    model = load_model("weights/tiny")
    for event in generate(model, Request(prompt="a red circle moves right", seed=1)):
        match event:
            case Frames(first_frame=first, pixels_FHWC=pixels): ...

A film is planned, segment after segment: a few keyframes each, whose last two become the seeds of
the next (paper 3.1). The segments are populated and decoded independently (paper 3.2). A schedule
says which rank does what, in which order; one rank first plans the whole film. Nothing here prints,
touches global state, or needs files.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from mmpl import __version__
from mmpl.checkpoint.bundle import Model
from mmpl.checkpoint.bundle import load_model as load_model
from mmpl.checkpoint.bundle import model_from_state_dicts as model_from_state_dicts
from mmpl.film import runtime
from mmpl.film.exchange import LEADER, GroupExchange, agreed, in_touch
from mmpl.film.given import Given, check_given, encode_pictures
from mmpl.film.job import settings_of
from mmpl.film.measure import measured_costs
from mmpl.film.pictures import Pictures, with_pictures
from mmpl.film.runtime import (
    Alone,
    Frames,
    Made,
    Progress,
    carry_out,
    nothing_finished,
)
from mmpl.film.settings import Film, Request, resolve
from mmpl.film.store import Store
from mmpl.film.storyboard import Planned, Plans, Still, stills_of
from mmpl.film.storyboard import read_plan as read_plan
from mmpl.film.studio import Studio, open_studio, readied
from mmpl.film.team import ALONE, Team, form_team
from mmpl.layout.mesh import Mesh
from mmpl.layout.schedule import Costs, Schedule, build_schedule
from mmpl.layout.work import Task, Work, plan_work
from mmpl.wan.attention import resolve_attention
from mmpl.wan.compiled import resolve_compiled
from mmpl.wan.dit_params import compute_dtype, quantised_kind

__all__ = [
    "Film",
    "Frames",
    "Made",
    "Mesh",
    "Pinned",
    "Model",
    "Planned",
    "Ranks",
    "Request",
    "Resumed",
    "Started",
    "Stepped",
    "Still",
    "Store",
    "film_of",
    "generate",
    "Pictures",
    "job_of",
    "load_model",
    "model_from_state_dicts",
    "pinned",
    "read_plan",
    "stills",
]


@dataclass(frozen=True, slots=True)
class Started:
    """The film that will be made, the attention backend that was taken, whether blocks are
    compiled, and the files of the model's `text_cache` that were damaged and are made anew."""

    film: Film
    attention: str
    compiled: bool = False
    damaged: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Resumed:
    """The store had `done` of `tasks` tasks finished; the files `damaged` are made anew."""

    done: int
    tasks: int
    damaged: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Stepped:
    """One denoising step done. `phase` is "plan" or "populate", `segment` counts from 0, and
    `work_done` of `work` frame-steps that this team has in the film are behind us."""

    phase: str
    segment: int
    group: str
    step: int
    steps: int
    work_done: int
    work: int


@dataclass(frozen=True, slots=True, eq=False)
class Ranks:
    """Several processes that make one film, joined in `group`.

    `mesh` says how they share the work; by default each is a team of its own. `on_wait` is called
    again and again while this one waits for another.
    """

    group: dist.ProcessGroup
    mesh: Mesh | None = None
    on_wait: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True, eq=False)
class Pinned:
    """A request, and the latents that its pins name: segment -> latent frame -> z [1, C, H, W]."""

    request: Request
    given: Given


_DECODE_SHARE = 0.05  # of a segment's denoising, which its decode takes
_HAND_OVER_SHARE = _DECODE_SHARE / 4  # a quarter of the frames

Event = Started | Resumed | Stepped | Made | Planned | Frames


def film_of(model: Model, request: Request) -> Film:
    """The film a request means for this model. Raises ArgumentError."""
    return resolve(
        request,
        model.defaults,
        temporal_stride=model.vae_config.temporal_stride,
        pixel_step=model.vae_config.spatial_stride * model.dit_config.patch_size[1],
    )


def generate(  # noqa: PLR0913  by name, and none has to be given
    model: Model,
    request: Request | Pinned,
    *,
    attention: str = "auto",
    compiled: str = "auto",
    ranks: Ranks | None = None,
    mode: str = "adaptive",
    order: str | None = None,
    store: Store | None = None,
    only_plan: bool = False,
) -> Generator[Event, None, None]:
    """Makes the film of `request`; yields progress, and frames as they become final, in order.

    Works on the device of the model's weights. `attention` names a backend, see
    `mmpl.wan.attention`; `compiled` says whether torch compiles the transformer's block: "yes",
    "no" or "auto", see `mmpl.wan.compiled`. With `ranks` every process of the group calls this with
    equal arguments: each does its part, and rank 0 yields the frames. `mode` and `order` are those
    of `build_schedule`; by default one team plans first and several hurry to the film. With a
    `store` (see `job_of`), shared by all ranks, what is finished is kept and not made again.
    `only_plan`: the keyframes of all segments and no more; there are no frames then. Latents and
    frames are the same bits for any number of ranks, mode, order and interruption; only with
    Ulysses, which divides the sequence, they differ by rounding.

    Raises ArgumentError for a request that cannot be, NumericError for latents that are not
    finite, RankError when another rank is gone. The caller may stop between any two events.
    """
    wanted = request if isinstance(request, Pinned) else Pinned(request, {})
    film = film_of(model, wanted.request)
    mesh = Mesh(1) if ranks is None else ranks.mesh or Mesh(dist.get_world_size(ranks.group))
    check_given(film, wanted.given)
    with in_touch():
        team = ALONE
        if ranks is not None:
            branches = 1 if film.guidance_scale == 1.0 else 2
            team = form_team(ranks.group, mesh, heads=model.dit_config.num_heads, branches=branches)
        ready = readied(model, film, attention, compiled, team)
        studio = open_studio(model, film, ready, wanted.given)
        yield Started(film, ready.attention, ready.compiled, ready.damaged)
        del ready  # the studio may have joined its texts

        work = film.work
        if only_plan:
            work = plan_work(work)
        done, damaged = _finished(work, team, ranks, store)
        if done or damaged:
            yield Resumed(len(done), len(work.tasks), damaged)
        plan = _plan(studio, work, done, team, mesh, ranks, mode, order)
        events = _carried_out(studio, plan, team, ranks, store)
        progress, plans, reel = _Progress(film, plan, team.index), Plans(film, plan.work), _Reel()
        for event in events:
            match event:
                case Progress():
                    yield progress.count(event)
                case Made():
                    yield event
                    if event.z_BCTHW is not None:
                        yield from plans.enter(event.task, event.z_BCTHW)
                case Frames():
                    yield from reel.enter(event)


def pinned(model: Model, request: Request, pictures: Pictures) -> Pinned:
    """The request with `pictures` in its film, and their latents, for `generate`.

    Raises ArgumentError for pixels of another size and moments outside the film.
    """
    request = with_pictures(request, film_of(model, request), pictures, model.defaults.layout_i2v)
    film = film_of(model, request)
    return Pinned(request, encode_pictures(model.vae_here(), model.vae_config, film, pictures))


def stills(model: Model, film: Film, planned: Planned) -> Iterator[Still]:
    """A still of each keyframe of a segment that the film shows and no segment before it has."""
    return stills_of(model.vae_to_show(), model.vae_config, film, planned)


def job_of(
    model: Model,
    film: Film,
    attention: str = "auto",
    compiled: str = "auto",
    mesh: Mesh | None = None,
) -> dict[str, dict[str, object]]:
    """All that the bits of a film's latents depend on: what its `Store` is to be made with.
    `attention` and `compiled` as given to `generate`, and the `mesh` of its `ranks`."""
    compute, kind = compute_dtype(model.dit), quantised_kind(model.dit)
    ulysses = mesh is not None and mesh.ulysses > 1
    compiles, _ = resolve_compiled(compiled, model.device, model.dit_config, ulysses=ulysses)
    machine = {
        "device": model.device.type,
        "dtype": str(compute).removeprefix("torch."),
        "quantize": kind or "none",
        "attention": resolve_attention(attention, model.device, compute)[0],
        "compile": "yes" if compiles else "no",
        "threads": torch.get_num_threads(),
    }
    return {
        "settings": settings_of(film) | machine,
        "weights": dict(model.digests),
        "versions": {"mmpl": __version__, "torch": str(torch.__version__)},
    }


def _finished(
    work: Work, team: Team, ranks: Ranks | None, store: Store | None
) -> tuple[frozenset[Task], tuple[Path, ...]]:
    """What the store holds, the same on all ranks; damaged files are known to the leader alone."""
    done: frozenset[Task] = frozenset()
    damaged: tuple[Path, ...] = ()
    if store is not None and team.index == LEADER and team.leads:
        done, damaged = store.look(work)
    if ranks is not None:
        done = agreed(done, work, ranks.group, on_wait=ranks.on_wait)
    return done, damaged


def _plan(
    studio: Studio,
    work: Work,
    done: frozenset[Task],
    team: Team,
    mesh: Mesh,
    ranks: Ranks | None,
    mode: str,
    order: str | None,
) -> Schedule:
    """Who does what is not done yet; the same on all ranks."""
    costs = _costs(studio.film)
    if ranks is not None and mesh.teams > 1 and mode == "adaptive":
        costs = measured_costs(studio, team, mesh, ranks.group, on_wait=ranks.on_wait)
    order = order or ("plan_first" if mesh.teams == 1 else "film_first")
    return build_schedule(work, mesh.teams, costs, mode=mode, order=order, done=done)


def _carried_out(
    studio: Studio, plan: Schedule, team: Team, ranks: Ranks | None, store: Store | None
) -> Iterator[runtime.Event]:
    """What this rank does of the schedule, and the frames that others send it."""
    exchange = Alone()
    if ranks is not None:
        shape = studio.latent_shape
        exchange = GroupExchange(ranks.group, team, studio.film, plan, shape, on_wait=ranks.on_wait)
    finished = nothing_finished if store is None else store.get
    beside = studio.device.type == "cuda" and studio.beside
    events = carry_out(
        studio, plan, team.index, exchange, finished, decodes=team.leads, beside=beside
    )
    if store is not None and team.leads:
        events = _keeping(store, events)
    return exchange.gather(events) if isinstance(exchange, GroupExchange) else events


def _keeping(store: Store, events: Iterable[runtime.Event]) -> Iterator[runtime.Event]:
    """The events; what is made is durable before anybody hears of it."""
    for event in events:
        if isinstance(event, Made) and event.z_BCTHW is not None:
            store.put(event.task, event.z_BCTHW)
        yield event


def _costs(film: Film) -> Costs:
    """What the tasks cost in proportion: frame-steps, and a little for the VAE."""
    steps_of = film.steps_of
    make = {g.name: float(steps_of[g.name] * len(g.frames)) for g in film.layout.groups}
    refresh = {g.name: float(len(g.frames)) for g in film.layout.groups}
    whole = sum(make.values())
    return Costs(make, refresh, hand_over=_HAND_OVER_SHARE * whole, decode=_DECODE_SHARE * whole)


class _Progress:
    """Counts this rank's frame-steps over the whole film, for an ETA."""

    def __init__(self, film: Film, plan: Schedule, team: int) -> None:
        self._frames = {group.name: len(group.frames) for group in film.layout.groups}
        makes = [o.group for o in plan.operations[team] if o.kind == "make"]
        steps_of = film.steps_of
        self._work = sum(steps_of[name] * self._frames[name] for name in makes)
        self._planning = {task.group for task in plan.work.planning}
        self._done = 0

    def count(self, event: Progress) -> Stepped:
        step = event.step
        self._done += self._frames[step.group]
        phase = "plan" if step.group in self._planning else "populate"
        return Stepped(
            phase, event.segment, step.group, step.step, step.steps, self._done, self._work
        )


class _Reel:
    """Frames in the order of the film; what comes early waits."""

    def __init__(self) -> None:
        self._next_frame = 0
        self._early: dict[int, Frames] = {}

    def enter(self, frames: Frames) -> Iterator[Frames]:
        """Takes in frames; yields all that are next."""
        self._early[frames.first_frame] = frames
        while (piece := self._early.pop(self._next_frame, None)) is not None:
            self._next_frame += len(piece.pixels_FHWC)
            yield piece
