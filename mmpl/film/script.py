"""What a film shows when: prompts that change with time, and hard cuts.

A script is text, one cue a line: `10s: a blue square`, or `#3: a blue square` for the third
segment. Text without such marks is one prompt for the whole film. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmpl.errors import ArgumentError
from mmpl.layout.timeline import Chain, kept_frames, segments_for

_MARK = re.compile(
    r"\s*(?:#(?P<segment>\d{1,7})|(?P<time>(?=\d)(?:\d+h)?(?:\d+m)?(?:[\d.]+s)?)):\s*"
)
_TIME = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?|\.\d+)s)?")
_WANTED = "a time as in 10s or 1m30s, or a segment as in #3"


@dataclass(frozen=True, slots=True)
class Cue:
    """From `segment` on, which counts from 0, the film shows `prompt`."""

    segment: int
    prompt: str


def joined(prompts: Sequence[str]) -> str:
    """Several prompts as one script: those without a mark are for one segment each, in order."""
    if len(prompts) == 1:
        return prompts[0]
    if any(_MARK.match(prompt) for prompt in prompts):
        return "\n".join(prompts)
    return "\n".join(
        f"#{number}: {' '.join(prompt.split())}" for number, prompt in enumerate(prompts, 1)
    )


def read_script(text: str, chain: Chain, frames: int, fps: int) -> tuple[Cue, ...]:
    """The cues of a script for a film of `frames` pixel frames, from the first segment on.

    A time means the segment that begins to be shown nearest to it. Raises ArgumentError for an
    empty prompt, a time outside the film, two cues for one segment, or none for the first.
    """
    if not text.strip():
        raise ArgumentError("the prompt is empty", todo="say what the film shows")
    lines = text.splitlines()
    if not any(_MARK.match(line) for line in lines):
        return (Cue(0, text),)
    cues: dict[int, str] = {}
    for line in filter(str.strip, lines):
        mark = _MARK.match(line)
        segment = 0
        if mark is not None:
            segment = _segment(mark.group().strip().rstrip(":"), chain, frames, fps)
        prompt = line[mark.end() :] if mark is not None else line
        if segment in cues:
            raise ArgumentError(
                f"two prompts for segment {segment + 1}",
                got=line[:60],
                wanted=f"prompts that are a segment apart: {chain.step / fps:g} s",
            )
        if not prompt.strip():
            raise ArgumentError("a prompt is empty", got=line[:60], todo="say what the film shows")
        cues[segment] = prompt
    if 0 not in cues:
        raise ArgumentError(
            "the film has no prompt at its start", got=lines[0][:60], wanted='one at "0s: ..."'
        )
    return tuple(Cue(segment, cues[segment]) for segment in sorted(cues))


def script_text(cues: Sequence[Cue]) -> str:
    """The script of these cues: `read_script` gives them again for any film of their length."""
    if len(cues) == 1:
        return cues[0].prompt
    return "\n".join(f"#{cue.segment + 1}: {cue.prompt}" for cue in cues)


def read_cuts(text: str, chain: Chain, frames: int, fps: int) -> tuple[int, ...]:
    """The segments that begin with a hard cut, of times or segments with commas between.

    Raises ArgumentError; the first segment cannot be one, for nothing is before it.
    """
    cuts = {_segment(word.strip(), chain, frames, fps) for word in text.split(",") if word.strip()}
    if 0 in cuts:
        raise ArgumentError(
            "a cut at the start of the film", got=text[:60], wanted="later segments"
        )
    return tuple(sorted(cuts))


def cuts_text(cuts: Sequence[int]) -> str:
    return ",".join(f"#{segment + 1}" for segment in cuts)


def read_seeds(text: str, chain: Chain, frames: int, fps: int) -> tuple[tuple[int, int], ...]:
    """(segment, seed) of `#3:77,#5:8`, segments or times with their own seeds. Raises
    ArgumentError."""
    seeds: dict[int, int] = {}
    for word in filter(str.strip, text.split(",")):
        mark, colon, seed = word.strip().rpartition(":")
        if not (colon and seed.strip().isdigit()):
            raise ArgumentError("not the seed of a segment", got=word[:60], wanted="#3:77")
        seeds[_segment(mark.strip(), chain, frames, fps)] = int(seed)
    return tuple(sorted(seeds.items()))


def seeds_text(seeds: Sequence[tuple[int, int]]) -> str:
    return ",".join(f"#{segment + 1}:{seed}" for segment, seed in seeds)


def start_s(segment: int, chain: Chain, frames: int, fps: int) -> float:
    """When a film begins to show a segment, in seconds."""
    return (chain.step * segment + kept_frames(chain, segment, frames)[0]) / fps


def _segment(mark: str, chain: Chain, frames: int, fps: int) -> int:
    """The segment that a mark means."""
    segments = segments_for(chain, frames)
    if mark.startswith("#") and mark[1:].isdigit():
        number = int(mark[1:])
        if not 1 <= number <= segments:
            raise ArgumentError("no such segment", got=mark, wanted=f"#1 to #{segments}")
        return number - 1
    match = _TIME.fullmatch(mark)
    if not mark or match is None:
        raise ArgumentError("not a time in the film", got=mark[:60], wanted=_WANTED)
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    time_s = 3600 * hours + 60 * minutes + seconds
    if time_s * fps >= frames:
        raise ArgumentError(
            "a time after the end of the film", got=mark, wanted=f"less than {frames / fps:g} s"
        )
    near = min(segments - 1, round(time_s * fps / chain.step))
    around = range(max(0, near - 1), min(segments, near + 2))
    return min(around, key=lambda s: abs(start_s(s, chain, frames, fps) - time_s))
