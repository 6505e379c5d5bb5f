"""bin/mmpl-eval: measures films, and what a model's films show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from mmpl.checkpoint.folder import check_folder
from mmpl.cli.claims import claims
from mmpl.cli.films import measure_films
from mmpl.cli.flags import (
    DEBUG,
    DURATION,
    MACHINE,
    OTHER,
    THREADS,
    Command,
    Flag,
    carried_out,
    whole,
)
from mmpl.cli.job import RANDOM_SEEDS, film_for
from mmpl.cli.model import EMBEDDED_MODEL
from mmpl.cli.shell import Console, cores, print_result, run
from mmpl.errors import ArgumentError
from mmpl.film.settings import Film, Request
from mmpl.layout.timeline import LONGEST_FRAMES

if TYPE_CHECKING:
    from mmpl.eval.adherence import Score, Table
    from mmpl.generate import Model

NAME = "mmpl-eval"
MEASURE, FILMS, ADHERENCE = "what to measure", "of films", "of adherence"
PROMPTS = 32
MOST_PROMPTS = 10_000

EVAL = Command(
    name=NAME,
    usage="mmpl-eval FILM... [flags]\n       mmpl-eval adherence [flags]\n"
    "       mmpl-eval claims [flags]     has a --help of its own",
    description="Measures how far the look of films wanders and where they jump, from their pixels "
    "alone. Or makes films of held-out prompts and counts how many show the right shape, hue and "
    "motion, and how many still hold one object at the end. Or tests the paper's claims.",
    epilog="Hyphens may stand for underscores. The table is printed on stdout, all else on stderr. "
    "Exit codes: 0 measured, 1 internal error, 2 wrong argument, 3 model refused, "
    "7 not-a-number in the latents, 8 out of memory, 130 Ctrl-C, 143 SIGTERM.",
    groups=(MEASURE, FILMS, ADHERENCE, MACHINE),
    flags=(
        Flag(
            "what", MEASURE, "WHAT", "films, or the word adherence", positional=True,
            join="\n".join,
        ),
        Flag("compare", FILMS, "", "show how each film differs from the first"),
        Flag(
            "hue_bins", FILMS, "N", "of the histograms; results depend on it",
            **whole(2, 3600), default="180",
        ),
        Flag(
            "joint_every", FILMS, "N", "frames between joints, where a film does not tell them",
            **whole(1, LONGEST_FRAMES),
        ),
        Flag(
            "encoder", FILMS, "MODULE:NAME", "a function of yours, from pixels x_BCHW in [0, 1] to "
            "features [B, D]: how alike frames stay to it",
        ),
        Flag(
            "jepa_rank", FILMS, "N", "with --encoder: JEPA-SCORE by so many singular values",
            **whole(1, 10_000),
        ),
        Flag(
            "lpips", FILMS, "NAME", "t-LPIPS at joints: alex, vgg or squeeze of the package lpips, "
            "or MODULE:NAME, a function of yours of two pictures x_BCHW in [-1, 1]",
        ),
        Flag(
            "encoder_frames", FILMS, "N", "frames the encoder sees, evenly spread",
            **whole(2, 10_000), default="16",
        ),
        Flag("report", FILMS, "FILE", "write a page with curves over time, as in films.html"),
        Flag("vbench", FILMS, "FOLDER", "copy the films there under the names VBench expects"),
        Flag("model_path", ADHERENCE, "FOLDER", "a model", default="the embedded weights/tiny"),
        Flag(
            "prompts", ADHERENCE, "N", "how many films", **whole(1, MOST_PROMPTS),
            default=f"{PROMPTS}",
        ),
        Flag("duration", ADHERENCE, "TIME", "30, 30s, 1m30s", **DURATION, default="one segment"),
        Flag(
            "seed", ADHERENCE, "N", "of the first film; the next ones count on",
            **whole(0, RANDOM_SEEDS), default="0",
        ),
        THREADS,
        Flag("json", OTHER, "", "print JSON on stdout"),
        DEBUG,
    ),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of `mmpl-eval`."""
    return run(_command, argv, name=NAME)


def _command(argv: list[str], console: Console) -> int:
    if argv[:1] == ["claims"]:
        return claims(argv[1:], console)
    return carried_out(EVAL, _evaluate, argv, console)


def _evaluate(given: Mapping[str, Any], console: Console) -> None:
    words = given["what"].split("\n")
    if words != ["adherence"]:
        _only(given, FILMS, ADHERENCE)
        measure_films(words, given, console)
        return
    _only(given, ADHERENCE, FILMS)
    folder = check_folder(given.get("model_path", EMBEDDED_MODEL))
    duration_s = given.get("duration")
    request = Request(
        "-", 0, duration_s=duration_s, segments=1 if duration_s is None else None
    )  # of each film, but for prompt and seed
    film = film_for(request, folder)

    import torch

    from mmpl.generate import load_model

    torch.set_num_threads(given.get("threads", cores()))
    _measure(load_model(folder), request, film, given, console)


def _only(given: Mapping[str, Any], what: str, other: str) -> None:
    """Raises ArgumentError for a flag of the other kind of measuring."""
    for flag in EVAL.flags:
        if flag.group == other and flag.name in given:
            raise ArgumentError(f"--{flag.name} means nothing here", got=f"a measure {what}")


def _measure(
    model: Model, request: Request, film: Film, given: Mapping[str, Any], console: Console
) -> None:
    import numpy as np

    from mmpl.eval.adherence import Pixels, adherence, ceiling, tabulate
    from mmpl.generate import Frames, generate

    def make_film(prompt: str, seed: int) -> Pixels:
        events = generate(model, replace(request, prompt=prompt, seed=seed))
        return np.concatenate([e.pixels_FHWC for e in events if isinstance(e, Frames)])

    prompts, segment_frames = given.get("prompts", PROMPTS), film.chain.segment_frames
    truth, rebuilt, error = ceiling(model, segment_frames=segment_frames, prompts=prompts)
    scores = []
    for score in adherence(
        make_film,
        segment_frames=segment_frames,
        fps=film.fps,
        prompts=prompts,
        seed=given.get("seed", 0),
    ):
        scores.append(score)
        console.say(f"{len(scores):3d} {_marks(score)}  {score.prompt}  (seen: {score.seen})")
    tables = {"films": tabulate(scores), "vae_reconstructions": rebuilt, "true_clips": truth}
    if "json" in given:
        report = {name: asdict(table) for name, table in tables.items()}
        print_result(json.dumps(report | {"vae_l1": error}))
        return
    _print(tables)
    console.say(f"mean absolute error of the VAE: {error:.4f} (pixels in 0..1)")


def _marks(score: Score) -> str:
    """What was right of one film."""
    parts = ("shape", "hue", "motion", "left")
    words = {None: "-", True: "ok", False: "no"}
    return " ".join(f"{part}:{words[getattr(score, part)]}" for part in parts)


def _print(tables: Mapping[str, Table]) -> None:
    print_result(f"{'':20s} {'films':>6s} {'shape':>6s} {'hue':>6s} {'motion':>6s} {'left':>6s}")
    for name, table in tables.items():
        left = "-" if table.left is None else f"{table.left:.0%}"
        print_result(
            f"{name:20s} {table.films:6d} {table.shape:6.0%} {table.hue:6.0%} "
            f"{table.motion:6.0%} {left:>6s}"
        )
