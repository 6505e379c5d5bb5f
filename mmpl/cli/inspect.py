"""What a job folder, a film or a model folder is, what is done and missing, and how to go on."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from mmpl.checkpoint.files import TensorInfo
from mmpl.checkpoint.folder import PARTS, ModelFolder, check_folder, is_pickle, part_config
from mmpl.checkpoint.names import Kind, bare, official
from mmpl.checkpoint.quantised import weight_shapes
from mmpl.checkpoint.recognise import SUFFIXES, Weights, look
from mmpl.checkpoint.search import contents
from mmpl.checkpoint.shards import read_headers
from mmpl.checkpoint.sizes import KNOWN_DIMS
from mmpl.cli import job
from mmpl.cli.model import model_folder
from mmpl.cli.shell import printable
from mmpl.errors import CheckpointError, InputError, MmplError
from mmpl.film.job import GIVEN_FILE, JOB_FILE, REPORT, STORYBOARD
from mmpl.film.settings import Film, steps_text
from mmpl.wan.config import WAN_14B, DiTConfig

_SIZES = "dim", "num_layers", "z_dim"


def report(path: str, program: str, embedded: Path) -> str:
    """Lines about what is at `path`; `program` is the command as typed, `embedded` the model folder
    where none is named. Raises InputError for what is none of these."""
    if os.path.isdir(path) and (Path(path) / JOB_FILE).exists():
        lines = _job(Path(path), program, embedded)
    elif os.path.isdir(path):
        lines = _model(path)
    elif path.lower().endswith(".mp4"):
        lines = _film(path, program)
    elif path.endswith(SUFFIXES):
        lines = _weights(path)
    else:
        raise InputError(
            "not something to inspect",
            where=path,
            got="nothing there" if not os.path.lexists(path) else "a file of another kind",
            wanted="a job folder, a film.mp4, a model folder or a checkpoint",
        )
    return "\n".join(printable(line) for line in lines)


def _job(folder: Path, program: str, embedded: Path) -> Iterator[str]:
    from mmpl.generate import Store  # torch comes with it

    record = job.read_record(str(folder))
    model, _ = model_folder({"model_path": str(embedded), **record.settings})
    film = job.film_for(job.request_of(record.settings, record.settings["seed"]), model)
    yield f"{folder}: the job of {_described(film)}"
    yield from _settings(record.settings)
    work = film.work
    finished, damaged = Store(folder).look(work)
    makes = [task for task in work.tasks if task.kind == "make"]
    plans = set(work.planning)
    for name, tasks in (
        ("plan", [task for task in makes if task in plans]),
        ("populate", [task for task in makes if task not in plans]),
    ):
        done = sum(task in finished for task in tasks)
        yield f"  {name:9}{done} of {len(tasks)} groups are finished"
    for path in damaged:
        yield f"  damaged  {path}: it will be made again"
    for name, file in (("pictures", GIVEN_FILE), ("report", REPORT)):
        if (folder / file).exists():
            yield f"  {name:9}{folder / file}"
    story = folder / STORYBOARD
    yield f"  story    {story if story.exists() else 'not there yet'}"
    output = record.output or ""
    there = bool(output) and os.path.exists(output)
    yield f"  film     {output}{'' if there else ': not there yet'}"
    if not there:
        yield f"  go on    {program} resume {shlex.quote(str(folder))}"


def _film(path: str, program: str) -> Iterator[str]:
    from mmpl.media.video import probe

    seen = probe(path)
    yield f"{path}: {seen.frames} frames of {seen.width}x{seen.height} at {float(seen.fps):g} fps"
    try:
        record = job.read_record(path)
    except MmplError:
        yield "  made by  something else: there are no settings of mmpl in it"
        return
    yield from _settings(record.settings)
    yield f"  again    {program} --config {shlex.quote(path)} --output again.mp4"


def _model(path: str) -> Iterator[str]:
    """A folder: its model, or what keeps it from being one."""
    try:
        folder = check_folder(path)
    except CheckpointError as error:
        place = contents(Path(path))
        if not place.weights:
            raise
        yield f"{path}: not a whole model"
        for weights in place.weights:
            yield f"  {os.path.relpath(weights.path, path)}: {_named(weights)}"
        yield f"  missing  {error}"
        return
    dit = folder.configs.dit
    kind = "an mmpl bundle" if folder.kind == "mmpl" else f"a {folder.title}"
    yield f"{path}: {kind}, transformer of {dit.num_layers} layers, {dit.dim} wide{_known(dit.dim)}"
    yield from _parts(folder)
    defaults = folder.defaults
    yield (
        f"  usually  {defaults.width}x{defaults.height} at {defaults.fps} fps, {defaults.solver}, "
        f"{steps_text(defaults.steps, defaults.populate_steps)}, "
        f"guidance {defaults.guidance_scale:g}, shift {defaults.shift:g}"
    )


def _parts(folder: ModelFolder) -> Iterator[str]:
    """The file that is used for each part of a model."""
    for part, file in folder.files.items():
        name = os.path.relpath(file, folder.path if folder.path.is_dir() else folder.path.parent)
        family = folder.families.get(part, "")
        size = f"{os.stat(file).st_size / 1e6:.1f} MB"
        yield f"  {part:10}{name}, {size}{f', {family}' if family else ''}"


def _named(weights: Weights) -> str:
    return weights.title + (f", {weights.family}" if weights.family else "")


def _weights(path: str) -> Iterator[str]:
    """A file of weights: of which network, how many, in which number formats, and what is used
    with it or missing."""
    seen = look(Path(path))
    if seen.network == "lora":
        yield from _lora(path)
        return
    entries = _entries(Path(path))
    formats = Counter(info.dtype for info in entries.values())
    count = sum(prod(info.shape) for info in entries.values())
    yield f"{path}: {_network(seen, entries)}"
    if seen.family:
        yield f"  family   {seen.family}"
    yield f"  weights  {len(entries)} tensors, {count:,} numbers"
    yield "  format   " + ", ".join(f"{n} of {dtype}" for dtype, n in formats.most_common())
    yield f"  file     {os.stat(path).st_size / 1e6:.1f} MB"
    if seen.network in PARTS and not seen.relative:
        try:
            yield from _parts(check_folder(path))
        except CheckpointError as error:
            yield f"  missing  {error}"


def _entries(path: Path) -> dict[str, TensorInfo]:
    """Formats and shapes by bare names, from the header where there is one."""
    if not is_pickle(path):
        return bare(read_headers(path), where=str(path))
    from mmpl.checkpoint.dequantise import described  # torch comes with it
    from mmpl.checkpoint.read import read_state_dict

    return described(read_state_dict(path))


def _lora(path: str) -> Iterator[str]:
    """A LoRA: who writes such files, and which sizes of Wan it fits."""
    from mmpl.checkpoint.lora import read_lora  # torch comes with it
    from mmpl.checkpoint.lora_names import fit, ranks
    from mmpl.wan.dit_params import dit_shapes

    lora = read_lora(path)
    parsed, shapes, fits = lora.parsed, lora.shapes, []
    for name, config in (("Wan2.1 1.3B", DiTConfig()), ("Wan2.1 14B", WAN_14B)):
        with suppress(CheckpointError):
            there = fit(parsed, shapes, dit_shapes(config), where=path)
            fits.append(f"{name}, {len(there.changes)}/{there.total} of it")
    wide = sorted({shapes[down][-1] for down, _ in parsed.pairs})
    rank = ", ".join(map(str, ranks(parsed, shapes)))
    yield f"{path}: a LoRA as {parsed.family} writes them"
    yield f"  modules  {len(parsed.modules)}, {len(parsed.pairs)} with pairs, rank {rank or None}"
    yield f"  fits     {'; '.join(fits) or f'no published size of Wan: layers {wide} wide'}"
    yield f"  file     {os.stat(path).st_size / 1e6:.1f} MB"


def _network(seen: Weights, entries: Mapping[str, TensorInfo]) -> str:
    """Which network's weights these are, and its size where the shapes tell all of it."""
    part: Kind | None = next((part for part in PARTS if part == seen.network), None)
    if part is None or seen.relative:
        return seen.title
    with suppress(MmplError):
        path = str(seen.path)
        shapes = weight_shapes(official(part, entries, where=path), where=path)
        config = part_config(part, shapes, {}, where=path)
        sizes = (f"{n} {getattr(config, n)}" for n in _SIZES if hasattr(config, n))
        known = _known(config.dim) if part == "dit" else ""
        return f"{seen.title} ({', '.join(sizes)}){known}"
    return seen.title


def _known(dim: int) -> str:
    return f": {KNOWN_DIMS[dim]}" if dim in KNOWN_DIMS else ""


def _described(film: Film) -> str:
    return (
        f"a film of {film.frames} frames ({film.frames / film.fps:.2f} s) of "
        f"{film.width}x{film.height} in {film.segments} segments"
    )


def _settings(settings: Mapping[str, Any]) -> Iterator[str]:
    yield f"  prompt   {settings.get('prompt', '')}"
    rest = {name: value for name, value in settings.items() if name != "prompt" and value != ""}
    yield "  settings " + ", ".join(f"{name} {value}" for name, value in sorted(rest.items()))
