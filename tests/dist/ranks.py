"""Real processes joined in a gloo group, for tests: `run_ranks(3, function, argument)`."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

LIMIT_S = 120


def run_ranks(ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(rank, *arguments)` returns on each of `ranks` processes of one group.

    `function` must be importable. An exception on any rank is raised here, the others are killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "mmpl.generate"])
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(ranks):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank, args=(theirs, folder, rank, ranks, function, arguments), daemon=True
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        try:
            return _collect(pipes)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _collect(pipes: list[Connection]) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        ready = wait([p for p in pipes if pipes.index(p) not in results], timeout=LIMIT_S)
        assert ready, f"nothing from ranks {set(range(len(pipes))) - set(results)}"
        for pipe in ready:
            error, value = pipe.recv()  # type: ignore[union-attr]
            if error is not None:
                raise error
            results[pipes.index(pipe)] = value  # type: ignore[arg-type]
    return [results[rank] for rank in range(len(pipes))]


def _rank(
    pipe: Connection,
    folder: str,
    rank: int,
    ranks: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=LIMIT_S),
        )
        value = function(rank, *arguments)
        dist.barrier()
    except BaseException as error:  # noqa: BLE001  the test shows it
        pipe.send((error, None))
    else:
        pipe.send((None, value))
    finally:
        dist.destroy_process_group()
