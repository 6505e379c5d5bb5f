"""The part of mmpl-gen that needs torch: load the model, make the film, write it, report."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy
import torch

from mmpl import __version__
from mmpl.checkpoint.recognise import TRAINING
from mmpl.cli.crew import Crew
from mmpl.cli.job import command, file_sizes
from mmpl.cli.memory import offload_for, torch_dtype
from mmpl.cli.model import PARTS, from_anywhere
from mmpl.cli.order import Order, Shelf
from mmpl.cli.pictures import absolute, require_recorded
from mmpl.cli.pictures import load as load_pictures
from mmpl.cli.place import Place
from mmpl.cli.progress import Progress, clock_time, header, summary
from mmpl.cli.report import Notes, write_report
from mmpl.cli.shell import Console
from mmpl.cli.showing import Showing
from mmpl.cli.storyboard import Sheet
from mmpl.cli.unchanged import Unchanged
from mmpl.errors import ArgumentError
from mmpl.film.given import Given, encode_pictures
from mmpl.film.given_file import read_given, write_given
from mmpl.film.job import is_begun, settings_of
from mmpl.film.pictures import with_pictures
from mmpl.film.pins import pins_text
from mmpl.generate import (
    Event,
    Frames,
    Made,
    Model,
    Pinned,
    Planned,
    Resumed,
    Started,
    Store,
    generate,
    job_of,
    load_model,
)
from mmpl.media.video import VideoWriter
from mmpl.wan.attention import resolve_attention
from mmpl.wan.compiled import resolve_compiled
from mmpl.wan.tokenizer import clean_prompt
from mmpl.wan.vae import shown_dtype


def make(order: Order, console: Console, shelf: Shelf | None = None) -> None:
    """Makes the film of `order`. Returns only when it is on disk and reads back whole.

    `shelf` holds the model that was loaded last, for films that are made with the same.
    """
    try:
        seconds, engine = _make(order, console, {} if shelf is None else shelf)
    except BaseException as error:
        _note_what_is_kept(order, error)
        raise
    if not order.leads:
        return
    if order.only_plan:
        assert order.job_dir is not None
        console.say(f"  next     {order.program} resume {shlex.quote(order.job_dir)}")
        return
    on_gpu = engine["device"] != "cpu"
    console.say(
        summary(
            seconds,
            bytes_written=os.stat(order.output).st_size,
            gpu_bytes=torch.cuda.max_memory_allocated(engine["device"]) if on_gpu else None,
            command=_again(order, engine),
        )
    )
    console.tell("finished", output=order.output, seconds=seconds)


def _make(order: Order, console: Console, shelf: Shelf) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds per phase, and what was taken of the machine's settings."""
    start = time.monotonic()
    torch.set_num_threads(order.machine["threads"])
    device = _device(order.machine["device"], order.place)
    crew = None if order.place is None else Crew(order.place, device, order.patience_s)
    engine = _engine(order, device, console)
    weights = Unchanged(order.folder)
    offload = offload_for(order, device, engine, console)
    model = _model(order, device, engine, offload, shelf)
    _warn(order, model, console)
    loaded = time.monotonic() - start

    store = None
    if order.job_dir is not None:
        job = job_of(model, order.film, engine["attention"], engine["compile"])
        store = Store(order.job_dir, job, _notes(order))
    ranks = None if crew is None else crew.join(model, order.film, order.mesh)
    events = generate(
        model,
        Pinned(order.request, _given(order, model)),
        attention=engine["attention"],
        compiled=engine["compile"],
        ranks=ranks,
        mode=order.schedule.get("schedule", "adaptive"),
        order=order.schedule.get("order"),
        store=store,
        only_plan=order.only_plan,
    )
    started = next(events)
    assert isinstance(started, Started)
    for path in started.damaged:
        console.warn(f"this kept text is damaged, it is made again: {path}")
    notes = Notes(order.film)
    events = weights.follow(events)
    events = notes.follow(events, None if order.only_plan else ranks)
    if crew is not None:
        events = crew.follow(events)
    if not order.leads:
        if order.place is not None and order.place.first_of_machine:
            console.say(_machine_line(order.place, engine))
        for _ in events:
            pass
        return {}, engine
    console.say(header(started.film, model, engine, source=_source(order), ranks=_ranks(order)))
    console.tell("started", **settings_of(order.film), segments=order.film.segments)
    alive = (lambda: None) if crew is None else crew.beat
    sheet = None if store is None else Sheet(model, order.film, store, console, alive)
    with Progress(order.film, console) as progress:
        seen = _seen(order, events, progress, sheet, console)
        made_with = _metadata(order, model, engine)
        if order.only_plan:
            for _ in seen:
                pass
        else:
            _write(order, seen, progress, made_with if order.keep_metadata else None, console)
            if store is not None:
                write_report(order, notes, made_with, _again(order, engine), console)
    return {"load": loaded} | progress.meter.seconds, engine


