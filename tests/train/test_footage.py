"""Folders and indexes of captioned videos, what is wrong with them, and the clips cut from them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpl.errors import InputError
from mmpl.train.footage import (
    Captions,
    Cut,
    Footage,
    ahead,
    find_footage,
    refusal,
)
from tests.media import corpus
from tests.train.videos import SIDE, greys, numbers, write_video

CUT = Cut(frames=9, width=SIDE, height=SIDE, fps=16)


def files(root: Path, contents: Mapping[str, str | bytes]) -> Path:
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def found(data: Path) -> tuple[dict[str, Captions], dict[str, str]]:
    footage, refused = find_footage(data)
    return {one.name: one.captions for one in footage}, {one.name: one.reason for one in refused}


def film(path: Path) -> Footage:
    return Footage(path, path.name, Captions("a"), 0)


# ---------------------------------------------------------------------------------- what there is


def test_a_folder(tmp_path: Path) -> None:
    structured = {"short_caption": " A cat. ", "dense_caption": "A cat sits.", "tags": ["x"]}
    root = files(
        tmp_path,
        {
            "b.MP4": b"?",
            "b.txt": "\ufeffa red circle\nmoves right\n",
            "a.mkv": b"?",
            "a.json": json.dumps(structured),
            "a.txt": "passed over",
            "below/c.v2.webm": b"?",
            "below/c.v2.TXT": "ein Kreis, größer",
            "below/d.mov": b"?",
            "below/d.json": '{"short_caption": "A dog."}',
            "notes.md": "neither",
            ".hidden.mp4": b"?",
            ".hidden/e.mp4": b"?",
            "shards/encoded.json": "{}",
            "shards/e.mp4": b"?",
        },
    )
    captions, refused = found(root)
    assert captions == {
        "a.mkv": Captions("A cat sits.", "A cat."),
        "b.MP4": Captions("a red circle\nmoves right"),
        "below/c.v2.webm": Captions("ein Kreis, größer"),
        "below/d.mov": Captions("", "A dog."),
    }
    assert list(captions) == sorted(captions)
    assert refused == {}


def test_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    bad = {
        "no-caption": (None, None, "a video without a caption"),
        "empty": ("txt", "", "its caption, empty.txt: the file is empty"),
        "blank": ("txt", " \n\t", "its caption, blank.txt: the caption is empty"),
        "latin": ("txt", b"\xe9t\xe9", "its caption, latin.txt: not a UTF-8 text"),
        "long": ("txt", "a" * (1 << 20) + "b", "its caption, long.txt: the file is too large"),
        "cut": ("json", '{"dense_caption": "a', "its caption, cut.json: not a JSON object"),
        "deep": ("json", "[" * 100_000, "its caption, deep.json: not a JSON object"),
        "list": ("json", '["a"]', "its caption, list.json: not a JSON object"),
        "none": ("json", '{"tags": "a"}', "its caption, none.json: the caption is empty"),
        "number": ("json", '{"caption": 7}', "its caption, number.json: caption is not text"),
        "half": ("json", '{"caption": "\\ud83d"}', "its caption, half.json: caption is not text"),
    }
    contents: dict[str, str | bytes] = {"good.mp4": b"?", "good.txt": "a"}
    for name, (suffix, content, _) in bad.items():
        contents[f"{name}.mp4"] = b"?"
        if content is not None:
            contents[f"{name}.{suffix}"] = content
    contents |= {"alone.txt": "a", "below/alone.json": "{}"}
    captions, refused = found(files(tmp_path, contents))
    assert list(captions) == ["good.mp4"]
    for name, (_, _, reason) in bad.items():
        assert refused.pop(f"{name}.mp4").startswith(reason)
    assert refused == {
        "alone.txt": "a caption without a video",
        "below/alone.json": "a caption without a video",
    }


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_an_index(tmp_path: Path, suffix: str) -> None:
    root = files(
        tmp_path / "data",
        {**dict.fromkeys(("a.mp4", "b/b.mkv", "c, d.mp4", "text.txt"), b"?"), "e.webm": b"?"},
    )
    files(tmp_path, {"secret.mp4": b"?"})
    (root / "way.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "out").symlink_to(tmp_path)
    (root / "link.mp4").symlink_to(root / "a.mp4")
    rows = [
        ("e.webm", "eins", "E."),
        ("b/b.mkv", 'a "blue" star,\nstill', ""),
        ("c, d.mp4", "", "C."),
        (str(root / "a.mp4"), "in full", ""),
        ("link.mp4", "a link within", ""),
        ("b/../a.mp4", "a detour within", ""),
        ("../secret.mp4", "a", ""),
        (str(tmp_path / "secret.mp4"), "a", ""),
        ("way.mp4", "a", ""),
        ("out/secret.mp4", "a", ""),
        ("missing.mp4", "a", ""),
        ("text.txt", "a", ""),
        ("a.mp4", "  ", ""),
        ("", "a", ""),
        ("nul\0.mp4" if suffix == "jsonl" else "~.mp4", "a", ""),
    ]
    if suffix == "csv":
        quoted = (",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)
        text = "\n".join(["\ufefffile_path,text,short_caption", *quoted, "a.mp4"])
    else:
        entries = ({"path": path, "caption": c, "short_caption": s} for path, c, s in rows)
        text = "\r\n\r\n".join([*map(json.dumps, entries), "{", "[]", ""])
    captions, refused = found(files(root, {f"index.{suffix}": text}) / f"index.{suffix}")
    assert captions == {
        "e.webm": Captions("eins", "E."),
        "b/b.mkv": Captions('a "blue" star,\nstill'),
        "c, d.mp4": Captions("", "C."),
        str(root / "a.mp4"): Captions("in full"),
        "link.mp4": Captions("a link within"),
        "b/../a.mp4": Captions("a detour within"),
    }
    outside = "outside the folder of the index; no path or link may lead out of it"
    for name in ("../secret.mp4", str(tmp_path / "secret.mp4"), "way.mp4", "out/secret.mp4"):
        assert refused.pop(name) == outside
    assert refused.pop("missing.mp4") == "a caption without a video: no such file"
    assert refused.pop("text.txt").startswith("not a video; wanted .mp4")
    assert refused.pop("a.mp4").startswith("the caption is empty")
    lines = {name: reason for name, reason in refused.items() if name.startswith("line ")}
    reasons = ["no path of a video; wanted video or path or file_path"]
    reasons += ["not a JSON object"] * 2 if suffix == "jsonl" else []
    assert list(lines.values()) == reasons
    assert set(refused) - set(lines) == ({"nul\0.mp4"} if suffix == "jsonl" else {"~.mp4"})


REFUSED_DATA: list[tuple[str, dict[str, str | bytes], str]] = [
    ("missing", {}, "missing: no such data"),
    ("a.mp4", {"a.mp4": b"?"}, "a.mp4: not data to learn from; wanted a folder of videos"),
    ("d", {"d/notes.md": "a"}, "d: no video with a caption; got nothing"),
    ("d", {"d/a.mp4": b"?"}, "got 1 refused: a.mp4: a video without a caption"),
    ("i.csv", {"i.csv": ""}, "i.csv: the file is empty"),
    ("i.csv", {"i.csv": "name,text\na.mp4,a"}, "i.csv: no column of paths; got 'name,text'"),
    ("i.csv", {"i.csv": "video,words\na.mp4,a"}, "i.csv: no column of captions"),
    ("i.csv", {"i.csv": "video,text\n"}, "i.csv: no video with a caption; got nothing"),
    (
        "i.csv",
        {"i.csv": "video,text\na.mp4," + "a" * 200_000},
        "i.csv, after line 1: not a CSV file",
    ),
    ("i.jsonl", {"i.jsonl": b"\xff\xfe"}, "i.jsonl: not a UTF-8 text"),
    ("i.jsonl", {"i.jsonl": "text\n"}, "got 1 refused: line 1: not a JSON object"),
]


@pytest.mark.parametrize(("data", "contents", "words"), REFUSED_DATA)
def test_nothing_is_left(
    tmp_path: Path, data: str, contents: dict[str, str | bytes], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        find_footage(files(tmp_path, contents) / data)
    assert words in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_closed_folder_is_told(tmp_path: Path) -> None:
    root = files(tmp_path, {"a.mp4": b"?", "a.txt": "a", "closed/b.mp4": b"?"})
    (root / "closed").chmod(0)
    try:
        assert found(root)[1] == {"closed": "cannot read: Permission denied"}
    finally:
        (root / "closed").chmod(0o700)


# -------------------------------------------------------------------------------- clips of videos


def uneven() -> list[int]:
    """Times in 1/600 s of 40 frames, from 1/100 to 3/20 s apart."""
    gaps = np.random.default_rng(0).integers(6, 90, 39)
    return [0, *np.cumsum(gaps).tolist()]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("unit", "times"),
    [
        (Fraction(1, 30), range(40)),
        (Fraction(1, 12), range(30)),
        (Fraction(1, 16), range(30)),
        (Fraction(1001, 30000), range(40)),
        (Fraction(1, 600), uneven()),
    ],
    ids=["30", "12", "16", "ntsc", "variable"],
)
def test_frames_are_those_shown_at_their_times(
    tmp_path: Path, suffix: str, unit: Fraction, times: range | list[int]
) -> None:
    """Clip frame n shows what the video shows n / 16 s after its beginning."""
    path = write_video(tmp_path / f"a.{suffix}", greys(len(times)), unit=unit, times=list(times))
    cut = Cut(frames=5, width=SIDE, height=SIDE, fps=16, clips_per_video=3)
    starts = film(path).starts(cut)
    assert len(starts) == 3
    for start, pixels_FHWC in zip(starts, film(path).pixels(cut, starts), strict=True):
        moments = [Fraction(start + n, 16) + Fraction(1, 1000) for n in range(cut.frames)]
        shown = [max(i for i, t in enumerate(times) if t * unit <= now) for now in moments]
        assert numbers(pixels_FHWC) == shown


@pytest.mark.parametrize("across", [True, False])
def test_the_middle_is_kept_and_nothing_is_distorted(tmp_path: Path, across: bool) -> None:
    """Of three stripes, the film's shape shows the middle one, scaled to half its size."""
    wide = np.zeros((9, 64, 192, 3), np.uint8)
    for stripe, colour in enumerate(((220, 0, 0), (0, 200, 0), (0, 0, 220))):
        wide[:, :, 64 * stripe : 64 * (stripe + 1)] = colour
    wide[:, 16:48, 80:112] = 255  # a square in the middle of the middle one
    pictures = wide if across else np.ascontiguousarray(wide.swapaxes(1, 2))
    path = write_video(tmp_path / "a.mp4", pictures)
    (pixels_FHWC,) = film(path).pixels(CUT, [0])
    assert pixels_FHWC.shape == (9, SIDE, SIDE, 3)
    assert pixels_FHWC.dtype == np.uint8
    red, green, blue = pixels_FHWC[4].astype(int).transpose(2, 0, 1)
    white = (red > 128) & (blue > 128)
    inside = np.zeros((SIDE, SIDE), bool)
    inside[8:24, 8:24] = True
    assert (white == inside).mean() > 0.97
    assert green[2:-2, 2:-2].min() > 150
    assert red[:6, 3:-3].max() < 60
    assert blue[:6, 3:-3].max() < 60


