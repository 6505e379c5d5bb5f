"""Captioned procedural clips as pixels: a signed-distance renderer and the captions.

`draw_spec(seed)` gives a clip, `render` its pixels at any size, for any frames and any crop,
`caption` a sentence for it. Data of the training, ground truth of the measurements.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.train import grammar
from mmpl.train.clip_spec import CANVAS, REACH, ClipSpec, Rgb, Track, draw_spec, track

__all__ = [
    "ClipSpec",
    "Track",
    "caption",
    "draw_spec",
    "held_out",
    "render",
    "render_batch",
    "track",
]

_STAR_INNER = 0.45  # inner over outer radius of the star


def caption(spec: ClipSpec, variant: int, *, backgrounds: float = 0.4) -> str:
    """A caption of the clip; `variant` decides which words are left out and which synonym is used.

    The hue is left out half of the time, so that a film cannot lean on the text for its colour;
    the background is named in the share `backgrounds` of captions.
    """
    rng = np.random.default_rng([variant, 1])
    with_hue, with_size, with_background = rng.random(3) < (0.5, 0.25, backgrounds)
    size = "small" if spec.size < 11.0 else "large" if spec.size > 13.0 else ""
    if spec.growth != 1.0:
        size = ""
    back = spec.background
    names = grammar.colour_name(back.first), grammar.colour_name(back.second)
    return grammar.sentence(
        spec.shape,
        spec.motion,
        hue=spec.hue_bin if with_hue else "",
        size=size if with_size else "",
        background=grammar.background_phrase(*names) if with_background else "",
        phrase=int(rng.integers(4)) // 3,
    )


def held_out(spec: ClipSpec) -> bool:
    """True if the clip's triple (shape, hue bin, motion) is kept out of training."""
    return grammar.is_held_out(spec.shape, spec.hue_bin, spec.motion)


def render(
    spec: ClipSpec,
    frames: range | tuple[int, int],
    *,
    size: int = 64,
    crop: tuple[int, int, int, int] | None = None,
) -> Tensor:
    """Pixels of a clip: float32 [3, F, h, w] in [-1, 1].

    `frames` are counted from the clip's start frame. The whole picture is `size` x `size`;
    `crop` = (y, x, h, w) in its pixels, and nothing outside of it is computed. Edges are
    smoothed over one pixel by the signed distance to the outline.
    """
    span = (frames.start, frames.stop) if isinstance(frames, range) else frames
    return render_batch([spec], [span], size=size, crops=None if crop is None else [crop])[0]


