"""mmpl-eval claims --ranks: one film by one process and by several, as mmpl-gen times it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from mmpl.checkpoint.folder import ModelFolder
from mmpl.cli import ranks
from mmpl.cli.job import film_for
from mmpl.cli.shell import Console, cores
from mmpl.errors import RankError
from mmpl.eval import claims_ranks
from mmpl.eval.claims import put_json, read_json
from mmpl.eval.claims_ranks import Bars, run_of, speed_up
from mmpl.film.settings import Request
from mmpl.train.grammar import held_out_prompts

_PATTERN = "ranks_*.pair_*.json"


def measure(runs: Path, number: int, flags: Mapping[str, Any], console: Console) -> None:
    """Makes the pairs of films that the folder lacks, by one process and by `number`. `flags`: of
    model and sampler. Raises RankError where a film is not made."""
    for pair in range(claims_ranks.PAIRS):
        path = runs / f"ranks_{number}.pair_{pair}.json"
        if path.exists():
            continue
        load = os.getloadavg()[0]
        order = (1, number) if pair % 2 == 0 else (number, 1)  # what drifts hits both
        made = {count: run_of(timed(count, flags)) for count in order}
        machine = {"cores": cores(), "load": round(load, 2), "segments": claims_ranks.SEGMENTS}
        put_json(path, {"one": made[1], "many": made[number], **machine})
        one, many = (made[count]["seconds"] for count in (1, number))
        console.say(f"1 process {one:.1f} s, {number} processes {many:.1f} s")


def measured(runs: Path, folder: ModelFolder, sampling: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The speed-ups that the folder has pairs of, by number of processes. Raises ResumeError."""
    found: dict[int, list[dict[str, Any]]] = {}
    for path in sorted(runs.glob(_PATTERN)):
        pair = read_json(path)
        found.setdefault(pair["many"]["ranks"], []).append(pair)
    segments = claims_ranks.SEGMENTS
    work = film_for(Request("-", 0, segments=segments, **sampling), folder).work
    return [
        speed_up([(pair["one"], pair["many"]) for pair in pairs], work)
        | {
            "segments": segments,
            "cores": pairs[0]["cores"],
            "load": median(pair["load"] for pair in pairs),
        }
        for _, pairs in sorted(found.items())
    ]


def timed(number: int, flags: Mapping[str, Any]) -> list[Bars]:
    """Makes the film by so many processes of one thread; what each of them did when. Raises
    RankError."""
    prompt = held_out_prompts(1)[0][0]
    settings = {"prompt": prompt, "seed": 1, "segments": claims_ranks.SEGMENTS, **flags}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory(prefix="mmpl-") as folder:
        words += ["--output", str(Path(folder, "film.mp4")), "--threads", "1", "--device", "cpu"]
        if number > 1:
            words += ["--ranks", str(number)]
        code, events = ranks.told(words)
    told = {event["event"]: event for event in events}
    found = told.get("times", {}).get("ranks", [])
    if code or len(found) != number:
        raise RankError(
            f"the film to be timed was not made by {number} processes",
            got=told.get("failed", {}).get("text") or f"{len(found)} at its end",
        )
    return found