@given(st.integers(0, 400), st.integers(1, 30), st.integers(1, 12))
def test_clips_are_evenly_spread(total: int, frames: int, most: int) -> None:
    starts = Cut(frames, 8, 8, 16, most).starts(total)
    assert len(starts) == min(most, total // frames)
    ends = [0, *(start + frames for start in starts)]
    gaps = [start - end for end, start in zip(ends, [*starts, total])]
    assert min(gaps) >= 0 or not starts
    assert max(gaps) - min(gaps) <= 1


BAD_VIDEOS = {
    "sound": (corpus.sound(), "no video in this file"),
    "words": (corpus.subtitles(), "no video in this file"),
    "garbage": (b"no video at all", "not a video this program reads, or damaged"),
    "empty": (b"", "the file is empty"),
    "cut": (corpus.Video(frames=8).encode()[:-40], "the video is cut short"),
    "short": (corpus.Video(frames=8).encode(), "the video is too short; got 8 frames at 16 fps"),
}


@pytest.mark.parametrize("name", BAD_VIDEOS)
def test_bad_videos(tmp_path: Path, name: str) -> None:
    content, reason = BAD_VIDEOS[name]
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        film(path).starts(CUT)
    told = refusal("a.mp4", caught.value)
    assert told.reason.startswith(reason)
    assert str(tmp_path) not in told.reason


def test_a_video_that_became_shorter_meanwhile(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", greys(12))
    with pytest.raises(InputError, match="too short"):
        list(film(path).pixels(CUT, [4]))


# -------------------------------------------------------------------------------------- ahead


def test_results_come_in_order_and_no_more_than_asked_are_made_ahead() -> None:
    begun: list[int] = []
    gate = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 0:
            gate.wait(10)  # the others overtake it
        return item * item

    results = ahead(work, range(20), workers=3)
    threading.Timer(0.05, gate.set).start()
    assert next(results) == 0
    assert set(begun) <= {0, 1, 2, 3}
    assert list(results) == [number * number for number in range(1, 20)]


def test_an_error_ends_the_work() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    def items() -> Iterator[int]:
        yield from range(5)
        raise AssertionError("never asked for")

    results = ahead(work, items(), workers=1)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
