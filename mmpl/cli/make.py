"""The part of mmpl-gen that needs torch: load the model, make the film, write it, report."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import av
import numpy
import torch

from mmpl import __version__
from mmpl.checkpoint.folder import ModelFolder
from mmpl.cli.crew import Crew
from mmpl.cli.job import command, file_sizes, film_settings
from mmpl.cli.place import Place
from mmpl.cli.progress import Progress, header, summary
from mmpl.cli.shell import Console
from mmpl.errors import ArgumentError
from mmpl.film.settings import Film, Request
from mmpl.generate import (
    Event,
    Frames,
    Mesh,
    Model,
    Started,
    Store,
    generate,
    job_of,
    load_model,
)
from mmpl.media.video import VideoWriter
from mmpl.wan.attention import resolve_attention
from mmpl.wan.tokenizer import clean_prompt


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """A film to make, all of it checked as far as can be without torch.

    `model` holds the flags model_path and checkpoint as given, `machine` device, dtype, attention
    and threads as wanted. `weights` are the digests of the film that a job file is about.
    `program` is the command as it was typed. `schedule` holds the flags schedule and order as
    given. `place`: which of several processes this is, in which `mesh`.
    """

    request: Request
    film: Film
    folder: ModelFolder
    model: Mapping[str, str]
    machine: Mapping[str, Any]
    output: str
    keep_metadata: bool
    weights: Mapping[str, Any]
    program: str
    job_dir: str | None
    schedule: Mapping[str, str]
    place: Place | None
    patience_s: float
    mesh: Mesh | None


def make(order: Order, console: Console) -> None:
    """Makes the film of `order`. Returns only when it is on disk and reads back whole."""
    try:
        seconds, engine = _make(order, console)
    except BaseException as error:
        kept = f", what is finished is in {order.job_dir}" if order.job_dir else ""
        error.add_note(f"{order.output} was not written{kept}")
        raise
    if order.place is not None and order.place.rank > 0:
        return
    again = command(order.film, order.folder.defaults, {**order.model, **engine}, order.output)
    on_gpu = engine["device"] != "cpu"
    console.say(
        summary(
            seconds,
            bytes_written=os.stat(order.output).st_size,
            gpu_bytes=torch.cuda.max_memory_allocated(engine["device"]) if on_gpu else None,
            command=f"{order.program} {again}",
        )
    )


def _make(order: Order, console: Console) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds per phase, and the device, dtype, attention and threads that were taken."""
    start = time.monotonic()
    torch.set_num_threads(order.machine["threads"])
    device = _device(order.machine["device"], order.place)
    crew = None if order.place is None else Crew(order.place, device, order.patience_s)
    dtype = _dtype(order.machine["dtype"], device)
    attention, _ = resolve_attention(order.machine["attention"], device, getattr(torch, dtype))
    model = load_model(
        order.folder.path,
        checkpoint=order.model.get("checkpoint"),
        dtype=getattr(torch, dtype),
        device=device,
    )
    _warn(order, model, console)
    loaded = time.monotonic() - start

    events = generate(
        model,
        order.request,
        attention=attention,
        ranks=None if crew is None else crew.join(model, order.film, order.mesh),
        mode=order.schedule.get("schedule", "adaptive"),
        order=order.schedule.get("order"),
        store=None if order.job_dir is None else Store(order.job_dir, job_of(model, order.film)),
    )
    started = next(events)
    assert isinstance(started, Started)
    engine = {
        "device": str(device),
        "dtype": dtype,
        "attention": attention,
        "threads": order.machine["threads"],
    }
    if crew is not None:
        events = crew.follow(events)
    if order.place is not None and order.place.rank > 0:
        if order.place.first_of_machine:
            console.say(_machine_line(order.place, engine))
        for _ in events:
            pass
        return {}, engine
    console.say(header(started.film, model, engine, source=_source(order), ranks=_ranks(order)))
    return {"load": loaded} | _write(order, started.film, events, model, engine, console), engine


def _write(
    order: Order,
    film: Film,
    events: Iterator[Event],
    model: Model,
    engine: Mapping[str, Any],
    console: Console,
) -> dict[str, float]:
    metadata = _metadata(order, film, model, engine) if order.keep_metadata else None
    writing = VideoWriter(order.output, film.width, film.height, film.fps, metadata=metadata)
    with Progress(film, console) as progress:
        with writing as writer:
            for event in events:
                progress.see(event)
                if isinstance(event, Frames):
                    writer.write(event.pixels_FHWC)
                    progress.meter.lap("write")
        progress.meter.lap("write")  # finishing and reading back
    return progress.meter.seconds


def _metadata(order: Order, film: Film, model: Model, engine: Mapping[str, Any]) -> dict[str, Any]:
    """What the film was made from; `mmpl.cli.job.read_record` reads it again."""
    return {
        "settings": {**film_settings(film), **order.model, **engine},
        "weights": dict(model.digests),
        "files": file_sizes(order.folder),
        "versions": {
            "mmpl": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": numpy.__version__,
            "av": av.__version__,
        },
    }


def _machine_line(place: Place, engine: Mapping[str, Any]) -> str:
    how = ", ".join(f"{engine[name]}" for name in ("device", "dtype", "attention"))
    return f"{socket.gethostname()}: from rank {place.rank} of {place.ranks} on, {how}"


def _ranks(order: Order) -> int:
    return 1 if order.place is None else order.place.ranks


def _device(name: str, place: Place | None) -> torch.device:
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    own = "cuda" if place is None else f"cuda:{place.local_rank}"
    device = torch.device((own if cards else "cpu") if name == "auto" else name)
    if device.type == "cuda" and (device.index or 0) >= cards:
        raise ArgumentError(
            "there is no such GPU, or torch cannot use it",
            got=f"--device {name}, {cards} usable",
            todo="use --device cpu, or install a CUDA build of torch",
        )
    return device


def _dtype(name: str, device: torch.device) -> str:
    if name != "auto":
        return name
    return "float32" if device.type == "cpu" else "bfloat16"


def _source(order: Order) -> str:
    """What the model is, for people."""
    kind = {"mmpl": "mmpl bundle", "wan": "Wan2.1 folder"}[order.folder.kind]
    checkpoint = order.model.get("checkpoint")
    return f"{order.folder.path} ({kind}{f' with {checkpoint}' if checkpoint else ''})"


def _warn(order: Order, model: Model, console: Console) -> None:
    """What can be said of the request only when the model is there."""
    untrained = order.folder.kind == "wan" and "checkpoint" not in order.model
    if untrained and not order.film.layout.name.startswith("bidirectional"):
        console.warn(
            f"Wan2.1's own weights were never trained for layout {order.film.layout.name}: give an "
            "MMPL --checkpoint, or --layout bidirectional for one clip"
        )
    text_len = model.dit_config.text_len
    for name in ("prompt", "negative_prompt"):
        cut = model.tokenizer.tokens_cut(clean_prompt(getattr(order.film, name)), text_len)
        if cut:
            console.warn(
                f"the last {cut} tokens of the {name.replace('_', ' ')} are not used: this model "
                f"reads {text_len - 1}"
            )
    other = [part for part, got in model.digests.items() if order.weights.get(part, got) != got]
    if other:
        console.warn(
            f"the weights ({', '.join(other)}) are not those of the film in --config: "
            "the frames will be others"
        )
