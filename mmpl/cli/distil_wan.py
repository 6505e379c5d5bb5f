"""`mmpl-train distil --data`: a Wan model, or a small bundle, distilled from clips or prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpl.checkpoint.folder import ModelFolder
from mmpl.cli import training
from mmpl.cli.flags import MACHINE, Flag, one_of, real, whole
from mmpl.cli.model import model_folder
from mmpl.cli.place import place
from mmpl.cli.shell import Console, cores, print_result
from mmpl.cli.tune import (
    MOST_BATCH,
    MOST_SEED,
    MOST_STEPS,
    check_made,
    joined,
    latent_size,
    open_clips,
    require_clips,
)
from mmpl.errors import ArgumentError, InputError
from mmpl.layout.given import require_whole
from mmpl.layout.presets import PRESETS, by_name
from mmpl.media.durable import check_folder_writable

if TYPE_CHECKING:
    from mmpl.train.wan_distil import Cast, Plan
    from mmpl.train.wan_loss import Clips
    from mmpl.train.world import World

CLIPS, MOVING = "with --data: what is learned", "with --data: how the weights move"
RUNS = "runs/distil"
SCORES = ("bidirectional", "layout")
LAYOUT, BATCH, DENSE_CAPTIONS, STEPS = "mmpl_t2v", 32, 0.8, 8000
OWN_SEEDS, SEEDS = 0.5, (0, 1)  # a share of the steps, and the latent frames that are handed over


def _layouts(text: str) -> tuple[tuple[str, float], ...]:
    """`NAME` or `NAME:ODDS,NAME:ODDS`."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, colon, odds = part.partition(":")
        if name not in PRESETS or name in found:
            raise ValueError
        found[name] = float(odds) if colon else 1.0
        if not 0 < found[name] < math.inf:
            raise ValueError
    return tuple(found.items())


FLAGS = (
    Flag("layouts", CLIPS, "LIST", "groups and who sees whom; of several, with odds, as in "
         "mmpl_t2v:0.85,mmpl_i2v:0.15, one is drawn every step", read=_layouts,
         wanted=f"NAME or NAME:ODDS,NAME:ODDS of {', '.join(PRESETS)}", default=LAYOUT),
    Flag("scores", CLIPS, "FORM", "what the teacher was trained for: bidirectional, whole clips, "
         "as Wan2.1; layout, groups over a clean context, as after `tune`", **one_of(*SCORES),
         default=SCORES[0]),
    Flag("sampling_steps", CLIPS, "N", "of the few-step sampling", **whole(1, 1000), default="4"),
    Flag("shift", CLIPS, "X", "moves its steps, and the scores' timesteps, towards noise",
         **real(1e-3, 1e3), default="5"),
    Flag("guidance_scale", CLIPS, "X", "of the teacher", **real(0, 100), default="3"),
    Flag("own_seeds", CLIPS, "X", "share of the steps whose segments begin with keyframes of the "
         "student's own, decoded and encoded again", **real(0, 1), default=f"{OWN_SEEDS:g}"),
    Flag("hand_overs", CLIPS, "N", "how often at most until then", **whole(1, 100), default="1"),
    Flag("dense_captions", CLIPS, "X", "share of dense captions, the others being short",
         **real(0, 1), default=f"{DENSE_CAPTIONS:g}"),
    Flag("batch", CLIPS, "N", "segments a step", **whole(1, MOST_BATCH), default=f"{BATCH}"),
    Flag("seed", CLIPS, "N", "of all that is drawn", **whole(0, MOST_SEED), default="0"),
    Flag("generator_rate", MOVING, "X", "Adam's, of the student", **real(1e-9, 0.1),
         default="2e-6"),
    Flag("critic_rate", MOVING, "X", "Adam's, of the critic", **real(1e-9, 0.1), default="4e-7"),
    Flag("critic_updates", MOVING, "N", "before each update of the student", **whole(1, 1000),
         default="5"),
    Flag("weight_decay", MOVING, "X", "of both", **real(0, 1), default="0.01"),
    Flag("clip", MOVING, "X", "largest norm of a gradient", **real(1e-6, 1e6), default="10"),
    Flag("ema", MOVING, "X", "how much of the student's averaged weights stays in a step",
         **real(0, 0.999999), default="0.99"),
    Flag("ema_from", MOVING, "N", "the step they begin at", **whole(0, MOST_STEPS), default="200"),
    Flag("data", "files", "SHARDS", "what `mmpl-train encode` made with this model: of prompts, or "
         "of clips, whose first frames are for layouts that begin with an image"),
    Flag("checkpoint", "files", "FILE", "what the student begins as, in place of the transformer "
         "of --model_path, as `export` wrote it after `tune`"),
    Flag("teacher", "files", "FOLDER", "the model that teaches, and that the critic begins as; it "
         "may be larger", default="that of --model_path"),
    Flag("teacher_checkpoint", "files", "FILE", "takes the place of its transformer",
         default="none; with --scores layout and without --teacher that of --checkpoint"),
    Flag("save_every", "files", "N", "steps between two checkpoints", **whole(1, MOST_STEPS),
         default="100"),
    Flag("checkpointing", MACHINE, "", "compute blocks again for the gradient, to save memory"),
    Flag("shard", MACHINE, "", "spread the weights over the processes that torchrun started (FSDP)"
         "; without it each has them whole"),
    Flag("plan", MACHINE, "PROCESSES", "print what it takes of each device's memory in so many "
         "processes, and end", **whole(1, MOST_BATCH), bare="1"),
    Flag("dtype", MACHINE, "NAME", "of the matrix products; trained weights are float32",
         **one_of("bf16", "fp32"), default="bf16 on a GPU, fp32 on a CPU"),
)  # fmt: skip
"""Those that mean something with encoded clips alone."""


