"""Rows of films: frames per second from end to end, and what a film takes of the memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from mmpl.checkpoint.defaults import Defaults
from mmpl.checkpoint.folder import Configs
from mmpl.film.denoise import Network
from mmpl.film.memory import Held, memory_plan
from mmpl.film.runtime import Alone, Frames, carry_out
from mmpl.film.settings import Film, Request, resolve
from mmpl.film.studio import Studio, furnished
from mmpl.layout.schedule import Costs, build_schedule
from mmpl.wan.choices import OFFLOADS
from mmpl.wan.dit import Engine
from mmpl.wan.dit_params import DiTParams
from mmpl.wan.offload import Offload
from mmpl.wan.params import to_flat
from tests.bench.gpu.lab import Lab, Size, apart
from tests.bench.gpu.passes import FEW
from tests.bench.gpu.record import Figure, Wanted
from tests.bench.gpu.scene import Scene, begun, segment, texts_of

LAYERS = 12  # of a transformer whose weights move: the host's memory need not hold them all
EQUAL = Wanted(most=0)  # the same bits
NEAR = Wanted(least=0.95, most=1.05)
SLOWER = {"model": Wanted(most=1.05)}
FULL_BYTES = Wanted(most=70)
FILM_FPS = Wanted(least=24, best=30)


def film_of(size: Size, *, segments: int, steps: int, solver: str, guidance: float) -> Film:
    """A film of this size, in numbers."""
    request = Request(
        "a film",
        1,
        segments=segments,
        steps=steps,
        solver=solver,
        guidance_scale=guidance,
        negative_prompt="",
    )
    defaults = Defaults(width=size.width, height=size.height)
    pixel_step = size.vae.spatial_stride * size.dit.patch_size[1]
    return resolve(
        request, defaults, temporal_stride=size.vae.temporal_stride, pixel_step=pixel_step
    )


@torch.no_grad()
def studio_of(
    lab: Lab, size: Size, film: Film, offload: Offload, engine: Engine, dit: DiTParams
) -> Studio:
    """A studio of random weights, `dit` those of its transformer."""
    network = Network(offload.place_dit(dit), size.dit, replace(engine, walk=offload.walk))
    branches = 1 if film.guidance_scale == 1.0 else 2
    texts = (tuple(texts_of(lab, network.params, size, network.engine, branches)),)
    decoder = offload.place_vae(lab.vae(size.vae))
    return furnished(film, network, texts, {}, (decoder, size.vae), offload, lab.shows)


def make(studio: Studio, *, beside: bool = False) -> int:
    """Makes the film; how many frames it has. `beside`: decodes run beside the denoising."""
    film = studio.film
    shares = {group.name: 1.0 for group in film.layout.groups}
    plan = build_schedule(film.work, 1, Costs(shares, shares), order="plan_first")
    events = carry_out(studio, plan, 0, Alone(), beside=beside)
    return sum(len(event.pixels_FHWC) for event in events if isinstance(event, Frames))


def few_steps(lab: Lab, size: str, *, segments: int, compiled: bool = False) -> Iterator[Figure]:
    """Films of a model of few steps: transformer, hand-over and VAE on one device."""
    one = lab.sizes[size]
    offload, engine = Offload("none", lab.device), lab.engine(compiled=compiled)
    dit = lab.transformer(one.dit)
    for count in (1, segments) if lab.is_gpu else (2,):  # the first warms up
        film = film_of(one, segments=count, steps=FEW, solver="few_step", guidance=1.0)
        studio = studio_of(lab, one, film, offload, engine, dit)
        frames = 0

        def whole(studio: Studio = studio) -> None:
            nonlocal frames
            frames = make(studio, beside=lab.is_gpu)

        taken_s = lab.wall_s(whole)
        name = f"{size} film of {count} x {FEW} steps, VAE and hand-over"
        wanted = FILM_FPS if count > 1 else None
        yield Figure(name, frames / taken_s, "FPS", {"frames": frames, "s": taken_s}, wanted)


# --------------------------------------------------------------------------------------- memory


def pass_memory(lab: Lab, size: str) -> Iterator[Figure]:
    """The most memory of a pass, with all that a film with guidance holds, beside the plan."""
    one = lab.sizes[size]
    film = film_of(one, segments=2, steps=1, solver="euler", guidance=5.0)
    decoder = lab.vae(one.vae)
    scene = segment(lab, one, branches=2)
    group = scene.layout.groups[-1]
    call = scene.pass_call(lab, group, branches=2)
    branches = scene.contexts[group.name].branches
    caches = tuple((b.cache.k_IBSNK, b.cache.v_IBSNK) for b in branches)
    texts = tuple(b.context for b in branches)
    with torch.no_grad():
        call()
        with lab.peak_of(scene.network.params, decoder, caches, texts) as peak:
            call()
    planned = memory_plan(_configs(one), film, Held(lab.compute)).passes
    yield _beside_plan(f"{size} pass, with the VAE's weights", peak(), planned)
    wanted, aside = FULL_BYTES if size == "14B" else None, _bytes(decoder)
    yield Figure(f"{size} pass", (peak() - aside) / 1e9, "GB", {}, wanted)
    call = scene.pass_call(lab, group, lab.engine(compiled=True), branches=2)
    with torch.no_grad():
        call()
        with lab.peak_of(scene.network.params, decoder, caches, texts) as peak:
            call()
    beside = {"of the plan": peak() / planned}
    yield Figure(f"{size} pass compiled", (peak() - aside) / 1e9, "GB", beside, wanted)


def offloads(lab: Lab, size: str, layers: int = LAYERS) -> Iterator[Figure]:
    """Short films with each way to keep parts in the host's memory: the peak beside the plan, and
    what a pass of both branches takes beside one with all on the device."""
    one = lab.sizes[size].of_layers(layers)
    film = film_of(one, segments=1, steps=1, solver="euler", guidance=5.0)
    plain_s, plain = 0.0, None
    for kind in OFFLOADS:
        studio = studio_of(
            lab, one, film, Offload(kind, lab.device), lab.engine(), lab.transformer(one.dit)
        )
        lab.tidy()
        held = Held(lab.compute, None, kind, lab.shows)
        plan = memory_plan(_configs(one), film, held)
        name = f"{size}, {one.dit.num_layers} layers, --offload {kind}"
        scene = begun(lab, one, film.layout, studio.network, studio.new_context())
        call = scene.pass_call(lab, film.layout.groups[-1], branches=2)
        pass_s = lab.seconds(call, repeats=3)
        plain_s, v_BCTHW = plain_s or pass_s, call()[1]
        plain = v_BCTHW if plain is None else plain
        caches = _caches(scene)
        if kind == "none":  # decodes run beside the passes when they like: no one peak
            planned = plan.passes
            with lab.peak_of(*_weights(studio), *caches["here"]) as peak:
                call()
            found = peak()
        else:
            planned, in_host = max(plan.passes, plan.vae), 0
            if not lab.is_gpu:  # where the film's caches count, wherever they are
                in_host = _bytes(tuple(caches["host"]))
            del scene, call, caches  # it has its own
            lab.tidy()
            with lab.peak_of(*_weights(studio)) as peak:
                make(studio)
            found = peak() - in_host
        yield _beside_plan(name, found, planned)
        beside = {"ms": pass_s * 1e3, "pinned GB": plan.host / 1e9}
        yield Figure(f"{name}, slowdown", pass_s / plain_s, "x", beside, SLOWER.get(kind))
        yield Figure(f"{name}, apart from none", apart(v_BCTHW, plain), "", {}, EQUAL)
        scene = call = caches = studio = None
        lab.tidy()


def _weights(studio: Studio) -> list[object]:
    """What of a studio lives on the device before anything is done."""
    dit, here = studio.network.params, studio.offload.kind == "none"
    return [*([dit, studio.vae] if here else [replace(dit, blocks=())]), *studio.texts]


def _caches(scene: Scene) -> dict[str, list[object]]:
    """The keys and values of a segment, here and in the host's memory."""
    found: dict[str, list[object]] = {"here": [], "host": []}
    for branch in scene.contexts[scene.layout.groups[0].name].branches:
        cache = branch.cache
        found["host" if cache.hosted else "here"].append((cache.k_IBSNK, cache.v_IBSNK))
    return found


def _bytes(tree: object) -> int:
    return sum(leaf.nbytes for leaf in to_flat(tree).values())


def _beside_plan(name: str, found: int, planned: int) -> Figure:
    beside = {"GB": found / 1e9, "planned GB": planned / 1e9}
    return Figure(f"{name}, peak beside plan", found / planned, "x", beside, NEAR)


def _configs(size: Size) -> Configs:
    return Configs(size.dit, size.vae, size.text)
