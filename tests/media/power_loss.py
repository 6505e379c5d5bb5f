"""A disk that loses power: what it may hold afterwards, by what POSIX promises and no more.

`recorded` notes what really happens in a folder as events. `crash_states` enumerates all that a
disk may hold when the power goes after some of them:

- content that was not synced since it was written is any of its prefixes, or any length of blocks
  each of which is the new one, the old one or zeros;
- of the names made, moved and removed in a folder since that folder was synced, any subset has
  happened, those of one name in their order. A move is atomic for its new name, which never has
  nothing; the old name may be there still;
- syncing a file keeps its content and none of its names, not even in a new folder; syncing a folder
  keeps the names in it, not what they stand for, and not its own.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_OPEN, _CLOSE, _FSYNC, _REPLACE = os.open, os.close, os.fsync, os.replace


@dataclass(frozen=True, slots=True)
class Write:
    file: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Name:
    """`name` in `folder` stands for `inode` now, or for nothing; `moved` from another name."""

    folder: int
    name: str
    inode: int | None
    moved: str = ""


@dataclass(frozen=True, slots=True)
class Sync:
    inode: int


@dataclass(frozen=True, slots=True)
class Done:
    """The program was told that all before is durable."""


Event = Write | Name | Sync | Done
Names = dict[str, int]
State = frozenset[tuple[str, bytes | None]]  # relative path and content; None for a folder


# ------------------------------------------------------------------------------- what happens


class Recorder:
    """The events in the folder `root`, each found before or after a call that may matter.

    Writes and names are found by looking: whoever makes them, Python, C or Rust, is seen. Inodes
    are held open, so that none is used again for another file.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.inode, self.events = root, root.stat().st_ino, list[Event]()
        self._names: dict[int, Names] = {}
        self._contents: dict[int, bytes] = {}
        self._held: list[int] = []

    @property
    def folders(self) -> frozenset[int]:
        return frozenset(self._names)

    def look(self) -> None:
        """Notes what has changed in the folder and those below since the last time."""
        self._look(self.root)

    def settled(self) -> None:
        """Takes all that is there for durable."""
        self.look()
        self.events += [Sync(inode) for inode in (*self._names, *self._contents)]
        self.done()

    def done(self) -> None:
        """To be called when the program was told that all before is durable."""
        self.look()
        self.events.append(Done())

    def _look(self, folder: Path) -> None:
        inode = folder.stat().st_ino
        if inode not in self._names:
            self._hold(folder)
        known = self._names.setdefault(inode, {})
        found = {path.name: path for path in folder.iterdir()}
        for name in [name for name in known if name not in found]:
            self.events.append(Name(inode, name, None))
            del known[name]
        for name, path in sorted(found.items()):
            own = path.stat().st_ino
            if known.get(name) != own:
                self.events.append(Name(inode, name, own))
                known[name] = own
            if path.is_dir():
                self._look(path)
                continue
            if own not in self._contents:
                self._hold(path)
            content = path.read_bytes()
            if self._contents.get(own, b"") != content:
                self.events.append(Write(own, content))
            self._contents[own] = content

    def _hold(self, path: Path) -> None:
        self._held.append(_OPEN(path, os.O_RDONLY))

    def synced(self, handle: int) -> None:
        inode = os.fstat(handle).st_ino
        assert inode in self._names or inode in self._contents, "synced something elsewhere"
        self.events.append(Sync(inode))

    def moved(self, source: Path, target: Path) -> None:
        folder = source.parent.stat().st_ino
        assert source.parent == target.parent, "moved to another folder: no such event yet"
        known = self._names[folder]
        inode = known[target.name] = known.pop(source.name)
        self.events.append(Name(folder, target.name, inode, moved=source.name))

    def close(self) -> None:
        for handle in self._held:
            _CLOSE(handle)


