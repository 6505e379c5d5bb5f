"""Videos with captions as people keep them: what there is, what is wrong with the rest, and the
clips that are cut from them. No torch here.

A folder holds videos, each with a caption beside it: `a.mp4` with `a.txt`, all of which is the
caption, or with `a.json`, the structured caption of the paper (Appendix A), which wins over the
text. Or an index names them: a .csv file with a header, or a .jsonl file, whose paths count from
its own folder and may not leave it.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mmpl.errors import InputError
from mmpl.media.clip import read_end, read_windows
from mmpl.media.image import Pixels, readable_file

VIDEOS = (".mp4", ".mkv", ".mov", ".webm")
CAPTIONS = (".json", ".txt")  # the first one found counts
INDEXES = (".csv", ".jsonl")
MANIFEST_FILE = "encoded.json"  # a folder that holds it is made of such clips, not a source of them
_PATH_KEYS = ("video", "path", "file_path")
_DENSE_KEYS, _SHORT_KEYS = ("dense_caption", "caption", "text"), ("short_caption",)
_MOST_CAPTION_BYTES, _MOST_INDEX_BYTES = 1 << 20, 1 << 30

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Captions:
    """What a clip shows, in detail and in one sentence; at least one is not empty."""

    dense: str = ""
    short: str = ""


@dataclass(frozen=True, slots=True)
class Cut:
    """How clips are cut: `frames` frames of `width` x `height` pixels, `fps` of them a second, and
    at most `clips_per_video` from one video. Without frames they are captions alone."""

    frames: int
    width: int
    height: int
    fps: int
    clips_per_video: int = 1

    def starts(self, total: int) -> list[int]:
        """The first frames of the clips in a video of `total` frames: no two overlap, and the gaps
        before, between and behind them are equal."""
        clips = min(self.clips_per_video, total // self.frames)
        spare = total - clips * self.frames
        return [clip * self.frames + (clip + 1) * spare // (clips + 1) for clip in range(clips)]


@dataclass(frozen=True, slots=True)
class Refused:
    """Something among the data that no clip can be made of, and why."""

    name: str
    reason: str


class Source(Protocol):
    """What clips are cut from: a captioned video, or something that can pass for one.

    `name` tells it from the others, `file_bytes` (0 where there is no file) from another one of
    that name.
    """

    @property
    def name(self) -> str: ...

    @property
    def captions(self) -> Captions: ...

    @property
    def file_bytes(self) -> int: ...

    def starts(self, cut: Cut) -> list[int]:
        """The first frames of its clips, at least one. Raises InputError."""
        ...

    def pixels(self, cut: Cut, starts: Sequence[int]) -> Iterator[Pixels]:
        """FHWC uint8 RGB of each of these clips. Raises InputError."""
        ...


@dataclass(frozen=True, slots=True)
class Footage:
    """A captioned video file."""

    path: Path
    name: str
    captions: Captions
    file_bytes: int

    def starts(self, cut: Cut) -> list[int]:
        """By decoding all of it, for a container may say anything; so damage at its end is found
        before anything is made of it."""
        size = {"fps": cut.fps, "width": cut.width, "height": cut.height}
        total = read_end(self.path, 1, **size, fit="cover").frames
        if total < cut.frames:
            raise InputError(
                "the video is too short",
                where=str(self.path),
                got=f"{total} frames at {cut.fps} fps",
                wanted=f"{cut.frames} or more",
            )
        return cut.starts(total)

    def pixels(self, cut: Cut, starts: Sequence[int]) -> Iterator[Pixels]:
        size = {"fps": cut.fps, "width": cut.width, "height": cut.height}
        return read_windows(self.path, starts, cut.frames, **size, fit="cover")


def find_footage(data: str | os.PathLike[str]) -> tuple[list[Footage], list[Refused]]:
    """The captioned videos of a folder (and of those below it) or of an index, and what is refused:
    videos without a caption, captions without a video, captions that are empty or no text.

    No video is opened. Those of a folder are sorted by name, those of an index in its order. Hidden
    files and links to folders are passed over. Raises InputError where nothing is left, or no such
    data are there.
    """
    path = Path(data)
    if path.is_dir():
        entries = _in_folder(path)
    elif path.suffix.lower() in INDEXES:
        entries = _in_index(path)
    else:
        raise InputError(
            "no such data" if not os.path.lexists(path) else "not data to learn from",
            where=str(path),
            wanted=f"a folder of videos, or an index ({' or '.join(INDEXES)})",
        )
    found: list[Footage] = []
    refused: list[Refused] = []
    for entry in entries:
        if isinstance(entry, Footage):
            found.append(entry)
        else:
            refused.append(entry)
    if not found:
        first = f": {refused[0].name}: {refused[0].reason}" if refused else ""
        raise InputError(
            "no video with a caption",
            where=str(path),
            got=f"{len(refused)} refused{first}" if refused else "nothing",
            wanted=f"videos ({' '.join(VIDEOS)}), each with a .txt or .json beside it",
        )
    return found, refused


def refusal(name: str, error: InputError) -> Refused:
    """Why `name` is refused, without its path."""
    return Refused(name, str(error).removeprefix(f"{error.where}: "))


def ahead(function: Callable[[T], R], items: Iterable[T], workers: int) -> Generator[R, None, None]:
    """`function` of each item, in order, `workers` of them at a time in threads; no more results
    than that are waiting to be taken.

    Threads, for FFmpeg and Pillow let go of the interpreter while they work, and what takes the
    results has one copy of its weights.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


