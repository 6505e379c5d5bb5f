"""mmpl-gen: a film from a prompt.

Everything that can be refused is refused before torch is imported, in this order: the flags, the
model folder, the film they mean, the output. `make` does the rest.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mmpl import __version__
from mmpl.checkpoint.defaults import Defaults
from mmpl.checkpoint.folder import ModelFolder, check_folder, open_folder
from mmpl.cli import arguments, flags, job, pictures
from mmpl.cli.arguments import GO_ON, REVISE
from mmpl.cli.flags import wants_help
from mmpl.cli.order import Order
from mmpl.cli.place import Place, end_with_parent, place
from mmpl.cli.shell import Console, cores, print_result, printable, run
from mmpl.errors import ArgumentError, CheckpointError, InputError, MmplError, OutputError
from mmpl.film.job import FINISHED, JOB_FILE, PREVIEW, STORYBOARD, read_job
from mmpl.film.pins import with_pictures
from mmpl.film.settings import Film
from mmpl.film.space import latent_bytes, video_bytes
from mmpl.layout.work import plan_work
from mmpl.media.durable import check_writable, require_space
from mmpl.train.grammar import unknown_words

NAME = "mmpl-gen"
EMBEDDED_MODEL = Path(__file__).resolve().parents[2] / "weights" / "tiny"
OUTPUT = "film.mp4"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of mmpl-gen with these arguments, by default those of the process."""
    return run(_command, argv, name=NAME)


def _command(argv: list[str], console: Console) -> int:
    console.as_json = any(re.fullmatch(r"--json[-_]progress", word) for word in argv)
    if wants_help(argv):
        print_result(arguments.help_text(_defaults_for_help(argv)).rstrip())
        return 0
    end_with_parent()
    verb, subject, words = arguments.split(argv)
    given = job.with_prompt_file(arguments.parse(words))
    if "version" in given:
        print_result(_version())
        return 0
    here = place()
    aside = here is not None and here.rank > 0 and not here.first_of_machine
    console.quiet = "quiet" in given or aside
    if verb == "inspect":
        from mmpl.cli.inspect import report  # takes a moment that --help need not wait for

        print_result(report(subject, _program(), EMBEDDED_MODEL))
        return 0
    if verb in GO_ON:
        _check_job(subject, words)
        given = {"job_dir": subject, **given}
    elif "segment" in given:
        raise ArgumentError("--segment belongs to reroll", got=verb or "no verb")
    if "keep_tail" in given and verb != "reroll":
        raise ArgumentError("--keep_tail belongs to reroll", got=verb or "no verb")
    config = subject if verb in GO_ON else given.get("config")
    record = job.Record({}, {}, {}) if config is None else job.read_record(config)
    if verb in GO_ON and record.output is not None:
        given = {"output": record.output, **given}
    if verb in REVISE or _finishes(verb, given, record):
        given = _revised(verb, record, given, console)
        argv = ["resume", subject, *_flags_again(words)]
    recorded = pictures.settings_of(record, given, goes_on=verb in GO_ON)
    settings = {**job.merge(given, recorded), **(here.settings if here else {})}
    if "examples" in given:
        _print_examples(settings, console)
        return 0
    if "dry_run" in settings:
        return _predict(settings, console)
    return _make({**settings, "only_plan": verb == "plan"}, record, here, argv, console)


def _revised(
    verb: str, record: job.Record, given: Mapping[str, Any], console: Console
) -> dict[str, Any]:
    """What is given, with the revision of the job that it means; says what that changes."""
    from mmpl.cli import revise

    def film(settings: Mapping[str, Any]) -> Film:
        folder, _ = _model_folder(settings)
        return job.film_for(job.request_of(settings, settings["seed"]), folder)

    old = film(record.settings)
    if verb == "reroll":
        revision = revise.reroll(old, given, Path(given["job_dir"]))
        rest = {name: value for name, value in given.items() if name not in revise.REROLL}
    elif verb == "extend":
        revision = revise.extend(old, film(job.merge(given, record.settings)))
        rest = {name: value for name, value in given.items() if name not in job.LENGTHS}
    else:
        folder = Path(given["job_dir"])
        revision = revise.finish(old, given, read_job(folder) or {}, folder)
        rest = dict(given)
    console.say(f"{rest['job_dir']}: {revise.announced(old, revision)}")
    return {"overwrite": True, **rest, **revision.settings, "revision": revision}


def _finishes(verb: str, given: Mapping[str, Any], record: job.Record) -> bool:
    """Whether a film is to be populated otherwise than it was planned."""
    if verb != "populate":
        return False
    from mmpl.cli.revise import FINISH

    return any(name in given and given[name] != record.settings.get(name) for name in FINISH)


def _flags_again(words: list[str]) -> list[str]:
    """The flags of a revision for the processes that carry it out, when it is in the job."""
    from mmpl.cli import revise

    texts = flags.parse_texts(arguments.GEN, words)
    said = (*revise.REROLL, *revise.FINISH, *job.LENGTHS)
    again = [
        f"--{name}={text}" if text else f"--{name}"
        for name, text in texts.items()
        if name not in said
    ]
    return [*again, *([] if "overwrite" in texts else ["--overwrite"])]


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
    from mmpl.cli import dry_run

    request = job.request_of({"prompt": "any", **settings}, 0)
    folder, _ = _model_folder(settings)
    film = job.film_for(request, folder)
    dry_run.show(dry_run.plan_of(film, folder, settings), settings, console)
    return 0


