"""The flags of mmpl-gen: one table, from which parsing, help and job files are made. No torch.

Ranges are checked by `mmpl.film.settings.resolve`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mmpl.checkpoint.defaults import DISTILLED, Defaults
from mmpl.cli import flags
from mmpl.cli.flags import DEBUG, DURATION, MACHINE, OTHER, SIZE, THREADS, Command, Flag, one_of
from mmpl.errors import ArgumentError
from mmpl.film.script import joined
from mmpl.layout.presets import PRESETS
from mmpl.layout.timeline import MODES, ORDERS, SEEDINGS
from mmpl.wan.choices import BACKENDS, COMPILED, NOISE_MODES, OFFLOADS, QUANTISED, SOLVERS

REVISE = ("reroll", "extend")  # verbs that change a job before they go on with it
GO_ON = ("resume", "populate", *REVISE)  # verbs that take a job folder
VERBS = (*GO_ON, "plan", "inspect", "convert")
ATTENTION = ("auto", *BACKENDS)
DTYPES = ("auto", "float32", "bfloat16", "float16")
VAE_DTYPES = ("auto", "float32", "bfloat16")
QUANTIZE = ("none", *QUANTISED)
OFFLOAD = ("auto", *OFFLOADS)
_DTYPE_ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

FILM, SAMPLING, PLANNING = "film", "sampling", "planning"
MODEL, RANKS = "model", "several processes for one film"
FILES, DRY = "files", "prediction"
FITS = ("cover", "letterbox")
LINKS = ("nvlink", "pcie")
JOB_GROUPS = (FILM, SAMPLING, PLANNING, MODEL, MACHINE)  # what a job file can hold


def split(argv: Sequence[str]) -> tuple[str, str, list[str]]:
    """The verb, what it is about, and the flags; "" where there is none. Raises ArgumentError."""
    words = list(argv)
    if not words or words[0] not in VERBS:
        return "", "", words
    verb, rest = words[0], words[1:]
    if verb == "plan":
        return verb, "", rest
    if not rest or rest[0].startswith("-"):
        raise ArgumentError(
            f"{verb} of what?",
            got=rest[0] if rest else "nothing",
            wanted=f"mmpl-gen {verb} {'JOB' if verb in GO_ON else 'PATH'} [flags]",
        )
    if verb == "convert":
        if len(rest) < 2 or rest[1].startswith("-"):
            raise ArgumentError(
                "convert to what?",
                got=rest[1] if len(rest) > 1 else "nothing",
                wanted="mmpl-gen convert PATH FOLDER [flags]",
            )
        return verb, rest[0], ["--output", *rest[1:]]
    return verb, rest[0], rest[1:]


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """Flag name -> value, of the flags that are given; `size` becomes width and height.

    Raises ArgumentError.
    """
    return read_values(flags.parse_texts(GEN, argv))


def read_values(texts: Mapping[str, str]) -> dict[str, Any]:
    """The values of flags given as text; `size` becomes width and height, `distilled` the settings
    it stands for, but for those that are given. Raises ArgumentError."""
    values = flags.read_texts(GEN, texts)
    if "distilled" in values:
        values = {**DISTILLED[values.pop("distilled")], **values}
    size = values.pop("size", None)
    if size is None:
        return values
    if "width" in values or "height" in values:
        raise ArgumentError("the size is given twice", wanted="--size, or --width and --height")
    return values | {"width": size[0], "height": size[1]}


def help_text(defaults: Defaults | None) -> str:
    """The help, with the defaults of a model where they are known."""
    if defaults is None:
        return flags.help_text(GEN, None)
    populate_steps = defaults.populate_steps or "as --steps"
    return flags.help_text(GEN, asdict(defaults) | {"populate_steps": populate_steps})


def _gpus(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if len(set(numbers)) != len(numbers) or min(numbers) < 0:
        raise ValueError
    return numbers


def _mesh(text: str) -> Any:
    from mmpl.layout.mesh import Mesh  # takes a moment that --help need not wait for

    if text == "auto":
        return None
    teams, cfg, ulysses = (int(part) for part in text.lower().split("x"))
    return Mesh(teams, cfg, ulysses)


def _seconds(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _device(text: str) -> str:
    if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text) is None:
        raise ValueError
    return text


def _dtype(text: str) -> str:
    return one_of(*DTYPES)["read"](_DTYPE_ALIASES.get(text, text))


def _vae_dtype(text: str) -> str:
    return one_of(*VAE_DTYPES)["read"](_DTYPE_ALIASES.get(text, text))


_WHOLE: dict[str, Any] = {"read": int, "wanted": "a whole number"}
_NUMBER: dict[str, Any] = {"read": float, "wanted": "a number"}

FLAGS = (
    Flag(
        "prompt", FILM, "TEXT", "what the film shows; again and again for one segment after the "
        'other, or with times: "0s: ..." "10s: ..."', join=joined,
    ),
    Flag(
        "cut", FILM, "TIME", "a hard cut: the segment that begins there starts anew; 10s, or #3 "
        "for the third segment; again and again for more", join=",".join,
    ),
    Flag(
        "negative_prompt", FILM, "TEXT", "what it should not show; needs guidance",
        default="the model's own",
    ),
    Flag(
        "duration", FILM, "TIME", "30, 30s, 1m30s", **DURATION, default="{duration_s:g}s",
    ),
    Flag("num_frames", FILM, "N", "length in frames instead", **_WHOLE, aliases=("frame_num",)),
    Flag("segments", FILM, "N", "length in segments instead", **_WHOLE),
    Flag(
        "size", FILM, "WxH", "also WIDTH*HEIGHT", **SIZE, default="{width}x{height}",
    ),
    Flag("width", FILM, "PIXELS", "instead of --size", **_WHOLE),
    Flag("height", FILM, "PIXELS", "instead of --size", **_WHOLE),
    Flag("fps", FILM, "N", "frames per second", **_WHOLE, default="{fps}"),
    Flag(
        "seed", FILM, "N", "the same seed and settings give the same film; -1: random", **_WHOLE,
        default="random, and printed", aliases=("base_seed",),
    ),
    Flag(
        "segment_seeds", FILM, "LIST", "other seeds for single segments, as in #3:77,#5:8",
    ),
    Flag("segment", FILM, "N", "which segment to roll again, for reroll", **_WHOLE),
    Flag(
        "keep_tail", FILM, "", "with reroll: the segment ends as it did, so that no other changes",
    ),
    Flag("image", FILM, "PICTURE", "the film begins with this: PNG, JPEG or WebP"),
    Flag(
        "keyframe", FILM, "PICTURE@TIME", "this is seen at that time, as in still.png@12.5s; again "
        "and again for more", join="\n".join,
    ),
    Flag("last_frame", FILM, "PICTURE", "the film ends with this"),
    Flag("video", FILM, "CLIP", "the film goes on from the end of this clip, and is added to it"),
    Flag("only_new", FILM, "", "with --video: write what is added, without the clip"),
    Flag(
        "fit", FILM, "HOW", "pictures of other proportions are cut or framed: " + ", ".join(FITS),
        **one_of(*FITS), default="cover",
    ),
    Flag("given", FILM, "LIST", "", hidden=True),  # in job files: digests of given pictures
    Flag("lead", FILM, "N", "", **_WHOLE, hidden=True),  # and frames of the clip before
    Flag(
        "steps", SAMPLING, "N", "denoising steps of each group", **_WHOLE, default="{steps}",
        aliases=("sample_steps", "num_inference_steps"),
    ),
    Flag(
        "populate_steps", SAMPLING, "N", "of the groups between keyframes, which need fewer",
        **_WHOLE, default="{populate_steps}",
    ),
    Flag(
        "guidance_scale", SAMPLING, "X", "how closely to follow the prompt; 1: no guidance",
        **_NUMBER, default="{guidance_scale:g}", aliases=("sample_guide_scale", "cfg"),
    ),
    Flag(
        "shift", SAMPLING, "X", "spends more steps on coarse structure", **_NUMBER,
        default="{shift:g}", aliases=("sample_shift",),
    ),
    Flag(
        "solver", SAMPLING, "NAME", ", ".join(SOLVERS), **one_of(*SOLVERS), default="{solver}",
        aliases=("sample_solver",),
    ),
    Flag(
        "distilled", SAMPLING, "NAME", "the weights or a LoRA were distilled to few steps by this "
        "program: its steps and shift, no guidance: " + ", ".join(DISTILLED),
        **one_of(*DISTILLED),
    ),
    Flag(
        "seeding", PLANNING, "NAME", "keyframes that the next segment starts from: "
        + ", ".join(SEEDINGS), **one_of(*SEEDINGS), default="terminal",
    ),
    Flag(
        "noise", PLANNING, "MODE", "how the first noise leans on the keyframes': "
        + ", ".join(NOISE_MODES), **one_of(*NOISE_MODES), default="{noise}",
    ),
    Flag(
        "alpha", PLANNING, "X", "the share of the nearer keyframe in that noise, 0 to 1",
        **_NUMBER, default="{alpha:g}",
    ),
    Flag(
        "beta", PLANNING, "X", "the share of fresh noise in it, for --noise unit",
        **_NUMBER, default="{beta:g}",
    ),
    Flag(
        "layout", PLANNING, "NAME", "which frames are made together and see which others: "
        + ", ".join(PRESETS), **one_of(*PRESETS), default="{layout_t2v}",
    ),
    Flag(
        "model_path", MODEL, "PATH", "an mmpl bundle, a folder of Wan2.1 weights (official, "
        "diffusers, ComfyUI), one file of them with the rest around it, or owner/name on the "
        "Hugging Face hub, fetched once",
        default="the embedded weights/tiny", aliases=("ckpt_dir",),
    ),
    Flag(
        "checkpoint", MODEL, "FILE", "an MMPL checkpoint to use in place "
        "of the folder's transformer",
    ),
    Flag("vae", MODEL, "FILE", "a video VAE to use in place of the folder's"),
    Flag("text_encoder", MODEL, "FILE", "an umT5 encoder to use in place of the folder's"),
    Flag("tokenizer", MODEL, "FILE", "a tokenizer.json to use in place of the folder's"),
    Flag(
        "lora", MODEL, "FILE[:STRENGTH]", "merge a LoRA into the transformer; again and again for "
        "more", join="\n".join,
    ),
    Flag(
        "device", MACHINE, "NAME", "auto, cpu, cuda, cuda:1", _device,
        "auto, cpu, cuda or cuda:N", "auto",
    ),
    Flag(
        "dtype", MACHINE, "NAME", "number format of the transformer: " + ", ".join(DTYPES), _dtype,
        f"one of {', '.join(DTYPES)}", "auto: float32 on a CPU, bfloat16 on a GPU",
    ),
    Flag(
        "vae_dtype", MACHINE, "NAME", "number format in which frames are decoded; what segments "
        "hand over stays in float32: " + ", ".join(VAE_DTYPES), _vae_dtype,
        f"one of {', '.join(VAE_DTYPES)}", "auto: float32 on a CPU, bfloat16 on a GPU",
    ),
    Flag(
        "quantize", MACHINE, "NAME", "hold the transformer's matrices in 8 bits, which halves its "
        "memory and changes the film: " + ", ".join(QUANTIZE), **one_of(*QUANTIZE), default="none",
    ),
    Flag(
        "offload", MACHINE, "NAME", "keep parts of the model in the host's memory until the GPU "
        "needs them, slower but the same film: " + ", ".join(OFFLOAD), **one_of(*OFFLOAD),
        default="auto: the least that fits the GPU's free memory",
    ),
    Flag(
        "text_cache", MACHINE, "FOLDER", "keep there what the text encoder makes of prompts, to "
        "do without it next time",
    ),
    Flag(
        "attention", MACHINE, "NAME", ", ".join(ATTENTION), **one_of(*ATTENTION), default="auto",
    ),
    Flag(
        "compile", MACHINE, "WHETHER", "let torch compile the transformer's block, which is faster "
        "after a minute and differs by rounding: " + ", ".join(COMPILED), **one_of(*COMPILED),
        default="auto: on a GPU, for models of some size",
    ),
    THREADS,
    Flag("ranks", RANKS, "N", "processes on the CPU", **_WHOLE, default="1"),
    Flag(
        "gpus", RANKS, "LIST", "one process on each of these GPUs", _gpus,
        "numbers of GPUs, as in 0,1,2",
    ),
    Flag(
        "schedule", RANKS, "NAME", "who makes what: " + ", ".join(MODES), **one_of(*MODES),
        default="adaptive",
    ),
    Flag(
        "order", RANKS, "NAME", "what comes first, the storyboard or the film: "
        + ", ".join(ORDERS), **one_of(*ORDERS), default="plan_first on one, film_first on several",
    ),
    Flag(
        "parallel", RANKS, "MESH", "teams x cfg x ulysses, as in 2x2x1; auto: by the cost model",
        _mesh, "auto, or three numbers as in 2x2x1", "every process a team",
    ),
    Flag(
        "rank_timeout", RANKS, "TIME", "a process silent for this long, and 20 of its steps, is "
        "given up", **DURATION, default="60s, 5m where passes are compiled",
    ),
    Flag(
        "job_dir", FILES, "FOLDER", "keeps what is made, for the same command to go on from",
        default="OUTPUT.job",
    ),
    Flag("fresh", FILES, "", "forget what the job folder holds, and start over"),
    Flag(
        "output", FILES, "FILE", "an mp4 file", default="film.mp4", aliases=("save_file",),
    ),
    Flag(
        "prompt_file", FILES, "FILE", "a text file with the prompt; several lines are several "
        "prompts, with times or for one segment after the other",
    ),
    Flag("overwrite", FILES, "", "replace the output if it is another film"),
    Flag(
        "config", FILES, "FILE", "settings of a film.mp4 made before, or of a JSON file; flags "
        "given beside it win",
    ),
    Flag(
        "jobs", FILES, "FILE.jsonl", "many films, from one load of the model: a JSON object a line "
        "with the flags of a film, its output among them",
    ),
    Flag(
        "log", FILES, "FILE", "add all messages to this file; without a name, to one beside the "
        "output", bare="",
    ),
    Flag(
        "preview", FILES, "FILE", "a film that can be watched while it grows, from the first "
        "finished segment on; without a name, preview.mp4 in the job folder", bare="",
    ),
    Flag("no_metadata", FILES, "", "do not store the settings in the film"),
    Flag("dry_run", DRY, "", "print what the film would take, and make nothing"),
    Flag("json", DRY, "", "as one JSON object"),
    Flag("gantt", DRY, "FILE.svg", "draw the schedule"),
    Flag(
        "stage_seconds", DRY, "LIST", "measured seconds of each group, in the layout's order",
        _seconds, "seconds of each group, as in 25,109,113,148", "by a cost model",
    ),
    Flag(
        "tflops", DRY, "X", "what one process achieves, in 10^12 operations a second", **_NUMBER,
        default="350, the paper's",
    ),
    Flag(
        "link", DRY, "NAME", "between processes: " + ", ".join(LINKS), **one_of(*LINKS),
        default="nvlink",
    ),
    Flag("examples", OTHER, "", "print prompts that work with the model"),
    Flag("json_progress", OTHER, "", "for programs: progress and messages as JSON, one a line"),
    Flag("quiet", OTHER, "", "print only errors and, at the end, the path of the film"),
    DEBUG,
    Flag("version", OTHER, "", "print the version"),
)  # fmt: skip
BY_NAME = {flag.name: flag for flag in FLAGS}
GEN = Command(
    name="mmpl-gen",
    usage='mmpl-gen --prompt "..." [--output film.mp4] [flags]\n'
    '       mmpl-gen plan --prompt "..." [flags]\n'
    "       mmpl-gen resume JOB [flags]\n"
    '       mmpl-gen reroll JOB --segment N [--seed N] [--prompt "..."]\n'
    "       mmpl-gen extend JOB --duration 90s\n"
    "       mmpl-gen inspect JOB|FILM|MODEL\n"
    "       mmpl-gen convert MODEL FOLDER [--dtype bfloat16] [--overwrite]",
    description="Makes a film from a prompt by Macro-from-Micro Planning. plan: the storyboard "
    "alone. resume, or populate: a film whose job folder was begun, to its end. reroll: one "
    "segment of it anew, and those that start from it. extend: a longer film from it. inspect: "
    "what something is, and what is missing of it. convert: any model as one folder of "
    "safetensors.",
    epilog="Hyphens may stand for underscores. The path of the film, or of the storyboard, is "
    "printed on stdout, all else on stderr. Exit codes: 0 complete, 1 internal error, 2 wrong "
    "argument, 3 input file refused, 4 output or disk, 5 processes lost, 6 job folder of another "
    "film, 7 not-a-number in the latents, 8 out of memory, 130 Ctrl-C, 143 SIGTERM.",
    groups=(*JOB_GROUPS, RANKS, FILES, DRY),
    flags=FLAGS,
    stray="put quotes around a prompt of several words",
)