def distil_wan(given: Mapping[str, Any], console: Console) -> None:
    """`distil` with --data or --plan."""
    layouts = given.get("layouts", ((LAYOUT, 1.0),))
    _check(given, layouts)
    own = {name: given[name] for name in ("model_path", "checkpoint") if name in given}
    student, files = model_folder(own)
    teacher = _teacher(given, student, files)
    _check_together(student, teacher)

    import torch

    torch.set_num_threads(given.get("threads", cores()))
    device = given.get("device", "cpu")
    if "plan" not in given:
        training.require_device(device)
    plan = _plan(given, layouts, device)
    clips = open_clips(given["data"]) if "data" in given else None
    if clips is not None:
        _check_clips(clips, student, teacher, plan)
    if "plan" in given:
        _print_memory(given, student, teacher, plan, clips)
        return
    assert clips is not None
    with joined(device) as world:
        console.quiet = not world.leads
        cast = _cast(given, student, files, teacher, device)
        _learn(given, cast, clips, plan, world, console)
        if world.leads:
            print_result(given.get("runs", RUNS))


def _check(given: Mapping[str, Any], layouts: tuple[tuple[str, float], ...]) -> None:
    """What can be refused before anything is loaded."""
    if "data" in given:
        require_clips(given["data"])
    if "shard" in given and place() is None and "plan" not in given:
        raise ArgumentError(
            "--shard needs several processes",
            todo="start them: torchrun --nproc_per_node GPUS bin/mmpl-train distil ...",
        )
    if given.get("own_seeds", OWN_SEEDS):
        for name, _ in layouts:
            require_whole(by_name(name), SEEDS)
    check_folder_writable(given.get("runs", RUNS))


def _teacher(
    given: Mapping[str, Any], student: ModelFolder, files: Mapping[str, str]
) -> ModelFolder:
    model = {"model_path": given["teacher"]} if "teacher" in given else dict(files)
    model.pop("checkpoint", None)
    if "teacher_checkpoint" in given:
        model["checkpoint"] = given["teacher_checkpoint"]
    elif "teacher" not in given and given.get("scores") == "layout":
        return student
    return model_folder(model)[0]


