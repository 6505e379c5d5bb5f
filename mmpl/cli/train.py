"""bin/mmpl-train: the embedded bundle from nothing, one stage a call or all of them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mmpl.cli.shell import Console, print_result, run

if TYPE_CHECKING:
    from mmpl.train.loop import Progress

STAGES = ("vae", "latents", "dit", "bundle")


def main(argv: list[str] | None = None) -> int:
    """Exit code of `mmpl-train`."""
    given = _parser().parse_args(argv)
    return run(lambda _, console: _command(given, console), argv, name="mmpl-train")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmpl-train",
        description="Trains the small embedded model on procedural clips. Every stage resumes "
        "where it stopped; stop it with Ctrl-C.",
    )
    parser.add_argument("stage", choices=(*STAGES, "all"), help="what to do, or all in this order")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of training state")
    parser.add_argument("--output", type=Path, help="model folder that `bundle` writes")
    parser.add_argument("--steps", type=int, help="how many steps `dit` takes")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the transformer's block: a quarter faster, after minutes of compiling",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--debug", action="store_true", help="show a traceback on errors")
    return parser


def _command(given: argparse.Namespace, console: Console) -> int:
    import torch

    from mmpl.train import pipeline
    from mmpl.wan.dit import DEFAULT_ENGINE, Engine, block

    torch.set_num_threads(given.threads)
    for stage in STAGES if given.stage == "all" else (given.stage,):
        if stage == "vae":
            for name, progress in pipeline.train_vae(given.runs):
                console.say(_line(name, progress))
        elif stage == "latents":
            for name, done in pipeline.encode_clips(given.runs):
                console.say(f"latents {name} {done}")
        elif stage == "dit":
            recipe = pipeline.dit_recipe(given.steps)
            engine = DEFAULT_ENGINE
            if given.compile:
                engine = Engine(block_fn=torch.compile(block, dynamic=False))
            for progress in pipeline.train_dit(given.runs, recipe, engine=engine):
                console.say(_line("dit", progress))
        else:
            folder = given.output or given.runs / "bundle"
            pipeline.bundle(given.runs, folder)
            print_result(str(folder))
    return 0


def _line(name: str, progress: Progress) -> str:
    metrics = " ".join(f"{key} {value:.4f}" for key, value in progress.metrics.items())
    minutes = progress.eta_s / 60
    return (
        f"{name} {progress.step}/{progress.steps} loss {progress.loss:.4f} {metrics} "
        f"{progress.seconds_per_step:.2f} s/step, {minutes:.0f} min left"
    )
