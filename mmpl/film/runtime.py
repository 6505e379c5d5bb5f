"""Carries out a schedule: what one team does, operation after operation.

One rank is a schedule of one team. The same operations give the same bits wherever they run: a
team that needs another's context makes it again from the final latents.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmpl.errors import NumericError, SchedulingError
from mmpl.film.denoise import Context, commit, reset
from mmpl.film.segment import (
    Latents,
    Step,
    group_noise,
    group_renoise,
    hand_over,
    make_group,
    refreshed,
    stack,
)
from mmpl.film.settings import Film
from mmpl.film.studio import Studio, sampler_of
from mmpl.layout.given import GIVEN
from mmpl.layout.schedule import Operation, Schedule
from mmpl.layout.work import SEEDS, Task
from mmpl.media.pixels import to_uint8
from mmpl.wan import vae


@dataclass(frozen=True, slots=True)
class Progress:
    """A denoising step of a segment is done."""

    segment: int
    step: Step


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A task is done, here; its result is final. Of a decode it is None: `Frames` came before.

    `start_s`, `stop_s`: on the clock of `time.monotonic`, which processes of a machine share.
    """

    task: Task
    z_BCTHW: Tensor | None
    start_s: float
    stop_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Final pixels, uint8 RGB, of a segment, from film frame `first_frame` on."""

    segment: int
    first_frame: int
    pixels_FHWC: NDArray[np.uint8]


Event = Progress | Made | Frames
_Order = tuple[Task, Latents, torch.cuda.Event | None]  # to decode, once the GPU has the latents


class Exchange(Protocol):
    """How final latents travel between teams. Between two teams they arrive in the order sent."""

    def send(self, z_BCTHW: Tensor, peer: int) -> None:
        """Starts sending and returns at once."""
        ...

    def receive(self, shape: tuple[int, ...], peer: int) -> Tensor:
        """Waits for the next float32 latents from a team."""
        ...


class Alone:
    """The exchange of a single team: there is nobody to send to."""

    def send(self, z_BCTHW: Tensor, peer: int) -> None:
        raise SchedulingError("a schedule of several teams needs an exchange", got=f"team {peer}")

    def receive(self, shape: tuple[int, ...], peer: int) -> Tensor:
        raise SchedulingError("a schedule of several teams needs an exchange", got=f"team {peer}")


def nothing_finished(task: Task) -> Tensor:
    """The latents of tasks finished before, for a film that starts anew."""
    raise SchedulingError("no store to read finished latents from", got=task)


def carry_out(
    studio: Studio,
    schedule: Schedule,
    team: int,
    exchange: Exchange,
    finished: Callable[[Task], Tensor] = nothing_finished,
    *,
    decodes: bool = True,
    beside: bool = False,
) -> Generator[Event, None, None]:
    """Does the operations of `team`; yields what is done, as it is done.

    `finished`: the latents of a task in `schedule.done`. `decodes`: false for a rank that leaves
    that to the leader of its team. `beside`: decodes run beside the denoising, in a thread, on a
    GPU in a stream of their own. Raises NumericError for latents that are not finite.
    """
    decoder = _Decoder(studio) if decodes and beside else None
    try:
        for event in _carry_out(studio, schedule, team, exchange, finished, decodes, decoder):
            yield event
            if decoder is not None:
                yield from decoder.arrived()
        if decoder is not None:
            yield from decoder.arrived(all_of_it=True)
    finally:
        if decoder is not None:
            decoder.stop()


def _carry_out(
    studio: Studio,
    schedule: Schedule,
    team: int,
    exchange: Exchange,
    finished: Callable[[Task], Tensor],
    decodes: bool,
    decoder: _Decoder | None,
) -> Generator[Event, None, None]:
    book = _Book(studio.film, schedule, lambda task: finished(task).to(studio.device))
    maker, operations = _GroupMaker(studio), schedule.operations[team]
    last_use = _last_use(operations)
    for index, operation in enumerate(operations):
        segment = operation.segment
        if operation.kind == "send":
            exchange.send(book.result(operation), operation.peer)
        elif operation.kind == "receive":
            shape = book.shape(operation, studio.latent_shape)
            z_BCTHW = exchange.receive(shape, operation.peer).to(studio.device)
            book.enter(segment, operation.group, z_BCTHW)
        else:
            task = Task(segment, operation.kind, operation.group)
            latents, start_s = book.open(task), time.monotonic()
            z_BCTHW = None
            if operation.kind == "decode" and decoder is not None:
                decoder.start(task, latents)
            elif operation.kind == "decode" and decodes:
                yield from _decoded(studio, task, latents)
            elif operation.kind == "make":
                z_BCTHW = yield from maker.make(operation, latents)
                if studio.gives_way and not _goes_on(operations, index):
                    maker.clear()
            elif operation.kind == "hand_over":
                z_BCTHW = _hand_over(studio, segment, latents)
            if z_BCTHW is not None:
                book.enter(segment, _result(task), z_BCTHW)
                yield Made(task, z_BCTHW, start_s, time.monotonic())
        book.close(index, last_use)


def decode(studio: Studio, segment: int, latents: Latents) -> Iterator[Frames]:
    """The frames the film shows of a segment, piece by piece in constant memory."""
    film, config = studio.film, studio.vae_config
    start, stop = film.kept(segment)
    wanted = (stack(latents, piece).float() for piece in studio.pieces(segment))
    videos = vae.decode_each(studio.vae_to_show(), config, wanted)
    frame = 0
    while frame < stop:
        with torch.no_grad():
            video_BCFHW = next(videos, None)
        if video_BCFHW is None:
            return
        kept_CFHW = video_BCFHW[0, :, max(0, start - frame) : stop - frame]
        if kept_CFHW.shape[1]:
            first = film.first_frame(segment) + max(0, frame - start)
            yield Frames(segment, first, to_uint8(kept_CFHW))
        frame += video_BCFHW.shape[2]


def _decoded(studio: Studio, task: Task, latents: Latents) -> Iterator[Event]:
    start_s = time.monotonic()
    yield from decode(studio, task.segment, latents)
    yield Made(task, None, start_s, time.monotonic())


class _Decoder:
    """Decodes one segment after the other beside the denoising, in a thread."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        self._open, self._stopped = 0, False
        self._on_gpu = studio.device.type == "cuda"
        threading.Thread(target=self._work, daemon=True, name="decode").start()

    def start(self, task: Task, latents: Latents) -> None:
        """Begins with a segment as soon as those before are done."""
        ready = None
        if self._on_gpu:
            ready = torch.cuda.Event()
            ready.record(torch.cuda.current_stream(self._studio.device))
        self._orders.put((task, dict(latents), ready))
        self._open += 1

    def arrived(self, *, all_of_it: bool = False) -> Iterator[Event]:
        """What has been decoded since, or all that was begun."""
        while self._open if all_of_it else not self._events.empty():
            event = self._events.get()
            if isinstance(event, BaseException):
                raise event
            self._open -= isinstance(event, Made)
            yield event

    def stop(self) -> None:
        """Ends the thread, within a latent frame."""
        self._stopped = True
        self._orders.put(None)

    def _work(self) -> None:
        stream = torch.cuda.Stream(self._studio.device) if self._on_gpu else None
        with torch.cuda.stream(stream):
            for task, latents, ready in iter(self._orders.get, None):
                if stream is not None and ready is not None:
                    stream.wait_event(ready)
                try:
                    for event in _decoded(self._studio, task, latents):
                        self._events.put(event)
                        if self._stopped:
                            return
                except BaseException as error:  # noqa: BLE001  raised where it is waited for
                    self._events.put(error)


