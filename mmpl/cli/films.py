"""mmpl-eval FILM...: the measures of finished films, side by side."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpl import __version__
from mmpl.cli.job import read_record
from mmpl.cli.shell import Console, print_result, printable
from mmpl.errors import ArgumentError, MmplError
from mmpl.layout.presets import by_name
from mmpl.layout.timeline import LONGEST_FRAMES, chain_of, joints
from mmpl.media import durable
from mmpl.media.charts import Curve
from mmpl.wan.config import VAEConfig

if TYPE_CHECKING:
    from mmpl.eval.features import Distance, Encoder
    from mmpl.eval.metrics import FilmMetrics
    from mmpl.media.report import Measured

ENCODER_FRAMES = 16
_LONGEST_NAME = 255  # bytes, of most file systems
_NAME = 18  # characters of a film's name in the table
_TOLD = (  # what the table tells, in this order
    "frames",
    "fps",
    "hue_bins",
    "hue_l1_first_last",
    "hue_correlation_first_last",
    "background_hue_l1_first_last",
    "background_hue_correlation_first_last",
    "background_hue_drift_deg_first_last",
    "background_share",
    "mean_hue_drift_deg",
    "hue_drift_deg_first_last",
    "mean_brightness_drift",
    "brightness_drift_first_last",
    "mean_contrast_drift",
    "contrast_drift_first_last",
)
_OF_JOINTS = ("hue_l1", "hue_correlation", "jump_ratio", "t_lpips")
_MASKED = (  # said below the table
    "background: pixels near the median of their place over the film, in its first frame and last"
)


def measure_films(paths: Sequence[str], given: Mapping[str, Any], console: Console) -> None:
    """Measures each film and prints a table, or JSON. Raises InputError for a file that is no
    video."""
    from mmpl.eval.metrics import HUE_BINS, measure
    from mmpl.media.report import measures_html
    from mmpl.media.video import iter_frames, probe_rate

    for path in paths:
        if not os.path.lexists(path) and "." not in os.path.basename(path):
            raise ArgumentError(
                "what has a wrong value", got=ascii(path)[:60], wanted="films, adherence or claims"
            )
    if "encoder" not in given and ("jepa_rank" in given or "encoder_frames" in given):
        raise ArgumentError("--jepa_rank and --encoder_frames mean nothing without --encoder")
    encoder: Encoder | None = _own("encoder", given["encoder"]) if "encoder" in given else None
    distance = _distance(given["lpips"]) if "lpips" in given else None
    rates = [float(probe_rate(path)) for path in paths]  # all refusals before any measuring
    if "vbench" in given:
        _copy_for_vbench(paths, given["vbench"], console)
    found: dict[str, dict[str, Any]] = {}
    for path, fps in zip(paths, rates, strict=True):
        kinds = _joints_of(path, given.get("joint_every"), console)
        bins = given.get("hue_bins", HUE_BINS)
        metrics = measure(iter_frames(path), fps, joints=list(kinds.values()), hue_bins=bins)
        values: dict[str, Any] = asdict(metrics) | _of_background(path, metrics.frames, bins)
        if distance is not None:
            values |= _t_lpips(distance, given["lpips"], path, metrics, console)
        joints: list[dict[str, Any]] = values["joints"]
        found[path] = values | _of_joints(joints, kinds)
        if encoder is not None:
            found[path] |= _of_features(encoder, path, metrics.frames, given)
        console.say(f"  measured {printable(path)}")
    if "report" in given:
        page = measures_html(
            [_page_of(path, values) for path, values in found.items()], __version__
        )
        durable.put(given["report"], lambda file: file.write(page.encode("utf-8", "replace")))
        console.say(f"  report   {printable(given['report'])}")
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
        stride = VAEConfig().temporal_stride  # of Wan; no film records that of its own VAE
        chain = chain_of(layout, seeding=settings["seeding"], temporal_stride=stride)
    except (MmplError, KeyError):
        return {}  # of another program
    if settings.get("lead"):
        console.warn(f"{path} goes on from a clip: where its joints are, only --joint_every says")
        return {}
    kinds = joints(layout, chain, settings["num_frames"])
    return {kind: set(frames) for kind, frames in kinds.items()}


def _of_joints(
    joints: Sequence[Mapping[str, Any]], kinds: Mapping[str, Container[int]]
) -> dict[str, float | None]:
    """Means over the joints of each kind, by name."""
    means: dict[str, float | None] = {}
    for kind, frames in kinds.items():
        own = [joint for joint in joints if joint["frame"] in frames]
        for name in _OF_JOINTS:
            numbers = [joint[name] for joint in own if joint.get(name) is not None]
            if name != "t_lpips" or numbers:
                mean = sum(numbers) / len(numbers) if numbers else None
                means[f"mean_{name}_at_{kind}_joints"] = mean
    return means


def _of_background(path: str, frames: int, hue_bins: int) -> dict[str, float | None]:
    """What is measured of the background, by name."""
    import numpy as np

    from mmpl.eval.background import FRAMES, measure_background
    from mmpl.eval.drift import evenly, sampled
    from mmpl.media.video import iter_frames

    chosen = set(evenly(frames, FRAMES))
    taken = [sampled(f[None]) for n, f in enumerate(iter_frames(path)) if n in chosen]
    found = measure_background(np.concatenate(taken), hue_bins=hue_bins)
    return {f"background_{name}": value for name, value in asdict(found).items()}


def _t_lpips(
    distance: Distance, name: str, path: str, metrics: FilmMetrics, console: Console
) -> dict[str, Any]:
    """The joints with t-LPIPS, and whose distance it is."""
    from mmpl.eval.features import joint_distances
    from mmpl.media.video import iter_frames

    if not metrics.joints:
        console.warn(f"{path} tells no joints for --lpips; --joint_every says where they are")
    at = {joint.frame for joint in metrics.joints}
    values = joint_distances(distance, iter_frames(path), at)
    joints = [asdict(joint) | {"t_lpips": values[joint.frame]} for joint in metrics.joints]
    return {"lpips": name, "joints": joints}


def _page_of(path: str, values: Mapping[str, Any]) -> Measured:
    """A film as the report shows it."""
    from mmpl.media.report import Measured

    first, *later = values["seconds"]
    turns = [abs(turn) if turn is not None else None for turn in values["hue_drifts_deg"]]
    numbers = {
        name: _number(value) if isinstance(value, (int, float)) else value
        for name, value in values.items()
        if value is None or isinstance(value, (int, float, str))
    }
    parts = [first, *later]

    def look(name: str, words: str) -> Curve:
        each = [second[name] for second in parts]
        return Curve(name, words, each, each[0], 0.1, part="second")

    curves = [
        Curve(
            "hue drift, degrees",
            "Angle between the circular mean hue of each second and that of the first.",
            [0.0 if first["hue_deg"] is not None else None, *turns],
            start=0.0,
            least=10.0,
            digits=1,
            part="second",
        ),
        look("brightness", "Mean luma of each second, 0 black to 1 white."),
        look("contrast", "Standard deviation of luma within frames, mean of each second."),
    ]
    return Measured(printable(path), curves, numbers)


def _distance(name: str) -> Distance:
    from mmpl.eval.features import LPIPS_NETWORKS, lpips_distance

    return lpips_distance(name) if name in LPIPS_NETWORKS else _own("lpips", name)


def _own(flag: str, name: str) -> Any:
    """The function that `module:name` means, from the folder of the call or the Python path."""
    module, colon, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ArgumentError(
            f"--{flag} cannot be imported: {error}", got=ascii(name)[:60], wanted="MODULE:NAME"
        ) from error
    if not callable(found):
        raise ArgumentError(f"--{flag} is no function", got=ascii(name)[:60], wanted="MODULE:NAME")
    return found


def _of_features(
    encoder: Encoder, path: str, frames: int, given: Mapping[str, Any]
) -> dict[str, Any]:
    """What the encoder says of a film, by name."""
    import numpy as np

    from mmpl.eval.drift import evenly
    from mmpl.eval.features import measure_features
    from mmpl.media.video import iter_frames

    chosen = set(evenly(frames, given.get("encoder_frames", ENCODER_FRAMES)))
    pictures = np.stack([f for n, f in enumerate(iter_frames(path)) if n in chosen])
    found = asdict(measure_features(encoder, pictures, rank=given.get("jepa_rank", 0)))
    found["encoder_frames"] = found.pop("frames")
    return {"encoder": given["encoder"], "jepa_rank": given.get("jepa_rank"), **found}


def _copy_for_vbench(paths: Sequence[str], folder: str, console: Console) -> None:
    """Copies films as FOLDER/PROMPT-N.mp4, N from 0 for each prompt."""
    counts: dict[str, int] = {}
    names = []
    for path in paths:
        prompt = read_record(path).settings["prompt"]
        number = counts.setdefault(prompt, 0)
        counts[prompt] += 1
        names.append(f"{prompt}-{number}.mp4")
        if "/" in prompt or len(os.fsencode(names[-1])) > _LONGEST_NAME:
            raise ArgumentError(
                "this prompt cannot be a file name", where=path, got=ascii(prompt)[:60]
            )
    durable.make_folder(Path(folder))
    for path, name in zip(paths, names, strict=True):
        with durable.replacing(os.path.join(folder, name)) as temporary:
            shutil.copyfile(path, temporary)
        console.say(f"  copied   {printable(os.path.join(folder, name))}")


def _print(found: Mapping[str, Mapping[str, Any]], compare: bool) -> None:
    """A row for each number, a column for each film; with `compare`, differences from the first."""
    first, *_ = found.values()
    numbers = {
        n: None for v in found.values() for n, value in v.items() if isinstance(value, (int, float))
    }
    names = [*_TOLD, *(name for name in numbers if name not in _TOLD)]
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
    print_result(_MASKED)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if value == int(value) else f"{value:.4f}"


def _short(path: str) -> str:
    name = printable(os.path.basename(path))
    return name if len(name) <= _NAME else f"...{name[3 - _NAME :]}"
