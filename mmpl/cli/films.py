"""mmpl-eval FILM...: the measures of finished films, side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mmpl.cli.job import read_record
from mmpl.cli.shell import Console, print_result, printable
from mmpl.errors import ArgumentError, MmplError
from mmpl.layout.presets import by_name
from mmpl.layout.timeline import LONGEST_FRAMES, chain_of, joints

if TYPE_CHECKING:
    from mmpl.eval.metrics import FilmMetrics

_STRIDE = 4  # pixel frames of a latent frame, of every Wan VAE
_NAME = 18  # characters of a film's name in the table
_TOLD = (  # what the table tells, in this order
    "frames",
    "fps",
    "hue_bins",
    "hue_l1_first_last",
    "hue_correlation_first_last",
    "mean_hue_drift_deg",
    "hue_drift_deg_first_last",
    "mean_brightness_drift",
    "brightness_drift_first_last",
    "mean_contrast_drift",
    "contrast_drift_first_last",
)
_OF_JOINTS = ("hue_l1", "hue_correlation", "jump_ratio")


def measure_films(paths: Sequence[str], given: Mapping[str, Any], console: Console) -> None:
    """Measures each film and prints a table, or JSON. Raises InputError for a file that is no
    video."""
    from mmpl.eval.metrics import HUE_BINS, measure
    from mmpl.media.video import iter_frames, probe_rate

    for path in paths:
        if not os.path.lexists(path) and "." not in os.path.basename(path):
            raise ArgumentError(
                "what has a wrong value", got=ascii(path)[:60], wanted="films, or adherence"
            )
    rates = [float(probe_rate(path)) for path in paths]  # all refusals before any measuring
    found: dict[str, dict[str, Any]] = {}
    for path, fps in zip(paths, rates, strict=True):
        kinds = _joints_of(path, given.get("joint_every"), console)
        bins = given.get("hue_bins", HUE_BINS)
        metrics = measure(iter_frames(path), fps, joints=list(kinds.values()), hue_bins=bins)
        found[path] = _values(metrics, kinds)
        console.say(f"  measured {printable(path)}")
    if "json" in given:
        print_result(json.dumps({"films": found}))
    else:
        _print(found, "compare" in given)


def _joints_of(path: str, every: int | None, console: Console) -> dict[str, Container[int]]:
    """Where a film was joined, by kind: every so many frames, or as its own settings say."""
    if every is not None:
        return {"segment": range(every, LONGEST_FRAMES, every)}
    try:
        settings = read_record(path).settings
        layout = by_name(settings["layout"])
        chain = chain_of(layout, seeding=settings["seeding"], temporal_stride=_STRIDE)
    except (MmplError, KeyError):
        return {}  # of another program
    if settings.get("lead"):
        console.warn(f"{path} goes on from a clip: where its joints are, only --joint_every says")
        return {}
    kinds = joints(layout, chain, settings["num_frames"])
    return {kind: set(frames) for kind, frames in kinds.items()}


def _values(metrics: FilmMetrics, kinds: Mapping[str, Container[int]]) -> dict[str, Any]:
    """All numbers of a film by name, those of joints as means of their kind."""
    values = asdict(metrics)
    for kind, frames in kinds.items():
        own = [joint for joint in metrics.joints if joint.frame in frames]
        for name in _OF_JOINTS:
            numbers = [value for joint in own if (value := getattr(joint, name)) is not None]
            mean = sum(numbers) / len(numbers) if numbers else None
            values[f"mean_{name}_at_{kind}_joints"] = mean
    return values


def _print(found: Mapping[str, Mapping[str, Any]], compare: bool) -> None:
    """A row for each number, a column for each film; with `compare`, differences from the first."""
    first, *_ = found.values()
    means = list(dict.fromkeys(n for v in found.values() for n in v if n.startswith("mean_")))
    names = [*_TOLD, *(name for name in means if name not in _TOLD)]
    print_result(" " * 36 + "".join(f"{_short(path):>{_NAME + 2}s}" for path in found))
    for name in names:
        row = f"{name:36s}"
        for values in found.values():
            value, base = values.get(name), first.get(name)
            text = _number(value)
            if compare and values is not first and value is not None and base is not None:
                text += f" ({value - base:+.3g})"
            row += f"{text:>{_NAME + 2}s}"
        print_result(row.rstrip())


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if value == int(value) else f"{value:.4f}"


def _short(path: str) -> str:
    name = printable(os.path.basename(path))
    return name if len(name) <= _NAME else f"...{name[3 - _NAME :]}"