def _check_together(student: ModelFolder, teacher: ModelFolder) -> None:
    """Raises InputError where teacher and student do not think in the same latents and texts."""
    for part in ("vae", "text", "tokenizer"):
        own, other = student.digests.get(part), teacher.digests.get(part)
        if own and other and own != other:
            raise InputError(
                f"the teacher has another {part} than the student",
                where=str(teacher.path),
                got=other[:12],
                wanted=own[:12],
            )
    one, other = student.configs.dit, teacher.configs.dit
    sizes = [(c.in_dim, c.patch_size, c.text_dim, c.text_len) for c in (one, other)]
    if sizes[0] != sizes[1]:
        raise InputError(
            "the teacher is for other latents or texts than the student",
            where=str(teacher.path),
            got=f"channels, patch, text width and length {sizes[1]}",
            wanted=sizes[0],
        )


def _plan(given: Mapping[str, Any], layouts: tuple[tuple[str, float], ...], device: str) -> Plan:
    """Table 8's, but for what is given."""
    import torch

    from mmpl.train.distil import DistilRecipe
    from mmpl.train.self_mmpl import Matching
    from mmpl.train.wan_distil import Plan

    def named(names: Mapping[str, str]) -> dict[str, Any]:
        return {field: given[flag] for flag, field in names.items() if flag in given}

    matching = Matching(
        layouts,
        batch=given.get("batch", BATCH),
        scores=given.get("scores", SCORES[0]),
        **named({
            "sampling_steps": "steps", "shift": "shift", "guidance_scale": "guidance",
            "own_seeds": "own_seeds", "hand_overs": "hand_overs", "seed": "seed",
        }),
    )  # fmt: skip
    recipe = DistilRecipe(
        given.get("steps", STEPS),
        **named({
            "generator_rate": "generator_rate", "critic_rate": "critic_rate",
            "critic_updates": "critic_updates", "weight_decay": "weight_decay",
            "clip": "most_norm", "ema": "ema_decay", "ema_from": "ema_from",
        }),
    )  # fmt: skip
    name = given.get("dtype", "fp32" if device == "cpu" else "bf16")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
    dense_captions = given.get("dense_captions", DENSE_CAPTIONS)
    return Plan(matching, recipe, dense_captions, dtype, "shard" in given)


def _check_clips(clips: Clips, student: ModelFolder, teacher: ModelFolder, plan: Plan) -> None:
    """Raises InputError for clips that are not these models', as far as is known before loading."""
    from mmpl.train.wan_distil import check_data

    for folder in (student, teacher):
        check_made(clips, folder)
        for name, _ in plan.matching.layouts:
            check_data(clips, folder.configs.dit, by_name(name))


def _cast(
    given: Mapping[str, Any],
    student: ModelFolder,
    files: Mapping[str, str],
    teacher: ModelFolder,
    device: str,
) -> Cast:
    """The networks, and the record of the student's beginning in the run folder."""
    from mmpl.checkpoint.bundle import load_transformer, load_vae
    from mmpl.train.wan_distil import Cast

    begins = training.begun(Path(given.get("runs", RUNS)), student, files, "all")
    teaches = begins if teacher is student else load_transformer(teacher)
    return Cast(begins, teaches, *load_vae(student, device=device))


def _learn(
    given: Mapping[str, Any],
    cast: Cast,
    clips: Clips,
    plan: Plan,
    world: World,
    console: Console,
) -> None:
    from mmpl.train.wan_distil import distil_wan

    device = given.get("device", "cpu")
    for progress in distil_wan(
        cast,
        clips,
        Path(given.get("runs", RUNS)),
        plan,
        device=device,
        engine=training.tuning_engine(device, plan.dtype, checkpointing="checkpointing" in given),
        world=world,
        save_every=given.get("save_every", 100),
    ):
        console.say(training.line(progress))


def _print_memory(
    given: Mapping[str, Any],
    student: ModelFolder,
    teacher: ModelFolder,
    plan: Plan,
    clips: Clips | None,
) -> None:
    """The plan for one segment at a time; without clips for those of the model's own size."""
    from mmpl.train.wan_distil import plan_of_memory

    memory = plan_of_memory(
        student.configs.dit,
        teacher.configs.dit,
        plan,
        latent_size(student, clips),
        shards=given["plan"] if plan.shard else 1,
        checkpointing="checkpointing" in given,
    )
    for line in memory.lines():
        print_result(line)
