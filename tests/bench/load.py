"""How long weights take to be ready and what they take of memory, against torch's own ways.

    python -m tests.bench.load [--gigabytes 1] [--runs 5] [--ranks 2] [--folder FOLDER]

A transformer of Wan2.1 1.3B's width in bfloat16, in a temporary folder. Every number is the median
over fresh processes, with the files in the page cache. Ready: from the path to parameters that a
pass can take; of that, the processor's time. All read: and then every byte used once. Memory:
anonymous, the most that was held while they were made ready, over the bytes of the weights in
bfloat16.

At the end the file is dropped from the page cache, and as many processes as `--ranks` read all of
it at the same time: what the disk was asked for, and what they hold of their own. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmpl.checkpoint.bundle import load_transformer
from mmpl.checkpoint.folder import check_folder
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit_params import dit_cast, dit_from_flat, dit_shapes
from mmpl.wan.ops import natural_precision
from mmpl.wan.params import to_flat
from tests.checkpoint import worlds

ROOT = Path(__file__).parents[2]
MODEL, DIT = "model", "model/diffusion_pytorch_model.safetensors"
WIDE, PICKLE = "others/wide.safetensors", "others/half.pt"
Weights = Mapping[str, Tensor]
Numbers = dict[str, float]


# ------------------------------------------------------------------------------- ways to load


def as_stored(folder: Path) -> Weights:
    found = load_transformer(check_folder(folder / MODEL))
    return to_flat(dit_from_flat(found.flat, found.config))


def in_bfloat16(folder: Path, checkpoint: str = DIT) -> Weights:
    found = load_transformer(check_folder(folder / MODEL, checkpoint=folder / checkpoint))
    tree = dit_from_flat(found.flat, found.config)
    return to_flat(dit_cast(tree, natural_precision(torch.bfloat16)))


def made_and_filled(folder: Path) -> Weights:
    stored = load_file(folder / DIT)
    made = {name: torch.empty_like(tensor).normal_() for name, tensor in stored.items()}
    for name, tensor in stored.items():
        made[name].copy_(tensor)
    return made


def unpickled(folder: Path, *, mapped: bool = False) -> Weights:
    return torch.load(folder / PICKLE, weights_only=True, mmap=mapped)


WAYS: dict[str, Callable[[Path], Weights]] = {
    "mmpl, as stored": as_stored,
    "mmpl, --dtype bfloat16": in_bfloat16,
    "mmpl, from float32 to bfloat16": lambda folder: in_bfloat16(folder, WIDE),
    "random weights, then load_file": made_and_filled,
    "torch.load": unpickled,
    "torch.load(mmap=True)": lambda folder: unpickled(folder, mapped=True),
}


# ---------------------------------------------------------------------------------- the files


def config_of(gigabytes: float) -> DiTConfig:
    """As many layers of Wan2.1 1.3B as make about so many 1e9 bytes in bfloat16."""
    one, two = (replace(DiTConfig(), num_layers=n, text_dim=24) for n in (1, 2))
    layer = numbers_in(two) - numbers_in(one)
    return replace(one, num_layers=max(1, round(gigabytes * 1e9 / 2 / layer)))


def numbers_in(config: DiTConfig) -> int:
    return sum(prod(shape) for shape in dit_shapes(config).values())


def write(folder: Path, config: DiTConfig) -> int:
    """Files for every way; returns the bytes of the weights in bfloat16."""
    shapes = dit_shapes(config)
    worlds.write_wan_folder(folder / MODEL, with_dit=False)
    (folder / MODEL / "config.json").unlink()
    (folder / WIDE).parent.mkdir()
    numbers = torch.randn(max(map(prod, shapes.values())))
    wide = {name: numbers[: prod(shape)].view(shape).clone() for name, shape in shapes.items()}
    half = {name: tensor.bfloat16() for name, tensor in wide.items()}
    save_file(half, folder / DIT)
    save_file(wide, folder / WIDE)
    torch.save(half, folder / PICKLE)
    return sum(tensor.nbytes for tensor in half.values())


# ---------------------------------------------------------------------------- one measurement


def anonymous_bytes() -> int:
    """What this process holds of memory that no file is behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


class Highest(AbstractContextManager):
    """The most anonymous memory within the block, above what there was: `extra` bytes."""

    def __init__(self) -> None:
        self._before = self._most = anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    @property
    def extra(self) -> int:
        return self._most - self._before

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            self._most = max(self._most, anonymous_bytes())

    def __enter__(self) -> Highest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._most = max(self._most, anonymous_bytes())


def use(weights: Weights) -> int:
    """Every byte once."""
    return sum(int(t.reshape(-1).view(torch.uint8).max()) for t in weights.values())


def measured(way: str, folder: Path, *, memory: bool) -> Numbers:
    """In this process: seconds, or memory, since watching it takes time."""
    before = bytes_from_disk()
    with Highest() if memory else nullcontext() as highest:
        start, worked = time.perf_counter(), time.process_time()
        weights = WAYS[way](folder)
        ready_s, cpu_s = time.perf_counter() - start, time.process_time() - worked
    use(weights)
    all_s = time.perf_counter() - start
    read = float(bytes_from_disk() - before)
    if highest is None:
        return {"ready_s": ready_s, "cpu_s": cpu_s, "all_s": all_s, "read": read}
    return {"extra": float(highest.extra), "read": read}


def bytes_from_disk() -> int:
    """What this process made the kernel fetch from the disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


# ------------------------------------------------------------------------- in fresh processes


def started(ways: Sequence[str], folder: Path, *, memory: bool) -> subprocess.Popen[str]:
    words = [str(folder), "memory" if memory else "time", *ways]
    code = "import sys; from tests.bench.load import child; child(sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def child(words: Sequence[str]) -> None:
    print("here", flush=True)
    sys.stdin.readline()
    folder, wanted, *ways = words
    print(json.dumps([measured(way, Path(folder), memory=wanted == "memory") for way in ways]))


def together(
    ways: Sequence[str], folder: Path, count: int, *, memory: bool = False
) -> list[list[Numbers]]:
    """What `count` fresh processes measure that begin at the same time, each way after way."""
    running = [started(ways, folder, memory=memory) for _ in range(count)]
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [json.loads(process.communicate()[0]) for process in running]


def dropped_from_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def median(rows: Sequence[Numbers], name: str) -> float:
    return statistics.median(row[name] for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="for the files, which are removed again")
    given = parser.parse_args()
    with TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        size = write(folder, config_of(given.gigabytes))
        print(f"{size / 1e9:.2f} GB of weights in bfloat16, medians of {given.runs}")
        print(f"{'':32}{'ready s':>9}{'cpu s':>8}{'all read s':>12}{'memory':>8}")
        for way in WAYS:
            times = [together([way], folder, 1)[0][0] for _ in range(given.runs)]
            extra = [together([way], folder, 1, memory=True)[0][0] for _ in range(given.runs)]
            print(
                f"{way:32}{median(times, 'ready_s'):9.3f}"
                f"{median(times, 'cpu_s'):8.3f}{median(times, 'all_s'):12.3f}"
                f"{median(extra, 'extra') / size:8.3f}",
                flush=True,
            )
        dropped_from_cache(folder / DIT)
        ranks = together(["mmpl, as stored"], folder, given.ranks, memory=True)
        read, extra = (sum(row[name] for (row,) in ranks) / size for name in ("read", "extra"))
        print(
            f"{given.ranks} processes at once, nothing in the page cache: {read:.3f} of the bytes "
            f"came from the disk, {extra:.3f} are memory of their own"
        )


if __name__ == "__main__":
    main()
