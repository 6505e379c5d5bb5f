"""mmpl-gen: a film from a prompt. Here it is only told what is asked for: help comes at once, and
`desk` does the rest."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from mmpl.checkpoint.defaults import Defaults
from mmpl.checkpoint.folder import open_folder
from mmpl.cli import arguments, model
from mmpl.cli.flags import wants_help
from mmpl.cli.shell import Console, print_result, run
from mmpl.errors import MmplError


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of mmpl-gen with these arguments, by default those of the process."""
    return run(_command, argv, name="mmpl-gen")


def _command(argv: list[str], console: Console) -> int:
    console.as_json = any(re.fullmatch(r"--json[-_]progress", word) for word in argv)
    if wants_help(argv):
        print_result(arguments.help_text(_defaults_for_help(argv)).rstrip())
        return 0
    from mmpl.cli import desk  # takes a moment that --help need not wait for

    return desk.command(argv, console)


def _defaults_for_help(argv: Sequence[str]) -> Defaults | None:
    """The defaults of the model that is named beside --help; None where that does not work."""
    try:
        words = [word for word in argv if not wants_help([word])]
        settings = arguments.parse(arguments.split(words)[2])
        return open_folder(settings.get("model_path", model.EMBEDDED_MODEL)).defaults
    except MmplError:
        return None


if __name__ == "__main__":
    sys.exit(main())
