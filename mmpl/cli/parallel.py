"""By how many processes a film is made, as the flags say: their devices, their mesh, their start.

No torch here: what can be refused is refused before any process is started.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpl.cli import dry_run, ranks
from mmpl.cli.job import tidy
from mmpl.cli.order import Order
from mmpl.cli.place import PATIENCE_S
from mmpl.cli.shell import Console, cores
from mmpl.errors import ArgumentError
from mmpl.film.settings import Film

MOST_RANKS = 256
COMPILING_S = 300.0  # where a pass may have to be compiled first


def make(
    argv: list[str],
    settings: Mapping[str, Any],
    order: Order,
    wanted: list[str],
    console: Console,
) -> None:
    """Makes the film of `order` by one process on each of the devices `wanted`."""
    assert order.job_dir is not None, "what is finished has to be kept"
    film, folder = order.film, Path(order.job_dir)
    if "parallel" not in settings:
        wanted = _useful(wanted, film, console)
    threads = settings.get("threads", max(1, cores() // len(wanted)))
    mesh = dry_run.mesh_of(settings, film, order.folder, len(wanted))
    ranks.supervise(
        argv,
        {
            "seed": film.seed,
            "job_dir": order.job_dir,
            "threads": threads,
            "program": order.program,
        },
        wanted[: mesh.ranks],
        mesh,
        patience_s=settings.get("rank_timeout", _patience_s(settings, wanted)),
        clean=lambda: tidy(folder, order.output),
        console=console,
    )


def _patience_s(settings: Mapping[str, Any], devices: list[str]) -> float:
    """How long a process may be silent, unless it is said."""
    compiles = settings.get("compile", "auto")
    on_gpu = any(device.startswith("cuda") for device in devices)
    return COMPILING_S if compiles == "yes" or (compiles == "auto" and on_gpu) else PATIENCE_S


def devices(settings: Mapping[str, Any]) -> list[str]:
    """The devices of the processes to start; none where this process makes the film itself."""
    number, gpus = settings.get("ranks"), settings.get("gpus")
    if number is not None and gpus is not None:
        raise ArgumentError("--ranks are on the CPU and --gpus are not", wanted="one of them")
    if gpus is not None:
        return [f"cuda:{index}" for index in gpus]
    if number is not None and not 1 <= number <= MOST_RANKS:
        raise ArgumentError("ranks is out of range", got=number, wanted=f"1 to {MOST_RANKS}")
    if number is not None and settings.get("device", "cpu") not in ("auto", "cpu"):
        raise ArgumentError("--ranks are on the CPU", got=f"--device {settings['device']}")
    return ["cpu"] * number if number is not None and number > 1 else []


def _useful(devices: list[str], film: Film, console: Console) -> list[str]:
    """No more of them than the film can keep busy."""
    work = film.work
    most = film.segments * work.width
    if len(devices) <= most:
        return devices
    console.warn(
        f"{len(devices)} processes are more than {_counted(film.segments)} can use: "
        f"going on with {most}"
    )
    return devices[:most]


def _counted(segments: int) -> str:
    return f"{segments} segment{'' if segments == 1 else 's'}"