# ---------------------------------------------------------------------------------- folders


def _in_folder(root: Path) -> Iterator[Footage | Refused]:
    unreadable: list[OSError] = []
    for folder, below, names in os.walk(root, onerror=unreadable.append):
        if MANIFEST_FILE in names:
            below.clear()
            continue
        below[:] = sorted(name for name in below if not name.startswith("."))
        paths = [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
        videos = [path for path in paths if path.suffix.lower() in VIDEOS]
        sidecars = {path.with_suffix(path.suffix.lower()): path for path in paths}
        for path in videos:
            beside = (sidecars.get(path.with_suffix(suffix)) for suffix in CAPTIONS)
            yield _beside(path, path.relative_to(root).as_posix(), next(filter(None, beside), None))
        captioned = {path.stem for path in videos}
        for path in paths:
            if path.suffix.lower() in CAPTIONS and path.stem not in captioned:
                yield Refused(path.relative_to(root).as_posix(), "a caption without a video")
    for error in unreadable:
        yield Refused(os.path.relpath(error.filename, root), f"cannot read: {error.strerror}")


def _beside(path: Path, name: str, sidecar: Path | None) -> Footage | Refused:
    if sidecar is None:
        return Refused(name, "a video without a caption")
    try:
        text = read_text(sidecar, _MOST_CAPTION_BYTES)
        entry = {"caption": text} if sidecar.suffix.lower() == ".txt" else _object(text)
        return _footage(path, name, entry)
    except InputError as error:
        return Refused(name, f"its caption, {sidecar.name}: {refusal(name, error).reason}")


# ---------------------------------------------------------------------------------- indexes


def _in_index(path: Path) -> Iterator[Footage | Refused]:
    text = read_text(path, _MOST_INDEX_BYTES)
    for line, row in _rows(path, text) if path.suffix.lower() == ".csv" else _lines(text):
        name = f"line {line}"
        try:
            entry = _object(row) if isinstance(row, str) else row
            given = _first(entry, _PATH_KEYS)
            if not given:
                raise InputError("no path of a video", wanted=" or ".join(_PATH_KEYS))
            name = given
            yield _footage(_inside(path.parent, given), name, entry)
        except InputError as error:
            yield refusal(name, error)


def _rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        header = reader.fieldnames or ()
        for what, keys in (("paths", _PATH_KEYS), ("captions", (*_DENSE_KEYS, *_SHORT_KEYS))):
            if not set(keys).intersection(header):
                raise InputError(
                    f"no column of {what}",
                    where=str(path),
                    got=ascii(",".join(header))[:80],
                    wanted=f"one called {' or '.join(keys)}, in the first line",
                )
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(
            "not a CSV file", where=f"{path}, after line {reader.line_num}", got=str(error)
        ) from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _inside(folder: Path, given: str) -> Path:
    """The video that an index names. Raises InputError unless it is one in the index's folder."""
    path = folder / given
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                "outside the folder of the index", todo="no path or link may lead out of it"
            )
        there = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # no file name, or links in a circle
        raise InputError("not a path") from error
    if path.suffix.lower() not in VIDEOS:
        raise InputError("not a video", wanted=" ".join(VIDEOS))
    if not there:
        raise InputError("a caption without a video: no such file")
    return path


# --------------------------------------------------------------------------------- captions


def _footage(path: Path, name: str, entry: Mapping[str, Any]) -> Footage:
    captions = Captions(_first(entry, _DENSE_KEYS), _first(entry, _SHORT_KEYS))
    if captions == Captions():
        raise InputError("the caption is empty", wanted=" or ".join((*_DENSE_KEYS, *_SHORT_KEYS)))
    size = 0
    with suppress(OSError):  # which is said when it is opened
        size = path.stat().st_size
    return Footage(path, name, captions, size)


def _first(entry: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The first of these entries that is not empty, or nothing."""
    for key in keys:
        value = entry.get(key) or ""
        if not isinstance(value, str) or not value.isascii() and not _is_unicode(value):
            raise InputError(f"{key} is not text", got=ascii(value)[:40])
        if value.strip():
            return value.strip()
    return ""


def _is_unicode(text: str) -> bool:
    """Whether it can be written: JSON can hold halves of a character."""
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def _object(text: str) -> Mapping[str, Any]:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        raise InputError("not a JSON object")
    return entry


def read_text(path: Path, most: int) -> str:
    """A UTF-8 file of at most so many bytes. Raises InputError."""
    with open(readable_file(path), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise InputError("the file is too large", where=str(path), wanted=f"at most {most:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("not a UTF-8 text", where=str(path)) from error
