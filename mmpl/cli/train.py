"""bin/mmpl-train: the embedded bundle from nothing, one stage a call or all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpl.checkpoint.folder import check_folder
from mmpl.cli import training
from mmpl.cli.distil import command as distil
from mmpl.cli.encode import encode
from mmpl.cli.flags import (
    DEBUG,
    MACHINE,
    THREADS,
    Command,
    Flag,
    carried_out,
    one_of,
    whole,
)
from mmpl.cli.shell import Console, cores, print_result, run
from mmpl.cli.tune import export, tune
from mmpl.errors import ArgumentError, InputError
from mmpl.media.durable import check_folder_writable

if TYPE_CHECKING:
    pass

NAME = "mmpl-train"
STAGES = ("vae", "latents", "dit", "bundle")
PLAIN = "plain"
NETWORKS = ("embedded", "mixed", "mmpl", "chunked", PLAIN)  # of mmpl.train.tiny
WORK, FILES = "what to do", "files"
MOST_STEPS = 10**9
VERBS = {"distil": distil, "encode": encode, "tune": tune, "export": export}

TRAIN = Command(
    name=NAME,
    usage="mmpl-train STAGE [flags]\n"
    + "\n".join(f"       mmpl-train {verb} --help" for verb in VERBS),
    description="Trains the small embedded model on procedural clips. Stop it with "
    "Ctrl-C, which saves at the end of a step; the same command goes on from there.",
    epilog="Hyphens may stand for underscores. The path of the model folder is printed on stdout, "
    "all else on stderr. Exit codes: 0 done, 1 internal error, 2 wrong argument or a run folder of "
    "another recipe, 3 input refused, 4 output or disk, 7 the loss is not finite, 8 out of memory, "
    "130 Ctrl-C, 143 SIGTERM.",
    groups=(WORK, FILES, MACHINE),
    flags=(
        Flag(
            "stage",
            WORK,
            "STAGE",
            f"{', '.join(STAGES)}, or all in this order",
            **one_of(*STAGES, "all"),
            positional=True,
        ),
        Flag(
            "steps",
            WORK,
            "N",
            "how many steps the last stage of `dit` takes",
            **whole(1, MOST_STEPS),
        ),
        Flag(
            "network",
            WORK,
            "NAME",
            "embedded; or one that goes on from it, for the comparison of methods: mixed (all "
            "layouts), mmpl or chunked (one, as controls); or plain: from random weights, beside "
            "the encoders of --model_path, whole clips alone, as Wan before it is tuned",
            **one_of(*NETWORKS),
            default="embedded",
        ),
        Flag(
            "compile",
            WORK,
            "",
            "compile the transformer's block: `dit` is a quarter faster, after minutes",
        ),
        Flag(
            "model_path",
            FILES,
            "FOLDER",
            "a bundle to begin with, such as weights/tiny: its VAE encodes the clips, and only the "
            "last stage of `dit` is trained; give it to every stage",
        ),
        Flag("runs", FILES, "FOLDER", "state of the training", default="runs"),
        Flag(
            "output",
            FILES,
            "FOLDER",
            "the model folder that `bundle` writes",
            default="`bundle` in --runs",
        ),
        Flag("device", MACHINE, "NAME", "cpu or cuda", **one_of("cpu", "cuda"), default="cpu"),
        THREADS,
        DEBUG,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of `mmpl-train`."""
    return run(_command, argv, name=NAME)


def _command(argv: list[str], console: Console) -> int:
    verb = VERBS.get(argv[0]) if argv else None
    return verb(argv[1:], console) if verb else carried_out(TRAIN, _train, argv, console)


def _train(given: Mapping[str, Any], console: Console) -> None:
    stages = STAGES if given["stage"] == "all" else (given["stage"],)
    if "model_path" in given:
        stages = _stages_after(given["stage"])
    runs = Path(given.get("runs", "runs"))
    output = Path(given.get("output", runs / "bundle"))
    _check(stages, given, runs, output)

    import torch

    from mmpl.checkpoint.bundle import load_model
    from mmpl.train import pipeline, tiny

    torch.set_num_threads(given.get("threads", cores()))
    device = training.require_device(given.get("device", "cpu"))
    blueprint = tiny.blueprint(given.get("network", "embedded"))
    if "model_path" in given:
        blueprint = replace(blueprint, begins_with=load_model(given["model_path"]))
    if "steps" in given:
        *earlier, last = blueprint.dit_stages
        last = replace(last, recipe=replace(last.recipe, steps=given["steps"]))
        blueprint = replace(blueprint, dit_stages=(*earlier, last))
    engine = training.engine(compiled="compile" in given)
    for stage in stages:
        if stage == "vae":
            for name, progress in pipeline.train_vae(blueprint, runs, device=device):
                console.say(f"{name} {training.line(progress)}")
        elif stage == "latents":
            for name, done in pipeline.encode_clips(blueprint, runs, device=device):
                console.say(f"latents {name} {done}")
        elif stage == "dit":
            for name, progress in pipeline.train_dit(blueprint, runs, engine=engine, device=device):
                console.say(f"{name} {training.line(progress)}")
        else:
            pipeline.bundle(blueprint, runs, output)
            print_result(str(output))


def _stages_after(stage: str) -> Sequence[str]:
    """The stages of a run that begins with a bundle: those without the VAE's."""
    if stage == "vae":
        raise ArgumentError(
            "--model_path means nothing here", got="stage vae", wanted="latents, dit, bundle or all"
        )
    return STAGES[1:] if stage == "all" else (stage,)


def _check(stages: Sequence[str], given: Mapping[str, Any], runs: Path, output: Path) -> None:
    """What can be refused before anything is loaded, or hours are spent."""
    for flag, stage in (("steps", "dit"), ("compile", "dit"), ("output", "bundle")):
        if flag in given and stage not in stages:
            raise ArgumentError(
                f"--{flag} means nothing here",
                got=f"stage {given['stage']}",
                wanted=f"stage {stage} or all",
            )
    if "vae" not in stages and "model_path" not in given and not runs.is_dir():
        raise InputError(
            "no such run folder", where=str(runs), todo="begin with the stage vae, or give --runs"
        )
    if given.get("network") == PLAIN and "model_path" not in given:
        raise ArgumentError(
            f"--network {PLAIN} has the VAE and the text encoder of a finished bundle",
            todo="give the bundle as --model_path, such as weights/tiny",
        )
    if "model_path" in given:
        check_folder(given["model_path"])
    check_folder_writable(runs)
    if "bundle" in stages:
        check_folder_writable(output)
