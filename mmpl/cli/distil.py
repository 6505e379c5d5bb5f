"""bin/mmpl-train distil: a few-step model, of a bundle of procedural clips or from encoded ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpl.checkpoint.folder import check_folder
from mmpl.checkpoint.tokenizer_file import read_tokenizer
from mmpl.cli import training
from mmpl.cli.distil_wan import CLIPS, FLAGS, MOVING, RUNS, distil_wan
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
from mmpl.cli.shell import Console, cores, print_result
from mmpl.errors import ArgumentError
from mmpl.media.durable import check_folder_writable

if TYPE_CHECKING:
    from mmpl.checkpoint.bundle import Model
    from mmpl.train.tiny_fast import FastBlueprint

STAGES = ("paths", "jump", "match", "bundle")
ALL = ("paths", "jump", "bundle")  # of weights/tiny-fast: matching made it no better
WORK, FILES = "what to do", "files"
MOST = 10**9

DISTIL = Command(
    name="mmpl-train distil",
    usage="mmpl-train distil [flags]",
    description="Distils to four steps without guidance a bundle of procedural clips: the "
    "teacher's trajectories (paths), regression to their ends (jump), if asked for distribution "
    "matching on own rollouts (match, Self-MMPL), a model folder (bundle). With --data any Wan "
    "model or bundle, by distribution matching alone, with the paper's settings (Table 8) as "
    "defaults; `export` writes the result. Stop it with Ctrl-C, which saves at the "
    "end of a step; the same command goes on from there.",
    epilog="Hyphens may stand for underscores. The path of the model folder, or with --data of the "
    "run, is printed on stdout, all else on stderr. Exit codes: as of mmpl-train.",
    groups=(WORK, CLIPS, MOVING, FILES, MACHINE),
    flags=(
        Flag("stage", WORK, "NAME", f"{', '.join(STAGES)}, or all but match in this order; "
             "not with --data",
             **one_of(*STAGES, "all"), default="all"),
        Flag("films", WORK, "N", "batches of the teacher's films for `paths`", **whole(1, MOST)),
        Flag("jump_steps", WORK, "N", "how many steps `jump` takes", **whole(1, MOST)),
        Flag("steps", WORK, "N", "how many steps of the student, by `match` or with --data",
             **whole(1, MOST)),
        Flag("compile", WORK, "", "compile the transformer's block: faster, after minutes"),
        Flag("model_path", FILES, "FOLDER", "the bundle to distil",
             default="the embedded weights/tiny"),
        Flag("runs", FILES, "FOLDER", "state of the training",
             default=f"runs/tiny-fast; with --data {RUNS}"),
        Flag("output", FILES, "FOLDER", "the model folder that `bundle` writes",
             default="`bundle` in --runs"),
        Flag("device", MACHINE, "NAME", "cpu or cuda", **one_of("cpu", "cuda"), default="cpu"),
        THREADS,
        DEBUG,
        *FLAGS,
    ),
)  # fmt: skip
_HERE = {"stage", "films", "jump_steps", "compile", "output"}  # not with --data


def command(argv: list[str], console: Console) -> int:
    """Exit code of `mmpl-train distil`."""
    return carried_out(DISTIL, _distil, argv, console)


def _distil(given: Mapping[str, Any], console: Console) -> None:
    if "data" in given or "plan" in given:
        _refuse(given, _HERE, "with --data or --plan")
        distil_wan(given, console)
        return
    _refuse(given, {flag.name for flag in FLAGS}, "without --data")
    wanted = given.get("stage", "all")
    stages = ALL if wanted == "all" else (wanted,)
    runs = Path(given.get("runs", "runs/tiny-fast"))
    output = Path(given.get("output", runs / "bundle"))
    folder = given.get("model_path", Path(__file__).parents[2] / "weights" / "tiny")
    tokenizer = check_folder(folder).files["tokenizer"]
    _check(stages, given, runs, output)

    import torch

    from mmpl.checkpoint.bundle import load_model
    from mmpl.train import tiny_fast

    torch.set_num_threads(given.get("threads", cores()))
    device = training.require_device(given.get("device", "cpu"))
    model = load_model(folder, dtype=torch.float32, device=device)
    blueprint, engine = _blueprint(model, given), training.engine(compiled="compile" in given)
    for stage in stages:
        if stage == "paths":
            for done in tiny_fast.make_paths(blueprint, model, runs, engine=engine):
                console.say(f"paths {done}/{blueprint.teaching.films}")
        elif stage == "jump":
            for progress in tiny_fast.train_jump(blueprint, model, runs, engine=engine):
                console.say(f"{stage} {training.line(progress)}")
        elif stage == "match":
            for progress in tiny_fast.train_match(blueprint, model, runs, engine=engine):
                console.say(f"{stage} {training.line(progress)}")
        else:
            tiny_fast.bundle(model, read_tokenizer(tokenizer), runs, output)
            print_result(str(output))


def _refuse(given: Mapping[str, Any], flags: Collection[str], where: str) -> None:
    """Raises ArgumentError for one of these flags."""
    for name in sorted(given.keys() & set(flags)):
        raise ArgumentError(f"--{name} means nothing {where}")


def _check(stages: tuple[str, ...], given: Mapping[str, Any], runs: Path, output: Path) -> None:
    """What can be refused before anything is loaded."""
    for flag, stage in (
        ("films", "paths"), ("jump_steps", "jump"), ("steps", "match"), ("output", "bundle"),
    ):  # fmt: skip
        if flag in given and stage not in stages:
            raise ArgumentError(
                f"--{flag} means nothing here",
                got=f"stage {given['stage']}",
                wanted=f"stage {stage} or all",
            )
    check_folder_writable(runs)
    if "bundle" in stages:
        check_folder_writable(output)


def _blueprint(model: Model, given: Mapping[str, Any]) -> FastBlueprint:
    """The blueprint, with what the flags change."""
    from mmpl.train.tiny_fast import blueprint

    made = blueprint(model.defaults)
    return replace(
        made,
        teaching=replace(made.teaching, films=given.get("films", made.teaching.films)),
        jump=replace(made.jump, steps=given.get("jump_steps", made.jump.steps)),
        match=replace(made.match, steps=given.get("steps", made.match.steps)),
    )
