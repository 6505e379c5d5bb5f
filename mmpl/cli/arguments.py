"""The flags of mmpl-gen: one table, from which parsing, help and job files are made. No torch.

Values are read as text first and then by the reader of their flag, so that a job file and the
command line are held to the same rules. Ranges are checked by `mmpl.film.settings.resolve`.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from mmpl.checkpoint.defaults import NOISE_MODES, SOLVERS, Defaults
from mmpl.errors import ArgumentError
from mmpl.layout.mesh import Mesh
from mmpl.layout.presets import PRESETS
from mmpl.layout.schedule import MODES, ORDERS
from mmpl.layout.timeline import SEEDINGS

ATTENTION = ("auto", "flash3", "cudnn", "flash2", "sdpa")
DTYPES = ("auto", "float32", "bfloat16", "float16")
_DTYPE_ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_HELP = ("-h", "--help")

FILM, SAMPLING, PLANNING = "film", "sampling", "planning"
MODEL, MACHINE, RANKS = "model", "machine", "several processes for one film"
FILES, DRY, OTHER = "files", "prediction", "messages and help"
LINKS = ("nvlink", "pcie")
JOB_GROUPS = (FILM, SAMPLING, PLANNING, MODEL, MACHINE)  # what a job file can hold


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. `read` makes its value of text, or raises ValueError; `wanted` says what it reads.

    `metavar` is empty for a switch. `default` is shown in the help; fields of the model's
    Defaults in braces are filled in. `bare` is the value of a flag given without one.
    """

    name: str
    group: str
    metavar: str
    help: str
    read: Callable[[str], Any] = str
    wanted: str = ""
    default: str = ""
    aliases: tuple[str, ...] = ()
    bare: str | None = None

    def value(self, text: str) -> Any:
        """What `text` means. Raises ArgumentError."""
        try:
            return self.read(text)
        except ValueError as error:
            raise ArgumentError(
                f"--{self.name} has a wrong value", got=ascii(text)[:60], wanted=self.wanted
            ) from error


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """Flag name -> value, of the flags that are given; `size` becomes width and height.

    Raises ArgumentError.
    """
    namespace, rest = _parser(None).parse_known_args(_with_underscores(argv))
    if rest:
        _refuse(rest)
    return read_values(vars(namespace))


def read_values(texts: dict[str, str]) -> dict[str, Any]:
    """The values of flags given as text; `size` becomes width and height. Raises ArgumentError."""
    values = {name: BY_NAME[name].value(text) for name, text in texts.items()}
    size = values.pop("size", None)
    if size is None:
        return values
    if "width" in values or "height" in values:
        raise ArgumentError("the size is given twice", wanted="--size, or --width and --height")
    return values | {"width": size[0], "height": size[1]}


def wants_help(argv: Sequence[str]) -> bool:
    return any(word in _HELP for word in argv)


def help_text(defaults: Defaults | None) -> str:
    """The help, with the defaults of a model where they are known."""
    return _parser(defaults).format_help()


def _duration(text: str) -> float:
    match = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", text.strip().lower())
    if match is None or not any(match.groups()):
        return float(text)
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def _size(text: str) -> tuple[int, int]:
    width, height = re.split(r"[x*×]", text.lower())
    return int(width), int(height)


