"""Files as they come from the world that hold what was drawn into them, read as that."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from mmpl.media import source
from mmpl.media.clip import read_end
from mmpl.media.image import read_image
from tests.media.corpus import (
    HEIGHT,
    WIDTH,
    Video,
    differ,
    drawn,
    exif,
    jpeg,
    motion_jpeg,
    stored,
)
from tests.media.good_files import EIGHT, STILLS, TURNED, UNEVEN, VIDEOS, read_both


@pytest.mark.parametrize("name", STILLS)
def test_a_good_still_shows_what_was_drawn(tmp_path: Path, name: str):
    make, wanted, level = STILLS[name]
    path = tmp_path / "still.txt"  # names mean nothing
    path.write_bytes(make())
    assert differ(read_image(path), wanted()) <= level


@pytest.mark.parametrize(
    ("video", "fps", "varies"),
    [
        (Video(), (16, 16), False),
        (Video("matroska", unit=Fraction(1, 30)), (29, 31), False),  # in milliseconds
        (Video(unit=Fraction(1, 100), times=(0, 10, 20, 24, 34, 44, 54, 64)), (10, 25), True),
        (Video(frames=1), None, False),
    ],
)
def test_how_a_file_is_paced(
    tmp_path: Path, video: Video, fps: tuple[float, float] | None, varies: bool
):
    path = tmp_path / "video"
    path.write_bytes(video.encode())
    pace = read_end(path, 5, fps=16, width=WIDTH, height=HEIGHT, fit="cover").pace
    assert pace.varies is varies
    if fps is None:
        assert pace.longest == 0
    else:
        assert fps[0] <= 1 / pace.longest <= 1 / pace.shortest <= fps[1]


@pytest.mark.parametrize("name", VIDEOS)
def test_a_good_video_shows_what_was_drawn(tmp_path: Path, name: str):
    video, fps, numbers = VIDEOS[name]
    path = tmp_path / "video.txt"
    path.write_bytes(video.encode())
    wanted = [drawn(number, *video.size) for number in numbers]
    frames = read_both(path, fps, wanted[0])
    assert len(frames) == len(wanted)
    assert max(map(differ, frames, wanted)) <= 16 + 4 * (video.codec == "libvpx")


@pytest.mark.parametrize("name", TURNED)
def test_a_video_is_seen_upright_and_undistorted(tmp_path: Path, name: str):
    video, seen = TURNED[name]
    path = tmp_path / "video"
    path.write_bytes(video.encode())
    wanted = [seen(drawn(number)) for number in EIGHT]
    assert max(map(differ, read_both(path, 16, wanted[0]), wanted)) <= 16


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize("fps", [7, 16, 30])
def test_uneven_times_are_kept(tmp_path: Path, container: str, fps: int):
    """By the words of the promise: the last frame that has begun by n / fps."""
    path, unit = tmp_path / "video", Fraction(1, 600)
    path.write_bytes(Video(container, unit=unit, times=UNEVEN).encode())
    frames = read_both(path, fps, drawn())
    begun = [
        max(
            i
            for i, time in enumerate(UNEVEN)
            if time * unit <= Fraction(n, fps) + Fraction(1, 1000)
        )
        for n in range(len(frames))
    ]
    assert max(map(differ, frames, map(drawn, begun))) <= 16
    assert len(frames) == fps + 1  # the next would be behind the end, at about 611 / 600


def test_frames_without_times_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, decode = tmp_path / "video", source.decode
    path.write_bytes(Video().encode())

    def untimed(*arguments: Any) -> Iterator[av.VideoFrame]:
        for number, frame in enumerate(decode(*arguments)):
            if number not in (3, 4):
                frame.pts = None
            yield frame

    monkeypatch.setattr(source, "decode", untimed)
    assert list(map(differ, read_both(path, 16, drawn()), map(drawn, EIGHT))) < [16] * 8


def test_pictures_of_several_sizes_and_turns(tmp_path: Path):
    """Each by itself; PyAV fails to list what belongs to a frame with EXIF data."""
    path = tmp_path / "video"
    path.write_bytes(
        motion_jpeg(
            [
                jpeg(subsampling=0),
                jpeg(Image.fromarray(drawn(3, 64, 32)), subsampling=0),
                jpeg(Image.fromarray(stored(6)), exif=exif(6), subsampling=0),
                jpeg(Image.fromarray(stored(3)), exif=exif(3), subsampling=0),
            ]
        )
    )
    wanted = [drawn(number) for number in (0, 3, 0, 0)]
    assert max(map(differ, read_both(path, 16, drawn()), wanted)) <= 4


def test_fewer_frames_than_asked_for(tmp_path: Path):
    path = tmp_path / "video"
    path.write_bytes(Video(frames=2).encode())
    assert len(read_both(path, 16, drawn(), last=5)) == 2
