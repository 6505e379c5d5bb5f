"""Whatever call fails, at whichever turn: the right exit code and one line, nothing half-written,
and the same command afterwards gives the same bits as if nothing had happened."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmpl.film.job import REPORT
from mmpl.media import durable
from tests.cli.conftest import PROMPT, Gen

FLAGS = ("--prompt", PROMPT, "--seed", 5, "--num_frames", 5, "--steps", 1, "--cfg", 1)
FILM = (*FLAGS, "--size", "32x32")
CALLS = ("open", "fstat", "fchmod", "fsync", "close", "replace", "makedirs")  # and write
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
BROKEN = OSError(errno.EIO, os.strerror(errno.EIO))
ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you"
SHORT = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has none"),
    RuntimeError(f"{ALLOCATOR} tried to allocate 9 bytes. Error code 12 (Cannot allocate memory)"),
)
MAPPING = ("aten.empty.memory_format", "aten.set_.source_Storage")  # weights: nothing is allocated


class Fault:
    """Counts calls; the one of number `turn` fails with `error`."""

    def __init__(self, turn: int = -1, error: BaseException | None = None) -> None:
        self.turn, self.error = turn, error
        self.calls: list[str] = []

    def strikes(self, name: str) -> bool:
        self.calls.append(name)
        return len(self.calls) - 1 == self.turn

    def strike(self) -> None:
        assert self.error is not None
        raise self.error.with_traceback(None)


class System:
    """The module os as `durable` sees it."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            strikes = self._fault.strikes(name)
            if strikes and name != "close":  # which closes in any case
                self._fault.strike()
            result = real(*arguments, **options)
            if strikes:
                self._fault.strike()
            return result

        return call

    def open_file(self, path: Path, mode: str) -> BinaryIO:
        """The function open, whose files write half of what they should when they fail."""
        assert mode == "wb"
        file = open(path, "wb")  # noqa: SIM115
        write = file.write

        def half(data: bytes) -> int:
            if self._fault.strikes("write"):
                write(data[: len(data) // 2])
                self._fault.strike()
            return write(data)

        return _Writing(file, half)  # type: ignore[return-value]


class _Writing:
    def __init__(self, file: BinaryIO, write: Callable[[bytes], int]) -> None:
        self._file, self.write = file, write

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Allocations(TorchDispatchMode):
    """Every operation of torch that makes a tensor may find no memory for it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self._fault = fault

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        makes = isinstance(result, torch.Tensor) and not func.is_view
        if makes and str(func) not in MAPPING and self._fault.strikes(str(func)):
            self._fault.strike()
        return result


def run(gen: Gen, fault: Fault, *, torch_too: bool = False) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        if torch_too:
            with Allocations(fault):
                return gen(*FILM)
        system = System(fault)
        patch.setattr(durable, "os", system)
        patch.setattr(durable, "open", system.open_file, raising=False)
        return gen(*FILM)


def there() -> dict[str, bytes]:
    """All files below the current folder; of the report, which tells times, that it is whole."""
    found = {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    for name in found:
        if name.endswith(REPORT):
            found[name] = found[name][-len(b"</html>\n") :]
    return found


def start_anew() -> None:
    Path("film.mp4").unlink(missing_ok=True)
    shutil.rmtree("film.mp4.job", ignore_errors=True)


def check(gen: Gen, whole: dict[str, bytes], fault: Fault, *, torch_too: bool = False) -> None:
    """One run with the fault, and one without on what it left."""
    start_anew()
    code, out, err = run(gen, fault, torch_too=torch_too)
    said = f"call {fault.turn} {fault.calls[fault.turn :][:1]} {fault.error!r}: {code} {err}"
    left = there()
    unreported = "there is no report of it" in err  # the film is whole, and that is what counts
    if unreported or (code != 0 and "film.mp4" in left):  # in its folder, which is not durable
        whole, left = (
            {name: data for name, data in files.items() if not name.endswith(REPORT)}
            for files in (whole, left)
        )
    if unreported:
        assert code == 0, said
    elif code == 0:  # the very last thing, which changed nothing any more
        assert fault.calls[fault.turn] == "close", said
        assert fault.turn == len(fault.calls) - 1, said
    else:
        assert code == (4 if isinstance(fault.error, OSError) else 8), said
        assert out == "", said
        last = err.splitlines()[-1]
        assert last.startswith("mmpl-gen: error: "), said
        assert last.isprintable()
        assert "Traceback" not in err, said
        reason = {errno.ENOSPC: "the disk is full", errno.EIO: "Input/output error"}
        assert reason.get(getattr(fault.error, "errno", 0), "out of memory") in last, said
    assert left == {name: whole.get(name) for name in left}, f"half-written or left over: {said}"
    code, out, err = gen(*FILM)
    assert (code, out) == (0, "film.mp4\n"), f"{said} and then {err}"
    assert {name: data for name, data in there().items() if name in whole} == whole, said


@pytest.fixture
def whole(gen: Gen) -> dict[str, bytes]:
    """What an undisturbed run leaves."""
    code, _, err = gen(*FILM)
    assert code == 0, err
    return there()


def turns(count: int, wanted: int, first: int) -> range:
    """About so many of the turns, spread over all, beginning with another one each."""
    step = max(1, count // wanted)
    return range(first % step, count, step)


def counted(gen: Gen, *, torch_too: bool) -> int:
    start_anew()
    fault = Fault()
    assert run(gen, fault, torch_too=torch_too)[0] == 0
    return len(fault.calls)


@pytest.mark.parametrize("error", [FULL, BROKEN, MemoryError()], ids=repr)
@pytest.mark.parametrize("wanted", [6, pytest.param(10**9, marks=pytest.mark.slow)])
def test_any_call_of_the_system_may_fail(
    gen: Gen, whole: dict[str, bytes], error: BaseException, wanted: int
) -> None:
    count = counted(gen, torch_too=False)
    chosen = turns(count, wanted, first=3 * len(repr(error)))
    for turn in chosen:
        check(gen, whole, Fault(turn, error))
    print(f"{len(chosen)} of {count} calls")


@pytest.mark.parametrize("error", SHORT, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("wanted", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_memory_may_end_at_any_operation(
    gen: Gen, whole: dict[str, bytes], error: BaseException, wanted: int
) -> None:
    count = counted(gen, torch_too=True)
    chosen = turns(count, wanted, first=len(repr(error)))
    for turn in chosen:
        check(gen, whole, Fault(turn, error), torch_too=True)
    print(f"{len(chosen)} of {count} operations")
