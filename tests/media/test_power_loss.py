"""A power cut at any moment leaves the old or the new, and after a call returned the new.

Each scenario runs in earnest while its writes are recorded; every state that a disk may legally be
in afterwards, see `tests.media.power_loss`, is laid out and opened by the real readers. With any
one fsync or rename left out of the record the same check must fail.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import save_file

from mmpl.errors import ResumeError
from mmpl.film.job import (
    KEYFRAMES,
    STORYBOARD,
    Revision,
    read_job,
    revise,
    revised,
    start_over,
    write_job,
)
from mmpl.film.store import Store
from mmpl.layout.presets import mmpl_t2v
from mmpl.layout.timeline import chain_of
from mmpl.layout.work import Task, film_work
from mmpl.media import durable
from tests.media.power_loss import (
    Event,
    Name,
    Recorder,
    State,
    Sync,
    crash_states,
    lay_out,
    recorded,
)

WORK = film_work(mmpl_t2v(), chain_of(mmpl_t2v(), seeding="terminal", temporal_stride=4), 157)
FIRST, SEEDS, SECOND = Task(0, "make", "plan"), Task(0, "hand_over"), Task(1, "make", "plan")
BLOCKS = 4  # of a file; how long they are does not matter, how many there are does
OLD, NEW, NEWER = b"what was there before", b"new content, longer than the old one", b"the newest"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a reader finds: the content of a file, or whose a job folder is, and its `parts`."""

    main: object
    parts: frozenset[object] = frozenset()


@dataclass(frozen=True, slots=True)
class Scenario:
    """Calls, each of which makes durable what it does; what was there before them is."""

    before: Callable[[Path], object]
    calls: tuple[Callable[[Path], object], ...]
    opened: Callable[[Path], Seen]

    @staticmethod
    def legal(seen: Seen, before: Seen, after: Seen) -> bool:
        """During a call: the old or the new. What a change of job makes stale may be gone of the
        old one."""
        changed = before.main != after.main
        fewer = seen.main == before.main and after.parts <= seen.parts <= before.parts
        return seen in (before, after) or (changed and fewer)


# ------------------------------------------------------------------------------- the scenarios


def file_seen(root: Path) -> Seen:
    path = root / "file"
    return Seen(path.read_bytes() if path.exists() else None)


def put(content: bytes) -> Callable[[Path], object]:
    return lambda root: durable.put(root / "file", lambda file: file.write(content))


def put_by_path(root: Path) -> None:
    with durable.replacing(root / "file") as temporary:
        temporary.write_bytes(NEW)


def put_by_rust(root: Path) -> None:
    """As training saves its state: written by a library, perhaps under a name of its own."""
    with durable.replacing(root / "file") as temporary:
        save_file({"x": torch.arange(3.0)}, temporary)


def begin_and_commit(root: Path) -> None:
    pending = durable.begin(root / "file")
    pending.temporary.write_bytes(NEW)
    durable.commit(pending)
    durable.discard(pending)


def removed(root: Path) -> None:
    durable.remove([root / "file", root / "no such file"])


def job(seed: int) -> dict[str, dict[str, object]]:
    return {"settings": {"prompt": "red", "seed": seed}}


def opened(root: Path) -> Store:
    """The store of the first film in a folder below a new one."""
    return Store(root / "films" / "job", job(1))


def stored(*tasks: Task) -> Callable[[Path], object]:
    def call(root: Path) -> None:
        for task in tasks:
            opened(root).put(task, torch.full((1, 1, 2, 1, 1), float(task.segment)))

    return call


STILLS = (
    f"{KEYFRAMES}/segment_0001.frame_000000.png",
    f"{KEYFRAMES}/segment_0002.frame_000090.png",
    STORYBOARD,
)


def drawn(name: str) -> Callable[[Path], object]:
    def call(root: Path) -> None:
        path = root / "films" / "job" / name
        durable.make_folder(path.parent)
        durable.put(path, lambda file: file.write(OLD))

    return call


def begun(root: Path) -> None:
    stored(FIRST, SEEDS, SECOND)(root)
    for name in STILLS:
        drawn(name)(root)


def damaged(root: Path) -> None:
    stored(FIRST)(root)
    path = next((root / "films" / "job").glob("segment*"))
    path.write_bytes(path.read_bytes()[:-1])


def rolled(root: Path) -> None:
    folder = root / "films" / "job"
    revision = Revision({"seed": 2}, range(1, 2))
    found = read_job(folder)
    assert found is not None
    revise(folder, revised(found, revision), revision)


def job_seen(root: Path) -> Seen:
    """As a run, an inspection and a sheet of stills would see it."""
    folder = root / "films" / "job"
    try:
        found = read_job(folder)
        main = None if found is None else json.dumps(found)
    except ResumeError as error:
        main = f"refused: {error.what}"
    finished, not_whole = Store(folder).look(WORK)
    stills = [*folder.glob("*.png"), *folder.glob(f"{KEYFRAMES}/*.png")]
    parts = {("damaged", path.name) for path in not_whole} | {
        (path.name, path.read_bytes()) for path in stills
    }
    return Seen(main, frozenset(parts | {*finished}))


