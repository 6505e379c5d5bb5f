"""What a procedural clip is made of and how one is drawn; numbers only, no pixels, no torch.

A clip is a `ClipSpec`, drawn from one integer. Everything in it is a closed form of the frame
index, so any span of frames can be had alone, and motion never ends: what travels turns back
smoothly at the border, so a window of any later time is also a clip.
Lengths are in canvas units (the canvas is 64 x 64 units at every resolution), times in frames.
"""

import colorsys
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mmpl.train import grammar

CANVAS = 64.0

# Circumradius over size, so that shapes of one size look equally large (about equal areas).
REACH = {"circle": 1.0, "square": 1.25, "triangle": 1.5, "star": 1.55}
_CONTINUATION_FRAMES = 6 * 76  # how far into a film a continuation window can start
_TILT = 0.15  # radians: objects stand almost upright, which is far easier to learn
_CONTRAST = 0.5  # least RGB distance between the object and any colour of the background

Array = NDArray[np.float64]
Rgb = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Wave:
    """Smooth random variation: a sum of sines (amplitude, radians per frame, phase).

    Amplitudes fall with frequency as in an Ornstein-Uhlenbeck process, of which this is a
    bounded version that can be read at any time.
    """

    parts: tuple[tuple[float, float, float], ...]

    def __call__(self, t: Array) -> Array:
        return sum((a * np.sin(w * t + p) for a, w, p in self.parts), np.zeros_like(t))

    @property
    def bound(self) -> float:
        """Largest possible absolute value."""
        return sum(abs(a) for a, _, _ in self.parts)


@dataclass(frozen=True, slots=True)
class Background:
    """A sinusoidal gradient between two RGB colours."""

    first: Rgb
    second: Rgb
    angle: float  # radians
    wavelength: float  # units
    phase: float  # radians


@dataclass(frozen=True, slots=True)
class ClipSpec:
    """One clip without end. `start_frame` says at which of its frames frame 0 lies."""

    shape: str
    motion: str
    hue: float  # degrees
    saturation: float
    value: float
    size: float  # units
    angle: float  # radians
    near: tuple[float, float]  # where the path starts; centre of an orbit; floor of a bounce
    far: tuple[float, float]  # where the path turns back
    growth: float  # size at `far` over size at `near`
    period: float  # frames from near to far, for one turn, or from bounce to bounce
    phase: float  # periods already gone at frame 0
    rise: float  # units: radius of an orbit, height of a bounce
    noise: tuple[Wave, Wave, Wave]  # added to x and y in units, and to size as a factor
    background: Background
    start_frame: int = 0

    @property
    def hue_bin(self) -> str:
        return grammar.hue_bin(self.hue)

    @property
    def rgb(self) -> Rgb:
        return colorsys.hsv_to_rgb(self.hue % 360.0 / 360.0, self.saturation, self.value)


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """Where the object is in each frame: centre and size in units."""

    x: Array
    y: Array
    size: Array


def draw_spec(seed: int, *, held_out: bool | None = False, continuation: bool = False) -> ClipSpec:
    """The clip of an integer seed.

    `held_out` False draws from the triples (shape, hue bin, motion) of training, True from the
    others, None from all. With `continuation` the clip begins at a random later moment, as the
    later segments of a film do; its caption still names the motion of the beginning.
    """
    rng = np.random.default_rng(seed)
    while True:
        shape = str(rng.choice(grammar.SHAPES))
        hue_name = str(rng.choice(grammar.HUES))
        motion = str(rng.choice(grammar.MOTIONS))
        if held_out is None or grammar.is_held_out(shape, hue_name, motion) == held_out:
            break
    spec = _draw_motion(rng, shape, motion, _draw_hue(rng, hue_name))
    if continuation:
        return replace(spec, start_frame=int(rng.integers(1, _CONTINUATION_FRAMES)))
    return spec


def draw_spec_of(seed: int, shape: str, hue_bin: str, motion: str) -> ClipSpec:
    """A clip of this shape, hue and motion; the integer seed draws all the rest."""
    rng = np.random.default_rng(seed)
    return _draw_motion(rng, shape, motion, _draw_hue(rng, hue_bin))


def track(spec: ClipSpec, frames: tuple[int, int]) -> Track:
    """The object's path over `frames` = (start, stop), exact: the ground truth of a clip."""
    t = np.arange(*frames, dtype=np.float64) + spec.start_frame
    (x0, y0), (x1, y1) = spec.near, spec.far
    along = _sway(spec.phase + t / spec.period)
    x, y = x0 + (x1 - x0) * along, y0 + (y1 - y0) * along
    if spec.motion in ("clockwise", "counterclockwise"):
        way = 1.0 if spec.motion == "clockwise" else -1.0
        turn = way * 2.0 * math.pi * (spec.phase + t / spec.period)
        x, y = x0 + spec.rise * np.cos(turn), y0 + spec.rise * np.sin(turn)
    elif spec.motion == "bounces":
        flight = (spec.phase + t / spec.period) % 1.0
        x = x0 + (x1 - x0) * _sway(t / (8.0 * spec.period))
        y = y0 - spec.rise * 4.0 * flight * (1.0 - flight)
    noise_x, noise_y, noise_size = spec.noise
    size = spec.size * spec.growth**along * (1.0 + noise_size(t))
    return Track(x + noise_x(t), y + noise_y(t), size)


def _sway(p: Array) -> Array:
    """0 at even p, 1 at odd p, nearly straight between, rounded where it turns."""
    return 0.5 - np.arcsin(0.97 * np.cos(math.pi * p)) / (2.0 * math.asin(0.97))