class _GroupMaker:
    """Makes groups, in the context of the segment that they belong to. What was cleared away comes
    again from the final latents, to the bit."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._context: Context | None = None
        self._segment = -1
        self._seen: tuple[str, ...] = ()

    def make(self, operation: Operation, latents: Latents) -> Generator[Progress, None, Tensor]:
        """The latents of a group, given ones among them as they are."""
        if operation.segment != self._segment:
            self._segment, self._seen = operation.segment, ()
            self._context = _open_segment(self._studio, self._context, operation.segment)
        again: tuple[str, ...] = ()
        if self._context is None:
            again = self._seen
            self._context = _open_segment(self._studio, None, operation.segment)
        self._seen += operation.refresh
        operation = replace(operation, refresh=again + operation.refresh)
        z_BCTHW, self._context = yield from _make(self._studio, operation, self._context, latents)
        return z_BCTHW

    def clear(self) -> None:
        """Leaves the memory of the context to others."""
        self._context = None


def _goes_on(operations: tuple[Operation, ...], index: int) -> bool:
    """Whether the next that takes memory after a group is another one of its segment."""
    for operation in operations[index + 1 :]:
        if operation.kind in ("make", "hand_over", "decode"):
            return (operation.kind, operation.segment) == ("make", operations[index].segment)
    return False


def _open_segment(studio: Studio, context: Context | None, segment: int) -> Context:
    """The storage of `context`, or new, with nothing in it but what is given in the segment."""
    layout = studio.layout_of(segment)
    context = context or studio.new_context()
    context = reset(context, studio.texts[studio.film.cue(segment)], layout)
    if layout is studio.film.layout:
        return context
    given = layout.group(GIVEN)
    z_BCTHW = stack(studio.given[segment], given.frames)
    return commit(studio.network, context, given, z_BCTHW)


def _make(
    studio: Studio, operation: Operation, context: Context, latents: Latents
) -> Generator[Progress, None, tuple[Tensor, Context]]:
    """The latents of a group, given ones among them as they are, and the context it leaves."""
    film, segment = studio.film, operation.segment
    whole, given = film.layout.group(operation.group), studio.given.get(segment, {})
    layout = studio.layout_of(segment)
    # First, so that a GPU does it while the noise is drawn here.
    context = refreshed(studio.network, layout, operation.refresh, context, latents)
    if set(whole.frames) <= given.keys():
        return stack(given, whole.frames), context
    group = layout.group(operation.group)
    noise_BCTHW = group_noise(film, segment, whole, studio.latent_shape, studio.device)
    renoise = group_renoise(film, segment, group, studio.latent_shape, studio.device)
    making = make_group(
        studio.network,
        layout,
        group,
        (),
        context,
        latents,
        noise_BCTHW[:, :, [whole.frames.index(frame) for frame in group.frames]],
        sampler_of(film, film.steps_of[group.name], renoise),
    )
    try:
        while True:
            yield Progress(segment, next(making))
    except StopIteration as end:
        made_BCTHW, context = end.value
        made = {**given, **dict(zip(group.frames, made_BCTHW.unbind(2), strict=True))}
        return stack(made, whole.frames), context
    except NumericError as error:
        raise _of_segment(error, segment) from error


def _hand_over(studio: Studio, segment: int, latents: Latents) -> Tensor:
    try:
        seeds = hand_over(studio.vae_here(), studio.vae_config, studio.film.chain, latents)
    except NumericError as error:
        raise _of_segment(error, segment) from error
    return stack(seeds, sorted(seeds))


def _of_segment(error: NumericError, segment: int) -> NumericError:
    where = ", ".join(filter(None, (f"segment {segment + 1}", error.where)))
    return NumericError(error.what, where=where, todo=error.todo)


class _Book:
    """The latents that are here, by segment, for as long as some operation may read them."""

    def __init__(self, film: Film, schedule: Schedule, finished: Callable[[Task], Tensor]) -> None:
        self._film, self._schedule, self._finished = film, schedule, finished
        self._latents: dict[int, dict[int, Tensor]] = {}

    def enter(self, segment: int, name: str, z_BCTHW: Tensor) -> None:
        """Notes the result called `name` of a task of `segment`."""
        owner, frames = self._place(segment, name)
        here = self._latents.setdefault(owner, {})
        here.update(zip(frames, z_BCTHW.unbind(2), strict=True))

    def open(self, task: Task) -> Latents:
        """The latents that `task` may read; what was finished before is fetched."""
        for need in self._schedule.work.needs[task]:
            owner, frames = self._place(need.segment, _result(need))
            missing = any(frame not in self._latents.get(owner, {}) for frame in frames)
            if missing and need in self._schedule.done:
                self.enter(need.segment, _result(need), self._finished(need))
        return self._latents.get(task.segment, {})

    def result(self, operation: Operation) -> Tensor:
        """The latents that a send carries."""
        owner, frames = self._place(operation.segment, operation.group)
        return stack(self._latents[owner], frames)

    def shape(self, operation: Operation, latent_shape: tuple[int, int, int]) -> tuple[int, ...]:
        """The shape of what a receive brings, BCTHW."""
        _, frames = self._place(operation.segment, operation.group)
        channels, rows, columns = latent_shape
        return 1, channels, len(frames), rows, columns

    def close(self, index: int, last_use: Mapping[int, int]) -> None:
        """Forgets the segments that no operation after `index` reads."""
        for segment in [s for s in self._latents if last_use.get(s, -1) <= index]:
            del self._latents[segment]

    def _place(self, segment: int, name: str) -> tuple[int, tuple[int, ...]]:
        """The segment that a result belongs to, and its frames there."""
        if name == SEEDS:
            return segment + 1, tuple(range(self._film.chain.seeds))
        return segment, self._film.layout.group(name).frames


def _result(task: Task) -> str:
    """What the latents of a task are called."""
    return SEEDS if task.kind == "hand_over" else task.group


def _last_use(operations: tuple[Operation, ...]) -> dict[int, int]:
    """The last operation that reads or writes each segment's latents."""
    last: dict[int, int] = {}
    for index, operation in enumerate(operations):
        last[operation.segment] = index
        if operation.kind == "hand_over" or operation.group == SEEDS:
            last[operation.segment + 1] = index
    return last
