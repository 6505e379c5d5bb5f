"""Latents and finished frames between the teams of one film, over a torch process group.

Everything travels in host memory and float32 or uint8, so the same bytes arrive on any device;
what is sent is a few megabytes a segment. Latents and frames travel apart, so that the one never
holds the other up. For each of the two a neighbour has two threads here: one gives it what is sent,
one takes in what that neighbour's schedule says it will send, in that order, so no message needs a
name.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mmpl.errors import ArgumentError, RankError, SchedulingError
from mmpl.film.runtime import Event, Frames, Made
from mmpl.film.settings import Film
from mmpl.film.team import Team, host_group
from mmpl.layout.schedule import Operation, Schedule
from mmpl.layout.work import SEEDS, Task, Work

T = TypeVar("T")

_Channel = tuple[int, int]  # a team, and a tag

LEADER = 0  # the team to which all frames go
_GO_ON = "finished segments are kept where there is a job folder; run the same command again"
_POLL_S = 0.1  # how often a waiting rank looks up: signals and signs of life must get through


LATENTS, FRAMES = 0, 1  # tags: frames, which are large and late, never hold latents up


@dataclass(frozen=True, slots=True)
class _Message:
    """What comes next from a neighbour: latents, or the frames of a decoded segment."""

    shape: tuple[int, ...]
    frames_of: int | None


class GroupExchange:
    """An `Exchange` over `group`, for the rank that stands in `team`.

    `on_wait` is called again and again while this rank waits. Raises RankError when a neighbour
    is gone.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        team: Team,
        film: Film,
        schedule: Schedule,
        latent_shape: tuple[int, int, int],
        *,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self._group, self._film, self._on_wait = host_group(group), film, on_wait
        self._team = team
        self._threads: list[threading.Thread] = []
        self._awaited = 0  # segments whose frames other ranks will send here
        self._outboxes: dict[_Channel, queue.SimpleQueue[Tensor | None]] = {}
        self._given: queue.SimpleQueue[RankError | None] = queue.SimpleQueue()
        self._arrived: queue.SimpleQueue[Frames | RankError] = queue.SimpleQueue()
        self._latents: dict[int, queue.SimpleQueue[Tensor | RankError]] = {}
        for peer, operations in enumerate(schedule.operations):
            messages = _messages(film, operations, team.index, latent_shape)
            if peer == team.index or not team.leads:
                continue
            frames = [message for message in messages if message.frames_of is not None]
            latents = [message for message in messages if message.frames_of is None]
            self._awaited += len(frames)
            self._latents[peer] = queue.SimpleQueue()
            for tag, awaited in ((LATENTS, latents), (FRAMES, frames)):
                if awaited:
                    self._start(self._take_in, (peer, tag), awaited)

    def send(self, z_BCTHW: Tensor, peer: int) -> None:
        """Starts sending latents to a team."""
        if self._team.leads:
            self._post(z_BCTHW.to("cpu", torch.float32).contiguous(), (peer, LATENTS))

    def gather(self, events: Iterable[Event]) -> Iterator[Event]:
        """The events of this rank, but for frames: those of all ranks come out at the first
        team's leader, not necessarily in order. Ends when everything sent has arrived."""
        pieces: list[Frames] = []
        for event in events:
            if self._team.index == LEADER or not self._team.leads:
                yield event
                while not self._arrived.empty():
                    yield self._frames()
            elif isinstance(event, Frames):
                pieces.append(event)
            else:
                if isinstance(event, Made) and event.task.kind == "decode":
                    pixels_FHWC = np.concatenate([piece.pixels_FHWC for piece in pieces])
                    self._post(torch.from_numpy(pixels_FHWC), (LEADER, FRAMES))
                    pieces.clear()
                yield event
        while self._awaited:
            yield self._frames()
        for outbox in self._outboxes.values():
            outbox.put(None)
        for _ in self._outboxes:
            self._wait(self._given)
        for thread in self._threads:  # none may be in torch when the group goes
            thread.join()

    def receive(self, shape: tuple[int, ...], peer: int) -> Tensor:
        """The next latents from a team."""
        z_BCTHW = self._wait(self._latents[peer]) if self._team.leads else torch.empty(shape)
        if z_BCTHW.shape != shape:
            raise SchedulingError(
                "latents out of order", where=f"from {peer}", got=z_BCTHW.shape, wanted=shape
            )
        if self._team.together is not None:
            self._share(z_BCTHW, self._team.together)
        return z_BCTHW

    def _share(self, z_BCTHW: Tensor, together: dist.ProcessGroup) -> None:
        """From the leader of the team to all of it."""
        try:
            _finish(
                dist.broadcast(z_BCTHW, group=together, group_src=0, async_op=True), self._on_wait
            )
        except RuntimeError as error:
            raise _lost(self._team.leader_of(self._team.index), error) from error

    def _frames(self) -> Frames:
        self._awaited -= 1
        return self._wait(self._arrived)

    def _start(self, target: Callable[..., None], channel: _Channel, *args: object) -> None:
        name = f"{target.__name__} {channel}"
        thread = threading.Thread(target=target, args=(channel, *args), daemon=True, name=name)
        self._threads.append(thread)
        thread.start()

    def _post(self, tensor: Tensor, channel: _Channel) -> None:
        if not self._given.empty():
            self._wait(self._given)  # a neighbour is gone
        if channel not in self._outboxes:
            self._outboxes[channel] = queue.SimpleQueue()
            self._start(self._give, channel)
        self._outboxes[channel].put(tensor)

    def _give(self, channel: _Channel) -> None:
        peer, tag = channel
        rank = self._team.leader_of(peer)
        for tensor in iter(self._outboxes[channel].get, None):
            try:
                dist.send(tensor, group=self._group, group_dst=rank, tag=tag)
            except RuntimeError as error:
                self._given.put(_lost(peer, error))
                return
        self._given.put(None)

    def _take_in(self, channel: _Channel, messages: list[_Message]) -> None:
        peer, tag = channel
        rank = self._team.leader_of(peer)
        for message in messages:
            dtype = torch.float32 if message.frames_of is None else torch.uint8
            tensor = torch.empty(message.shape, dtype=dtype)
            try:
                dist.recv(tensor, group=self._group, group_src=rank, tag=tag)
            except RuntimeError as error:
                self._latents[peer].put(_lost(peer, error))
                self._arrived.put(_lost(peer, error))
                return
            if message.frames_of is None:
                self._latents[peer].put(tensor)
            else:
                segment = message.frames_of
                first = self._film.first_frame(segment)
                self._arrived.put(Frames(segment, first, tensor.numpy()))

    def _wait(self, source: queue.SimpleQueue[T | RankError]) -> T:
        while True:
            try:
                found = source.get(timeout=_POLL_S)
            except queue.Empty:
                self._on_wait()
                continue
            if isinstance(found, RankError):
                raise found
            return found


