"""A job changed on purpose: a segment rolled again, a film made longer, keyframes kept for another
model. What follows is a `Revision`, to be carried out by `mmpl.film.job.revise`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmpl.errors import ArgumentError
from mmpl.film.given_file import read_given, write_given
from mmpl.film.job import Revision
from mmpl.film.pins import Pin, kept_pin, pins_text
from mmpl.film.script import Cue, script_text, seeds_text
from mmpl.film.settings import LARGEST_SEED, Film, Request
from mmpl.film.store import Store
from mmpl.layout.work import Task

_FIELDS = {"num_frames": "frames"}  # of a request, where they are not called as the flags are


def reroll(
    film: Film,
    folder: Path,
    segment: int,
    *,
    seed: int,
    prompt: str | None = None,
    keep_tail: bool = False,
) -> Revision:
    """`segment`, counted from 0, of the film in a job folder with another seed, perhaps prompt.

    Segments after it start from what it ends with, so they are made again too, up to the next
    cut; their noise and prompts stay. With `keep_tail` it ends as it did, and they stay. Raises
    ArgumentError, and InputError if there is no end to keep.
    """
    if not 0 <= segment < film.segments:
        raise ArgumentError(
            "no such segment", got=segment + 1, wanted=f"segment 1 to {film.segments}"
        )
    if not 0 <= seed <= LARGEST_SEED:
        raise ArgumentError("seed is out of range", got=seed, wanted=f"0 to {LARGEST_SEED}")
    seeds = {**dict(film.segment_seeds), segment: seed}
    changed: dict[str, Any] = {"segment_seeds": seeds_text(sorted(seeds.items()))}
    if prompt is not None:
        changed["prompt"] = script_text(_with_prompt(film, segment, prompt))
    end = next((cut for cut in film.cuts if cut > segment), film.segments)
    if keep_tail and segment + 1 < end:
        kept = _tail(film, segment, folder)
        pins = [pin for pin in film.pins if pin.segment != segment or pin.latent not in kept]
        arrays = {**read_given(folder, pins), **{pin: z for pin, z in kept.values()}}
        changed["given"] = pins_text(arrays)
        alone = range(segment, segment + 1)
        return Revision(changed, alone, prepare=lambda: write_given(folder, arrays))
    segments = range(segment, end)
    pins = [pin for pin in film.pins if not (pin.is_kept and pin.segment in segments)]
    return Revision({**changed, "given": pins_text(pins)}, segments)


def extend(film: Film, longer: Film) -> Revision:
    """`film` made as long as `longer`; nothing that is finished changes. Raises ArgumentError."""
    if longer.frames <= film.frames:
        raise ArgumentError(
            "not longer than the film is",
            got=f"{longer.frames / longer.fps:g} s",
            wanted=f"more than {film.frames / film.fps:g} s",
        )
    return Revision({"num_frames": longer.frames}, range(0))


def finish(
    film: Film, folder: Path, settings: Mapping[str, Any], notes: Mapping[str, Any]
) -> Revision:
    """The film populated with other `settings`, by name, than it was planned with, such as
    populate_steps, but not steps, which the plan has taken. Its keyframes become given ones.
    Raises InputError unless the plan is finished."""
    store, arrays = Store(folder), read_given(folder, film.pins)
    pinned = {(pin.segment, pin.latent) for pin in arrays}
    for task in film.work.planning:
        frames = film.layout.group(task.group).frames
        for frame, z_BCHW in zip(frames, store.get(task).unbind(2), strict=True):
            if (task.segment, frame) not in pinned:
                array = z_BCHW.float().numpy()
                arrays[kept_pin(task.segment, frame, array)] = array
    planning = {task.group for task in film.work.planning}
    return Revision(
        {**settings, "given": pins_text(arrays)},
        range(film.segments),
        tuple(group.name for group in film.layout.groups if group.name not in planning),
        lambda: write_given(folder, arrays),
        notes,
    )


def revised_request(request: Request, revision: Revision) -> Request:
    """The request of a film after a revision of it."""
    changed = {_FIELDS.get(name, name): value for name, value in revision.settings.items()}
    if "frames" in changed:
        changed |= {"duration_s": None, "segments": None}
    return replace(request, **changed)


def _tail(film: Film, segment: int, folder: Path) -> dict[int, tuple[Pin, NDArray[np.float32]]]:
    """The keyframes that the next segment starts from, by latent frame."""
    store = Store(folder)
    found = {}
    for frame in dict.fromkeys(film.chain.handover[1:]):
        group = film.layout.group_of(frame)
        z_BCTHW = store.get(Task(segment, "make", group.name))
        z_BCHW = z_BCTHW[:, :, group.frames.index(frame)].float().numpy()
        found[frame] = kept_pin(segment, frame, z_BCHW), z_BCHW
    return found


def _with_prompt(film: Film, segment: int, prompt: str) -> list[Cue]:
    """The script with another prompt for one segment alone."""
    prompts = [film.script[film.cue(s)].prompt for s in range(film.segments)]
    prompts[segment] = prompt
    cues = [Cue(0, prompts[0])]
    for number, text in enumerate(prompts):
        if text != cues[-1].prompt:
            cues.append(Cue(number, text))
    if len(cues) > 1:
        cues = [replace(cue, prompt=" ".join(cue.prompt.split())) for cue in cues]
    return cues
