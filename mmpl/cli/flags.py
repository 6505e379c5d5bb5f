"""Flags as data: a command is a table of them, from which parsing and help are made. No torch.

Values are read as text first and then by the reader of their flag, so that other sources of
settings can be held to the same rules.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from mmpl.cli.shell import Console, print_result
from mmpl.errors import ArgumentError

MACHINE = "machine"
OTHER = "messages and help"  # the last group of every command
MOST_THREADS = 1024
_HELP = ("-h", "--help")


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. `read` makes its value of text, or raises ValueError; `wanted` says what it reads.

    `metavar` is empty for a switch. `default` is shown in the help; entries of the values given
    to `help_text` in braces are filled in. `bare` is the value of a flag given without one. A
    `positional` one is given without its name, always. `join` makes one text of several, for a
    flag that may be given again and again, or a positional one of several words. A `hidden` one is
    for job files and not in the help.
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
    positional: bool = False
    join: Callable[[Sequence[str]], str] | None = None
    hidden: bool = False

    def value(self, text: str) -> Any:
        """What `text` means. Raises ArgumentError."""
        try:
            return self.read(text)
        except ValueError as error:
            raise ArgumentError(
                f"{'' if self.positional else '--'}{self.name} has a wrong value",
                got=ascii(text)[:60],
                wanted=self.wanted,
            ) from error


@dataclass(frozen=True, slots=True)
class Command:
    """What a command is called and takes. `groups` is the order of the help; `stray` says what to
    do about a word that belongs to no flag."""

    name: str
    usage: str
    description: str
    epilog: str
    groups: tuple[str, ...]
    flags: tuple[Flag, ...]
    stray: str = "see --help"


def parse_texts(command: Command, argv: Sequence[str]) -> dict[str, str]:
    """Flag name -> text, of the flags that are given; "" for a switch. Raises ArgumentError."""
    namespace, rest = _parser(command, None).parse_known_args(_with_underscores(argv))
    if rest:
        _refuse(command, rest)
    texts = vars(namespace)
    for flag in command.flags:
        if flag.join is not None and flag.name in texts:
            texts[flag.name] = flag.join(texts[flag.name])
    return texts


def read_texts(command: Command, texts: Mapping[str, str]) -> dict[str, Any]:
    """The values of flags given as text. Raises ArgumentError."""
    by_name = {flag.name: flag for flag in command.flags}
    return {name: by_name[name].value(text) for name, text in texts.items()}


def parse(command: Command, argv: Sequence[str]) -> dict[str, Any]:
    """Flag name -> value, of the flags that are given. Raises ArgumentError."""
    return read_texts(command, parse_texts(command, argv))


def wants_help(argv: Sequence[str]) -> bool:
    return any(word in _HELP for word in argv)


def carried_out(
    command: Command,
    action: Callable[[Mapping[str, Any], Console], None],
    argv: Sequence[str],
    console: Console,
) -> int:
    """Prints the help or does what the command is for, with the flags that are given; returns the
    exit code. Raises what `parse` and the action do."""
    if wants_help(argv):
        print_result(help_text(command).rstrip())
    else:
        action(parse(command, argv), console)
    return 0


def help_text(command: Command, values: Mapping[str, Any] | None = None) -> str:
    """The help; `values` are the defaults of a model where they are known."""
    return _parser(command, values).format_help()


# ------------------------------------------------------------------------------------ readers


def one_of(*allowed: str) -> dict[str, Any]:
    """Reader and description of a flag with these values."""

    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError
        return text

    return {"read": read, "wanted": f"one of {', '.join(allowed)}"}


def whole(low: int, high: int) -> dict[str, Any]:
    """Reader and description of a whole number in this range, both ends in it."""

    def read(text: str) -> int:
        if not low <= (value := int(text)) <= high:
            raise ValueError
        return value

    return {"read": read, "wanted": f"a whole number, {low} to {high}"}


def real(low: float, high: float) -> dict[str, Any]:
    """Reader and description of a number in this range, both ends in it."""

    def read(text: str) -> float:
        if not low <= (value := float(text)) <= high:
            raise ValueError
        return value

    return {"read": read, "wanted": f"a number, {low:g} to {high:g}"}


def _duration(text: str) -> float:
    match = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", text.strip().lower())
    if match is None or not any(match.groups()):
        return float(text)
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


DURATION: dict[str, Any] = {"read": _duration, "wanted": "seconds, as in 30, 30s or 1m30s"}
"""Reader and description of a time in seconds."""


def _size(text: str) -> tuple[int, int]:
    width, height = re.split(r"[x*×]", text.lower())
    return int(width), int(height)


SIZE: dict[str, Any] = {"read": _size, "wanted": "WIDTHxHEIGHT, as in 64x64"}
"""Reader and description of width and height in pixels."""


# ----------------------------------------------------------------------------------- argparse


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


def _parser(command: Command, values: Mapping[str, Any] | None) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=command.name,
        usage=command.usage,
        description=command.description,
        epilog=command.epilog,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    groups = {name: parser.add_argument_group(name) for name in (*command.groups, OTHER)}
    for flag in command.flags:
        if flag.positional:
            text = _described(flag, values)
            number = None if flag.join is None else "+"
            groups[flag.group].add_argument(
                flag.name, metavar=flag.metavar, help=text, nargs=number
            )
            continue
        for name in (flag.name, *flag.aliases):
            in_help = name == flag.name and not flag.hidden
            shown = _described(flag, values) if in_help else argparse.SUPPRESS
            groups[flag.group].add_argument(
                f"--{name}",
                dest=flag.name,
                action=_Once if flag.join is None else "append",
                nargs="?" if flag.bare is not None else None if flag.metavar else 0,
                const=flag.bare,
                metavar=flag.metavar or None,
                help=shown,
            )
    groups[OTHER].add_argument(*_HELP, action=_Once, nargs=0, help="print this help")
    return parser


def _described(flag: Flag, values: Mapping[str, Any] | None) -> str:
    text = flag.help
    if flag.default:
        known = "{" not in flag.default or values is not None
        text += f" [{flag.default.format(**values or {}) if known else 'as the model says'}]"
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


def _refuse(command: Command, rest: list[str]) -> NoReturn:
    shown = [flag for flag in command.flags if not flag.hidden]
    known = [name for flag in shown for name in (flag.name, *flag.aliases)]
    flags = [word for word in rest if word.startswith("-")]
    if not flags:
        raise ArgumentError(
            "an argument without a flag", got=ascii(rest[0])[:60], todo=command.stray
        )
    word = flags[0].partition("=")[0]
    near = difflib.get_close_matches(word.lstrip("-"), known, n=1)
    raise ArgumentError(
        "unknown flag",
        got=word[:60],
        todo=f"did you mean --{near[0]}?" if near else "see --help",
    )


# ------------------------------------------------------------- flags that every command has

THREADS = Flag(
    "threads", MACHINE, "N", "CPU threads", **whole(1, MOST_THREADS), default="all cores"
)
DEBUG = Flag("debug", OTHER, "", "print a traceback with an error")