def _engine(order: Order, device: torch.device, console: Console) -> dict[str, Any]:
    """What is taken of the machine's settings that change a film, by the names of their flags. It
    is said what keeps a GPU from compiling."""
    dtype = _dtype(order.machine["dtype"], device)
    attention, _ = resolve_attention(order.machine["attention"], device, getattr(torch, dtype))
    compiles, why_not = resolve_compiled(
        order.machine["compile"],
        device,
        order.folder.configs.dit,
        ulysses=order.mesh is not None and order.mesh.ulysses > 1,
    )
    if why_not:
        console.say(f"  compile  left out: {why_not}")
    vae_dtype = shown_dtype(torch_dtype(order.machine["vae_dtype"]), device)
    return {
        "device": str(device),
        "dtype": dtype,
        "vae_dtype": str(vae_dtype).removeprefix("torch."),
        "attention": attention,
        "compile": "yes" if compiles else "no",
        **{name: order.machine[name] for name in ("quantize", "threads")},
    }


def _model(
    order: Order, device: torch.device, engine: Mapping[str, Any], offload: str, shelf: Shelf
) -> Model:
    dtype, vae_dtype = (getattr(torch, engine[name]) for name in ("dtype", "vae_dtype"))
    files = tuple(os.path.abspath(path) for path in order.folder.files.values())
    quantize = None if order.machine["quantize"] == "none" else order.machine["quantize"]
    wanted = files, order.folder.loras, device, dtype, quantize, offload
    if wanted not in shelf:
        shelf.clear()  # before another is loaded: there may be room for one alone
        shelf[wanted] = load_model(
            order.folder, dtype=dtype, quantize=quantize, device=device, offload=offload
        )
    cache = order.machine["text_cache"]
    text_cache = None if cache is None else Path(cache)
    return replace(shelf[wanted], text_cache=text_cache, vae_dtype=vae_dtype)


def _given(order: Order, model: Model) -> Given:
    """The given latents of the film: those in the job folder, else encoded and kept there."""
    film, folder = order.film, Path(order.job_dir) if order.job_dir is not None else None
    arrays = read_given(folder, film.pins) if folder is not None else {}
    given: dict[int, dict[int, torch.Tensor]] = {}
    if len(arrays) < len(film.pins):
        found = order.pictures or load_pictures(order.inputs, film)[0]
        request = with_pictures(order.request, film, found, film.layout.name)
        require_recorded(request.given, pins_text(film.pins), order.inputs)
        given = encode_pictures(model.vae_here(), model.vae_config, film, found)
        if folder is not None and order.leads:
            named = {pin: given[pin.segment][pin.latent].cpu().numpy() for pin in film.pins}
            write_given(folder, named)
    for pin, z_BCHW in arrays.items():
        given.setdefault(pin.segment, {})[pin.latent] = torch.from_numpy(z_BCHW)
    return given


def _seen(
    order: Order,
    events: Iterator[Event],
    progress: Progress,
    sheet: Sheet | None,
    console: Console,
) -> Iterator[Event]:
    """The events, each shown as it passes."""
    # Where others wait for what this process makes, the storyboard comes last unless asked for.
    early = order.place is None or order.schedule.get("order") == "plan_first"
    for event in events:
        progress.see(event)
        if isinstance(event, Resumed):
            console.say(f"  going on {event.done} of {event.tasks} parts are there already")
            for path in event.damaged:
                console.warn(f"this file is damaged, its part is made again: {path}")
        if isinstance(event, Planned) and sheet is not None and early:
            sheet.see(event)
            progress.meter.lap("plan")
        if isinstance(event, Made) and sheet is not None:
            sheet.glimpses.see(event)
        yield event
    if sheet is not None:  # before the film has its name: where that is there, all is
        sheet.write()
        progress.meter.lap("plan")