def render_batch(
    specs: Sequence[ClipSpec],
    frames: Sequence[tuple[int, int]],
    *,
    size: int = 64,
    crops: Sequence[tuple[int, int, int, int]] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """`render` for many clips at once: float32 [B, 3, F, h, w] on `device`.

    `frames` and `crops` hold one entry per clip. Raises ArgumentError unless all spans have one
    length and all crops one height and width.
    """
    windows = [(0, 0, size, size)] * len(specs) if crops is None else list(crops)
    extents = {(stop - start, h, w) for (start, stop), (_, _, h, w) in zip(frames, windows)}
    if len(extents) != 1 or not len(specs) == len(frames) == len(windows):
        raise ArgumentError(
            "clips of a batch must have one length and crop size, given once per clip",
            got=f"{len(specs)} clips, {len(frames)} spans, (frames, h, w) in {sorted(extents)}",
        )
    length, h, w = extents.pop()
    out = torch.empty(len(specs), 3, length, h, w, device=device)
    for shape in {spec.shape for spec in specs}:
        members = [i for i, spec in enumerate(specs) if spec.shape == shape]
        rows = [_rows(specs[i], frames[i], windows[i], size) for i in members]
        table_RF = torch.from_numpy(np.concatenate(rows, axis=1)).to(device)
        colours = [_colours(specs[i]) for i in members]
        colours_B33 = torch.tensor(colours, dtype=torch.float32, device=device)
        pixels = _paint(shape, table_RF, colours_B33, h, w, CANVAS / size)
        out[torch.tensor(members, device=device)] = pixels
    return out


def _colours(spec: ClipSpec) -> tuple[Rgb, Rgb, Rgb]:
    return spec.background.first, spec.background.second, spec.rgb


def _paint(
    shape: str, table_RF: Tensor, colours_B33: Tensor, h: int, w: int, pixel: float
) -> Tensor:
    """Clips of one shape, [B, 3, F, h, w]. `table_RF`: one column per frame of each clip."""
    x, y, size, angle, back_x, back_y, back_0 = table_RF[:, :, None, None].unbind(0)
    columns = (torch.arange(w, device=x.device) * pixel)[None, None, :]
    lines = (torch.arange(h, device=x.device) * pixel)[None, :, None]
    # sin(a + b) by its parts: sines of rows and columns instead of every pixel.
    slope_x, slope_y = back_x * columns, back_y * lines + back_0
    weight = torch.sin(slope_x) * (torch.cos(slope_y) * 0.5)
    weight = weight.addcmul_(torch.cos(slope_x), torch.sin(slope_y) * 0.5).add_(0.5)
    dx, dy = columns - x, lines - y
    if shape == "circle":
        distance = torch.sqrt(dx * dx + dy * dy).sub_(size)
    else:
        cos, sin = torch.cos(angle), torch.sin(angle)
        distance = _distance(shape, cos * dx + sin * dy, cos * dy - sin * dx, size)
    cover = distance.mul_(-1.0 / pixel).add_(0.5).clamp_(0.0, 1.0)
    clips = colours_B33.shape[0]
    weight, cover = (a.reshape(clips, 1, -1, h, w) for a in (weight, cover))
    first, second, ink = (colours_B33[:, i, :, None, None, None] * 2.0 - 1.0 for i in range(3))
    picture = torch.addcmul(first, weight, second - first)
    return picture.lerp_(ink, cover)


def _distance(shape: str, px: Tensor, py: Tensor, size: Tensor) -> Tensor:
    """Signed distance to the outline, negative inside; tips are continued as their edges."""
    reach = size * REACH[shape]
    if shape == "square":
        return torch.maximum(px.abs(), py.abs()) - reach * math.sqrt(0.5)
    if shape == "triangle":
        side = px.abs().mul_(math.sqrt(0.75)).sub_(py * 0.5)
        return torch.maximum(side, py) - reach * 0.5
    # Star: fold the plane to one tenth of a turn beside the tip that points along -y.
    px, py = px.abs(), -py
    fold_x, fold_y = math.cos(math.pi / 5.0), math.sin(math.pi / 5.0)
    for nx, ny in ((fold_x, -fold_y), (-fold_x, -fold_y)):
        over = (nx * px + ny * py).clamp_(min=0.0).mul_(2.0)
        px, py = px - nx * over, py - ny * over
    px = px.abs()
    # The edge runs from the tip (0, 1) to the notch at a tenth of a turn.
    notch_x, notch_y = (_STAR_INNER * f(math.pi / 5.0) for f in (math.sin, math.cos))
    length = math.hypot(notch_x, 1.0 - notch_y)
    nx, ny = (1.0 - notch_y) / length, notch_x / length
    return px * nx + (py - reach) * ny


def _rows(
    spec: ClipSpec, frames: tuple[int, int], crop: tuple[int, int, int, int], size: int
) -> NDArray[np.float32]:
    """Per frame: x, y, size, angle of the object and the gradient's phase as a plane, all
    measured from the centre of the crop's first pixel."""
    pixel = CANVAS / size
    left, top = (crop[1] + 0.5) * pixel, (crop[0] + 0.5) * pixel
    path = track(spec, frames)
    back = spec.background
    rate = 2.0 * math.pi / back.wavelength
    along_x, along_y = rate * math.cos(back.angle), rate * math.sin(back.angle)
    centre = CANVAS / 2.0
    offset = along_x * (left - centre) + along_y * (top - centre) + back.phase
    rows = (path.x - left, path.y - top, path.size, spec.angle, along_x, along_y, offset)
    return np.stack(np.broadcast_arrays(*rows)).astype(np.float32)
