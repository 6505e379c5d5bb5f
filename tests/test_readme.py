"""README.md is run, not believed: its lines, its example, its flags, its list of files."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mmpl.cli import arguments
from mmpl.cli.claims import COMMAND as CLAIMS
from mmpl.cli.distil import DISTIL
from mmpl.cli.encode import ENCODE
from mmpl.cli.evaluate import EVAL
from mmpl.cli.flags import Command, parse, wants_help
from mmpl.cli.train import TRAIN
from mmpl.cli.tune import EXPORT, TUNE
from mmpl.media.video import probe
from tests.small import DEFAULTS, small_model, write_small

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of README.md in a language; "" for shell lines and lists."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return [body for tag, body in fenced if tag == language]


def commands(program: str) -> list[list[str]]:
    """The arguments of every call of bin/`program` in README.md."""
    lines = (line for block in blocks("") for line in block.splitlines())
    found = (line.split(f"bin/{program} ", 1) for line in lines)
    return [shlex.split(parts[1], comments=True) for parts in found if len(parts) == 2]


def listed() -> Iterator[str]:
    """The paths in the list of files, folders with a slash at the end."""
    tree = next(block for block in blocks("") if "\nmmpl/\n" in block)
    above: list[str] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        above[depth:] = [line.split()[0]]
        yield "".join(above)


def test_opens_with_both_lines() -> None:
    film, test = (block.strip() for block in blocks("")[:2])
    assert film.startswith("pip install -c constraints.txt . && bin/mmpl-gen --prompt ")
    assert test.startswith("pip install -c constraints.txt ")
    assert test.endswith(" && pytest")


def test_ci_runs_these_very_lines() -> None:
    script = ROOT / ".ci" / "run"
    shown = subprocess.run(
        ["bash", str(script), "--lines"], capture_output=True, text=True, check=True
    ).stdout
    assert shown.splitlines() == [block.strip() for block in blocks("")[:2]]
    body = script.read_text(encoding="utf-8")
    assert '\nbash -c "$test_line"\n' in body
    assert '\nbash -c "${film_line/%film.mp4/' in body


def test_python_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they stand, in a folder whose weights/tiny is a small random model."""
    write_small(tmp_path / "weights" / "tiny", small_model(replace(DEFAULTS, duration_s=0.5)))
    monkeypatch.chdir(tmp_path)
    made = []
    for number, example in enumerate(blocks("python")):
        path = tmp_path / f"example_{number}.py"
        path.write_text(example, encoding="utf-8")
        made.append(runpy.run_path(str(path)))
    film = probe("film.mp4")
    assert (film.frames, film.width, film.height) == (8, 32, 32)
    assert "plan: " in capsys.readouterr().out
    from_folder, from_tensors = (names["model"] for names in made)
    assert from_tensors.digests == from_folder.digests
    assert from_tensors.defaults == from_folder.defaults
    assert from_tensors.vae_config == from_folder.vae_config


@pytest.mark.parametrize("words", commands("mmpl-gen"), ids=" ".join)
def test_flags(words: list[str]) -> None:
    verb, _, words = arguments.split(words)
    assert wants_help(words) or arguments.parse(words) or verb


@pytest.mark.parametrize("command", [TRAIN, EVAL, CLAIMS], ids=lambda command: command.name)
def test_other_commands(command: Command) -> None:
    lines = [words for words in commands(command.name) if words[0] != "claims"]
    assert lines
    verbs = {
        "mmpl-train encode": ENCODE,
        "mmpl-train tune": TUNE,
        "mmpl-train export": EXPORT,
        "mmpl-train distil": DISTIL,
    }
    for first, *rest in lines:
        verb = verbs.get(f"{command.name} {first}")
        assert parse(verb, rest) if verb else parse(command, [first, *rest])


def test_list_of_files() -> None:
    paths = list(listed())
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing, f"in README.md but not there: {missing}"
    modules = (path.relative_to(ROOT).as_posix() for path in (ROOT / "mmpl").rglob("*.py"))
    unlisted = {path for path in modules if not path.endswith("__init__.py")} - set(paths)
    assert not unlisted, f"give each a line in README.md: {sorted(unlisted)}"


def test_the_table_of_formats_names_tests_that_exist() -> None:
    text = (ROOT / "weights" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+/test_\w+\.py)::(\w+)`", text)
    assert len(named) > 15
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), test