def nothing(_: Path) -> None: ...


SCENARIOS = {
    "put a new file": Scenario(nothing, (put(NEW), put(NEWER)), file_seen),
    "put over an old one": Scenario(put(OLD), (put(NEW), put(NEWER)), file_seen),
    "replacing": Scenario(put(OLD), (put_by_path,), file_seen),
    "replacing by Rust": Scenario(put(OLD), (put_by_rust,), file_seen),
    "begin and commit": Scenario(put(OLD), (begin_and_commit,), file_seen),
    "remove": Scenario(put(OLD), (removed,), file_seen),
    "a job and its latents": Scenario(nothing, (opened, stored(FIRST), stored(SEEDS)), job_seen),
    "damaged latents made again": Scenario(damaged, (stored(FIRST),), job_seen),
    "stills": Scenario(stored(FIRST), tuple(map(drawn, STILLS)), job_seen),
    "revise": Scenario(begun, (rolled,), job_seen),
    "start over": Scenario(
        begun,
        (
            lambda root: start_over(root / "films" / "job"),
            lambda root: write_job(root / "films" / "job", job(2)),
        ),
        job_seen,
    ),
}


# ------------------------------------------------------------------------------------ the check


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """What a scenario did, and what its reader saw after each of its calls, the first before."""

    scenario: Scenario
    recorder: Recorder
    seen: tuple[Seen, ...]
    known: dict[State, Seen]

    def check(self, events: Sequence[Event], blocks: int = BLOCKS) -> int:
        """How many states were looked at, over all moments, with files of so many blocks. Raises
        AssertionError for one that is none of those that may be."""
        looked = 0
        with TemporaryDirectory(prefix="mmpl-") as folder:
            for done, still, states in crash_states(self.recorder, events, blocks):
                before, after = self.seen[done], self.seen[min(done + 1, len(self.seen) - 1)]
                for state in states:
                    if state not in self.known:
                        self.known[state] = self._opened(state, Path(folder, str(looked)))
                    seen = self.known[state]
                    fine = seen == before or (not still and Scenario.legal(seen, before, after))
                    assert fine, f"{seen} from {sorted(path for path, _ in state)}"
                    looked += 1
        return looked

    def _opened(self, state: State, folder: Path) -> Seen:
        folder.mkdir()
        lay_out(state, folder)
        seen = self.scenario.opened(folder)
        shutil.rmtree(folder)
        return seen


@cache
def record(name: str) -> Record:
    scenario = SCENARIOS[name]
    with TemporaryDirectory(prefix="mmpl-") as folder:
        root = Path(folder)
        scenario.before(root)
        seen = [scenario.opened(root)]
        with recorded(root) as recorder:
            for call in scenario.calls:
                call(root)
                seen.append(scenario.opened(root))
                recorder.done()
    return Record(scenario, recorder, tuple(seen), {})


@pytest.mark.parametrize("name", SCENARIOS)
def test_any_power_cut_leaves_the_old_or_the_new(name: str) -> None:
    found = record(name)
    assert len(set(found.seen)) == len(found.seen), "each call changes something"
    print(f"{name}: {found.check(found.recorder.events)} states")


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_more_ways_to_be_torn(name: str) -> None:
    """More than 10,000 states in all, with files of 9 blocks."""
    found = record(name)
    print(f"{name}: {found.check(found.recorder.events, 9)} states")


def necessary(found: Record) -> dict[str, list[int]]:
    """Where the record has syncs of files and of folders, and renames, after its beginning."""
    events, places = found.recorder.events, {"file": [], "folder": [], "rename": []}
    start = next(i for i, event in enumerate(events) if type(event).__name__ == "Done")
    for index, event in itertools.islice(enumerate(events), start, None):
        match event:
            case Sync(inode):
                places["folder" if inode in found.recorder.folders else "file"].append(index)
            case Name(moved=moved) if moved:
                places["rename"].append(index)
    return places


@pytest.mark.parametrize("kind", ["file", "folder", "rename"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_of_the_recipe_can_be_left_out(name: str, kind: str) -> None:
    found = record(name)
    places = necessary(found)[kind]
    assert places or (name == "remove" and kind != "folder")
    for index in places:
        events = [event for i, event in enumerate(found.recorder.events) if i != index]
        with pytest.raises(AssertionError, match="from"):
            found.check(events)


def test_a_rename_before_the_sync_of_the_file_is_caught() -> None:
    found = record("put over an old one")
    places = necessary(found)
    events = list(found.recorder.events)
    sync, rename = places["file"][0], places["rename"][0]
    assert sync < rename
    events[sync], events[rename] = events[rename], events[sync]
    with pytest.raises(AssertionError, match="from"):
        found.check(events)
