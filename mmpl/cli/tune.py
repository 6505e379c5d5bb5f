"""`mmpl-train tune` and `export`: teacher forcing of a Wan model, and its weights as one file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpl.checkpoint.folder import ModelFolder, is_pickle
from mmpl.cli import training
from mmpl.cli.flags import (
    DEBUG,
    MACHINE,
    THREADS,
    Command,
    Flag,
    carried_out,
    one_of,
    real,
    whole,
)
from mmpl.cli.model import model_folder
from mmpl.cli.place import place
from mmpl.cli.shell import Console, cores, print_result, printable
from mmpl.errors import ArgumentError, InputError
from mmpl.media.durable import check_folder_writable, check_writable
from mmpl.train.origin import origin_of
from mmpl.train.trainable import TRAINS
from mmpl.train.tuning import LAYOUTS, TIMESTEPS, WEIGHTINGS, Tuning

if TYPE_CHECKING:
    from mmpl.checkpoint.bundle import Transformer
    from mmpl.train.recipe import Recipe
    from mmpl.train.wan_loss import Clips
    from mmpl.train.wan_run import Plan
    from mmpl.train.world import World

LEARNING, MOVING, FILES = "what is learned", "how the weights move", "files"
MOST_STEPS, MOST_BATCH, MOST_SEED = 10**9, 2**16, 2**63 - 1
RUNS = Flag("runs", FILES, "FOLDER", "state of the training", default="runs/tune")
MODEL = (
    Flag("model_path", FILES, "FOLDER", "the model it begins with", default="the embedded one"),
    Flag("checkpoint", FILES, "FILE", "takes the place of the folder's transformer"),
)
_CODES = (
    "Exit codes: 0 done, 1 internal error, 2 wrong argument or a run of other settings, 3 model or "
    "data refused, 4 output or disk, 7 the loss is not finite, 8 out of memory, 130 Ctrl-C, "
    "143 SIGTERM."
)
_PAPER = Tuning()

TUNE = Command(
    name="mmpl-train tune",
    usage="mmpl-train tune --data SHARDS [flags]",
    description="Trains the transformer of a Wan model (or of a small bundle) to plan and populate "
    "segments, by teacher forcing. The defaults are the paper's (Table 8). Stop it with "
    "Ctrl-C, which saves at the end of a step, as --save_every does; the same command goes on from "
    "there.",
    epilog="Hyphens may stand for underscores. The run folder is printed on stdout, all else on "
    f"stderr. {_CODES}",
    groups=(LEARNING, MOVING, FILES, MACHINE),
    flags=(
        Flag("layout", LEARNING, "NAME", f"groups and who sees whom: {', '.join(LAYOUTS)}",
             **one_of(*LAYOUTS), default=_PAPER.layout),
        Flag("trains", LEARNING, "WEIGHTS", "which weights: self-attention, qk (its projections of "
             "queries and keys), all, or none (Table 3's Freeze: only records the model for "
             "`export`)", **one_of(*TRAINS), default="self-attention"),
        Flag("timesteps", LEARNING, "HOW", "one timestep for each group, or, block3, for every "
             "three latent frames, as the released model was trained", **one_of(*TIMESTEPS),
             default=_PAPER.timesteps),
        Flag("shift", LEARNING, "X", "moves timesteps towards noise", **real(1e-3, 1e3),
             default=f"{_PAPER.shift:g}"),
        Flag("weighting", LEARNING, "HOW", "of the loss by timestep", **one_of(*WEIGHTINGS),
             default=_PAPER.weighting),
        Flag("prompt_dropout", LEARNING, "X", "share of steps with the negative prompt",
             **real(0, 1), default=f"{_PAPER.prompt_dropout:g}"),
        Flag("dense_captions", LEARNING, "X", "share of dense captions, the others being short",
             **real(0, 1), default=f"{_PAPER.dense_captions:g}"),
        Flag("clean_noise", LEARNING, "X", "largest noise level of the clean frames",
             **real(0, 1), default=f"{_PAPER.clean_noise:g}"),
        Flag("batch", LEARNING, "N", "segments a step", **whole(1, MOST_BATCH),
             default=f"{_PAPER.batch}"),
        Flag("seed", LEARNING, "N", "of all that is drawn", **whole(0, MOST_SEED), default="0"),
        Flag("steps", MOVING, "N", "how many", **whole(1, MOST_STEPS), default="8000"),
        Flag("learning_rate", MOVING, "X", "AdamW's", **real(1e-9, 0.1), default="1e-5"),
        Flag("schedule", MOVING, "NAME", "of the learning rate", **one_of("constant", "cosine"),
             default="constant"),
        Flag("warmup", MOVING, "N", "steps of a rising learning rate", **whole(0, MOST_STEPS),
             default="0"),
        Flag("weight_decay", MOVING, "X", "AdamW's", **real(0, 1), default="0.01"),
        Flag("clip", MOVING, "X", "largest norm of the gradient; 0: any", **real(0, 1e6),
             default="0"),
        Flag("ema", MOVING, "X", "how much of the averaged weights stays in a step",
             **real(0, 0.999999), default="0.99"),
        Flag("data", FILES, "SHARDS", "clips that `mmpl-train encode` made with this model"),
        *MODEL,
        RUNS,
        Flag("save_every", FILES, "N", "steps between two checkpoints", **whole(1, MOST_STEPS),
             default="100"),
        Flag("attention", MACHINE, "FORM", "of the mask: dense pieces, or FlexAttention, which is "
             "for GPUs and clips of one size", **one_of("pieces", "flex"), default="pieces"),
        Flag("checkpointing", MACHINE, "", "compute blocks again for the gradient, to save memory"),
        Flag("shard", MACHINE, "", "spread the weights over the processes that torchrun started "
             "(FSDP); without it each has them whole"),
        Flag("plan", MACHINE, "PROCESSES", "print what it takes of each device's memory in so many "
             "processes, and end", **whole(1, MOST_BATCH), bare="1"),
        Flag("dtype", MACHINE, "NAME", "of the matrix products; trained weights are float32",
             **one_of("bf16", "fp32"), default="bf16 on a GPU, fp32 on a CPU"),
        Flag("device", MACHINE, "NAME", "cpu or cuda", **one_of("cpu", "cuda"), default="cpu"),
        THREADS,
        DEBUG,
    ),
)  # fmt: skip
EXPORT = Command(
    name="mmpl-train export",
    usage="mmpl-train export --runs FOLDER --output FILE [flags]",
    description="Writes the transformer that `tune` trained, whole, under the official names: "
    ".safetensors with the averaged weights, or .pt with both, as the released MMPL and "
    "Self-Forcing code loads them. `mmpl-gen --checkpoint FILE` takes either.",
    epilog=f"The path of the file is printed on stdout, all else on stderr. {_CODES}",
    groups=(FILES, MACHINE),
    flags=(
        RUNS,
        Flag("output", FILES, "FILE", "a .safetensors or .pt"),
        Flag("overwrite", FILES, "", "replace the output if it is there"),
        Flag("raw", FILES, "", "the last weights instead of their average"),
        Flag("model_path", FILES, "FOLDER", "where the run's model is now",
             default="as recorded"),
        Flag("checkpoint", FILES, "FILE", "where the run's checkpoint is now",
             default="as recorded"),
        DEBUG,
    ),
)  # fmt: skip


def tune(argv: Sequence[str], console: Console) -> int:
    """Exit code of `mmpl-train tune`."""
    return carried_out(TUNE, _tune, argv, console)


def export(argv: Sequence[str], console: Console) -> int:
    """Exit code of `mmpl-train export`."""
    return carried_out(EXPORT, _export, argv, console)


# --------------------------------------------------------------------------------------- tune


def _tune(given: Mapping[str, Any], console: Console) -> None:
    tuning = Tuning(**{n: given[n] for n in Tuning.__slots__ if n in given})
    trains, runs = given.get("trains", "self-attention"), Path(given.get("runs", "runs/tune"))
    _check(given, trains, runs)
    found, model = model_folder(given)

    import torch

    from mmpl.train.wan_loss import check_clips

    torch.set_num_threads(given.get("threads", cores()))
    device = given.get("device", "cpu")
    if "plan" not in given:
        training.require_device(device)
    plan = _plan(given, trains, tuning, device)
    clips = open_clips(given["data"]) if "data" in given else None
    if clips is not None:
        check_made(clips, found)
        check_clips(clips, found.configs.dit, tuning.groups().frames)
    if "plan" in given:
        _print_memory(given, found, plan, clips)
        return
    with joined(device) as world:
        console.quiet = not world.leads
        transformer = training.begun(runs, found, model, trains)
        if clips is None or trains == "none":
            console.say("nothing is trained: `mmpl-train export` writes the weights as they are")
        else:
            _learn(given, transformer, clips, plan, world, console)
        if world.leads:
            print_result(str(runs))


def _learn(
    given: Mapping[str, Any],
    transformer: Transformer,
    clips: Clips,
    plan: Plan,
    world: World,
    console: Console,
) -> None:
    from mmpl.train import wan_run

    device = given.get("device", "cpu")
    for progress in wan_run.tune(
        transformer,
        clips,
        Path(given.get("runs", "runs/tune")),
        plan,
        device=device,
        engine=training.tuning_engine(device, plan.dtype, checkpointing="checkpointing" in given),
        world=world,
        save_every=given.get("save_every", 100),
    ):
        console.say(training.line(progress))


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The processes that torchrun started, if it did."""
    import torch
    import torch.distributed as dist

    from mmpl.train.world import ALONE, World

    where = place()
    if where is None or where.ranks == 1:
        yield ALONE
        return
    if device == "cuda":
        torch.cuda.set_device(where.local_rank)
    dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl")
    try:
        yield World(dist.group.WORLD, device)
    finally:
        dist.destroy_process_group()


