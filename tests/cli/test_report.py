"""Every film with a job folder leaves a report that is true, and never fails because of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmpl.cli import report
from mmpl.errors import RankError
from mmpl.film.job import REPORT, Revision, revise, start_over
from mmpl.generate import Ranks
from mmpl.layout.work import Task
from mmpl.media.video import read_frames
from tests.cli.conftest import PROMPT, Gen
from tests.page import Page, read_page

FILM = ("--prompt", PROMPT, "--seed", 5, "--num_frames", 100)
JOB = Path("film.mp4.job")


def written() -> Page:
    return read_page((JOB / REPORT).read_text(encoding="utf-8"))


def titles(page: Page, svg: int = 0) -> list[str]:
    return [title.text or "" for title in page.svgs[svg].iter("title")]


def again(err: str) -> str:
    return next(line for line in err.splitlines() if line.startswith("  again")).split(None, 1)[1]


def test_a_film_leaves_its_report(gen: Gen) -> None:
    code, _, err = gen(*FILM)
    assert code == 0, err
    assert f"  report   {JOB / REPORT}\n" in err
    page = written()
    assert page.texts["h1"] == [PROMPT]
    assert page.data["video/mp4"] == [Path("film.mp4").read_bytes()]
    stills = sorted((JOB / "keyframes").glob("*.png"))
    assert len(stills) == 11
    assert page.data["image/png"] == [path.read_bytes() for path in stills]
    assert page.texts["figcaption"][:2] == ["0:00.00", "0:00.25"]
    assert page.texts["h3"][:2] == ["segment 1 of 2", "segment 2 of 2"]
    assert page.links == ["../film.mp4", *(f"keyframes/{path.name}" for path in stills)]
    assert page.texts["code"] == [again(err)]
    done = [title.partition(":")[0] for title in titles(page)]
    assert done[:4] == [
        *("plan (init) of segment 1", "plan (plan) of segment 1", "hand-over of segment 1"),
        "plan (plan) of segment 2",
    ]
    assert sorted(done[4:]) == [
        *("decode of segment 1", "decode of segment 2", "populate (fill_head) of segment 1"),
        *("populate (fill_head) of segment 2", "populate (fill_tail) of segment 1"),
    ]
    for number in (1, 2, 3):
        assert len(titles(page, number)) == 2  # segments
    cells = dict(zip(page.texts["th"], page.texts["td"], strict=True))
    job = json.loads((JOB / "job.json").read_text())
    assert cells["seed"] == "5"
    assert cells["steps"] == str(job["settings"]["steps"])
    assert job["weights"]["vae"] in page.texts["td"]
    assert job["versions"]["torch"] in page.texts["td"]


def test_its_drift_is_that_of_the_film(gen: Gen) -> None:
    assert gen(*FILM)[0] == 0
    frames = read_frames("film.mp4")  # encoded since, so nearly the same
    luma = (frames @ [0.2126, 0.7152, 0.0722]).mean((1, 2)) / 255
    told = [title.split(", start of the film: ") for title in titles(written(), 2)]
    for words, part in zip(told, (luma[:81], luma[81:]), strict=True):
        assert float(words[0].split(": ")[1]) == pytest.approx(part.mean(), abs=0.01)
        assert float(words[1]) == pytest.approx(luma[:16].mean(), abs=0.01)


def test_a_prompt_is_no_markup(gen: Gen) -> None:
    prompt = "<script>alert(1)</script> & <b>red"
    code, _, err = gen("--prompt", prompt, "--seed", 5)
    assert code == 0, err
    assert written().texts["h1"] == [prompt]


def test_a_script_is_shown_with_its_times(gen: Gen) -> None:
    two = ("--prompt", "0s: red", "--prompt", "5s: circle", "--cut", "5s", "--num_frames", 100)
    code, _, err = gen(*two, "--seed", 5)
    assert code == 0, err
    page = written()
    assert page.texts["time"] == ["0:00.00", "0:05.06"]
    assert page.texts["h3"][1] == "segment 2 of 2: circle (cut)"


def test_what_was_finished_before_is_told(gen: Gen) -> None:
    assert gen(*FILM)[0] == 0
    code, _, err = gen("resume", JOB, "--overwrite", plain=True)
    assert code == 0, err
    page = written()
    assert [title.partition(":")[0] for title in titles(page)] == [
        "decode of segment 1",
        "decode of segment 2",
    ]
    assert any("7 of 9 parts were finished before" in text for text in page.texts["p"])


def test_large_films_and_many_stills_are_linked(gen: Gen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "INLINE_FILM", 10)
    monkeypatch.setattr(report, "INLINE_STILLS", 1)
    assert gen(*FILM)[0] == 0
    page = written()
    assert set(page.data) == {"image/png"}
    assert len(page.data["image/png"]) == 1
    assert page.links[:2] == ["../film.mp4", "../film.mp4"]
    assert page.count("img") == 11
    assert all((JOB / target).exists() for target in page.links)


def test_a_report_that_cannot_be_is_no_failure(gen: Gen) -> None:
    (JOB / REPORT).mkdir(parents=True)
    code, out, err = gen(*FILM)
    assert (code, out) == (0, "film.mp4\n"), err
    assert "the film is whole, but there is no report of it" in err
    assert len(read_frames("film.mp4")) == 100


def test_other_pictures_in_the_folder_are_left_alone(gen: Gen) -> None:
    assert gen("plan", *FILM)[0] == 0
    assert not (JOB / REPORT).exists()
    still = (JOB / "keyframes" / "segment_0001.frame_000000.png").read_bytes()
    for name in ("segment_0009.frame_000000", "segment_0001.frame_000999", "segment_mine"):
        (JOB / "keyframes" / f"{name}.png").write_bytes(still)
    code, _, err = gen("resume", JOB, plain=True)
    assert code == 0, err
    assert written().count("figure") == 11


def test_a_folder_that_changes_loses_it(tmp_path: Path) -> None:
    (tmp_path / REPORT).write_text("old")
    start_over(tmp_path)
    assert not (tmp_path / REPORT).exists()
    (tmp_path / REPORT).write_text("old")
    revise(tmp_path, {}, Revision({}, range(0)))
    assert not (tmp_path / REPORT).exists()


def test_on_several_ranks_the_times_of_all_are_there(gen: Gen) -> None:
    code, _, err = gen(*FILM, "--ranks", 2, "--threads", 1)
    assert code == 0, err
    page = written()
    names = [t.text for t in page.svgs[0].iter("text") if t.get("class") == "name"]
    assert names == ["rank 0", "rank 1"]
    done = [title.partition(":")[0] for title in titles(page)]
    assert len(done) == len(set(done)) == 9
    rows = {rect.get("y") for rect in page.svgs[0].iter("rect") if rect.get("class") != "row"}
    assert len(rows) == 2


def test_a_rank_that_is_gone_takes_its_times_along(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise RankError("a rank went away")

    monkeypatch.setattr(report, "gathered", gone)
    own = {Task(0, "decode"): (1.0, 2.0)}
    ranks = Ranks(group=None)  # type: ignore[arg-type]
    assert report._of_all(own, tuple(own), ranks) == [own]


def test_times_of_ranks_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank fills the rows of what it made."""
    tasks = (Task(0, "make", "init"), Task(0, "decode"))
    other = {tasks[0]: (5.0, 6.0)}

    def both(own: np.ndarray, *_: object, **__: object) -> list[object]:
        second = own.clone()  # type: ignore[attr-defined]
        second[0], second[1] = own[1] + 4.0, float("nan")
        return [own, second]

    monkeypatch.setattr(report, "gathered", both)
    first, second = report._of_all({tasks[1]: (1.0, 2.0)}, tasks, Ranks(group=None))  # type: ignore[arg-type]
    assert list(first) == [tasks[1]]
    assert list(second) == list(other)
    start = first[tasks[1]][0]
    assert second[tasks[0]] == pytest.approx((start + 4.0, start + 5.0))
