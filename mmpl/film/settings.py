"""What is asked of a film, resolved to integers and checked, before any weight is loaded.

No torch here: the command line refuses bad values within a fraction of a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

from mmpl.checkpoint.defaults import NOISE_MODES, SOLVERS, Defaults
from mmpl.errors import ArgumentError
from mmpl.film.pins import Pin, read_pins
from mmpl.film.script import Cue, read_cuts, read_script, read_seeds, script_text
from mmpl.layout.layout import Group, Layout, needed
from mmpl.layout.presets import by_name
from mmpl.layout.timeline import (
    LONGEST_FRAMES,
    Chain,
    chain_of,
    film_frames,
    frames_for_duration,
    kept_frames,
    segments_for,
)
from mmpl.layout.work import (
    Work,
    check_chained,
    film_work,
    groups_of,
    planning_of,
    populating_of,
)

T = TypeVar("T")

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for. None means: as the model's defaults say.

    `prompt` may be a script, `cut` says where segments begin without the frames before, and
    `segment_seeds` which have a seed of their own: all are texts of `mmpl.film.script`. `given`
    are the latent frames that pictures are pinned to, a text of `mmpl.film.pins`, and of the first
    segment `lead` pixel frames repeat the end of a clip that the film goes on from: see
    `mmpl.film.given`. Give at most one of `duration_s`, `frames` (pixel frames) and `segments`.
    `layout` is a name of `mmpl.layout.presets`. Raises nothing itself: `resolve` checks.
    """

    prompt: str
    seed: int
    cut: str = ""
    segment_seeds: str = ""
    given: str = ""
    lead: int = 0
    negative_prompt: str | None = None
    duration_s: float | None = None
    frames: int | None = None
    segments: int | None = None
    width: int | None = None
    height: int | None = None
    fps: int | None = None
    steps: int | None = None
    populate_steps: int | None = None
    shift: float | None = None
    guidance_scale: float | None = None
    solver: str | None = None
    seeding: str = "terminal"
    noise: str | None = None
    alpha: float | None = None
    beta: float | None = None
    layout: str | None = None


@dataclass(frozen=True, slots=True)
class Film:
    """A film in full: every number that its latents depend on, but for the weights.

    `cuts`: the segments, from 0, that begin with a hard cut. `segment_seeds`: (segment, seed) of
    those whose noise has a seed of its own. `frames`: pixel frames that it shows, after the `lead`
    of its first segment, which repeats the end of a clip. `steps`: of the groups that are planned;
    `populate_steps`: of the others.
    """

    script: tuple[Cue, ...]
    cuts: tuple[int, ...]
    segment_seeds: tuple[tuple[int, int], ...]
    pins: tuple[Pin, ...]
    lead: int
    negative_prompt: str
    seed: int
    frames: int
    fps: int
    width: int
    height: int
    solver: str
    steps: int
    populate_steps: int
    shift: float
    guidance_scale: float
    noise: str
    alpha: float
    beta: float
    layout: Layout
    seeding: str
    chain: Chain

    @property
    def segments(self) -> int:
        return segments_for(self.chain, self.made_frames)

    @property
    def made_frames(self) -> int:
        """Pixel frames that its segments make, the lead among them."""
        return self.lead + self.frames

    @property
    def prompt(self) -> str:
        """What it shows, as one text: a script if that changes."""
        return script_text(self.script)

    def cue(self, segment: int) -> int:
        """Which cue of the script a segment is made from."""
        return max(n for n, cue in enumerate(self.script) if cue.segment <= segment)

    def seed_of(self, segment: int) -> int:
        """What the noise of a segment is drawn from."""
        return dict(self.segment_seeds).get(segment, self.seed)

    @property
    def work(self) -> Work:
        """All there is to do for it."""
        return film_work(self.layout, self.chain, self.made_frames, self.cuts)

    def planning(self, segment: int) -> tuple[Group, ...]:
        """The groups whose frames the next segment's seeds are made from, in layout order.

        The last segment plans the same groups, as far as its kept frames need them.
        """
        return planning_of(self.layout, self.chain, self.made_frames, segment)

    def populating(self, segment: int) -> tuple[Group, ...]:
        """The other groups that some kept frame of the segment needs, in layout order."""
        return populating_of(self.layout, self.chain, self.made_frames, segment)

    @property
    def steps_of(self) -> dict[str, int]:
        """Denoising steps of each group of the layout, by its name."""
        groups = self.layout.groups
        fewer = self.populate_steps != self.steps  # else the layout may be of another chain
        planned = needed(self.layout, self.chain.handover) if fewer else groups
        return {g.name: self.steps if g in planned else self.populate_steps for g in groups}

    def groups(self, segment: int) -> tuple[Group, ...]:
        """Every group of the segment that has to run, in layout order."""
        return groups_of(self.layout, self.chain, self.made_frames, segment)

    def kept(self, segment: int) -> tuple[int, int]:
        """Half-open range of the segment's own pixel frames that the film shows."""
        start, stop = kept_frames(self.chain, segment, self.made_frames)
        return max(start, 0 if segment else self.lead), stop

    def first_frame(self, segment: int) -> int:
        """The first film frame that the segment shows."""
        return self.chain.step * segment + self.kept(segment)[0] - self.lead

    def given(self, segment: int) -> tuple[int, ...]:
        """The latent frames of the segment that are given, ascending."""
        return tuple(pin.latent for pin in self.pins if pin.segment == segment)