def require_clips(folder: str) -> None:
    """Raises InputError where there is no such folder."""
    if not os.path.isdir(folder):
        raise InputError(
            "no such folder of encoded clips",
            where=printable(folder),
            todo="make it with `mmpl-train encode`",
        )


def _check(given: Mapping[str, Any], trains: str, runs: Path) -> None:
    """What can be refused before anything is loaded."""
    if "data" not in given and trains != "none" and "plan" not in given:
        raise ArgumentError("--data is missing", todo="give the folder that `encode` wrote")
    if "data" in given:
        require_clips(given["data"])
    if given.get("attention") == "flex" and given.get("device", "cpu") == "cpu":
        raise ArgumentError(
            "FlexAttention is for GPUs", got="--device cpu", todo="leave --attention out"
        )
    if "shard" in given and place() is None and "plan" not in given:
        raise ArgumentError(
            "--shard needs several processes",
            todo="start them: torchrun --nproc_per_node GPUS bin/mmpl-train tune ...",
        )
    check_folder_writable(runs)


def _plan(given: Mapping[str, Any], trains: str, tuning: Tuning, device: str) -> Plan:
    import torch

    from mmpl.train.wan_run import Plan

    name = given.get("dtype", "fp32" if device == "cpu" else "bf16")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
    flex = given.get("attention") == "flex"
    return Plan(trains, tuning, _recipe(given), dtype, flex, "shard" in given)


