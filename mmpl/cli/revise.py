"""A job changed on purpose: a segment rolled again, a film made longer. No torch here."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmpl.cli import arguments, flags
from mmpl.cli.job import LENGTHS, RANDOM_SEEDS, Record, film_for, merge, request_of
from mmpl.cli.model import model_folder
from mmpl.cli.shell import Console
from mmpl.errors import ArgumentError, ResumeError
from mmpl.film.given_file import read_given, write_given
from mmpl.film.job import Revision, read_job
from mmpl.film.pins import Pin, kept_pin, pins_text
from mmpl.film.script import Cue, script_text, seeds_text
from mmpl.film.settings import LARGEST_SEED, Film
from mmpl.layout.work import Task

REROLL = ("segment", "keep_tail", "seed", "prompt")  # flags that say what to change
FINISH = (
    "steps", "guidance_scale", "shift", "solver", "negative_prompt", "alpha", "beta", "noise",
    "model_path", "checkpoint",
)  # fmt: skip


def reroll(film: Film, given: Mapping[str, Any], folder: Path) -> Revision:
    """Segment `given["segment"]`, counted from 1, with another seed and perhaps another prompt.

    Segments after it start from what it ends with, so they are made again too, up to the next
    cut; their noise and prompts stay. With `keep_tail` it ends as it did in the job folder, and
    they stay. Raises ArgumentError, and InputError if there is no end to keep.
    """
    number = given.get("segment")
    if number is None or not 1 <= number <= film.segments:
        raise ArgumentError(
            "which segment?" if number is None else "no such segment",
            got=None if number is None else f"--segment {number}",
            wanted=f"--segment 1 to {film.segments}",
        )
    segment = number - 1
    seed = given.get("seed", -1)
    if seed == -1:
        seed = secrets.randbelow(RANDOM_SEEDS)
    if not 0 <= seed <= LARGEST_SEED:
        raise ArgumentError("seed is out of range", got=seed, wanted=f"0 to {LARGEST_SEED}")
    seeds = {**dict(film.segment_seeds), segment: seed}
    changed: dict[str, Any] = {"segment_seeds": seeds_text(sorted(seeds.items()))}
    if "prompt" in given:
        changed["prompt"] = script_text(_with_prompt(film, segment, given["prompt"]))
    end = next((cut for cut in film.cuts if cut > segment), film.segments)
    if "keep_tail" in given and segment + 1 < end:
        kept = _tail(film, segment, folder)
        pins = [pin for pin in film.pins if pin.segment != segment or pin.latent not in kept]
        arrays = {**read_given(folder, pins), **{pin: z for pin, z in kept.values()}}
        changed["given"] = pins_text(arrays)
        return Revision(
            changed, range(segment, segment + 1), prepare=lambda: write_given(folder, arrays)
        )
    segments = range(segment, end)
    pins = [pin for pin in film.pins if not (pin.is_kept and pin.segment in segments)]
    return Revision({**changed, "given": pins_text(pins)}, segments)


def _tail(film: Film, segment: int, folder: Path) -> dict[int, tuple[Pin, NDArray[np.float32]]]:
    """The keyframes that the next segment starts from, by latent frame."""
    from mmpl.film.store import Store  # torch comes with it

    tail, store = film.chain.handover[1:], Store(folder)
    found = {}
    for frame in dict.fromkeys(tail):
        group = film.layout.group_of(frame)
        z_BCTHW = store.get(Task(segment, "make", group.name))
        z_BCHW = z_BCTHW[:, :, group.frames.index(frame)].float().numpy()
        found[frame] = kept_pin(segment, frame, z_BCHW), z_BCHW
    return found


def finish(film: Film, given: Mapping[str, Any], job: Mapping[str, Any], folder: Path) -> Revision:
    """The film populated with other settings or another model than it was planned with.

    Its keyframes become given ones. Raises InputError unless the plan is finished.
    """
    from mmpl.film.store import Store  # torch comes with it

    store, arrays = Store(folder), read_given(folder, film.pins)
    pinned = {(pin.segment, pin.latent) for pin in arrays}
    for task in film.work.planning:
        frames = film.layout.group(task.group).frames
        for frame, z_BCHW in zip(frames, store.get(task).unbind(2), strict=True):
            if (task.segment, frame) not in pinned:
                array = z_BCHW.float().numpy()
                arrays[kept_pin(task.segment, frame, array)] = array
    planning = {task.group for task in film.work.planning}
    changed = {name: given[name] for name in FINISH if name in given}
    model = {name: changed.pop(name) for name in ("model_path", "checkpoint") if name in changed}
    notes: dict[str, Any] = {}
    if model:
        _require_same_vae(folder, job, model)
        notes = {
            "model": {name: os.path.abspath(path) for name, path in model.items()},
            "weights": {"vae": job["weights"].get("vae")},
            "planned_with": {name: job[name] for name in ("model", "settings", "weights")},
        }
    return Revision(
        {**changed, "given": pins_text(arrays)},
        range(film.segments),
        tuple(group.name for group in film.layout.groups if group.name not in planning),
        lambda: write_given(folder, arrays),
        notes,
    )


def _require_same_vae(folder: Path, job: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Refuses a model to which the keyframes would be other pictures, where that is known before
    it is loaded."""
    planned, other = job["weights"].get("vae"), model_folder(model)[0].digests.get("vae")
    if other is not None and planned != other:
        raise ResumeError(
            "the film was planned in other latents than this model has",
            where=str(folder),
            got=f"VAE {other[:16]}",
            wanted=f"VAE {str(planned)[:16]}",
            todo="give a model with the same VAE",
        )


