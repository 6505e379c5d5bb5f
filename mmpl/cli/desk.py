"""mmpl-gen as far as it goes without torch.

Everything that can be refused is refused here, in this order: the flags, the model folder, the film
they mean, the output. `make` does the rest.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mmpl import __version__
from mmpl.checkpoint.defaults import Defaults
from mmpl.checkpoint.folder import open_folder
from mmpl.cli import arguments, job, model, pictures
from mmpl.cli.arguments import GO_ON, REVISE
from mmpl.cli.model import located, model_folder, require_embedded
from mmpl.cli.order import OUTPUT, Order, Shelf, order_of
from mmpl.cli.place import Place, end_with_parent, place
from mmpl.cli.shell import Console, explain, print_result, printable, uncollected
from mmpl.errors import ArgumentError, InputError, OutputError
from mmpl.film.job import FINISHED, JOB_FILE, STORYBOARD
from mmpl.film.space import latent_bytes, video_bytes
from mmpl.layout.work import plan_work
from mmpl.media.durable import check_writable, require_space
from mmpl.train.grammar import unknown_words

NAME = "mmpl-gen"


def command(argv: list[str], console: Console) -> int:
    """The exit code of mmpl-gen with these arguments, which do not ask for help."""
    end_with_parent()
    verb, subject, words = arguments.split(argv)
    given = job.with_prompt_file(arguments.parse(words))
    if "version" in given:
        print_result(_version())
        return 0
    here = place()
    aside = here is not None and here.rank > 0 and not here.first_of_machine
    console.quiet = "quiet" in given or aside
    if verb in ("inspect", "convert"):
        print_result(_about_model(verb, subject, given, console))
        return 0
    for name in ("segment", "keep_tail"):
        if name in given and verb != "reroll":
            raise ArgumentError(f"--{name} belongs to reroll", got=verb or "no verb")
    if verb in GO_ON:
        _check_job(subject, words)
        given = {"job_dir": subject, **given}
    config = subject if verb in GO_ON else given.get("config")
    record = job.Record({}, {}, {}) if config is None else job.read_record(config)
    if verb in GO_ON and record.output is not None:
        given = {"output": record.output, **given}
    if verb in (*REVISE, "populate"):
        from mmpl.cli import revise

        given = revise.populating(given) if verb == "populate" else given
        if revise.changes(verb, given, record):
            given = revise.revised(verb, record, given, console)
            argv = ["resume", subject, *revise.flags_again(words)]
    recorded = pictures.settings_of(record, given, goes_on=verb in GO_ON)
    settings = {**job.merge(given, recorded), **(here.settings if here else {})}
    settings["only_plan"] = verb == "plan"
    for name, act in (("jobs", _make_all), ("examples", _print_examples), ("dry_run", _predict)):
        if name in given:
            return act(settings, console)
    return _make(settings, record, here, argv, console)


def _about_model(verb: str, subject: str, given: Mapping[str, Any], console: Console) -> str:
    """What `inspect` has to say, or the folder that `convert` has written."""
    from mmpl.cli import convert, inspect  # takes a moment that --help need not wait for

    if verb == "convert":
        return convert.convert(subject, given, console)
    return inspect.report(subject, _program(), model.EMBEDDED_MODEL)


def _make_all(settings: dict[str, Any], console: Console) -> int:
    """Makes the films of a file, one after the other; what fails in one does not end the others.
    The exit code is that of the first failure."""
    from mmpl.cli.batch import read_films  # takes a moment that --help need not wait for

    films = read_films(settings.pop("jobs"), settings)
    shelf: Shelf = {}
    code = 0
    for film in films:
        try:
            _make(film, job.Record({}, {}, {}), None, [], console, shelf)
        except Exception as error:  # noqa: BLE001  said here, with its exit code
            failed, text = explain(error)
            console.fail(f"{film['output']}: {text}", failed)
            code = code or failed
    return code


def _check_job(folder: str, words: list[str]) -> None:
    """Raises InputError for what is no job folder."""
    if not Path(folder, JOB_FILE).exists():
        raise InputError(
            "not a job folder",
            where=folder,
            wanted=f"a folder with a {JOB_FILE} in it, as {NAME} keeps one beside each film",
        )
    if any(re.match(r"--job[-_]dir\b", word) for word in words):
        raise ArgumentError("the job folder is given twice", wanted=f"{folder} alone")


def _predict(settings: Mapping[str, Any], console: Console) -> int:
    """What the film would take; a prompt and a seed do not matter."""
    from mmpl.cli import dry_run, memory  # torch comes with it

    request = job.request_of({"prompt": "any", **settings}, 0)
    folder, _ = model_folder(settings)
    film = job.film_for(request, folder)
    plan = dry_run.plan_of(film, folder, settings)
    choice = dry_run.predict(plan)
    peaks = memory.peaks(folder.configs, film, settings, choice.mesh)
    dry_run.show(plan, choice, settings, console, peaks)
    return 0


def _make(
    settings: Mapping[str, Any],
    record: job.Record,
    here: Place | None,
    argv: list[str],
    console: Console,
    shelf: Shelf | None = None,
) -> int:
    """Makes one film, or says that it is there; `shelf` keeps the model for the next one."""
    from mmpl.cli import parallel  # takes a moment that --help need not wait for

    devices = parallel.devices(settings) if here is None else []
    settings = {"program": _program(), **settings}
    if here is None:
        settings = {"job_dir": f"{settings.get('output', OUTPUT)}.job", **settings}
    settings = job.resumed(settings)
    order = order_of(settings, record, here, console)
    speaks = here is None or here.speaks
    if speaks and not order.only_plan and _is_complete(order, settings, console):
        if order.job_dir is not None:
            job.tidy_if_idle(Path(order.job_dir), order.output)
        print_result(order.output)
        return 0
    if "log" in settings and order.leads:
        console.open_log(_log_path(settings["log"], order.output))
    with ExitStack() as stack:
        if speaks:
            if order.job_dir is not None:
                folder = Path(order.job_dir)
                stack.enter_context(job.at_work(folder, order.film, order.output, settings))
            _warn_of_words(
                " ".join(cue.prompt for cue in order.film.script), order.folder.defaults, console
            )
            _check_space(order, console)
        if devices:
            parallel.make(argv, settings, order, devices, console)
        else:
            with uncollected():
                from mmpl.cli.make import make  # torch comes with it

            make(order, console, shelf)
    if order.leads:
        print_result(
            str(Path(order.job_dir or "", STORYBOARD)) if order.only_plan else order.output
        )
    return 0


def _is_complete(order: Order, settings: Mapping[str, Any], console: Console) -> bool:
    """Whether the output is there and is this film; raises where it is another or cannot be."""
    exists = check_writable(order.output, overwrite=True)
    if not order.output.lower().endswith(".mp4"):
        raise ArgumentError(
            "films are written as mp4", got=repr(order.output), wanted="a name ending in .mp4"
        )
    if not exists or "overwrite" in settings:
        return False
    before = order.clip.frames if order.clip is not None else 0
    made = job.require_made(order.output, order.film, before, order.folder, settings)
    console.say(
        f"{printable(order.output)} is complete already, with these settings and seed "
        f"{made.settings.get('seed')}; another --seed or --output makes another film, "
        "--overwrite makes this one again"
    )
    return True


def _log_path(log: str, output: str) -> str:
    path = log or str(Path(output).with_suffix(".log"))
    if os.path.abspath(path) == os.path.abspath(output):
        raise ArgumentError("log and output are one file", got=path, wanted="two names")
    return path


def _warn_of_words(prompt: str, defaults: Defaults, console: Console) -> None:
    unknown = unknown_words(prompt, defaults.vocabulary) if defaults.vocabulary else []
    if unknown:
        shown = ", ".join(unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        console.warn(
            f"this model was never taught: {shown}; "
            f"{_program()} --examples prints prompts that work"
        )


def _check_space(order: Order, console: Console) -> None:
    """Raises OutputError where the disks cannot hold what is still to be made; warns where they
    may not."""
    film, vae = order.film, order.folder.configs.vae
    least, many = (0, 0) if order.only_plan else video_bytes(film)
    output = Path(os.path.abspath(order.output)).parent
    needs = {output: least}
    if order.job_dir is not None:
        stride, job_dir = vae.spatial_stride, Path(os.path.abspath(order.job_dir))
        shape = (vae.z_dim, film.height // stride, film.width // stride)
        work = plan_work(film.work) if order.only_plan else film.work
        there = {path.name for path in job_dir.glob(FINISHED)}
        needs[job_dir] = needs.get(job_dir, 0) + latent_bytes(work, shape, there)
    require_space(needs)
    needs[output] += many - least
    try:
        require_space(needs)
    except OutputError as error:
        console.warn(f"the disk may fill up: {error.got}, this film can take {error.wanted}")


def _print_examples(settings: Mapping[str, Any], console: Console) -> int:
    require_embedded(settings)
    examples = open_folder(located(settings)).defaults.examples
    if not examples:
        console.say("this model names no examples: any prompt will do")
    for example in examples:
        print_result(printable(example))
    return 0


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # would slow --help down

    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "not installed"
    return f"mmpl {__version__} (torch {torch}, Python {sys.version.split()[0]})"


def _program() -> str:
    """This command as it was typed, for messages that are to be copied."""
    typed = sys.argv[0]
    return shlex.quote(typed) if os.path.basename(typed) == NAME else NAME