def _recipe(given: Mapping[str, Any]) -> Recipe:
    """Table 8's, but for what is given."""
    from mmpl.train.recipe import TEACHER_FORCING

    flags = {"ema": "ema_decay", "clip": "clip_norm"}
    names = ("steps", "learning_rate", "warmup", "weight_decay", "ema", "seed", "clip")
    changed = {flags.get(name, name): given[name] for name in names if name in given}
    if given.get("schedule") == "cosine":
        changed["final_fraction"] = 0.0
    return replace(TEACHER_FORCING, **changed)


def open_clips(folder: str) -> Clips:
    """The clips that `encode` wrote to a folder. Raises InputError."""
    from mmpl.train.encoded import EncodedClips

    return EncodedClips(folder)


def check_made(clips: Clips, found: ModelFolder) -> None:
    """Raises InputError for clips that another model's VAE or text encoder made."""
    for part in ("vae", "text", "tokenizer"):
        made, own = clips.made.get(part), found.digests.get(part)
        if made and own and made != own:
            raise InputError(
                f"the clips were encoded with another {part} than the model's",
                got=str(made)[:12],
                wanted=own[:12],
                todo="encode them with this model",
            )


def latent_size(found: ModelFolder, clips: Clips | None) -> tuple[int, int]:
    """Height and width of the clips' latents, without clips of those of the model's own size."""
    from mmpl.train import wan_loss

    stride = found.configs.vae.spatial_stride
    if clips is not None:
        return wan_loss.latent_size(clips, stride)
    return found.defaults.height // stride, found.defaults.width // stride


def _print_memory(
    given: Mapping[str, Any], found: ModelFolder, plan: Plan, clips: Clips | None
) -> None:
    """The plan for one segment at a time; without clips for those of the model's own size."""
    from mmpl.train.wan_run import plan_of_memory

    memory = plan_of_memory(
        found.configs.dit,
        plan,
        latent_size(found, clips),
        shards=given["plan"] if plan.shard else 1,
        checkpointing="checkpointing" in given,
    )
    for line in memory.lines():
        print_result(line)


# ------------------------------------------------------------------------------------- export


def _export(given: Mapping[str, Any], console: Console) -> None:
    runs = Path(given.get("runs", "runs/tune"))
    if "output" not in given:
        raise ArgumentError("--output is missing", todo="give a .safetensors or .pt file")
    output = given["output"]
    is_pickle(Path(output))  # refuses other formats
    check_writable(output, "overwrite" in given)
    origin = origin_of(runs)
    recorded = {"model_path": origin.model_path, "checkpoint": origin.checkpoint}
    model = {n: given.get(n, recorded[n]) for n in recorded if given.get(n, recorded[n])}
    found, _ = model_folder(model)

    from mmpl.checkpoint.bundle import load_transformer
    from mmpl.train import wan_run

    step = wan_run.export(runs, load_transformer(found), output, raw="raw" in given)
    console.say(f"{'the weights as they were' if not step else f'after {step} steps'}: {output}")
    print_result(output)
