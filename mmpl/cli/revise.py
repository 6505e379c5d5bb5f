"""What reroll, extend and populate change in a job, as their flags say it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpl.cli import arguments, flags
from mmpl.cli.job import LENGTHS, RANDOM_SEEDS, Record, film_for, merge, request_of
from mmpl.cli.model import MODEL_FLAGS, from_anywhere, model_folder
from mmpl.cli.shell import Console
from mmpl.errors import ArgumentError, ResumeError
from mmpl.film.job import Revision, read_job
from mmpl.film.settings import Film

REROLL = ("segment", "keep_tail", "seed", "prompt")  # flags that say what to change
FINISH = (
    "populate_steps", "guidance_scale", "shift", "solver", "negative_prompt", "alpha", "beta",
    "noise", *MODEL_FLAGS,
)  # fmt: skip


def populating(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The flags of populate, whose --steps are of what it makes: the plan has taken its own. Raises
    ArgumentError where they say both."""
    if "steps" not in given:
        return given
    if "populate_steps" in given:
        raise ArgumentError("the steps are given twice", got="--steps and --populate_steps")
    rest = {name: value for name, value in given.items() if name != "steps"}
    return {**rest, "populate_steps": given["steps"]}


def changes(verb: str, given: Mapping[str, Any], record: Record) -> bool:
    """Whether the job is to be changed: `populate` does if flags say otherwise than it was planned
    with."""
    if verb != "populate":
        return True
    return any(name in given and given[name] != record.settings.get(name) for name in FINISH)


def revised(
    verb: str, record: Record, given: Mapping[str, Any], console: Console
) -> dict[str, Any]:
    """What is given, with the revision of the job that it means; says what that changes."""

    def film(settings: Mapping[str, Any]) -> Film:
        folder, _ = model_folder(settings)
        return film_for(request_of(settings, settings["seed"]), folder)

    from mmpl.film import revise  # torch comes with it

    old, folder, rest = film(record.settings), Path(given["job_dir"]), dict(given)
    if verb != "populate" and any(name in given for name in MODEL_FLAGS):
        _require_its_model(folder, given, record)
    if verb == "reroll":
        if "segment" not in given:
            raise ArgumentError("which segment?", wanted=f"--segment 1 to {old.segments}")
        seed = given.get("seed", -1)
        revision = revise.reroll(
            old,
            folder,
            given["segment"] - 1,
            seed=secrets.randbelow(RANDOM_SEEDS) if seed == -1 else seed,
            prompt=given.get("prompt"),
            keep_tail="keep_tail" in given,
        )
        rest = {name: value for name, value in given.items() if name not in REROLL}
    elif verb == "extend":
        revision = revise.extend(old, film(merge(given, record.settings)))
        rest = {name: value for name, value in given.items() if name not in LENGTHS}
    else:
        settings = {name: given[name] for name in FINISH if name in given}
        model = {name: settings.pop(name) for name in MODEL_FLAGS if name in settings}
        other = _other_model(folder, merge(model, record.settings)) if model else {}
        revision = revise.finish(old, folder, settings, other)
    console.say(f"{folder}: {_announced(old, revision)}")
    return {"overwrite": True, **rest, **revision.settings, "revision": revision}


def flags_again(words: list[str]) -> list[str]:
    """The flags of a revision for the processes that carry it out, when it is in the job."""
    texts = flags.parse_texts(arguments.GEN, words)
    said = (*REROLL, *FINISH, *LENGTHS, "steps")
    again = [
        f"--{name}={text}" if text else f"--{name}"
        for name, text in texts.items()
        if name not in said
    ]
    return [*again, *([] if "overwrite" in texts else ["--overwrite"])]


def _require_its_model(folder: Path, given: Mapping[str, Any], record: Record) -> None:
    """Raises ResumeError where the flags name other weights than the job's, as far as that is known
    before they are loaded: what stays of the film would not fit what is made anew."""
    known = (read_job(folder) or {}).get("weights", {})
    planned, _ = model_folder(record.settings)
    wanted, _ = model_folder(merge(given, record.settings))
    before, now = (
        [(lora.sha256, lora.strength) for lora in found.loras] for found in (planned, wanted)
    )
    other = [] if before == now else ["lora"]
    for part, digest in wanted.digests.items():
        merged = part == "dit" and before  # the job knows it with its LoRAs in it
        if not merged and known.get(part, digest) != digest:
            other.append(part)
    if other:
        raise ResumeError(
            "this film was made with other weights",
            where=str(folder),
            got=f"another {' and '.join(other)}",
            todo="leave the flag out, or make another film in another job folder",
        )


def _other_model(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What another model, that of `settings`, changes in the job; the VAE must be the same, where
    that is known before it is loaded."""
    job = read_job(folder) or {}
    found, named = model_folder(settings)
    planned, other = job["weights"].get("vae"), found.digests.get("vae")
    if other is not None and planned != other:
        raise ResumeError(
            "the film was planned in other latents than this model has",
            where=str(folder),
            got=f"VAE {other[:16]}",
            wanted=f"VAE {str(planned)[:16]}",
            todo="give a model with the same VAE",
        )
    return {
        "model": from_anywhere(named, found),
        "weights": {"vae": planned},
        "planned_with": {name: job[name] for name in ("model", "settings", "weights")},
    }


def _announced(film: Film, revision: Revision) -> str:
    """What a revision makes again and what it leaves, for people."""
    if not revision.segments:
        return f"all {film.segments} segments stay, the last as far as it went; more follow"
    if revision.groups:
        return "its keyframes stay, all other frames are made anew"
    first, last = revision.segments[0] + 1, revision.segments[-1] + 1
    changed = f"segment {first}" if first == last else f"segments {first} to {last}"
    return f"{changed} of {film.segments} will be made again, all others stay"