def steps_text(steps: int, populate_steps: int | None) -> str:
    """How many steps, in words: once, if groups between keyframes take as many."""
    said = f"{steps} step{'' if steps == 1 else 's'}"
    return said if populate_steps in (None, steps) else f"{said}, {populate_steps} to populate"


def resolve(request: Request, defaults: Defaults, *, temporal_stride: int, pixel_step: int) -> Film:
    """The film a request means for a model with these defaults. Raises ArgumentError.

    `temporal_stride`: pixel frames per latent frame. `pixel_step`: width and height are multiples
    of it, the VAE's spatial stride times the transformer's patch.
    """
    if not request.prompt.strip():
        raise ArgumentError("the prompt is empty", todo="say what the film shows")
    layout = by_name(request.layout or defaults.layout_t2v)
    chain = chain_of(layout, seeding=request.seeding, temporal_stride=temporal_stride)
    frames, fps = _frames(request, defaults, chain), _given(request.fps, defaults.fps)
    made = _whole("lead", request.lead, 0, chain.overlap) + frames
    steps = _whole("steps", _given(request.steps, defaults.steps), 1, 1000)
    populate_steps = min(steps, _given(defaults.populate_steps, steps))
    film = Film(
        script=read_script(request.prompt, chain, made, fps),
        cuts=read_cuts(request.cut, chain, made, fps),
        segment_seeds=read_seeds(request.segment_seeds, chain, made, fps),
        pins=read_pins(request.given, chain, layout.frames, made),
        lead=request.lead,
        negative_prompt=_given(request.negative_prompt, defaults.negative_prompt),
        seed=request.seed,
        frames=frames,
        fps=fps,
        width=_size("width", _given(request.width, defaults.width), pixel_step),
        height=_size("height", _given(request.height, defaults.height), pixel_step),
        solver=_given(request.solver, defaults.solver),
        steps=steps,
        populate_steps=_whole(
            "populate_steps", _given(request.populate_steps, populate_steps), 1, 1000
        ),
        shift=_number("shift", _given(request.shift, defaults.shift), 0.01, 100.0),
        guidance_scale=_number(
            "guidance_scale", _given(request.guidance_scale, defaults.guidance_scale), 0.0, 100.0
        ),
        noise=_given(request.noise, defaults.noise),
        alpha=_number("alpha", _given(request.alpha, defaults.alpha), 0.0, 1.0),
        beta=_number("beta", _given(request.beta, defaults.beta), 0.0, 100.0),
        layout=layout,
        seeding=request.seeding,
        chain=chain,
    )
    for seed in (film.seed, *dict(film.segment_seeds).values()):
        if not 0 <= seed <= LARGEST_SEED:
            raise ArgumentError(
                "seed is out of range", got=seed, wanted=f"0 to {LARGEST_SEED}, or -1 for random"
            )
    _choice("solver", film.solver, SOLVERS)
    _choice("noise", film.noise, NOISE_MODES)
    if film.segments > 1:
        check_chained(film.layout, film.chain)
    size = f"{film.width}x{film.height}"
    if defaults.sizes and size not in defaults.sizes:
        raise ArgumentError(
            "this model does not make films of this size",
            got=size,
            wanted=" or ".join(defaults.sizes),
        )
    return film


def _frames(request: Request, defaults: Defaults, chain: Chain) -> int:
    lengths = {
        "duration": request.duration_s,
        "num_frames": request.frames,
        "segments": request.segments,
    }
    given = [name for name, value in lengths.items() if value is not None]
    if len(given) > 1:
        raise ArgumentError("the length is given twice", got=" and ".join(given), wanted="one")
    fps = _whole("fps", _given(request.fps, defaults.fps), 1, 240)
    if request.frames is not None:
        return _whole("num_frames", request.frames, 1, LONGEST_FRAMES)
    if request.segments is not None:
        most = segments_for(chain, LONGEST_FRAMES)
        return film_frames(chain, _whole("segments", request.segments, 1, most))
    return frames_for_duration(_given(request.duration_s, defaults.duration_s), fps)


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _whole(name: str, value: int, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ArgumentError(
            f"{name} is out of range", got=repr(value), wanted=f"{low} to {high}, a whole number"
        )
    return value


def _number(name: str, value: float, low: float, high: float) -> float:
    if not (math.isfinite(value) and low <= value <= high):
        raise ArgumentError(f"{name} is out of range", got=value, wanted=f"{low} to {high}")
    return value


def _size(name: str, value: int, step: int) -> int:
    _whole(name, value, step, 2**13)
    if value % step:
        below = value // step * step
        raise ArgumentError(
            f"{name} is not a multiple of {step}", got=value, wanted=f"{below} or {below + step}"
        )
    return value


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ArgumentError(f"unknown {name}", got=repr(value), wanted=" or ".join(allowed))
