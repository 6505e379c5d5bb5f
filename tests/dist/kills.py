"""Films killed at fault points and gone on with: `sweep(frames, most)`.

Each director is a process that has made the film once, so that all is loaded and warm. For every
kill it forks the ranks, which join over gloo as those of the command do, and then those that go on.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

from mmpl.cli.job import at_work
from mmpl.cli.place import PARENT, end_with_parent
from mmpl.errors import RankError
from mmpl.film.settings import Film
from mmpl.generate import Frames, Model, Ranks, Request, Store, film_of, generate, job_of
from tests.dist.faults import Account, Diary, Key, arm, key_of, read_diary
from tests.small import small_model

KILLS = 3  # of one film
STOP_S = 5.0  # survivors have this long to see that a rank is gone before they are ended
LIMIT_S = 60.0  # for a run that nobody kills
KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Kill:
    """Of `ranks` ranks, `victim` dies at its `point`-th point, from 1."""

    ranks: int
    victim: int
    point: int


@dataclass(frozen=True)
class Story:
    """A film that is killed, gone on with and killed again, and at last gone on with by `last`
    ranks that nobody kills."""

    kills: tuple[Kill, ...]
    last: int


@dataclass(frozen=True)
class Outcome:
    """What came of a kill, at the point named `where`.

    `lost`: tasks whose latents were durable, and are not there, not whole, or were made again.
    `recomputed`: for each rank, tasks it had begun, not finished, and that were made again.
    `differing`: files or frames of other bits than without the kill. `orphans`: processes left
    after all. `stopped`: survivors that did not end by themselves. `left`: temporary files left
    after all. `faults`: whatever else is not as it should be.
    """

    kill: Kill
    where: str
    lost: int
    recomputed: tuple[int, ...]
    differing: int
    orphans: int
    stopped: int
    left: int
    faults: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class _Run:
    codes: tuple[int, ...]
    accounts: tuple[Account, ...]
    files: dict[str, bytes]
    orphans: int
    stopped: int
    errors: str
    seconds: float

    @property
    def kept(self) -> frozenset[Key]:
        return frozenset[Key]().union(*(account.kept for account in self.accounts))

    @property
    def begun(self) -> list[Key]:
        return [key for account in self.accounts for key in account.begun]


class Director:
    """Makes a film of `frames` frames in `folder`, again and again, on forked ranks."""

    def __init__(self, folder: Path, frames: int) -> None:
        self._folder = folder
        self._request = Request(
            "red", seed=3, frames=frames, steps=2, width=16, height=16, guidance_scale=1.0
        )
        self._model: Model = small_model()
        self._film: Film = film_of(self._model, self._request)
        self._job = job_of(self._model, self._film)
        for _ in generate(self._model, self._request):  # warms up what the forks then share
            pass
        self._whole = self.run("whole", 1)
        assert self._whole.codes == (0,), self._whole.errors
        store = Store(folder)
        self._names = {key_of(t): store._path(t).name for t in self._film.work.tasks}

    def points(self, ranks: int) -> tuple[tuple[str, ...], ...]:
        """The points of each of `ranks` ranks, in order."""
        run = self.run(f"points-{ranks}", ranks)
        assert set(run.codes) == {0}, run.errors
        return tuple(account.points for account in run.accounts)

    def tell(self, name: str, story: Story) -> list[Outcome]:
        """Kills, looks at what is left, goes on, and looks again. Kills that come too late, when
        all is done, are no outcomes."""
        runs: list[_Run] = []
        for kill in story.kills:
            runs.append(self.run(name, kill.ranks, kill=kill))
            if KILLED not in runs[-1].codes:
                break
        else:
            runs.append(self.run(name, story.last))
        kept, outcomes = frozenset[Key](), []
        for kill, run, after in zip(story.kills, runs, runs[1:], strict=False):
            kept |= run.kept
            gone = [key for key in kept if not self._is_whole(run, self._names[key])]
            again = kept.intersection(after.begun)
            outcomes.append(
                Outcome(
                    kill,
                    where=run.accounts[kill.victim].points[-1],
                    lost=len(gone) + len(again),
                    recomputed=tuple(len(a.unfinished & set(after.begun)) for a in run.accounts),
                    differing=self._differing(run) + self._differing(after),
                    orphans=run.orphans + after.orphans,
                    stopped=run.stopped,
                    left=len(_temporaries(self._folder / name)),
                    faults=tuple(self._faults(kill, run)),
                    seconds=run.seconds + (after.seconds if after is runs[-1] else 0.0),
                )
            )
        faults = self._faults_of_last(runs[-1])
        if faults:
            assert outcomes, (story, faults)
            outcomes[-1] = replace(outcomes[-1], faults=(*outcomes[-1].faults, *faults))
        return outcomes

    def _is_whole(self, run: _Run, name: str) -> bool:
        return run.files.get(name) == self._whole.files[name]

    def _differing(self, run: _Run) -> int:
        said = run.accounts[0].said
        differing = sum(not self._is_whole(run, name) for name in run.files)
        return differing + (bool(said) and said != self._whole.accounts[0].said)

    def _faults(self, kill: Kill, run: _Run) -> Iterator[str]:
        others = [code for rank, code in enumerate(run.codes) if rank != kill.victim]
        if set(others) - {0, KILLED, RankError.exit_code}:
            yield f"codes {run.codes} {run.errors}"
        if len(set(run.begun)) != len(run.begun):
            yield f"made twice at once: {run.begun}"

    def _faults_of_last(self, run: _Run) -> list[str]:
        """Of the run in which the film was made at last."""
        if set(run.codes) != {0}:
            return [f"not gone on with: {run.codes} {run.errors}"]
        faults = [] if run.accounts[0].said else ["no frames"]
        odd = run.files.keys() ^ self._whole.files.keys()
        return [*faults, f"files {sorted(odd)}"] if odd else faults

    def run(self, name: str, ranks: int, *, kill: Kill | None = None) -> _Run:
        """Makes the film in a folder of that name on `ranks` ranks, or goes on with it."""
        job = self._folder / name / "job"
        (self._folder / name).mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder) as place:
            # As for the command: of several processes the parent holds the folder.
            if ranks == 1:
                return self._forked(Path(place), job, 1, kill)
            with at_work(job, self._film, str(job.parent / "film.mp4"), {}):
                return self._forked(Path(place), job, ranks, kill)

    def _forked(self, place: Path, job: Path, ranks: int, kill: Kill | None) -> _Run:
        os.environ[PARENT] = str(os.getpid())
        start = time.monotonic()
        pids: list[int] = []
        for rank in range(ranks):
            pid = os.fork()
            if pid == 0:
                deadly = kill.point if kill is not None and kill.victim == rank else None
                self._rank(place, job, rank, ranks, deadly)
            os.setpgid(pid, pids[0] if pids else 0)
            pids.append(pid)
        codes, stopped = _ended(pids)
        orphans = _left_of(pids[0])
        accounts = tuple(read_diary(place / f"diary-{rank}") for rank in range(ranks))
        errors = "".join(path.read_text() for path in place.glob("errors-*"))
        seconds = time.monotonic() - start
        return _Run(codes, accounts, _files(job), orphans, stopped, errors, seconds)

    def _rank(self, place: Path, job: Path, rank: int, ranks: int, deadly: int | None) -> NoReturn:
        code = 1
        try:
            end_with_parent()
            diary = Diary(place / f"diary-{rank}")
            if ranks == 1:
                with at_work(job, self._film, str(job.parent / "film.mp4"), {}):
                    diary.write("said", self._made(job, None, diary, deadly))
            else:
                group = _joined(place, rank, ranks)
                diary.write("said", self._made(job, Ranks(group), diary, deadly))
                dist.destroy_process_group()
            code = 0
        except RankError:
            code = RankError.exit_code
        except BaseException:  # noqa: BLE001  the director tells it
            (place / f"errors-{rank}").write_text(traceback.format_exc())
        finally:
            os._exit(code)  # nothing that a fork inherits is to be cleaned up by it

    def _made(self, job: Path, ranks: Ranks | None, diary: Diary, deadly: int | None) -> str:
        """The digest of the frames that come out here."""
        arm(diary, deadly)
        digest = hashlib.sha256()
        for event in generate(self._model, self._request, ranks=ranks, store=Store(job, self._job)):
            if isinstance(event, Frames):
                digest.update(event.pixels_FHWC.tobytes())
        return digest.hexdigest()


def stories(points: Sequence[Sequence[str]], most: int) -> list[Story]:
    """Kills of each rank at each of its points, or at `most` that are evenly spread. Each film is
    then killed again, at points drawn from the early ones, which come even when little is left to
    do, and gone on with on 1, 2 and 3 ranks in turn."""
    ranks = len(points)
    firsts = [(v, 1 + at) for v, own in enumerate(points) for at in range(len(own))]
    number = min(most, len(firsts))
    draw = random.Random(ranks)
    found = []
    for index in range(number):
        kills = [firsts[len(firsts) * index // number]]
        for _ in range(1, KILLS):
            victim = draw.randrange(ranks)
            kills.append((victim, 1 + draw.randrange(1 + len(points[victim]) // 3)))
        found.append(Story(tuple(Kill(ranks, *kill) for kill in kills), 1 + index % 3))
    return found


def sweep(frames: int, most: Mapping[int, int], *, directors: int = 2) -> list[Outcome]:
    """What came of each kill, for a film of `frames` frames: of each number of ranks, the stories
    of up to `most` first kills."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "mmpl.generate"])
    pipes, processes = [], []
    for share in range(directors):
        ours, theirs = context.Pipe(duplex=False)
        told = (theirs, frames, most, slice(share, None, directors))
        processes.append(context.Process(target=_direct, args=told, daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    try:
        found = [pipe.recv() for pipe in pipes]
    finally:
        for process in processes:
            process.join(1)
            process.kill()
            process.join()
    for result in found:
        assert not isinstance(result, str), result
    return [outcome for outcomes in found for outcome in outcomes]


def _direct(pipe: Connection, frames: int, most: Mapping[int, int], share: slice) -> None:
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            director = Director(Path(folder), frames)
            outcomes = []
            for ranks, number in most.items():
                mine = list(enumerate(stories(director.points(ranks), number)))[share]
                for index, story in mine:
                    outcomes += director.tell(f"{ranks}-{index}", story)
        pipe.send(outcomes)
    except BaseException:  # noqa: BLE001  raised where it is waited for
        pipe.send(traceback.format_exc())


def _joined(place: Path, rank: int, ranks: int) -> dist.ProcessGroup:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{place}/store",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=LIMIT_S),
    )
    group = dist.group.WORLD
    assert group is not None
    return group


def _ended(pids: list[int]) -> tuple[tuple[int, ...], int]:
    """The codes of all processes, and how many had to be ended: those that outlive the first that
    did not end well by more than `STOP_S`."""
    codes: dict[int, int] = {}
    end, stopped = time.monotonic() + LIMIT_S, 0
    while len(codes) < len(pids):
        for pid in set(pids) - codes.keys():
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
                if codes[pid]:
                    end = min(end, time.monotonic() + STOP_S)
            elif time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                stopped += 1
                codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.001)
    return tuple(codes[pid] for pid in pids), stopped


def _left_of(group: int) -> int:
    """Whether a process group has processes left; they are ended."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return 1


def _files(job: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in job.glob("segment_*")}


def _temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]
