"""Fault points of a run, put into it from outside, and death at one of them.

In a process of its own, `arm` puts itself around the steps of a run: each call to the system that
makes a file durable, each pass of the transformer, each decode and encode, each message. Every
point gets a number in the order of its coming; at the chosen one the process kills itself. What
happens is written down as it happens, in a file that outlives it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import mmpl.film.denoise
import mmpl.film.exchange
import mmpl.film.runtime
import mmpl.film.store
import mmpl.generate
import mmpl.media.durable
import mmpl.wan.vae
from mmpl.generate import Store
from mmpl.layout.work import Task

Key = tuple[int, str, str]  # of a task: segment, kind, group


@dataclass(frozen=True)
class Account:
    """What a process wrote down: the points it came to, the tasks it began, those whose latents
    were durable, and what it said at its end."""

    points: tuple[str, ...]
    begun: tuple[Key, ...]
    kept: frozenset[Key]
    said: str

    @property
    def unfinished(self) -> set[Key]:
        return set(self.begun) - self.kept


class Diary:
    """Written by one process, line by line."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


def read_diary(path: Path) -> Account:
    """The account of a process that may have been killed."""
    lines = [line.partition(" ") for line in path.read_text().splitlines()]
    of = {
        word: [rest for first, _, rest in lines if first == word]
        for word in ("point", "begun", "kept", "said")
    }
    return Account(
        tuple(of["point"]),
        tuple(map(_key, of["begun"])),
        frozenset(map(_key, of["kept"])),
        " ".join(of["said"]),
    )


def arm(diary: Diary, deadly: int | None) -> None:
    """Counts the points of this process from now on; it dies at the `deadly`-th, from 1."""
    count, lock = 0, threading.Lock()  # messages come and go in threads

    def point(name: str, last_act: Callable[[], object] = lambda: None) -> None:
        nonlocal count
        with lock:
            count += 1
            diary.write("point", name)
            if count == deadly:
                last_act()
                os.kill(os.getpid(), signal.SIGKILL)

    def around(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            point(f"before {name}")
            result = function(*args, **options)
            point(f"after {name}")
            return result

        return call

    runtime, exchange = mmpl.film.runtime, mmpl.film.exchange
    mmpl.film.denoise.velocities = around("a pass", mmpl.film.denoise.velocities)
    mmpl.wan.vae.decode = around("a decode", mmpl.wan.vae.decode)
    mmpl.wan.vae.encode = around("an encode", mmpl.wan.vae.encode)
    messages = ("send", "recv", "broadcast", "all_gather")
    exchange.dist = _like(exchange.dist, messages, around)  # type: ignore[assignment]
    calls = ("open", "fsync", "replace")
    mmpl.media.durable.os = _like(os, calls, around)  # type: ignore[assignment]
    put_file, measured = mmpl.media.durable.put, mmpl.generate.measured_costs

    def put_slowly(path: Path, write: Callable[[BinaryIO], object]) -> None:
        def write_slowly(file: BinaryIO) -> None:
            write(file)
            file.flush()
            point("in a write", lambda: os.truncate(file.name, os.path.getsize(file.name) // 2))
            point("after a write")

        put_file(path, write_slowly)

    mmpl.media.durable.put = put_slowly  # type: ignore[assignment]

    def costs_as_thought(studio: Any, *args: Any, **options: Any) -> Any:
        measured(studio, *args, **options)  # its messages are points; its times would be chance
        return mmpl.generate._costs(studio.film)

    mmpl.generate.measured_costs = costs_as_thought
    make, hand_over, put = runtime._make, runtime._hand_over, Store.put

    def make_noted(studio: Any, operation: Any, *args: Any) -> Iterator[Any]:
        diary.write("begun", operation.segment, operation.kind, operation.group)
        return (yield from make(studio, operation, *args))

    def hand_over_noted(studio: Any, segment: int, latents: Any) -> Any:
        diary.write("begun", segment, "hand_over", "")
        return hand_over(studio, segment, latents)

    def put_noted(store: Store, task: Task, z_BCTHW: Any) -> None:
        put(store, task, z_BCTHW)
        diary.write("kept", *key_of(task))

    runtime._make, runtime._hand_over = make_noted, hand_over_noted  # type: ignore[assignment]
    Store.put = put_noted  # type: ignore[method-assign]


def key_of(task: Task) -> Key:
    return task.segment, task.kind, task.group


def _key(line: str) -> Key:
    segment, kind, *group = line.split()
    return int(segment), kind, "".join(group)


def _like(module: Any, names: tuple[str, ...], around: Callable[..., Any]) -> SimpleNamespace:
    """A module, with points around some of its functions."""
    return SimpleNamespace(
        **{name: getattr(module, name) for name in dir(module) if not name.startswith("__")}
        | {name: around(name, getattr(module, name)) for name in names}
    )
