"""What a film takes on the disk, against what it took; and a disk without that room is refused."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mmpl.checkpoint.defaults import Defaults
from mmpl.errors import OutputError
from mmpl.film.settings import Film, Request, resolve
from mmpl.film.space import latent_bytes, video_bytes
from mmpl.generate import Store, film_of, generate, job_of
from mmpl.layout.work import plan_work
from mmpl.media.durable import require_space
from tests.small import CHANNELS, small_model

SHAPE = (16, 60, 104)  # of Wan2.1 at 832x480


def wan_film(duration_s: float) -> Film:
    request = Request("a cat", 1, duration_s=duration_s, width=832, height=480, fps=16)
    return resolve(request, Defaults(), temporal_stride=4, pixel_step=16)


def test_a_minute_of_the_large_model() -> None:
    work = wan_film(60).work
    taken = latent_bytes(work, SHAPE)
    assert work.segments == 13
    assert 100e6 < taken < 110e6 < 200e6
    assert 0.3 * taken < latent_bytes(plan_work(work), SHAPE) < 0.6 * taken


@pytest.mark.parametrize("request_", [Request("red", 1, frames=9), Request("red", 1, segments=2)])
def test_a_job_folder_takes_what_was_said(tmp_path: Path, request_: Request) -> None:
    model = small_model()
    film = film_of(model, replace(request_, steps=1))
    store = Store(tmp_path, job_of(model, film))
    for event in generate(model, replace(request_, steps=1), store=store):
        assert event
    files = {path.name: path.stat().st_size for path in tmp_path.glob("segment*")}
    shape = (CHANNELS, film.height // 8, film.width // 8)
    said = latent_bytes(film.work, shape)
    assert 0 <= sum(files.values()) - said < 512 * len(files)  # their headers
    assert latent_bytes(film.work, shape, files) == 0
    first = next(iter(files))
    rest = latent_bytes(film.work, shape, [first])
    assert 0 <= files[first] - (said - rest) < 512


def test_a_video_may_have_more_than_it_must() -> None:
    least, many = video_bytes(wan_film(60))
    assert 10_000 < least < many < 20e6


def test_disks_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    other = tmp_path / "other"
    other.mkdir()
    require_space({tmp_path: 1000})
    require_space({tmp_path: 500, other: 500})
    with pytest.raises(
        OutputError, match=r"not enough room; got 1,000 bytes free; wanted 5,000,000 bytes"
    ):
        require_space({tmp_path: 5_000_000})
    with pytest.raises(OutputError):
        require_space({tmp_path: 500, other: 501})
    device = os.stat(other).st_dev
    real = os.stat

    def stat(path: Path) -> os.stat_result:
        found = real(path)
        return os.stat_result((*found[:2], device + (path == other), *found[3:10]))

    monkeypatch.setattr(os, "stat", stat)
    require_space({tmp_path: 900, other: 900})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0, total=0))
    require_space({tmp_path: 900})
