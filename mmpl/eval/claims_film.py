"""What is measured of one film while it is made: against the program of its prompt, against its
own beginning, and at its joints. No frame is kept, and no more than one segment's are held.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmpl.eval.claims_arms import Arm, generation_starts, joints_of
from mmpl.eval.drift import planes_of, sampled
from mmpl.eval.metrics import FilmMetrics, compared, histogram_of, hues_of, measure, turn
from mmpl.eval.reader import Backdrop, classify, read_backgrounds
from mmpl.layout.timeline import Chain, film_frames, locate
from mmpl.train.grammar import HUE_BINS

Pixels = NDArray[np.uint8]

COARSE_BINS, FINE_BINS = 18, 180  # of the hue histograms: results depend on them
_EVERY = 4  # every so many frames are read for the object and the background
_LUMA = (0.2126, 0.7152, 0.0722)  # of BT.709


@dataclass(frozen=True, slots=True)
class Program:
    """A held-out prompt, and what a film of it has to show."""

    prompt: str
    shape: str
    hue_bin: str
    motion: str


def measure_film(
    pieces: Iterator[Pixels],
    program: Program,
    arm: Arm,
    *,
    chain: Chain,
    segments: int,
    fps: int,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """The record of a film: numbers by name, those of its segments in a list.

    `pieces` are uint8 frames FHWC in film order, as they are made; what goes beyond `segments`
    segments of `chain` is not asked for. Segments are spans of time, the same for every method.
    All of it is JSON; None where there is nothing to measure: no object, no colour, no joint.
    Raises InputError for a film without frames, and what `pieces` raises.
    """
    frames = film_frames(chain, segments)
    making = _Making(pieces, frames, clock)
    spans = _Spans(program, chain)
    at = joints_of(arm, chain, frames)
    metrics = measure(spans.watch(making), fps, joints=[{*kind} for kind in at.values()])
    spans.close()
    return {
        "frames": metrics.frames,
        "seconds": round(making.seconds, 3),
        "segments": spans.records(),
        "joints": _at_joints(metrics, at),
        "by_generation": by_generation(
            spans.backgrounds, generation_starts(arm, chain, metrics.frames)
        ),
    }


def by_generation(
    colours: Sequence[tuple[int, tuple[float, float, float]]], starts: Sequence[int]
) -> list[float | None]:
    """How far the background's colour is from that of the first generation, as the distance of
    their RGB (each 0 to 1), in the mean over each generation. `colours`: (frame, RGB) in film
    order; `starts` as of `generation_starts`."""
    each: list[list[NDArray[np.float64]]] = [[] for _ in starts]
    for frame, rgb in colours:
        each[max(n for n, start in enumerate(starts) if start <= frame)].append(np.array(rgb))
    first = np.mean(each[0], axis=0)
    return [_mean([float(np.linalg.norm(rgb - first)) for rgb in own]) for own in each]


class _Making:
    """Frames one by one, and the seconds that were spent on making them."""

    def __init__(self, pieces: Iterator[Pixels], frames: int, clock: Callable[[], float]) -> None:
        self._pieces, self._left, self._clock = pieces, frames, clock
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Pixels]:
        while self._left:
            begun = self._clock()
            piece = next(self._pieces, None)
            self.seconds += self._clock() - begun
            if piece is None:
                return
            yield from piece[: self._left]
            self._left -= min(self._left, len(piece))


class _Spans:
    """Reads every `_EVERY`-th frame, segment by segment."""

    def __init__(self, program: Program, chain: Chain) -> None:
        self._program, self._chain = program, chain
        self._first: list[NDArray[np.float64]] = []  # histograms of the film's first frame
        self._open: list[tuple[int, Pixels]] = []
        self._segment = self._number = 0
        self._found: list[dict[str, Any]] = []
        self.backgrounds: list[tuple[int, tuple[float, float, float]]] = []

    def watch(self, frames: _Making) -> Iterator[Pixels]:
        for pixels_HWC in frames:
            segment, _ = locate(self._chain, self._number)
            if segment != self._segment:
                self.close()
                self._segment = segment
            if self._number % _EVERY == 0:
                self._open.append((self._number, pixels_HWC))
            self._number += 1
            yield pixels_HWC

    def close(self) -> None:
        """Reads the segment that ends here."""
        if not self._open:
            return
        numbers, frames = zip(*self._open, strict=True)
        frames_FHWC, self._open = np.stack(frames), []
        behind = read_backgrounds(frames_FHWC)
        self.backgrounds += ((n, one.rgb) for n, one in zip(numbers, behind, strict=True))
        self._found.append(self._read(frames_FHWC, behind))

    def records(self) -> list[dict[str, Any]]:
        """Of each segment, its drift from the first segment included."""
        return [found | _drift(self._found[0], found) for found in self._found]

    def _read(self, frames_FHWC: Pixels, behind: Sequence[Backdrop]) -> dict[str, Any]:
        reading = classify(frames_FHWC)
        areas = [area for area in reading.areas if area]
        hue = None if math.isnan(reading.hue_deg) else reading.hue_deg
        lumas, l1s = [], []
        for frame_HWC in frames_FHWC:
            planes = planes_of(sampled(frame_HWC[None]))
            lumas.append(np.array(_LUMA) @ planes / 255)
            hues_deg, _ = hues_of(planes)
            histograms = [histogram_of(hues_deg, bins) for bins in (COARSE_BINS, FINE_BINS)]
            self._first = self._first or histograms
            l1s.append([compared(*pair) for pair in zip(self._first, histograms, strict=True)])
        (coarse, _), (fine, correlation) = np.mean(l1s, axis=0)
        return {
            "object_lost": 0.0 if reading.one_object else 1.0,
            "shape_wrong": 0.0 if reading.shape == self._program.shape else 1.0,
            "object_hue_deg": hue,
            "caption_hue_error_deg": None if hue is None else outside(hue, self._program.hue_bin),
            "object_area": float(np.median(areas)) if areas else None,
            "background_hue_deg": _circular_mean([one.hue for one in behind]),
            "background_rgb": np.mean([one.rgb for one in behind], axis=0).tolist(),
            "hue_l1_18": float(coarse),
            "hue_l1_180": float(fine),
            "hue_decorrelation": 1.0 - float(correlation),
            "brightness": float(np.mean(lumas)),
            "contrast": float(np.mean([luma.std() for luma in lumas])),
        }


def outside(hue_deg: float, hue_bin: str) -> float:
    """How far a hue is from the arc that a word names, in degrees; 0 inside."""
    low, high = HUE_BINS[hue_bin]
    past = (hue_deg - low) % 360.0
    return 0.0 if past < high - low else min(past - (high - low), 360.0 - past)


def _drift(first: dict[str, Any], here: dict[str, Any]) -> dict[str, float | None]:
    """What a segment's numbers are from those of the first, without signs but for the ratio."""
    area, start = here["object_area"], first["object_area"]
    ratio = area / start if area and start else None
    found = {
        name.replace("_deg", "_drift_deg"): turn(first[name], here[name])
        for name in ("object_hue_deg", "background_hue_deg")
    }
    found |= {f"{name}_drift": here[name] - first[name] for name in ("brightness", "contrast")}
    found["size_drift"] = math.log(ratio) if ratio else None
    found["background_drift"] = math.dist(first["background_rgb"], here["background_rgb"])
    absolute = {n: None if value is None else abs(value) for n, value in found.items()}
    return absolute | {"size_ratio": ratio}


def _at_joints(metrics: FilmMetrics, at: dict[str, list[int]]) -> dict[str, float | None]:
    """Means over the joints of each kind."""
    found: dict[str, float | None] = {}
    for kind, frames in at.items():
        own = [joint for joint in metrics.joints if joint.frame in frames]
        jumps = [joint.jump_ratio for joint in own if joint.jump_ratio is not None]
        found[f"{kind}_jump_ratio"] = _mean(jumps)
        found[f"{kind}_hue_l1"] = _mean([joint.hue_l1 for joint in own])
        found[f"{kind}_hue_decorrelation"] = _mean([1.0 - j.hue_correlation for j in own])
    return found


def _circular_mean(degrees: Sequence[float | None]) -> float | None:
    known = [angle for angle in degrees if angle is not None]
    mean = complex(np.exp(1j * np.radians(known)).mean()) if known else 0j
    return math.degrees(math.atan2(mean.imag, mean.real)) % 360 if abs(mean) > 0.1 else None


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