def extend(old: Film, new: Film) -> Revision:
    """`old` made as long as `new`; nothing that is finished changes. Raises ArgumentError."""
    if new.frames <= old.frames:
        raise ArgumentError(
            "not longer than the film is",
            got=f"{new.frames / new.fps:g} s",
            wanted=f"more than {old.frames / old.fps:g} s",
        )
    return Revision({"num_frames": new.frames}, range(0))


def announced(film: Film, revision: Revision) -> str:
    """What a revision makes again and what it leaves, for people."""
    if not revision.segments:
        return f"all {film.segments} segments stay, the last as far as it went; more follow"
    if revision.groups:
        return "its keyframes stay, all other frames are made anew"
    first, last = revision.segments[0] + 1, revision.segments[-1] + 1
    changed = f"segment {first}" if first == last else f"segments {first} to {last}"
    return f"{changed} of {film.segments} will be made again, all others stay"


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


def revised(
    verb: str, record: Record, given: Mapping[str, Any], console: Console
) -> dict[str, Any]:
    """What is given, with the revision of the job that it means; says what that changes."""

    def film(settings: Mapping[str, Any]) -> Film:
        folder, _ = model_folder(settings)
        return film_for(request_of(settings, settings["seed"]), folder)

    old = film(record.settings)
    if verb == "reroll":
        revision = reroll(old, given, Path(given["job_dir"]))
        rest = {name: value for name, value in given.items() if name not in REROLL}
    elif verb == "extend":
        revision = extend(old, film(merge(given, record.settings)))
        rest = {name: value for name, value in given.items() if name not in LENGTHS}
    else:
        folder = Path(given["job_dir"])
        revision = finish(old, given, read_job(folder) or {}, folder)
        rest = dict(given)
    console.say(f"{rest['job_dir']}: {announced(old, revision)}")
    return {"overwrite": True, **rest, **revision.settings, "revision": revision}


def changes(verb: str, given: Mapping[str, Any], record: Record) -> bool:
    """Whether the job is to be changed: `populate` does if flags say otherwise than it was planned
    with."""
    if verb != "populate":
        return True
    return any(name in given and given[name] != record.settings.get(name) for name in FINISH)


def flags_again(words: list[str]) -> list[str]:
    """The flags of a revision for the processes that carry it out, when it is in the job."""
    texts = flags.parse_texts(arguments.GEN, words)
    said = (*REROLL, *FINISH, *LENGTHS)
    again = [
        f"--{name}={text}" if text else f"--{name}"
        for name, text in texts.items()
        if name not in said
    ]
    return [*again, *([] if "overwrite" in texts else ["--overwrite"])]
