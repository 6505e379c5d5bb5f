"""Files are whole or not there, whatever fails, and the way of failing is told."""

import errno
import itertools
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from mmpl.errors import ArgumentError, OutputError
from mmpl.media import durable

OLD, NEW = b"old", b"new content"


def put(path: Path, content: bytes = NEW) -> None:
    durable.put(path, lambda file: file.write(content))


def test_put_creates_and_replaces(tmp_path: Path):
    path = tmp_path / "file"
    for content in (OLD, NEW, b""):
        put(path, content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


def test_order_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Content before name, name before folder: any other order can lose the file in a power cut."""
    path, steps = tmp_path / "file", []

    def fsync(handle: int) -> None:
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        steps.append("folder" if folder else f"file of {os.fstat(handle).st_size}")

    def replace(source: Path, target: Path) -> None:
        steps.append(f"rename to {Path(target).name}")
        os.rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    put(path)
    assert steps == [f"file of {len(NEW)}", "rename to file", "folder"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_mode_is_private_while_written_and_follows_the_umask_after(tmp_path: Path, umask: int):
    before = os.umask(umask)
    try:
        with durable.replacing(tmp_path / "file") as temporary:
            assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
            assert temporary.parent == tmp_path
            temporary.write_bytes(NEW)
    finally:
        assert os.umask(before) == umask
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_temporary_names_differ_and_fit_any_legal_name(tmp_path: Path):
    path = tmp_path / ("é" * 127)  # 254 bytes of the 255 that a name may have
    with durable.replacing(path) as first, durable.replacing(path) as second:
        assert first != second
    assert os.listdir(tmp_path) == [path.name]


def failing(real: Callable[..., object], turn: int, code: int) -> Callable[..., object]:
    """`real`, but its call number `turn` raises `OSError(code)`."""
    calls = itertools.count()

    def call(*arguments: object, **options: object) -> object:
        if next(calls) == turn:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **options)

    return call


@pytest.mark.parametrize(
    ("step", "calls"), [("open", 3), ("fchmod", 2), ("fsync", 2), ("replace", 1)]
)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_any_call_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, calls: int, code: int
):
    """Whichever call fails, at whichever turn: the old content or the new one, and no litter."""
    path = tmp_path / "file"
    for turn in range(calls):
        path.write_bytes(OLD)
        with monkeypatch.context() as patch:
            patch.setattr(os, step, failing(getattr(os, step), turn, code))
            with pytest.raises(OutputError, match=str(path)) as caught:
                put(path)
        assert caught.value.todo
        assert os.listdir(tmp_path) == ["file"]
        # Only the fsync of the folder, the last step, comes after the rename.
        last = (step, turn) in (("open", 2), ("fsync", 1))
        assert path.read_bytes() == (NEW if last else OLD)


def test_a_disk_that_fills_up_is_named(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(OLD)

    def write(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="disk is full.*free some space"):
        durable.put(path, write)
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["file"]


def test_other_exceptions_pass_and_leave_nothing(tmp_path: Path):
    path = tmp_path / "file"

    def interrupted() -> None:
        with durable.replacing(path) as temporary:
            temporary.write_bytes(NEW)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_a_link_is_replaced_and_what_it_points_to_is_not_touched(tmp_path: Path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(OLD)
    link.symlink_to(target)
    put(link)
    assert target.read_bytes() == OLD
    assert link.read_bytes() == NEW
    assert not link.is_symlink()


def test_check_writable_says_whether_a_file_is_there(tmp_path: Path):
    path = tmp_path / "film.mp4"
    assert durable.check_writable(path, overwrite=False) is False
    assert os.listdir(tmp_path) == []
    path.write_bytes(OLD)
    assert durable.check_writable(path, overwrite=True) is True
    with pytest.raises(ArgumentError, match=r"film\.mp4: the file exists") as caught:
        durable.check_writable(path, overwrite=False)
    assert caught.value.exit_code == 2
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["film.mp4"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing/film.mp4", "mkdir -p .*missing"),
        ("file/film.mp4", "not a folder"),
        ("folder", "it is a folder"),
        ("link.mp4", "symbolic link.*target.mp4"),
        ("pipe", "device, pipe or socket"),
        ("/dev/full", "device, pipe or socket"),
        ("x" * 300, "name is too long"),
        ("", "it is a folder"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_check_writable_refuses(tmp_path: Path, name: str, said: str, overwrite: bool):
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "target.mp4")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OutputError, match=said) as caught:
        durable.check_writable(tmp_path / name, overwrite)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_check_writable_tries_the_folder_in_earnest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
    else:  # rights do not bind root, so let the kernel's answer be made up

        def refuse(*_: object, **__: object) -> int:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match="no permission"):
        durable.check_writable(tmp_path / "film.mp4", overwrite=False)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_check_writable_refuses_what_is_no_name(tmp_path: Path, name: str):
    with pytest.raises(ArgumentError, match="not a file name") as caught:
        durable.check_writable(tmp_path / name, overwrite=False)
    assert str(caught.value).isprintable()


def test_a_folder_is_tried_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    (tmp_path / "here").mkdir()
    for good in ("here", "new", "new/below"):
        durable.check_folder_writable(tmp_path / good)
    for bad in ("file", "file/below"):
        for function in (durable.check_folder_writable, durable.make_folder):
            with pytest.raises(OutputError, match=f"{bad}: cannot write: .* not a folder"):
                function(tmp_path / bad)
    assert sorted(os.listdir(tmp_path)) == ["file", "here"]
    monkeypatch.chdir(tmp_path)
    durable.make_folder("new/below")
    durable.make_folder("new/below")
    assert (tmp_path / "new" / "below").is_dir()
    assert os.listdir("here") == []


def test_a_folder_that_cannot_be_written_to_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match=r"new/below: cannot write: no permission"):
        durable.check_folder_writable(tmp_path / "new" / "below")


def test_only_what_was_left_of_the_named_files_is_swept(tmp_path: Path):
    long = 50 * "x"
    for name in ("a.mp4", "b.mp4", f"{long}1", f"{long}2"):
        durable.begin(tmp_path / name)  # and killed
    (tmp_path / ".a.mp4.mine.part").touch()
    kept = len(os.listdir(tmp_path))
    for name in ("a.mp4", f"{long}1"):
        durable.sweep(tmp_path / name)
        kept -= 1
        assert len(os.listdir(tmp_path)) == kept
    durable.sweep_folder(tmp_path, "*.mp3", "?.mp4")
    left = sorted(os.listdir(tmp_path))
    assert left[0] == ".a.mp4.mine.part"
    assert len(left) == 2
    durable.sweep_folder(tmp_path / "nowhere", "*")