def _make(
    settings: Mapping[str, Any],
    record: job.Record,
    here: Place | None,
    argv: list[str],
    console: Console,
) -> int:
    from mmpl.cli import parallel  # takes a moment that --help need not wait for

    devices = parallel.devices(settings) if here is None else []
    settings = {"program": _program(), **settings}
    if here is None:
        settings = {"job_dir": f"{settings.get('output', OUTPUT)}.job", **settings}
    settings = job.resumed(settings)
    order = _order(settings, record, here, console)
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
            from mmpl.cli.make import make  # torch comes with it

            make(order, console)
    if order.leads:
        print_result(
            str(Path(order.job_dir or "", STORYBOARD)) if order.only_plan else order.output
        )
    return 0


def _order(
    settings: Mapping[str, Any], record: job.Record, here: Place | None, console: Console
) -> Order:
    """What is to be made, checked as far as can be before anything is loaded or written."""
    from mmpl.cli import parallel
    from mmpl.media.video import check_size

    output = settings.get("output", OUTPUT)
    request = job.request_of(settings, _seed(settings, here))
    folder, model = _model_folder(settings)
    film, seen = job.film_for(request, folder), None
    check_size(film.width, film.height)
    inputs = pictures.named({**record.inputs, **settings})
    if pictures.named(settings):
        seen, landings = pictures.load(inputs, film)
        request = with_pictures(request, film, seen, folder.defaults.layout_i2v)
        pictures.require_recorded(request.given, settings.get("given"), inputs)
        film = job.film_for(request, folder)
        for line in landings:
            console.say(line)
    if settings["only_plan"] and "job_dir" not in settings:
        raise ArgumentError("a storyboard needs a job folder", todo="give --job_dir")
    return Order(
        request=request,
        film=film,
        inputs=inputs,
        pictures=seen,
        clip=pictures.clip_of(inputs, film),
        preview=_preview(settings, output),
        folder=folder,
        model=model,
        machine=_machine(settings),
        output=output,
        only_plan=settings["only_plan"],
        keep_metadata="no_metadata" not in settings,
        weights=record.weights,
        program=settings["program"],
        job_dir=settings.get("job_dir"),
        schedule={name: settings[name] for name in ("schedule", "order") if name in settings},
        place=here,
        patience_s=settings.get("rank_timeout", parallel.PATIENCE_S),
        mesh=None if here is None else parallel.mesh_of(settings, film, folder, here.ranks),
    )


def _preview(settings: Mapping[str, Any], output: str) -> str | None:
    """Where the growing film is written, if one is wanted: by default into the job folder."""
    path = settings.get("preview")
    if path == "":
        if "job_dir" not in settings:
            raise ArgumentError("a preview needs a name", todo="give --preview FILE.mp4")
        path = str(Path(settings["job_dir"], PREVIEW))
    elif path is not None:
        check_writable(path, overwrite=True)
        if os.path.abspath(path) == os.path.abspath(output):
            raise ArgumentError("preview and output are one file", got=path, wanted="two names")
    return path


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


def _seed(settings: Mapping[str, Any], here: Place | None) -> int:
    seed = settings.get("seed", -1)
    if seed != -1:
        return seed
    if here is not None:
        raise ArgumentError(
            "several processes need one seed", got="a random one for each", todo="give --seed"
        )
    return secrets.randbelow(job.RANDOM_SEEDS)


def _model_folder(settings: Mapping[str, Any]) -> tuple[ModelFolder, dict[str, str]]:
    """The checked folder, and the flags that name it and its checkpoint."""
    model = {name: settings[name] for name in ("model_path", "checkpoint") if name in settings}
    _require_embedded(model)
    folder = model.get("model_path", EMBEDDED_MODEL)
    if "checkpoint" in model and not os.path.lexists(model["checkpoint"]):
        beside = os.path.join(folder, model["checkpoint"])
        if os.path.lexists(beside):  # people keep checkpoints in the folder they belong to
            model["checkpoint"] = beside
    return check_folder(folder, checkpoint=model.get("checkpoint")), model


def _require_embedded(model: Mapping[str, Any]) -> None:
    if "model_path" not in model and not EMBEDDED_MODEL.is_dir():
        raise CheckpointError(
            "the embedded model is not there",
            where=str(EMBEDDED_MODEL),
            todo="run from a whole checkout, or give --model_path",
        )


def _machine(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Device, dtype, attention and threads; what is left to `auto` needs torch to be told."""
    auto = {name: "auto" for name in ("device", "dtype", "attention")} | {"threads": cores()}
    return {name: settings.get(name, value) for name, value in auto.items()}


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


def _print_examples(settings: Mapping[str, Any], console: Console) -> None:
    _require_embedded(settings)
    examples = open_folder(settings.get("model_path", EMBEDDED_MODEL)).defaults.examples
    if not examples:
        console.say("this model names no examples: any prompt will do")
    for example in examples:
        print_result(printable(example))


def _defaults_for_help(argv: Sequence[str]) -> Defaults | None:
    """The defaults of the model that is named beside --help; None where that does not work."""
    try:
        words = [word for word in argv if not wants_help([word])]
        settings = arguments.parse(arguments.split(words)[2])
        return open_folder(settings.get("model_path", EMBEDDED_MODEL)).defaults
    except MmplError:
        return None


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


if __name__ == "__main__":
    sys.exit(main())