@contextmanager
def in_touch() -> Iterator[None]:
    """Within the block, what torch raises because a rank is gone is a RankError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):  # which has no type for it
            raise RankError("a rank went away", got=_first_line(error), todo=_GO_ON) from error
        raise


def agreed(
    done: frozenset[Task],
    work: Work,
    group: dist.ProcessGroup,
    *,
    on_wait: Callable[[], None] = lambda: None,
) -> frozenset[Task]:
    """What the leader found finished: the others may have looked a moment later."""
    marks = torch.tensor([task in done for task in work.tasks], dtype=torch.uint8)
    told = dist.broadcast(marks, group=host_group(group), group_src=LEADER, async_op=True)
    _finish(told, on_wait)
    return frozenset(task for task, mark in zip(work.tasks, marks.tolist(), strict=True) if mark)


def gathered(
    own: Tensor, group: dist.ProcessGroup, *, on_wait: Callable[[], None] = lambda: None
) -> list[Tensor]:
    """What each rank of `group` gave, in order; all give tensors of one shape, in host memory.

    Raises RankError when a rank is gone.
    """
    found = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    try:
        _finish(dist.all_gather(found, own, group=host_group(group), async_op=True), on_wait)
    except RuntimeError as error:
        raise RankError("a rank went away", got=_first_line(error), todo=_GO_ON) from error
    return found


def require_equal(text: str, group: dist.ProcessGroup) -> None:
    """Raises ArgumentError on every rank unless all give the same text."""
    own = torch.frombuffer(bytearray(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)
    found = gathered(own, group)
    other = [rank for rank, digest in enumerate(found) if not digest.equal(found[LEADER])]
    if other:
        raise ArgumentError(
            "the processes were started with different versions, settings or weights",
            got=f"ranks {', '.join(map(str, other))} differ from rank {LEADER}",
            todo="give all the same command, model and installation",
        )


def _messages(
    film: Film, operations: tuple[Operation, ...], team: int, latent_shape: tuple[int, int, int]
) -> list[_Message]:
    """What a neighbour with these operations will send to `team`, in order."""
    channels, rows, columns = latent_shape
    found = []
    for operation in operations:
        if operation.kind == "send" and operation.peer == team:
            seeds = operation.group == SEEDS
            latents = film.chain.seeds if seeds else len(film.layout.group(operation.group).frames)
            found.append(_Message((1, channels, latents, rows, columns), None))
        elif operation.kind == "decode" and team == LEADER:
            start, stop = film.kept(operation.segment)
            shape = (stop - start, film.height, film.width, 3)
            found.append(_Message(shape, operation.segment))
    return found


def _lost(peer: int, error: RuntimeError) -> RankError:
    return RankError(f"rank {peer} went away", got=_first_line(error), todo=_GO_ON)


def _finish(work: dist.Work | None, on_wait: Callable[[], None]) -> None:
    """Waits for a collective without falling silent."""
    while work is not None and not work.is_completed():
        on_wait()
        time.sleep(_POLL_S / 100)
    if work is not None:
        work.wait()


def _first_line(error: RuntimeError) -> str:
    return str(error).splitlines()[0][:120]
