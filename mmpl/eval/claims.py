"""The grid of films that the paper's claims are tested on, made and kept one by one.

A unit is a film of one arm, of one held-out prompt (program) and one seed. Its record is a small
JSON file, there whole or not at all; a run that was stopped goes on with those that are missing.
Units are ordered seed by seed, program by program and then by arm, so that whenever a run stops,
all arms have been tried on the same programs. No torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpl.errors import ArgumentError, NumericError, ResumeError
from mmpl.eval.claims_arms import METHOD_ARMS, NETWORK_ARMS
from mmpl.media import durable

SETTINGS_FILE = "claims.json"
NETWORKS_FILE = "networks.json"
BASE = "mmpl_terminal"  # what all others are compared with
_PATTERN = "program_*.json"

Record = Mapping[str, Any]
Digests = Mapping[str, str]  # part of a model -> SHA-256


@dataclass(frozen=True, slots=True)
class Budget:
    """A grid, and after how many minutes to stop wherever it is; None never."""

    programs: int
    segments: int
    seeds: int
    arms: tuple[str, ...]
    minutes: float | None


_QUICK = (
    *(BASE, "bidirectional_window", "self_forcing_windows", "rolling_kv"),
    *("mmpl_no_reencode", "mmpl_noise_off", "mmpl_noise_unit_0.5"),
)
_MAIN = (
    *_QUICK,
    *("mmpl_without_early", "mmpl_without_midpoint", "mmpl_head_sees_terminal"),
    *("mmpl_midpoint", "mmpl_noise_paper_0.5", "causvid_windows"),
    *("mmpl_guidance_1", "mmpl_guidance_2.5", "mmpl_populate_quarter"),
)
BUDGETS: Mapping[str, Budget] = {
    "10m": Budget(6, 3, 1, _QUICK, 10.0),
    "3h": Budget(16, 6, 1, _MAIN, 180.0),
    "full": Budget(64, 12, 3, METHOD_ARMS, None),
}


@dataclass(frozen=True, slots=True)
class Unit:
    """One film. `program` counts the held-out prompts from 0, `seed` the seeds of each."""

    arm: str
    program: int
    seed: int

    @property
    def film_seed(self) -> int:
        """What its noise is drawn from: the same for every arm."""
        return self.program + 1000 * self.seed


@dataclass(frozen=True, slots=True)
class Done:
    """A unit was made; `left` are still to be, and `left_s` is about how long they take."""

    unit: Unit
    record: Record
    left: int
    left_s: float


def check_methods(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once, what all are compared with first. Raises ArgumentError for others."""
    for name in names:
        if name in NETWORK_ARMS:
            raise ArgumentError(
                f"{name} is a network of its own", todo="give the folder it is in as --networks"
            )
        if name not in METHOD_ARMS:
            wanted = ", ".join(METHOD_ARMS)
            raise ArgumentError("unknown method", got=ascii(name)[:40], wanted=wanted)
    return tuple(dict.fromkeys((BASE, *names)))


def units_of(budget: Budget) -> list[Unit]:
    """All films of a budget, in the order in which they are made."""
    return [
        Unit(arm, program, seed)
        for seed in range(budget.seeds)
        for program in range(budget.programs)
        for arm in budget.arms
    ]


def open_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder, or checks that its records were made with these settings, which are what
    all films share: their length, the sampler, the weights. Raises ResumeError and OutputError."""
    durable.make_folder(folder)
    path = folder / SETTINGS_FILE
    wanted = json.loads(json.dumps(settings))
    if not path.exists():
        if next(folder.glob(_PATTERN), None) is not None:
            raise ResumeError(
                "nothing says how the films in this folder were made",
                where=str(folder),
                wanted=f"{SETTINGS_FILE} beside them",
                todo="give another --runs",
            )
        put_json(path, wanted)
    found = read_json(path)
    differing = [n for n in {**wanted, **found} if found.get(n) != wanted.get(n)]
    if differing:
        raise ResumeError(
            "the films in this folder were made with other settings",
            where=str(folder),
            got="other " + ", ".join(sorted(differing)),
            todo="give another --runs, or the same settings",
        )
    durable.sweep_folder(folder, _PATTERN)


def add_networks(folder: Path, networks: Mapping[str, Digests]) -> dict[str, Digests]:
    """Holds arms' own networks, each by the digests of its parts, against those that the folder has
    records of, and notes the new ones. Returns all that the folder knows. Raises ResumeError for
    one that was replaced by another of the same name, and OutputError."""
    path = folder / NETWORKS_FILE
    known: dict[str, Digests] = read_json(path) if path.exists() else {}
    for name, digests in networks.items():
        records = f"program_*.{name}.json"
        if known.get(name, digests) != digests and next(folder.glob(records), None) is not None:
            raise ResumeError(
                f"the films of {name} in this folder were made by another network",
                where=str(folder),
                todo=f"remove {records}, or give another --runs",
            )
    if {**known, **networks} != known:
        put_json(path, {**known, **networks})
    return {**known, **networks}


def read_record(folder: Path, unit: Unit) -> Record | None:
    """What was measured of a unit; None where it was not made. Raises ResumeError for a file that
    cannot be read."""
    path = folder / _file_name(unit)
    return read_json(path) if path.exists() else None


def run(
    folder: Path,
    units: Sequence[Unit],
    measure: Callable[[Unit], dict[str, Any]],
    *,
    minutes: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Done]:
    """Makes and measures the units that the folder does not hold, each once, and yields them. No
    unit is begun after `minutes`. A film of not-a-numbers is a result too: its record says so."""
    begun = clock()
    todo = [unit for unit in units if read_record(folder, unit) is None]
    spent: list[float] = []
    for number, unit in enumerate(todo, 1):
        started = clock()
        if minutes is not None and started - begun >= 60 * minutes:
            return
        try:
            record = measure(unit)
        except NumericError as error:
            record = {"failed": str(error)}
        put_json(folder / _file_name(unit), record)
        spent.append(clock() - started)
        left = len(todo) - number
        yield Done(unit, record, left, left * sum(spent) / len(spent))


def _file_name(unit: Unit) -> str:
    return f"program_{unit.program:03d}.seed_{unit.seed}.{unit.arm}.json"


def put_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file of results, there whole or not at all. Raises OutputError."""
    data = (json.dumps(content, allow_nan=False) + "\n").encode()
    durable.put(path, lambda file: file.write(data))


def read_json(path: Path) -> dict[str, Any]:
    """What `put_json` wrote. Raises ResumeError for a file that cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        got = "no JSON object"
    except (OSError, ValueError) as error:
        got = str(error)[:80]
    raise ResumeError("cannot be read", where=str(path), got=got, todo="remove this file")
