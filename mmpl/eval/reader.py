"""Reads a film of one moving shape from its pixels: where it is, its hue, its outline, its motion.

The measuring instrument of prompt adherence: it never sees the model, the prompt or the
program that made the clip. `read_film` finds the objects of every frame, `classify` says
what the whole shows, in the words of the grammar. Lengths are in canvas units: the shorter side
of the picture is 64 units, whatever its resolution. Numpy only.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmpl.errors import ArgumentError
from mmpl.eval.motion import read_motion
from mmpl.train.grammar import hue_bin

Array = NDArray[np.float64]

CANVAS = 64.0
NONE = "none"  # the answer where nothing can be read

_SEGMENT_FRAMES = 81  # motion is read in the first segment
_FIT_DEGREE = 3  # of the polynomial that stands for the background
_FIT_ROUNDS = 6
_LEAST_CONTRAST = 0.16  # RGB distance from the background, each channel in [0, 1]
_LEAST_SHARE = 0.4  # of the strongest contrast of the frame
_LEAST_AREA = 20.0  # square units (0.5 % of the canvas); smaller specks are no objects
_LEAST_CHROMA = 0.06  # of a background that has a hue, of 1
_MARGIN = 4  # pixels around a component that still belong to its soft edge
_RAYS = 72
_HARMONICS = (2, 3, 4, 5, 6)
_STAR_INNER = 0.45
_SOFTENING = 0.85  # how much a coarse, slightly blurred picture weakens an outline's harmonics
_LIKENESS = 0.12  # farthest an outline's harmonics may be from those of a known shape


@dataclass(frozen=True, slots=True)
class Blob:
    """One object in one frame. Area in square units, centre in units, hue in degrees.

    `outline` holds the magnitudes of the harmonics 2..6 of the radius over the angle, divided by
    the mean radius: it does not change with rotation or size.
    """

    area: float
    x: float
    y: float
    hue: float
    rgb: tuple[float, float, float]
    outline: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Backdrop:
    """The background of a frame: in each of R, G and B, 0 to 1, the median over the outer eighth of
    the picture on every side, of which no object covers half; and the hue of that in degrees, None
    where it is grey."""

    rgb: tuple[float, float, float]
    hue: float | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a clip shows. `shape`, `hue_bin` and `motion` are words of the grammar or "none"."""

    shape: str
    hue_deg: float
    hue_bin: str
    motion: str
    objects_per_frame: tuple[int, ...]
    shape_error: float  # distance of the outline to the nearest known shape
    areas: tuple[float, ...]  # of the largest object per frame, 0 where there is none

    @property
    def one_object(self) -> bool:
        """One recognisable object: alone in most frames, with the outline of a known shape."""
        alone = sum(count == 1 for count in self.objects_per_frame)
        return alone >= 0.75 * len(self.objects_per_frame) and self.shape_error <= _LIKENESS


def classify(frames_FHWC: NDArray[np.uint8]) -> Reading:
    """Shape, hue and motion of the largest object of a clip, uint8 RGB [F, H, W, 3].

    Shape and hue are medians over all frames; motion is read in the first 81.
    Raises ArgumentError unless the frames are uint8 RGB.
    """
    film = read_film(frames_FHWC)
    counts = tuple(len(blobs) for blobs in film)
    main = [blobs[0] if blobs else None for blobs in film]
    seen = [blob for blob in main if blob is not None]
    areas = tuple(blob.area if blob else 0.0 for blob in main)
    if 2 * len(seen) < len(film):
        return Reading(NONE, math.nan, NONE, NONE, counts, math.inf, areas)
    shape, error = _nearest_shape(np.median([blob.outline for blob in seen], axis=0))
    hue = _mean_angle([blob.hue for blob in seen])
    steps = [i for i, blob in enumerate(main[:_SEGMENT_FRAMES]) if blob]
    rows = [(blob.x, blob.y, blob.area) for blob in main[:_SEGMENT_FRAMES] if blob]
    motion = NONE
    if 2 * len(steps) >= min(len(main), _SEGMENT_FRAMES):
        every = np.arange(steps[0], steps[-1] + 1)
        x, y, area = (np.interp(every, steps, column) for column in np.array(rows).T)
        motion = read_motion(x, y, area)
    return Reading(shape, hue, hue_bin(hue), motion, counts, error, areas)


def read_film(frames_FHWC: NDArray[np.uint8]) -> list[list[Blob]]:
    """The sizeable objects of every frame, largest first. Frames are uint8 RGB [F, H, W, 3]."""
    if frames_FHWC.ndim != 4 or frames_FHWC.shape[3] != 3 or frames_FHWC.dtype != np.uint8:
        raise ArgumentError(
            "cannot read these frames",
            got=f"{frames_FHWC.dtype} {frames_FHWC.shape}",
            wanted="uint8 [F, H, W, 3]",
        )
    small_FHWC = _shrink(frames_FHWC) / 255.0
    residual_FHWC = small_FHWC - _backgrounds(small_FHWC)
    return [_read_frame(*pair) for pair in zip(small_FHWC, residual_FHWC)]


