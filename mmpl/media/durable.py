"""Writing a file so that its name never points at half of it, not even after a power cut.

The only place of the package that creates files: temporary file in the same folder, write, fsync,
rename, fsync of the folder. Knows nothing of what is written.
"""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shlex
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from mmpl.errors import ArgumentError, OutputError

_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space or choose another disk"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or choose another disk"),
    errno.EFBIG: ("the file would exceed the size limit", "raise `ulimit -f` or write elsewhere"),
    errno.EACCES: ("no permission to write there", "choose another folder or change its rights"),
    errno.EPERM: ("no permission to write there", "choose another folder or change its rights"),
    errno.EROFS: ("the disk is read-only", "choose another folder"),
    errno.ENOTDIR: ("a part of its path is not a folder", "choose another folder"),
    errno.EISDIR: ("it is a folder", "give the name of a file"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
}
_TEMPORARY = re.compile(r"\.(.*)\.([0-9a-f]{8})\.[0-9a-f]{16}\.part", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Pending:
    """A file being written: it is at `temporary` now and will be at `path`, with mode `mode`."""

    path: Path
    temporary: Path
    mode: int


def output_error(path: str | os.PathLike[str], error: OSError) -> OutputError:
    """The `OutputError` that says which file could not be written, why, and what to do."""
    if error.errno == errno.ENOENT:
        folder = shlex.quote(os.fspath(Path(path).parent))
        what, todo = "its folder does not exist", f"create it first: mkdir -p {folder}"
    else:
        other = (error.strerror or str(error), "check the disk or choose another folder")
        what, todo = _REASONS.get(error.errno or 0, other)
    return OutputError(f"cannot write: {what}", where=os.fspath(path), todo=todo)


def begin(path: str | os.PathLike[str]) -> Pending:
    """Create the empty temporary file for `path`, in its folder, readable by its owner only.

    To be followed by `commit` or `discard`; `put` and `replacing` do so on their own.
    Raises `OutputError`.
    """
    path = Path(path)
    temporary = path.parent / ".{}.{}.{}.part".format(*_mark(path.name), secrets.token_hex(8))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # Created with 0666 so that the kernel shows which mode the umask leaves to the final
        # file: asking for the umask itself would change it for the whole process.
        file = os.open(temporary, flags, 0o666)
        try:
            try:
                mode = stat.S_IMODE(os.fstat(file).st_mode)
                _set_mode(file, 0o600)
            finally:
                os.close(file)
        except BaseException:
            _remove(temporary)
            raise
    except OSError as error:
        raise output_error(path, error) from error
    return Pending(path, temporary, mode)


def commit(pending: Pending) -> None:
    """Make the temporary file durable and give it its final name, in place of any file there.

    A symbolic link of that name is replaced, not followed. Raises `OutputError`; what had the name
    before is then unchanged, unless it was the last step, the fsync of the folder, that failed.
    """
    try:
        file = os.open(pending.temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _set_mode(file, pending.mode)
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(pending.temporary, pending.path)
        _sync_folder(pending.path.parent)
    except OSError as error:
        raise output_error(pending.path, error) from error


def discard(pending: Pending) -> None:
    """Remove the temporary file. Does nothing after a commit, and never raises `OSError`: it is
    called on the way out of a failure that is the one to report."""
    _remove(pending.temporary)


def sweep(path: str | os.PathLike[str]) -> None:
    """Remove temporary files for `path` that killed processes left. Only for who knows that
    nobody is writing it; never raises `OSError`."""
    path = Path(path)
    mark = _mark(path.name)
    _sweep(path.parent, lambda *found: found == mark)


def sweep_folder(folder: str | os.PathLike[str], *patterns: str) -> None:
    """As `sweep`, for all files in `folder` whose names, of 40 characters at most, match one of
    the shell `patterns`."""
    _sweep(Path(folder), lambda name, _: any(fnmatchcase(name, pattern) for pattern in patterns))


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """`with replacing(path) as temporary:` the body writes the file `temporary`, which becomes
    `path` when the body ends, and is removed when it fails.

    The body should only write: an `OSError` in it is taken for a failure to write `path` and
    becomes an `OutputError`. Other exceptions pass unchanged.
    """
    pending = begin(path)
    try:
        yield pending.temporary
        commit(pending)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        discard(pending)


def put(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Make `path` a file with what `write(file)` writes, or leave everything as it was.

    Raises `OutputError`, or what `write` raises.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        write(file)


def check_writable(path: str | os.PathLike[str], overwrite: bool) -> bool:
    """Whether a file is there already; raise if a file could not be written to `path`.

    To be called before work that takes long. Tries it in earnest, with a temporary file that is
    removed again. Raises `ArgumentError` where a file exists and `overwrite` is false or where
    `path` is no path, and `OutputError` where the folder is missing or not writable or the name
    belongs to something else: a folder, a device, a symbolic link.
    """
    where = os.fspath(path)
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        status = None
    except OSError as error:
        raise output_error(path, error) from error
    except ValueError as error:  # a zero byte, or a character that no file name can hold
        raise ArgumentError(
            "not a file name", got=repr(where), todo="choose another name"
        ) from error
    if status is not None:
        _check_replaceable(path, status, overwrite)
    discard(begin(path))
    return status is not None


def check_folder_writable(path: str | os.PathLike[str]) -> None:
    """Raise `OutputError` unless files could be written to the folder `path`, which may have to be
    made first. Tries it in earnest, as `check_writable`, but makes no folder."""
    where = Path(os.path.abspath(path))
    while not os.path.lexists(where):
        where = where.parent
    if not where.is_dir():
        raise output_error(path, NotADirectoryError(errno.ENOTDIR, ""))
    try:
        discard(begin(where / "any"))
    except OutputError as error:
        raise OutputError(error.what, where=os.fspath(path), todo=error.todo) from error


def make_folder(path: str | os.PathLike[str], *, private: bool = False) -> None:
    """Make the folder `path` and those above it, durably, where they are missing; a `private` one
    is for its owner only. Raises `OutputError`."""
    try:
        missing = [folder for folder in (Path(path), *Path(path).parents) if not folder.exists()]
        os.makedirs(path, mode=0o700 if private else 0o777, exist_ok=True)
        for folder in reversed(missing):  # a file is no safer than the name of its folder
            _sync_folder(folder.parent)
    except FileExistsError as error:
        raise output_error(path, NotADirectoryError(errno.ENOTDIR, "")) from error
    except OSError as error:
        raise output_error(path, error) from error
    except ValueError as error:  # a zero byte, or a character that no file name can hold
        raise ArgumentError(
            "not a file name", got=repr(os.fspath(path)), todo="choose another name"
        ) from error


def remove(paths: Iterable[Path]) -> None:
    """Remove those of these files that are there; no power cut brings them back. Raises
    `OutputError`."""
    folders: set[Path] = set()
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise output_error(path, error) from error
        folders.add(path.parent)
    for folder in folders:
        try:
            _sync_folder(folder)
        except OSError as error:
            raise output_error(folder, error) from error


def require_space(needs: Mapping[Path, int]) -> None:
    """Raise `OutputError` unless the disks have room for so many bytes in each of these folders,
    which are there."""
    disks: dict[int, list[Path]] = {}
    for folder in needs:
        disks.setdefault(os.stat(folder).st_dev, []).append(folder)
    for folders in disks.values():
        needed, disk = sum(needs[folder] for folder in folders), shutil.disk_usage(folders[0])
        if needed > disk.free and disk.total:  # some network disks do not say what they have
            raise OutputError(
                "the disk has not enough room",
                where=os.fspath(folders[0]),
                got=f"{disk.free:,} bytes free",
                wanted=f"{needed:,} bytes",
                todo="free some space or choose another disk",
            )


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[bool]:
    """Within the block no other process can lock `folder`, which must exist. The kernel lets go of
    it with the process, however that ends. Raises `ArgumentError` if another holds it, and
    `OutputError`. The value is false on a disk that knows no locks, where others may hold it too.
    """
    alone = True
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise output_error(folder, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise ArgumentError(
            "another process is at work in this folder",
            where=os.fspath(folder),
            todo="wait for it, or stop it, or give another folder",
        ) from error
    except OSError:  # some network disks know no locks: the work is as good without
        alone = False
    try:
        yield alone
    finally:
        with suppress(OSError):
            os.close(handle)


def _check_replaceable(
    path: str | os.PathLike[str], status: os.stat_result, overwrite: bool
) -> None:
    where = os.fspath(path)
    if stat.S_ISDIR(status.st_mode):
        raise output_error(path, IsADirectoryError(errno.EISDIR, ""))
    if stat.S_ISLNK(status.st_mode):
        raise OutputError(
            "cannot write: it is a symbolic link",
            where=where,
            todo=f"give the file it points to ({os.path.realpath(path)})",
        )
    if not stat.S_ISREG(status.st_mode):
        raise OutputError(
            "cannot write: it is a device, pipe or socket",
            where=where,
            todo="give the name of an ordinary file",
        )
    if not overwrite:
        raise ArgumentError(
            "the file exists", where=where, todo="choose another name or allow overwriting"
        )


def _mark(name: str) -> tuple[str, str]:
    """What the names of all temporary files for a file `name` have in them: its beginning, and a
    digest that tells long names apart."""
    return name[:40], hashlib.sha256(os.fsencode(name)).hexdigest()[:8]


def _sweep(folder: Path, mine: Callable[[str, str], bool]) -> None:
    """Removes the temporary files in `folder` with a mark that is mine."""
    with suppress(OSError):
        for temporary in list(folder.iterdir()):
            found = _TEMPORARY.fullmatch(temporary.name)
            if found is not None and mine(*found.groups()):
                _remove(temporary)


def _remove(temporary: Path) -> None:
    with suppress(OSError):
        os.unlink(temporary)


def _set_mode(file: int, mode: int) -> None:
    # FAT and some network disks have no modes and refuse; the file is as good there without.
    with suppress(PermissionError):
        os.fchmod(file, mode)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network disks cannot sync a folder and say so by EINVAL; all else is a failure.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)