def _write(
    order: Order,
    events: Iterator[Event],
    progress: Progress,
    metadata: dict[str, Any] | None,
    console: Console,
) -> None:
    film = order.film
    writing = VideoWriter(order.output, film.width, film.height, film.fps, metadata=metadata)
    with Showing(order, console) as showing, writing as writer:
        for frame_HWC in order.clip.read() if order.clip is not None else ():
            writer.write(frame_HWC[None])
            showing.see_before(frame_HWC[None])
        for event in events:
            if isinstance(event, Frames):
                if showing.see(event) and event.segment == 0 and order.preview is not None:
                    _say_when_to_watch(order.preview, progress.meter.watch_in_s, console)
                writer.write(event.pixels_FHWC)
                progress.meter.lap("write")
    progress.meter.lap("write")  # finishing and reading back


def _again(order: Order, engine: Mapping[str, Any]) -> str:
    """The command that makes the same film again."""
    words = f"resume {shlex.quote(order.job_dir or '')} --overwrite"
    if not any(pin.is_kept for pin in order.film.pins):  # those are in the job folder alone
        taken = {name: value for name, value in engine.items() if value != "none"}
        if order.machine["offload"] != "auto":
            taken["offload"] = order.machine["offload"]
        if order.machine["text_cache"] is not None:
            taken["text_cache"] = order.machine["text_cache"]
        rest = {**order.inputs, **order.model, **taken}
        words = command(order.film, order.folder.defaults, rest, order.output)
    return f"{order.program} {words}"


def _say_when_to_watch(preview: str, watch_in_s: float | None, console: Console) -> None:
    when = "now" if not watch_in_s else f"in {clock_time(watch_in_s)}"
    console.say(f"  watch    {preview}: from {when} on it will be there in time to its end")
    console.tell("watch", path=preview, in_s=watch_in_s)


def _notes(order: Order) -> dict[str, Any]:
    """What a job folder holds beside the job, to be gone on with from anywhere."""
    return {
        "model": from_anywhere(order.model, order.folder),
        "files": file_sizes(order.folder),
        "output": os.path.abspath(order.output),
        "inputs": absolute(order.inputs),
        "machine": {
            name: order.machine[name]
            for name in ("vae_dtype", "offload")
            if order.machine[name] != "auto"
        },
    }


def _note_what_is_kept(order: Order, error: BaseException) -> None:
    """What there is of the film, and how to go on, said with the error."""
    if not order.only_plan:
        error.add_note(f"{order.output} was not written")
    if order.job_dir is not None and is_begun(Path(order.job_dir)):
        job = shlex.quote(order.job_dir)
        error.add_note(f"what is finished is kept, go on with: {order.program} resume {job}")


def _metadata(order: Order, model: Model, engine: Mapping[str, Any]) -> dict[str, Any]:
    """What the film was made from; `mmpl.cli.job.read_record` reads it again."""
    return {
        "settings": {**settings_of(order.film), **engine},
        "model": dict(order.model),
        "inputs": dict(order.inputs),
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
    names = ("device", "dtype", "quantize", "attention")
    how = ", ".join(f"{engine[name]}" for name in names if engine[name] != "none")
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
    parts = " and ".join(order.model[name] for name in PARTS if name in order.model)
    return f"{order.folder.path} ({order.folder.title}{f' with {parts}' if parts else ''})"


def _warn(order: Order, model: Model, console: Console) -> None:
    """What can be said of the request only when the model is there."""
    trained = order.folder.families.get("dit") == TRAINING
    untrained = order.folder.kind == "wan" and "checkpoint" not in order.model and not trained
    if untrained and not order.film.layout.name.startswith("bidirectional"):
        console.warn(
            f"Wan2.1's own weights were never trained for layout {order.film.layout.name}: give an "
            "MMPL --checkpoint, or --layout bidirectional for one clip"
        )
    for merge in model.loras:
        if not merge.fits:
            console.warn(
                f"only {merge.matched} of {merge.total} parts of {merge.where} belong to this "
                "model: it may have been made for another"
            )
    text_len = model.dit_config.text_len
    prompts = [("prompt", cue.prompt) for cue in order.film.script]
    for name, prompt in [*prompts, ("negative prompt", order.film.negative_prompt)]:
        cut = model.tokenizer.tokens_cut(clean_prompt(prompt), text_len)
        if cut:
            console.warn(
                f"the last {cut} tokens of the {name} are not used: this model reads {text_len - 1}"
            )
    other = [part for part, got in model.digests.items() if order.weights.get(part, got) != got]
    if other:
        console.warn(
            f"the weights ({', '.join(other)}) are not those of the film in --config: "
            "the frames will be others"
        )