def read_backgrounds(frames_FHWC: NDArray[np.uint8]) -> list[Backdrop]:
    """What is behind the objects of each frame, uint8 RGB [F, H, W, 3]."""
    edge = [max(side // 8, 1) for side in frames_FHWC.shape[1:3]]
    border_HW = np.ones(frames_FHWC.shape[1:3], bool)
    border_HW[edge[0] : -edge[0], edge[1] : -edge[1]] = False
    found = []
    for rgb_3 in np.median(frames_FHWC[:, border_HW] / 255.0, axis=1):
        red, green, blue = rgb_3.tolist()
        grey = float(np.ptp(rgb_3)) < _LEAST_CHROMA
        found.append(Backdrop((red, green, blue), None if grey else _mean_hue(rgb_3[None])))
    return found


def label(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Components of a mask by shared edges: 0 outside, 1, 2, ... inside. By runs of rows."""
    labels = np.zeros(mask.shape, dtype=np.int64)
    parent = [0]

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    # Runs of true pixels, in reading order: a run begins and ends where the value changes.
    changes = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, edges = np.nonzero(changes)
    for row, start, stop in zip(rows[::2], edges[::2], edges[1::2]):
        above = set(labels[row - 1, start:stop].tolist()) - {0} if row else set()
        touched = {root(i) for i in above}
        name = min(touched, default=len(parent))
        if not touched:
            parent.append(name)
        for other in touched:
            parent[other] = name
        labels[row, start:stop] = name
    _, dense = np.unique([root(i) for i in range(len(parent))], return_inverse=True)
    return dense[labels]


def _read_frame(frame_HWC: Array, residual_HWC: Array) -> list[Blob]:
    contrast_HW = _length(residual_HWC)
    strongest = float(np.quantile(contrast_HW, 0.995))
    labels_HW = label(contrast_HW > max(_LEAST_CONTRAST, _LEAST_SHARE * strongest))
    unit = CANVAS / min(labels_HW.shape)
    sizes = np.bincount(labels_HW.ravel())
    names = [i for i in range(1, len(sizes)) if sizes[i] * unit * unit >= _LEAST_AREA]
    blobs = [_read_blob(frame_HWC, residual_HWC, labels_HW, name, unit) for name in names]
    return sorted(blobs, key=lambda blob: -blob.area)


def _read_blob(
    frame_HWC: Array, residual_HWC: Array, labels_HW: NDArray[np.int64], name: int, unit: float
) -> Blob:
    """Measures one component by a soft mask: how much of the object's colour a pixel holds."""
    own_HW = labels_HW == name
    lines, columns = np.nonzero(own_HW)
    top, left = max(lines.min() - _MARGIN, 0), max(columns.min() - _MARGIN, 0)
    window = np.s_[top : lines.max() + _MARGIN + 1, left : columns.max() + _MARGIN + 1]
    strength = _length(residual_HWC[own_HW])
    core_P3 = frame_HWC[own_HW][strength >= np.quantile(strength, 0.3)]
    colour = np.median(core_P3, axis=0)
    # The object's colour against the background behind each pixel.
    backdrop_HWC = frame_HWC[window] - residual_HWC[window]
    ink_HWC = colour - backdrop_HWC
    scale_HW = np.maximum((ink_HWC**2).sum(2), 1e-6)
    mask_HW = np.clip((residual_HWC[window] * ink_HWC).sum(2) / scale_HW, 0.0, 1.0)
    foreign_HW = (labels_HW[window] != name) & (labels_HW[window] != 0)
    mask_HW = np.where(foreign_HW | (mask_HW < 0.15), 0.0, mask_HW)
    area = mask_HW.sum()
    y = float((mask_HW.sum(1) * np.arange(mask_HW.shape[0])).sum() / area)
    x = float((mask_HW.sum(0) * np.arange(mask_HW.shape[1])).sum() / area)
    return Blob(
        area=float(area) * unit * unit,
        x=(left + x + 0.5) * unit,
        y=(top + y + 0.5) * unit,
        hue=_mean_hue(core_P3),
        rgb=(float(colour[0]), float(colour[1]), float(colour[2])),
        outline=_outline(mask_HW, x, y),
    )


def _backgrounds(frames_FHWC: Array) -> Array:
    """A smooth picture of everything but the objects, per frame: a polynomial fitted with weights
    that fade out what lies far from it (iteratively reweighted least squares, narrowing)."""
    count, h, w, _ = frames_FHWC.shape
    terms_HWK = _terms(h, w)
    # Every other row and column is plenty for so few coefficients.
    terms_PK = terms_HWK[::2, ::2].reshape(-1, terms_HWK.shape[2])
    pixels_FPC = frames_FHWC[:, ::2, ::2].reshape(count, -1, 3)
    weight_FP = np.ones(pixels_FPC.shape[:2])
    factors_FKC = np.zeros((count, terms_HWK.shape[2], 3))
    for round_ in range(_FIT_ROUNDS):
        weighted_FKP = terms_PK.T * weight_FP[:, None, :]
        factors_FKC = np.linalg.solve(weighted_FKP @ terms_PK, weighted_FKP @ pixels_FPC)
        error_FP = _length(pixels_FPC - terms_PK @ factors_FKC)
        width_F = np.maximum(2.0 * np.median(error_FP, axis=1), max(0.3 * 0.6**round_, 0.02))
        weight_FP = 1.0 / (1.0 + np.square(np.square(error_FP / width_F[:, None])))
    return np.einsum("hwk,fkc->fhwc", terms_HWK, factors_FKC, optimize=True)


def _terms(h: int, w: int) -> Array:
    """The monomials of the background's polynomial at every pixel, [H, W, K]."""
    y, x = np.linspace(-1.0, 1.0, h)[:, None], np.linspace(-1.0, 1.0, w)[None, :]
    powers = [(i, j) for i in range(_FIT_DEGREE + 1) for j in range(_FIT_DEGREE + 1 - i)]
    return np.stack([y**i * x**j for i, j in powers], axis=2)


def _outline(mask_HW: Array, x: float, y: float) -> tuple[float, ...]:
    """Harmonics of the radius, measured along rays by how much mask each passes through."""
    h, w = mask_HW.shape
    step = 0.5
    angle = np.arange(_RAYS)[:, None] * (2.0 * math.pi / _RAYS)
    reach = (np.arange(int(math.hypot(h, w) / step)) + 0.5)[None, :] * step
    padded = np.pad(mask_HW, 1)
    row = np.clip(y + reach * np.sin(angle), -1.0, h - 0.001) + 1.0
    column = np.clip(x + reach * np.cos(angle), -1.0, w - 0.001) + 1.0
    i, j = row.astype(int), column.astype(int)
    v, u = row - i, column - j
    upper = padded[i, j] * (1.0 - u) + padded[i, j + 1] * u
    lower = padded[i + 1, j] * (1.0 - u) + padded[i + 1, j + 1] * u
    radius = (upper * (1.0 - v) + lower * v).sum(1) * step
    return _harmonics(radius)


def _harmonics(radius: NDArray[np.floating]) -> tuple[float, ...]:
    waves = np.abs(np.fft.rfft(radius)) / max(float(radius.sum()), 1e-9)
    return tuple(2.0 * float(waves[k]) for k in _HARMONICS)


def _nearest_shape(outline: Array) -> tuple[str, float]:
    """The known shape whose outline is nearest, and how far it is."""
    errors = {
        shape: float(np.linalg.norm(outline - _SOFTENING * np.array(_harmonics(radius))))
        for shape, radius in _ideal_radii().items()
    }
    shape = min(errors, key=lambda name: errors[name])
    return shape, errors[shape]


def _ideal_radii() -> dict[str, NDArray[np.floating]]:
    """Radius over the angle of each known shape."""
    angle = np.arange(_RAYS * 10) * (2.0 * math.pi / (_RAYS * 10))

    def polygon(corners: int, notch: float) -> NDArray[np.floating]:
        # Within half a side: the straight line from the corner (1, 0) to the notch.
        half = math.pi / corners
        inside = np.abs((angle + half) % (2.0 * half) - half)
        end_x, end_y = notch * math.cos(half), notch * math.sin(half)
        return end_y / (np.cos(inside) * end_y + np.sin(inside) * (1.0 - end_x))

    return {
        "circle": np.ones_like(angle),
        "square": polygon(4, math.cos(math.pi / 4.0)),
        "triangle": polygon(3, math.cos(math.pi / 3.0)),
        "star": polygon(5, _STAR_INNER),
    }


def _length(vectors: Array) -> Array:
    """Euclidean length over the last axis."""
    return np.sqrt(np.einsum("...c,...c->...", vectors, vectors))


def _mean_hue(rgb_P3: Array) -> float:
    """Circular mean of the HSV hues, each weighted by its chroma."""
    high, low = rgb_P3.max(1), rgb_P3.min(1)
    chroma = np.maximum(high - low, 1e-9)
    red, green, blue = rgb_P3.T
    hue = np.select(
        [high == red, high == green],
        [(green - blue) / chroma, (blue - red) / chroma + 2.0],
        (red - green) / chroma + 4.0,
    )
    return _mean_angle(60.0 * hue, high - low)


def _mean_angle(degrees: Array | list[float], weights: Array | float = 1.0) -> float:
    turned = np.exp(1j * np.radians(degrees)) * weights
    return float(np.degrees(np.angle(turned.sum()))) % 360.0


def _shrink(frames_FHWC: NDArray[np.uint8]) -> Array:
    """Means of blocks, so that large pictures are read at a side of 64 to 127 pixels."""
    count, height, width, _ = frames_FHWC.shape
    factor = max(min(height, width) // int(CANVAS), 1)
    h, w = height // factor, width // factor
    whole = frames_FHWC[:, : h * factor, : w * factor]
    return whole.reshape(count, h, factor, w, factor, 3).mean((2, 4), dtype=np.float64)
