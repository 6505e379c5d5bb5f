"""The page of a report: whole, safe, escaped; and opened in a browser where there is one."""

from __future__ import annotations

import base64
import io
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmpl.errors import InputError
from mmpl.media.charts import Bar, Curve
from mmpl.media.image import read_image, write_png
from mmpl.media.report import Picture, Report, data_uri, inline_picture, link, report_html
from mmpl.media.video import VideoWriter
from tests.page import read_page

EVIL = "<script>alert('x')</script> & \"quotes\" </style></title> http://example.org"


def report() -> Report:
    pixels = np.zeros((8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    source = data_uri(file.getvalue(), "image/png")
    stills = [Picture(f"0:0{n}.00", source, f"keyframes/{n}.png") for n in range(3)]
    return Report(
        facts=["5.06 s", "64 × 64"],
        script=[("0:00.00", "a red circle"), ("0:05.06", "a blue square")],
        film_source=data_uri(b"no film", "video/mp4"),
        film_link="../film.mp4",
        stills=[("segment 1 of 2", stills[:2]), ("segment 2 of 2", stills[2:])],
        gantt=[("rank 0", [Bar("plan", "init", 1, 0.0, 1.0), Bar("decode", "", 1, 1.0, 2.5)])],
        gantt_note="Measured.",
        drift=[Curve("Hue", "36 bins", [0.0, 0.4], 0.0, 0.2), Curve("Y", "", [0.5, 0.6], 0.5, 0.1)],
        drift_note="Beside the start.",
        tables={"settings": {"seed": 7, "cut": ""}, "versions": {"mmpl": "1"}},
        command="mmpl-gen --prompt 'a red circle'",
        version="1.2.3",
    )


def test_the_page_is_whole() -> None:
    page = read_page(report_html(report()))
    assert page.texts["title"][0] == "a red circle"
    assert page.texts["h1"] == ["a red circle"]
    assert page.texts["li"] == ["5.06 s", "64 × 64"]
    assert page.texts["time"] == ["0:00.00", "0:05.06"]
    assert page.count("video") == 1
    assert page.count("figure") == page.count("img") == 3
    assert page.data["video/mp4"] == [b"no film"]
    assert len(page.data["image/png"]) == 3
    assert page.links == ["../film.mp4", "keyframes/0.png", "keyframes/1.png", "keyframes/2.png"]
    assert len(page.svgs) == 3
    assert page.texts["code"] == ["mmpl-gen --prompt 'a red circle'"]
    assert page.texts["td"] == ["7", "–", "1"]
    assert page.texts["small"] == ["+0.100"]  # of the second curve; the first starts from nothing
    assert page.texts["b"] == ["1 s", "0 s", "0 s", "1.5 s"]
    assert "1.2.3" in page.texts["footer"][0]


def test_what_users_give_is_text() -> None:
    evil = replace(
        report(),
        facts=[EVIL],
        script=[(EVIL, EVIL), (EVIL, EVIL)],
        film_link=link(f"/tmp/{EVIL}.mp4", "/tmp/x"),
        film_source=link('/tmp/"onerror=alert(1) javascript:.mp4', "/tmp"),
        stills=[(EVIL, [Picture(EVIL, "keyframes/a.png", "keyframes/a.png")])],
        gantt=[(EVIL, [Bar("plan", EVIL, 1, 0.0, 1.0)])],
        gantt_note=EVIL,
        drift=[Curve(EVIL, EVIL, [0.1], 0.2, 0.1)],
        drift_note=EVIL,
        tables={EVIL: {EVIL: EVIL}},
        command=EVIL,
        version=EVIL,
    )
    text = report_html(evil)
    page = read_page(text)
    assert page.texts["h1"] == [EVIL]
    assert page.texts["code"] == [EVIL]
    assert "<script" not in text
    assert page.texts["td"] == page.texts["th"] == [EVIL]


def test_a_long_prompt_is_cut_in_the_heading_and_there_in_full() -> None:
    prompt = "word " * 200
    page = read_page(report_html(replace(report(), script=[("0:00.00", prompt)])))
    assert len(page.texts["h1"][0]) <= 160
    assert len(page.texts["title"][0]) <= 80
    assert prompt in page.texts["p"]
    short = read_page(report_html(replace(report(), script=[("0:00.00", "short")])))
    assert short.count("details") == 0
    assert short.count("ol") == 0


def test_what_is_not_known_is_left_out() -> None:
    bare = replace(report(), stills=[], gantt=[("rank 0", [])], drift=[], tables={}, facts=[])
    page = read_page(report_html(bare))
    assert page.texts["h2"] == ["Script", "The same film again"]
    assert page.svgs == []


def test_small_pictures_are_taken_as_they_are(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.full((16, 16, 3), 77, np.uint8))
    assert inline_picture(tmp_path / "a.png") == data_uri(
        (tmp_path / "a.png").read_bytes(), "image/png"
    )


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (480, 832, 3), dtype=np.uint8)
    noise[:, :416] = (200, 30, 30)
    write_png(tmp_path / "a.png", noise)
    head, _, body = inline_picture(tmp_path / "a.png").partition(",")
    assert head == "data:image/jpeg;base64"
    data = base64.b64decode(body)
    assert len(data) < (tmp_path / "a.png").stat().st_size / 4
    (tmp_path / "b.jpg").write_bytes(data)
    small = read_image(tmp_path / "b.jpg")
    assert small.shape == (277, 480, 3)
    assert np.abs(small[:, :200].astype(int) - (200, 30, 30)).mean() < 4


def test_a_damaged_picture_is_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.full((16, 16, 3), 77, np.uint8))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-20])
    with pytest.raises(InputError):
        inline_picture(tmp_path / "a.png")


def test_links(tmp_path: Path) -> None:
    assert link("/a/film.mp4", "/a/film.mp4.job") == "../film.mp4"
    assert link("/a/javascript:x #?%.mp4", "/a") == "javascript%3Ax%20%23%3F%25.mp4"
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "job").symlink_to(tmp_path / "real" / "deep")
    assert link(tmp_path / "film.mp4", tmp_path / "job") == "../../film.mp4"


# ------------------------------------------------------------------------- in a browser

BROWSERS = ("chromium", "google-chrome", "chromium-browser", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_it(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "film.mp4", 64, 64, 16) as writer:
        writer.write(np.full((16, 64, 64, 3), (200, 40, 40), np.uint8))
    film = data_uri((tmp_path / "film.mp4").read_bytes(), "video/mp4")
    page = report_html(replace(report(), film_source=film)).encode()
    # As an address: some browsers may not read files everywhere.
    address = f"data:text/html;base64,{base64.b64encode(page).decode()}"
    shown = browse(tmp_path, "--dump-dom", address)
    assert "<h1>a red circle</h1>" in shown
    assert shown.count("<figure>") == 3
    assert shown.count("</svg>") == 3
    picture = tmp_path / "page.png"
    browse(tmp_path, "--window-size=1100,2000", f"--screenshot={picture}", address)
    if not picture.exists():
        pytest.skip("this browser may not write there")
    pixels = read_image(picture).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 50
    for colour in ((0x5B, 0x7C, 0xFA), (0x6F, 0x8B, 0xFF)):  # the bar of the plan, light or dark
        if (pixels == colour).all(1).sum() > 500:
            break
    else:
        pytest.fail("the chart is not to be seen")


def browse(folder: Path, *words: str) -> str:
    assert BROWSER is not None
    flags = ["--headless", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder / 'user'}"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")
    return subprocess.run(
        [BROWSER, *flags, *words], capture_output=True, text=True, check=True, timeout=120
    ).stdout
