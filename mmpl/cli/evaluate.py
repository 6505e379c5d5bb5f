"""bin/mmpl-eval: measures what a model's films show."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

from mmpl.cli.shell import Console, print_result, run

ROOT = Path(__file__).resolve().parents[2]


def main(argv: list[str] | None = None) -> int:
    """Exit code of `mmpl-eval`."""
    given = _parser().parse_args(argv)
    return run(lambda _, console: _command(given, console), argv, name="mmpl-eval")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmpl-eval",
        description="Makes films of held-out prompts and counts, from their pixels alone, how many "
        "show the right shape, hue and motion, and how many still hold one object at the end.",
    )
    parser.add_argument("what", choices=("adherence",))
    parser.add_argument("--model_path", type=Path, default=ROOT / "weights" / "tiny")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--duration", type=float, help="seconds; default: one segment only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")
    parser.add_argument("--debug", action="store_true", help="show a traceback on errors")
    return parser


def _command(given: argparse.Namespace, console: Console) -> int:
    import numpy as np
    import torch

    from mmpl.eval.adherence import Pixels, adherence, ceiling, tabulate
    from mmpl.generate import Frames, Request, film_of, generate, load_model

    torch.set_num_threads(given.threads)
    model = load_model(given.model_path)
    film = film_of(model, Request("-", 0, segments=1))
    segment_frames = film.chain.segment_frames

    def make_film(prompt: str, seed: int) -> Pixels:
        segments = 1 if given.duration is None else None
        request = Request(prompt, seed, duration_s=given.duration, segments=segments)
        events = generate(model, request)
        return np.concatenate([e.pixels_FHWC for e in events if isinstance(e, Frames)])

    truth, rebuilt, error = ceiling(model, segment_frames=segment_frames, clips=given.prompts)
    scores = []
    for score in adherence(
        make_film,
        segment_frames=segment_frames,
        fps=film.fps,
        prompts=given.prompts,
        seed=given.seed,
    ):
        scores.append(score)
        marks = " ".join(
            f"{name}:{'-' if right is None else 'ok' if right else 'no'}"
            for name, right in (
                ("shape", score.shape),
                ("hue", score.hue),
                ("motion", score.motion),
                ("left", score.left),
            )
        )
        console.say(f"{len(scores):3d} {marks}  {score.prompt}  (seen: {score.seen})")
    rows = {"films": tabulate(scores), "vae_reconstructions": rebuilt, "true_clips": truth}
    if given.json:
        report = {name: asdict(table) for name, table in rows.items()}
        print_result(json.dumps(report | {"vae_l1": error}))
        return 0
    print_result(f"{'':20s} {'films':>6s} {'shape':>6s} {'hue':>6s} {'motion':>6s} {'left':>6s}")
    for name, table in rows.items():
        left = "-" if table.left is None else f"{table.left:.0%}"
        print_result(
            f"{name:20s} {table.films:6d} {table.shape:6.0%} {table.hue:6.0%} "
            f"{table.motion:6.0%} {left:>6s}"
        )
    console.say(f"mean absolute error of the VAE: {error:.4f} (pixels in 0..1)")
    return 0