@contextmanager
def recorded(root: Path) -> Iterator[Recorder]:
    """Within the block what happens in `root` is noted. What is there before is taken as durable:
    see `Recorder.events`, whose first `Done` ends it."""
    recorder = Recorder(root)

    def looking(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            recorder.look()
            try:
                return real(*arguments, **options)
            finally:
                recorder.look()

        return call

    def fsync(handle: int) -> None:
        recorder.look()
        _FSYNC(handle)
        recorder.synced(handle)

    def replace(source: Path, target: Path) -> None:
        recorder.look()
        _REPLACE(source, target)
        recorder.moved(Path(source), Path(target))

    with pytest.MonkeyPatch.context() as patch:
        recorder.settled()
        for name in ("open", "close", "unlink", "mkdir", "rmdir"):
            patch.setattr(os, name, looking(getattr(os, name)))
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", replace)
        try:
            yield recorder
        finally:
            recorder.look()
            patch.undo()
            recorder.close()


# ------------------------------------------------------------------------------ what may be left


class Disk:
    """What is durable, and what is not yet. `folders`: which inodes are folders, `root` first."""

    def __init__(self, root: int, folders: frozenset[int], blocks: int) -> None:
        self._root, self._blocks = root, blocks
        self._kept: dict[int, bytes] = {}
        self._written: dict[int, bytes] = {}
        self._names: dict[int, Names] = {folder: {} for folder in folders}
        self._pending: dict[int, list[Name]] = {folder: [] for folder in folders}

    def apply(self, event: Event) -> None:
        match event:
            case Write(file, content):
                self._written[file] = content
            case Name(folder):
                self._pending[folder].append(event)
            case Sync(inode) if inode in self._names:
                for change in self._pending[inode]:
                    _change(self._names[inode], change, old_name_too=False)
                self._pending[inode] = []
            case Sync(inode):
                self._kept[inode] = self._written.get(inode, b"")

    def states(self) -> set[State]:
        """All that may be there after a power cut now."""
        found: set[State] = set()
        for tree in self._trees(self._root, ""):
            # A file that is there under two names has one content.
            files = {inode for _, inode in tree if inode not in self._names}
            for contents in itertools.product(*map(self._possible_contents, files)):
                of = dict(zip(files, contents, strict=True))
                found.add(frozenset((path, of.get(inode)) for path, inode in tree))
        return found

    def _trees(self, folder: int, prefix: str) -> Iterator[tuple[tuple[str, int], ...]]:
        """Relative paths and their inodes, in all ways that they may be there."""
        for names in self._possible_names(folder):
            parts = [list(self._entry(own, prefix + name)) for name, own in names.items()]
            for choice in itertools.product(*parts):
                yield tuple(itertools.chain.from_iterable(choice))

    def _entry(self, inode: int, path: str) -> Iterator[tuple[tuple[str, int], ...]]:
        if inode not in self._names:
            yield ((path, inode),)
            return
        for below in self._trees(inode, f"{path}/"):
            yield ((path, inode), *below)

    def _possible_contents(self, file: int) -> set[bytes]:
        return torn(self._kept.get(file, b""), self._written.get(file, b""), self._blocks)

    def _possible_names(self, folder: int) -> list[Names]:
        found = [self._names[folder]]
        for change in self._pending[folder]:
            for before in list(found):
                for both in (False, True):
                    after = dict(before)
                    _change(after, change, old_name_too=both)
                    if after not in found:
                        found.append(after)
        return found


def _change(names: Names, change: Name, *, old_name_too: bool) -> None:
    if change.moved and not old_name_too:
        names.pop(change.moved, None)
    if change.inode is None:
        names.pop(change.name, None)
    else:
        names[change.name] = change.inode


def torn(kept: bytes, written: bytes, blocks: int) -> set[bytes]:
    """What a file of so many blocks may hold that had `kept` and was made `written`, unsynced."""
    if kept == written:
        return {kept}
    longest = max(len(kept), len(written))
    size = -(-longest // blocks)
    found = {written[:length] for length in range(len(written) + 1)} | {kept}
    for length in range(0, longest + size, size):
        starts = range(0, length, size)
        old, new = kept.ljust(length, b"\0"), written.ljust(length, b"\0")
        for sources in itertools.product((old, new, bytes(length)), repeat=len(starts)):
            parts = (source[at : at + size] for source, at in zip(sources, starts, strict=True))
            found.add(b"".join(parts)[:longest])
    return found


def crash_states(
    recorder: Recorder, events: Sequence[Event], blocks: int
) -> Iterator[tuple[int, bool, set[State]]]:
    """For a power cut after each event from the first `Done` on: how many more of these there
    were, whether nothing has happened since, and all states that the disk may be in."""
    disk, done = Disk(recorder.inode, recorder.folders, blocks), -1
    for event in events:
        disk.apply(event)
        done += isinstance(event, Done)
        if done >= 0:
            yield done, isinstance(event, Done), disk.states()


def lay_out(state: State, folder: Path) -> None:
    """Makes the folder, which is empty, what the disk holds."""
    for path, content in sorted(state, key=lambda item: item[0]):
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)