def _draw_hue(rng: Generator, name: str) -> float:
    """A hue of the named arc, mostly in its inner part."""
    low, high = grammar.HUE_BINS[name]
    margin = 0.18 if rng.random() < 0.85 else 0.02
    return float(rng.uniform(low + margin * (high - low), high - margin * (high - low)) % 360.0)


def _draw_motion(rng: Generator, shape: str, motion: str, hue: float) -> ClipSpec:
    size = rng.uniform(10.0, 14.0)
    growth = 1.0
    if motion == "grows":
        size, growth = rng.uniform(7.0, 8.5), rng.uniform(1.8, 2.1)
    elif motion == "shrinks":
        size, growth = rng.uniform(13.0, 15.5), 1.0 / rng.uniform(1.8, 2.1)
    noise = _draw_wave(rng, 1.2), _draw_wave(rng, 1.2), _draw_wave(rng, 0.03)
    largest = size * max(growth, 1.0) * (1.0 + noise[2].bound)
    # The centre stays in a box that keeps the whole object on the canvas.
    reach = largest * REACH[shape] + max(noise[0].bound, noise[1].bound) + 1.0
    near, far, period, phase, rise = _draw_path(rng, motion, reach)
    saturation, value = rng.uniform(0.7, 1.0), rng.uniform(0.75, 1.0)
    ink = colorsys.hsv_to_rgb(hue / 360.0, saturation, value)
    return ClipSpec(
        shape=shape,
        motion=motion,
        hue=hue,
        saturation=float(saturation),
        value=float(value),
        size=float(size),
        angle=float(rng.uniform(-_TILT, _TILT)),
        near=near,
        far=far,
        growth=float(growth),
        period=float(period),
        phase=float(phase),
        rise=float(rise),
        noise=noise,
        background=_draw_background(rng, ink),
    )


def _draw_path(
    rng: Generator, motion: str, reach: float
) -> tuple[tuple[float, float], tuple[float, float], float, float, float]:
    """near, far, period, phase and rise of a path whose centre keeps `reach` from the border."""
    room = CANVAS / 2.0 - reach  # half the side of the box for the centre
    middle = CANVAS / 2.0
    if motion in ("clockwise", "counterclockwise"):
        rise = room * rng.uniform(0.7, 1.0)
        x, y = middle + rng.uniform(-1.0, 1.0, 2) * (room - rise)
        return (x, y), (x, y), rng.uniform(64.0, 110.0), rng.random(), rise
    if motion == "bounces":
        rise = room * rng.uniform(1.3, 1.9)
        floor = middle + room - rng.uniform(0.0, 1.0) * (2.0 * room - rise)
        x0, x1 = middle + rng.uniform(-1.0, 1.0, 2) * min(room, 8.0)
        return (x0, floor), (x1, floor), rng.uniform(22.0, 36.0), rng.random(), rise
    phase = rng.uniform(0.03, 0.25)
    # The first turn comes after the first segment, or at its very end.
    period = rng.uniform(78.0, 110.0) / (1.0 - phase)
    if motion not in grammar.DIRECTIONS:
        x, y = middle + rng.uniform(-1.0, 1.0, 2) * room
        return (x, y), (x, y), period, phase, 0.0
    step = np.array(grammar.DIRECTIONS[motion])
    half = room * rng.uniform(0.85, 1.0)
    slack = np.where(step == 0, room, room - half)
    centre = middle + rng.uniform(-1.0, 1.0, 2) * slack
    (x0, y0), (x1, y1) = centre - step * half, centre + step * half
    return (float(x0), float(y0)), (float(x1), float(y1)), period, phase, 0.0


def _draw_wave(rng: Generator, bound: float) -> Wave:
    """Four sines of 50 to 300 frames; their amplitudes sum to at most `bound`."""
    rates = 2.0 * math.pi / np.exp(rng.uniform(math.log(50.0), math.log(300.0), 4))
    amplitudes = rng.uniform(0.3, 1.0, 4) / rates
    amplitudes *= bound * rng.random() / amplitudes.sum()
    phases = rng.uniform(0.0, 2.0 * math.pi, 4)
    return Wave(tuple((float(a), float(w), float(p)) for a, w, p in zip(amplitudes, rates, phases)))


def _draw_background(rng: Generator, ink: Rgb) -> Background:
    first, second = _draw_colours(rng)
    while _contrast(ink, first, second) < _CONTRAST:
        first, second = _draw_colours(rng)
    return Background(
        first,
        second,
        angle=float(rng.uniform(-math.pi, math.pi)),
        wavelength=float(CANVAS * rng.uniform(2.0, 4.0)),
        phase=float(rng.uniform(-math.pi, math.pi)),
    )


def _draw_colours(rng: Generator) -> tuple[Rgb, Rgb]:
    """Two colours of a gradient, relatives in most cases, from the whole RGB range."""
    hue, saturation, value = rng.random(), rng.random() ** 0.7, rng.random() ** 0.8
    if rng.random() < 0.25:
        saturation *= 0.1  # black, grays, white
    if rng.random() < 0.15:
        other = rng.random(3)
    else:
        other = np.array([hue, saturation, value]) + rng.normal(0.0, (0.04, 0.1, 0.13))
    pair = (hue, saturation, value), (other[0] % 1.0, *np.clip(other[1:], 0.0, 1.0))
    first, second = (colorsys.hsv_to_rgb(*(float(c) for c in colour)) for colour in pair)
    return first, second


def _contrast(ink: Rgb, first: Rgb, second: Rgb) -> float:
    """Least RGB distance from `ink` to the line between two colours."""
    a, b, p = np.array(first), np.array(second), np.array(ink)
    span = b - a
    along = float(np.clip((p - a) @ span / max(float(span @ span), 1e-9), 0.0, 1.0))
    return float(np.linalg.norm(p - a - along * span))
