"""The small language of the procedural clips: shapes, hues, motions, captions, held-out triples.

Integers, floats and words only, no torch, so that the command line can list examples and warn
about words the embedded model was never taught without loading anything.
"""

import math
import re
from collections.abc import Sequence
from random import Random

from mmpl.errors import ArgumentError

SHAPES = ("circle", "square", "triangle", "star")

# Named arcs of the HSV hue circle in degrees, half open [low, high). Red wraps through 0.
HUE_BINS: dict[str, tuple[float, float]] = {
    "red": (345.0, 375.0),
    "orange": (15.0, 45.0),
    "yellow": (45.0, 72.0),
    "green": (72.0, 160.0),
    "cyan": (160.0, 200.0),
    "blue": (200.0, 255.0),
    "purple": (255.0, 290.0),
    "pink": (290.0, 345.0),
}
HUES = tuple(HUE_BINS)

# Unit steps in image coordinates: x to the right, y down.
DIRECTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up-left": (-1, -1),
    "up-right": (1, -1),
    "down-left": (-1, 1),
    "down-right": (1, 1),
}

# The first phrase of each motion is the one that examples and measurements use.
PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("moves left", "moves to the left"),
    "right": ("moves right", "moves to the right"),
    "up": ("moves up", "moves upwards"),
    "down": ("moves down", "moves downwards"),
    "up-left": ("moves up and to the left", "moves diagonally up and left"),
    "up-right": ("moves up and to the right", "moves diagonally up and right"),
    "down-left": ("moves down and to the left", "moves diagonally down and left"),
    "down-right": ("moves down and to the right", "moves diagonally down and right"),
    "clockwise": ("circles clockwise", "moves in a circle clockwise"),
    "counterclockwise": ("circles counterclockwise", "moves in a circle counterclockwise"),
    "bounces": ("bounces", "bounces up and down"),
    "grows": ("grows", "gets bigger"),
    "shrinks": ("shrinks", "gets smaller"),
    "still": ("stays still", "does not move"),
}
MOTIONS = tuple(PHRASES)

SIZES = ("small", "large")
SHADES = ("dark", "light")
NEUTRALS = ("black", "gray", "white")

_HELD_OUT_ONE_IN = 8


def hue_bin(hue: float) -> str:
    """Name of the arc that holds `hue` (degrees, any turn)."""
    for name, (low, high) in HUE_BINS.items():
        if (hue - low) % 360.0 < high - low:
            return name
    raise ArgumentError("not a hue", got=hue, wanted="a finite number of degrees")


def colour_name(rgb: Sequence[float]) -> str:
    """Name of a background colour, RGB in [0, 1]: a neutral, or a hue with dark or light."""
    high, low = max(rgb), min(rgb)
    saturation = (high - low) / high if high > 0 else 0.0
    if high < 0.2:
        return "black"
    if saturation < 0.2:
        if high > 0.85:
            return "white"
        return "dark gray" if high < 0.4 else "light gray" if high > 0.68 else "gray"
    name = hue_bin(rgb_hue(rgb))
    if high < 0.55:
        return f"dark {name}"
    return f"light {name}" if saturation < 0.5 else name


def rgb_hue(rgb: Sequence[float]) -> float:
    """HSV hue in degrees of an RGB colour; 0 for a neutral."""
    red, green, blue = rgb
    high, low = max(rgb), min(rgb)
    if high == low:
        return 0.0
    span = high - low
    if high == red:
        return 60.0 * ((green - blue) / span) % 360.0
    if high == green:
        return 60.0 * ((blue - red) / span + 2.0)
    return 60.0 * ((red - green) / span + 4.0)


def background_phrase(first: str, second: str) -> str:
    """Words for a gradient between two named colours: `on a dark blue background`."""
    if first == second:
        colours = first
    elif first.split()[-1] == second.split()[-1]:
        colours = first.split()[-1]
    else:
        colours = f"{first} and {second}"
    return f"on {_with_article(colours)} background"


def sentence(
    shape: str, motion: str, *, hue: str = "", size: str = "", background: str = "", phrase: int = 0
) -> str:
    """One caption. Empty words are left out; `phrase` picks among the phrases of the motion."""
    subject = " ".join(word for word in (size, hue, shape) if word)
    options = PHRASES[motion]
    words = (_with_article(subject), options[phrase % len(options)], background)
    return " ".join(word for word in words if word)


def vocabulary() -> tuple[str, ...]:
    """Every word a caption can hold, sorted."""
    words = {"a", "an", "on", "and", "background"}
    words.update(SHAPES, HUES, SIZES, SHADES, NEUTRALS)
    for options in PHRASES.values():
        for phrase in options:
            words.update(phrase.split())
    return tuple(sorted(words))


def unknown_words(prompt: str, known: Sequence[str] | None = None) -> list[str]:
    """Words of `prompt` that are not in `known` (by default `vocabulary()`), in order, once."""
    taught = set(vocabulary() if known is None else known)
    words = re.findall(r"[^\W_]+", prompt.lower())
    return list(dict.fromkeys(word for word in words if word not in taught))


def is_held_out(shape: str, hue: str, motion: str) -> bool:
    """True for the triples never shown in training: one hue in eight for each (shape, motion).

    A diagonal of the table of triples rather than a hash: every shape, hue and motion is then
    held out equally often, and each is still taught in all its other combinations.
    """
    total = SHAPES.index(shape) + 3 * HUES.index(hue) + 5 * MOTIONS.index(motion)
    return total % _HELD_OUT_ONE_IN == 0


def held_out_prompts(n: int = 32) -> list[tuple[str, str, str, str]]:
    """`n` held-out prompts as (prompt, shape, hue bin, motion), spread evenly over all three."""
    triples = [
        (shape, hue, motion)
        for motion in MOTIONS
        for hue in HUES
        for shape in SHAPES
        if is_held_out(shape, hue, motion)
    ]
    Random(0).shuffle(triples)
    chosen: list[tuple[str, str, str]] = []
    uses: dict[str, int] = {}
    for _ in range(n):
        pool = [triple for triple in triples if triple not in chosen] or triples
        # A word counts against a triple by its use and by how rare its kind is in the list.
        best = min(pool, key=lambda triple: sum(math.exp(uses.get(word, 0)) for word in triple))
        chosen.append(best)
        for word in best:
            uses[word] = uses.get(word, 0) + 1
    return [(sentence(shape, motion, hue=hue), shape, hue, motion) for shape, hue, motion in chosen]


def example_prompts() -> list[str]:
    """A dozen prompts that show every shape and most motions and backgrounds."""
    return [
        sentence("circle", "right", hue="red", background="on a blue background"),
        sentence("star", "clockwise", hue="yellow", background="on a dark blue background"),
        sentence("square", "left", hue="green", background="on a white background"),
        sentence("triangle", "up", hue="orange", background="on a black background"),
        sentence("circle", "bounces", hue="pink", background="on a light gray background"),
        sentence("star", "grows", hue="purple", background="on a light yellow background"),
        sentence("square", "counterclockwise", hue="cyan", background="on a dark red background"),
        sentence("triangle", "down-right", hue="blue", background="on an orange background"),
        sentence("circle", "shrinks", hue="orange", size="large"),
        sentence("square", "down", hue="yellow", size="small"),
        sentence("star", "up-left", hue="red", background="on a black and dark green background"),
        sentence("triangle", "bounces", background="on a white background"),
    ]


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
