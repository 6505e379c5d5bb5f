"""mmpl-eval claims: the paper's claims tested on films of many methods, as long as one likes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpl import __version__
from mmpl.cli import speedup
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
from mmpl.cli.job import film_for
from mmpl.cli.model import model_folder
from mmpl.cli.parallel import MOST_RANKS
from mmpl.cli.shell import Console, cores, print_result, printable
from mmpl.errors import CheckpointError
from mmpl.eval.claims import (
    BUDGETS,
    Budget,
    Unit,
    add_networks,
    check_methods,
    open_folder,
    read_record,
    run,
    units_of,
)
from mmpl.eval.claims_arms import ARMS, METHOD_ARMS, NETWORK_ARMS, method_of
from mmpl.eval.networks import find_networks
from mmpl.film.settings import Film, Request
from mmpl.media import durable
from mmpl.media.charts import duration

if TYPE_CHECKING:
    from mmpl.checkpoint.folder import ModelFolder
    from mmpl.generate import Model

FORMAT = 1  # of the records; those of another are measured otherwise
SAMPLING = ("steps", "shift", "guidance_scale")
GRID, SAMPLER, RESULTS = "which films", "how they are made", "results"
_NUMBER: dict[str, Any] = {"read": float, "wanted": "a number"}
_MOST_MINUTES = 100_000

COMMAND = Command(
    name="mmpl-eval claims",
    usage="mmpl-eval claims [flags]",
    description="Makes films of held-out prompts by each method, on the same weights and seeds, "
    "measures them while they are made, and says which claims of the paper reproduce, by a rule on "
    "95 % intervals. What is measured is kept: the same command goes on where it was stopped.",
    epilog="Methods: " + ", ".join(METHOD_ARMS) + ". Networks: " + ", ".join(NETWORK_ARMS)
    + ". The table is printed on stdout, all else on stderr.",
    groups=(GRID, SAMPLER, RESULTS, MACHINE),
    flags=(
        Flag(
            "budget", GRID, "SIZE", "how many films: 10m and 3h on two cores, full for a GPU or "
            "a night", **one_of(*BUDGETS), default="10m",
        ),
        Flag(
            "minutes", GRID, "N", "begin no film after so many; 0 reports on what is there",
            **whole(0, _MOST_MINUTES), default="10 or 180 of the budget of that name",
        ),
        Flag(
            "methods", GRID, "A,B", "these, and mmpl_terminal that all are compared with",
            default="as the budget has them",
        ),
        Flag("model_path", SAMPLER, "FOLDER", "a model", default="the embedded weights/tiny"),
        Flag(
            "networks", SAMPLER, "FOLDER", "others that take part beside it: model folders NAME, "
            "files NAME.safetensors of `mmpl-train export`; for the names see below",
        ),
        Flag("steps", SAMPLER, "N", "denoising steps", **whole(1, 1000), default="the model's"),
        Flag("shift", SAMPLER, "X", "of the noise schedule", **_NUMBER, default="the model's"),
        Flag("guidance_scale", SAMPLER, "X", "1 for none", **_NUMBER, default="the model's"),
        Flag(
            "runs", RESULTS, "FOLDER", "what is measured of each film, one small file each",
            default="runs/claims-SIZE",
        ),
        Flag("output", RESULTS, "FILE", "write the report as a page, as in claims.html"),
        Flag("json", RESULTS, "", "print all numbers as JSON on stdout"),
        Flag(
            "ranks", MACHINE, "N", "also time one film made by one process and by N, of one thread "
            "each, as Table 10 does", **whole(2, MOST_RANKS),
        ),
        THREADS,
        DEBUG,
    ),
)  # fmt: skip


def claims(argv: Sequence[str], console: Console) -> int:
    """Runs the command; `argv` is what follows its name. Raises MmplError."""
    return carried_out(COMMAND, _claims, argv, console)


def _claims(given: Mapping[str, Any], console: Console) -> None:
    budget = _budget(given)
    if "output" in given:
        durable.check_writable(given["output"], overwrite=True)
    folder, _ = model_folder(given)
    own = find_networks(Path(given["networks"]), folder) if "networks" in given else {}
    sampling = {name: given[name] for name in SAMPLING if name in given}
    film = film_for(Request("-", 0, segments=budget.segments, **sampling), folder)
    runs = Path(given.get("runs", os.path.join("runs", f"claims-{given.get('budget', '10m')}")))
    durable.check_folder_writable(runs)

    import torch

    from mmpl.generate import load_model

    torch.set_num_threads(given.get("threads", cores()))
    model = load_model(folder)
    networks = _load(own, model)
    settings = _settings(film, model)
    durable.make_folder(runs)
    with durable.locked(runs):
        open_folder(runs, settings)
        known = add_networks(runs, {name: one.digests for name, one in networks.items()})
        if "ranks" in given and budget.minutes != 0:
            named = {n: given[n] for n in ("model_path", *SAMPLING) if n in given}
            speedup.measure(runs, given["ranks"], named, console)
        making = replace(budget, arms=(*budget.arms, *networks))
        models = dict.fromkeys(budget.arms, model) | networks
        _make(runs, film, models, sampling, making, console)
        budget = replace(budget, arms=(*budget.arms, *(n for n in NETWORK_ARMS if n in known)))
        records = {u: record for u in units_of(budget) if (record := read_record(runs, u))}
        speed_ups = speedup.measured(runs, folder, sampling)
    methods = {
        name: {(u.program, u.seed): record for u, record in records.items() if u.arm == name}
        for name in budget.arms
    }

    from mmpl.eval.claims_report import summary

    wanted = len(units_of(budget))
    _report(summary(methods, settings, wanted, known, speed_ups), given, console)


def _budget(given: Mapping[str, Any]) -> Budget:
    """The grid that the flags mean. Raises ArgumentError."""
    budget = BUDGETS[given.get("budget", "10m")]
    if "methods" in given:
        words = [word.strip() for word in given["methods"].split(",")]
        budget = replace(budget, arms=check_methods(words))
    return replace(budget, minutes=given["minutes"]) if "minutes" in given else budget


def _settings(film: Film, model: Model) -> dict[str, Any]:
    """What all films of a folder share."""
    sampling = {name: getattr(film, name) for name in (*SAMPLING, "solver", "noise", "alpha")}
    return {
        "format": FORMAT,
        "mmpl": __version__,
        "segments": film.segments,
        "sampling": sampling,
        "size": [film.width, film.height, film.fps],
        "weights": dict(model.digests),
    }


def _load(found: Mapping[str, ModelFolder], shared: Model) -> dict[str, Model]:
    """Arms' own networks, each once, with the sampler's defaults of the model that the others
    share. Raises CheckpointError for another VAE, which makes other films by itself."""
    from mmpl.generate import load_model

    models = {name: load_model(folder) for name, folder in found.items()}
    for name, model in models.items():
        got, wanted = (one.digests["vae"][:12] for one in (model, shared))
        if got != wanted:
            raise CheckpointError(
                "its VAE is not that of --model_path",
                where=str(found[name].files["dit"]),
                got=got,
                wanted=wanted,
                todo="give the networks and --model_path one VAE",
            )
    return {name: replace(model, defaults=shared.defaults) for name, model in models.items()}


def _make(
    runs: Path,
    film: Film,
    models: Mapping[str, Model],
    sampling: Mapping[str, Any],
    budget: Budget,
    console: Console,
) -> None:
    """Makes and measures what is missing, as far as time goes. `models`: that of each arm."""
    from mmpl.eval.claims_film import Program, measure_film
    from mmpl.eval.methods import METHODS, Shot, evaluations
    from mmpl.train.grammar import held_out_prompts

    programs = [Program(*words) for words in held_out_prompts(budget.programs)]
    units = units_of(budget)

    def measure(unit: Unit) -> dict[str, Any]:
        program, model, method = programs[unit.program], models[unit.arm], method_of(unit.arm)
        shot = Shot(program.prompt, unit.film_seed, film.segments, **sampling)
        found = measure_film(
            iter(METHODS[method].make(model, shot)),
            program,
            ARMS[unit.arm],
            chain=film.chain,
            segments=film.segments,
            fps=film.fps,
        )
        return found | {
            "prompt": program.prompt,
            "evaluations": evaluations(method, model, shot).total,
        }

    console.say(
        f"{budget.programs} programs x {budget.segments} segments x {budget.seeds} seeds x "
        f"{len(budget.arms)} methods: {len(units)} films, in {printable(str(runs))}"
        + ("" if budget.minutes is None else f"; none begun after {budget.minutes:g} minutes")
    )
    for done in run(runs, units, measure, minutes=budget.minutes):
        unit, record = done.unit, done.record
        result = record["failed"] if "failed" in record else f"{record['seconds']:.1f} s"
        console.say(
            f"program {unit.program + 1}, seed {unit.seed + 1}, {unit.arm}: {result}; "
            f"{done.left} films left, about {duration(done.left_s)}"
        )


def _report(found: Mapping[str, Any], given: Mapping[str, Any], console: Console) -> None:
    from mmpl.eval.claims_report import page, table

    if "output" in given:
        html = page(found, __version__)
        durable.put(given["output"], lambda file: file.write(html.encode()))
        console.say(f"  report   {printable(given['output'])}")
    if "json" in given:
        print_result(json.dumps(found, allow_nan=False))
        return
    for line in table(found):
        print_result(line)