def _gpus(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if len(set(numbers)) != len(numbers) or min(numbers) < 0:
        raise ValueError
    return numbers


def _mesh(text: str) -> Mesh | None:
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


def _one_of(*allowed: str) -> dict[str, Any]:
    """Reader and description of a flag with these values."""

    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError
        return text

    return {"read": read, "wanted": f"one of {', '.join(allowed)}"}


def _dtype(text: str) -> str:
    return _one_of(*DTYPES)["read"](_DTYPE_ALIASES.get(text, text))


_WHOLE: dict[str, Any] = {"read": int, "wanted": "a whole number"}
_NUMBER: dict[str, Any] = {"read": float, "wanted": "a number"}

FLAGS = (
    Flag("prompt", FILM, "TEXT", "what the film shows"),
    Flag(
        "negative_prompt", FILM, "TEXT", "what it should not show; needs guidance",
        default="the model's own",
    ),
    Flag(
        "duration", FILM, "TIME", "30, 30s, 1m30s", _duration,
        "seconds, as in 30, 30s or 1m30s", "{duration_s:g}s",
    ),
    Flag("num_frames", FILM, "N", "length in frames instead", **_WHOLE, aliases=("frame_num",)),
    Flag("segments", FILM, "N", "length in segments instead", **_WHOLE),
    Flag(
        "size", FILM, "WxH", "also WIDTH*HEIGHT", _size, "WIDTHxHEIGHT, as in 64x64",
        "{width}x{height}",
    ),
    Flag("width", FILM, "PIXELS", "instead of --size", **_WHOLE),
    Flag("height", FILM, "PIXELS", "instead of --size", **_WHOLE),
    Flag("fps", FILM, "N", "frames per second", **_WHOLE, default="{fps}"),
    Flag(
        "seed", FILM, "N", "the same seed and settings give the same film; -1: random", **_WHOLE,
        default="random, and printed", aliases=("base_seed",),
    ),
    Flag(
        "steps", SAMPLING, "N", "denoising steps of each group", **_WHOLE, default="{steps}",
        aliases=("sample_steps", "num_inference_steps"),
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
        "solver", SAMPLING, "NAME", ", ".join(SOLVERS), **_one_of(*SOLVERS), default="{solver}",
        aliases=("sample_solver",),
    ),
    Flag(
        "seeding", PLANNING, "NAME", "keyframes that the next segment starts from: "
        + ", ".join(SEEDINGS), **_one_of(*SEEDINGS), default="terminal",
    ),
    Flag(
        "noise", PLANNING, "MODE", "how the first noise leans on the keyframes': "
        + ", ".join(NOISE_MODES), **_one_of(*NOISE_MODES), default="{noise}",
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
        + ", ".join(PRESETS), **_one_of(*PRESETS), default="{layout_t2v}",
    ),
    Flag(
        "model_path", MODEL, "FOLDER", "an mmpl bundle or an official Wan2.1 folder",
        default="the embedded weights/tiny", aliases=("ckpt_dir",),
    ),
    Flag(
        "checkpoint", MODEL, "FILE", "an MMPL checkpoint to use in place "
        "of the folder's transformer",
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
        "attention", MACHINE, "NAME", ", ".join(ATTENTION), **_one_of(*ATTENTION), default="auto",
    ),
    Flag("threads", MACHINE, "N", "CPU threads", **_WHOLE, default="all cores"),
    Flag("ranks", RANKS, "N", "processes on the CPU", **_WHOLE, default="1"),
    Flag(
        "gpus", RANKS, "LIST", "one process on each of these GPUs", _gpus,
        "numbers of GPUs, as in 0,1,2",
    ),
    Flag(
        "schedule", RANKS, "NAME", "who makes what: " + ", ".join(MODES), **_one_of(*MODES),
        default="adaptive",
    ),
    Flag(
        "order", RANKS, "NAME", "what comes first, the storyboard or the film: "
        + ", ".join(ORDERS), **_one_of(*ORDERS), default="plan_first on one, film_first on several",
    ),
    Flag(
        "parallel", RANKS, "MESH", "teams x cfg x ulysses, as in 2x2x1; auto: by the cost model",
        _mesh, "auto, or three numbers as in 2x2x1", "every process a team",
    ),
    Flag(
        "rank_timeout", RANKS, "TIME", "a process silent for this long, and 20 of its steps, is "
        "given up", _duration, "seconds, as in 60", "60s",
    ),
    Flag(
        "job_dir", FILES, "FOLDER", "keeps what is finished, for the same command to go on from",
        default="with several processes OUTPUT.job, removed with success",
    ),
    Flag(
        "output", FILES, "FILE", "an mp4 file", default="film.mp4", aliases=("save_file",),
    ),
    Flag("overwrite", FILES, "", "replace the output if it is another film"),
    Flag(
        "config", FILES, "FILE", "settings of a film.mp4 made before, or of a JSON file; flags "
        "given beside it win",
    ),
    Flag(
        "log", FILES, "FILE", "add all messages to this file; without a name, to one beside the "
        "output", bare="",
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
        "link", DRY, "NAME", "between processes: " + ", ".join(LINKS), **_one_of(*LINKS),
        default="nvlink",
    ),
    Flag("examples", OTHER, "", "print prompts that work with the model"),
    Flag("quiet", OTHER, "", "print only errors and, at the end, the path of the film"),
    Flag("debug", OTHER, "", "print a traceback with an error"),
    Flag("version", OTHER, "", "print the version"),
)  # fmt: skip
BY_NAME = {flag.name: flag for flag in FLAGS}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ArgumentError(message, todo="see --help")


class _Once(argparse.Action):
    """Stores a text, and refuses a flag, or two of its names, given twice."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if hasattr(namespace, self.dest):
            raise ArgumentError(f"--{self.dest} is given twice", todo="give it once")
        setattr(namespace, self.dest, values or "")


def _parser(defaults: Defaults | None) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mmpl-gen",
        usage='mmpl-gen --prompt "..." [--output film.mp4] [flags]',
        description="Makes a film from a prompt by Macro-from-Micro Planning.",
        epilog="Hyphens may stand for underscores. The path of the film is printed on stdout, all "
        "else on stderr. Exit codes: 0 film complete, 1 internal error, 2 wrong argument, 3 input "
        "file refused, 4 output or disk, 7 not-a-number in the latents, 8 out of memory, 130 "
        "Ctrl-C, 143 SIGTERM.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    groups = {
        name: parser.add_argument_group(name) for name in (*JOB_GROUPS, RANKS, FILES, DRY, OTHER)
    }
    for flag in FLAGS:
        for name in (flag.name, *flag.aliases):
            shown = _described(flag, defaults) if name == flag.name else argparse.SUPPRESS
            groups[flag.group].add_argument(
                f"--{name}",
                dest=flag.name,
                action=_Once,
                nargs="?" if flag.bare is not None else None if flag.metavar else 0,
                const=flag.bare,
                metavar=flag.metavar or None,
                help=shown,
            )
    groups[OTHER].add_argument(*_HELP, action=_Once, nargs=0, help="print this help")
    return parser


def _described(flag: Flag, defaults: Defaults | None) -> str:
    text = flag.help
    if flag.default:
        known = "{" not in flag.default or defaults is not None
        values = asdict(defaults) if defaults else {}
        text += f" [{flag.default.format(**values) if known else 'as the model says'}]"
    if flag.aliases:
        text += "; also " + ", ".join(f"--{alias}" for alias in flag.aliases)
    return text.replace("%", "%%")


def _with_underscores(argv: Sequence[str]) -> list[str]:
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        if re.fullmatch(r"--\w[\w-]*", name):
            word = "--" + name[2:].replace("-", "_") + equals + value
        words.append(word)
    return words


def _refuse(rest: list[str]) -> NoReturn:
    known = [name for flag in FLAGS for name in (flag.name, *flag.aliases)]
    flags = [word for word in rest if word.startswith("-")]
    if not flags:
        raise ArgumentError(
            "an argument without a flag",
            got=ascii(rest[0])[:60],
            todo="put quotes around a prompt of several words",
        )
    word = flags[0].partition("=")[0]
    near = difflib.get_close_matches(word.lstrip("-"), known, n=1)
    raise ArgumentError(
        "unknown flag",
        got=word[:60],
        todo=f"did you mean --{near[0]}?" if near else "see --help",
    )
