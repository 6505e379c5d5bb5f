"""Watched while it is made, and made for programs: preview, films of segments, JSON, many films."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmpl.cli import make as make_module
from mmpl.media.video import probe, read_frames
from tests.cli.conftest import DEFAULTS, PROMPT, Gen, write_model
from tests.small import small_model, write_small

FILM = ("--prompt", PROMPT, "--seed", 5, "--num_frames", 100)  # two segments
JOB = Path("film.mp4.job")


def test_a_preview_and_a_film_of_each_segment(gen: Gen) -> None:
    code, _, err = gen(*FILM, "--preview")
    assert code == 0, err
    film = read_frames("film.mp4")
    seen = read_frames(JOB / "preview.mp4")
    assert len(seen) == len(film)
    assert np.abs(seen.astype(int) - film).mean() < 8  # encoded in a hurry
    parts = [read_frames(JOB / f"segment_{n:04d}.mp4") for n in (1, 2)]
    assert [len(part) for part in parts] == [81, 19]
    assert np.abs(np.concatenate(parts).astype(int) - film).mean() < 3


def test_the_preview_is_there_when_the_film_is_not_yet(
    gen: Gen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be watched at the moment at which the first segment is finished."""
    found = []
    see = make_module.Showing.see

    def look(self: make_module.Showing, event: make_module.Frames) -> None:
        see(self, event)
        if event.segment == 0 and (JOB / "segment_0001.mp4").exists():
            found.append((probe("watch.mp4").frames, Path("film.mp4").exists()))

    monkeypatch.setattr(make_module.Showing, "see", look)
    assert gen(*FILM, "--preview", "watch.mp4")[0] == 0
    assert found[0] == (80, False)


@pytest.mark.parametrize("name", ["film.mp4", "none/preview.mp4"])
def test_a_preview_that_cannot_be(gen: Gen, name: str) -> None:
    code, _, err = gen(*FILM, "--preview", name)
    assert code in (2, 4)
    assert err.count("\n") == 1
    assert not Path("film.mp4").exists()


def test_progress_for_programs(gen: Gen) -> None:
    code, out, err = gen(*FILM, "--json-progress")
    assert (code, out) == (0, "film.mp4\n")
    events = [json.loads(line) for line in err.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[-1] == "finished"
    assert kinds.index("started") < kinds.index("progress") < kinds.index("storyboard")
    segments = [event for event in events if event["event"] == "segment"]
    assert [(e["segment"], e["first_frame"], e["frames"]) for e in segments] == [
        (1, 0, 81),
        (2, 81, 19),
    ]
    assert events[-1]["output"] == "film.mp4"
    (parts,) = next(event["ranks"] for event in events if event["event"] == "times")
    assert [part["part"] for part in parts].count("plan") == 2
    assert {part["kind"] for part in parts} == {"plan", "hand-over", "populate", "decode"}
    assert 0 == parts[0]["start_s"] < parts[0]["stop_s"] <= parts[1]["start_s"]
    code, out, err = gen(*FILM, "--json_progress", "--steps", 0, "--output", "bad.mp4")
    assert (code, out) == (2, "")
    failed = json.loads(err)
    assert (failed["event"], failed["code"]) == ("failed", 2)
    assert "steps" in failed["text"]


def test_many_films_from_one_load(gen: Gen, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    load = make_module.load_model
    monkeypatch.setattr(
        make_module, "load_model", lambda *a, **k: (loads.append(a), load(*a, **k))[1]
    )
    films = [
        {"prompt": PROMPT, "output": "a.mp4", "seed": 1},
        {"prompt": PROMPT, "output": "b.mp4", "seed": 2, "image": "missing.png"},
        {"prompt": PROMPT, "output": "c.mp4", "seed": 3, "num_frames": 5},
    ]
    Path("films.jsonl").write_text("\n\n".join(map(json.dumps, films)))
    code, out, err = gen("--jobs", "films.jsonl")
    assert (code, out) == (3, "a.mp4\nc.mp4\n"), err
    assert "b.mp4: error: missing.png" in err
    assert len(loads) == 1
    assert [len(read_frames(name)) for name in ("a.mp4", "c.mp4")] == [9, 5]
    assert gen("--prompt", PROMPT, "--seed", 3, "--num_frames", 5)[0] == 0
    assert np.array_equal(read_frames("film.mp4"), read_frames("c.mp4"))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "empty"),
        ("\n \n", "no films"),
        ("{", "line 1"),
        ("[]", "line 1"),
        ('{"prompt": "red"}', "output"),
        ('{"prompt": "red", "output": "a.mp4"}\n{"prompt": "red", "output": "a.mp4"}', "line 2"),
        ('{"prompt": "red", "output": "a.mp4", "steps": 0}', "steps"),
        ('{"prompt": "red", "output": "a.mp4", "stepz": 1}', "stepz"),
        ('{"output": "a.mp4"}', "no prompt"),
    ],
)
def test_files_of_films_that_are_refused(gen: Gen, lines: str, said: str) -> None:
    Path("films.jsonl").write_text(lines)
    code, out, err = gen("--jobs", "films.jsonl")
    assert code in (2, 3)
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert not list(Path().glob("a.mp4*"))


def test_flags_that_many_films_cannot_share(gen: Gen) -> None:
    Path("films.jsonl").write_text('{"prompt": "red", "output": "a.mp4"}')
    for flag in (("--output", "x.mp4"), ("--ranks", 2), ("--dry_run",)):
        code, _, err = gen("--jobs", "films.jsonl", *flag)
        assert code == 2
        assert flag[0] in err


def test_planned_with_one_model_and_populated_with_another(gen: Gen, tmp_path: Path) -> None:
    assert gen("plan", *FILM, "--steps", 1)[0] == 0
    job = (JOB / "job.json").read_bytes()
    planned = {path.name: path.read_bytes() for path in JOB.glob("segment_*")}
    other = write_model(tmp_path / "other", seed=7)
    code, _, err = gen("populate", JOB, "--model_path", other, plain=True)
    assert code == 6  # its latents mean other pictures
    assert "VAE" in err
    assert (JOB / "job.json").read_bytes() == job

    same_vae = replace(small_model(DEFAULTS, seed=7), vae=small_model(DEFAULTS).vae)
    final = write_small(tmp_path / "final", same_vae)
    code, _, err = gen("populate", JOB, "--model_path", final, "--steps", 2, plain=True)
    assert code == 0, err
    assert {name: (JOB / name).read_bytes() for name in planned} == planned
    film = read_frames("film.mp4")
    noted = json.loads((JOB / "job.json").read_text())
    assert noted["planned_with"]["weights"] == json.loads(job)["weights"]
    assert noted["weights"]["dit"] != noted["planned_with"]["weights"]["dit"]
    Path("film.mp4").unlink()
    next(JOB.glob("segment_0002.fill_head.*")).unlink()
    assert gen("resume", JOB, plain=True)[0] == 0  # with the second model, by itself
    assert np.array_equal(read_frames("film.mp4"), film)


def test_planned_with_few_steps_and_populated_with_more(gen: Gen) -> None:
    assert gen("plan", *FILM, "--steps", 1)[0] == 0
    planned = {path.name: path.read_bytes() for path in JOB.glob("segment_*")}
    code, _, err = gen("populate", JOB, "--steps", 3, plain=True)
    assert code == 0, err
    assert "its keyframes stay" in err
    assert {name: (JOB / name).read_bytes() for name in planned} == planned
    final = read_frames("film.mp4")
    # What is damaged afterwards is made again with the same bits, keyframes too.
    (JOB / "segment_0001.plan.safetensors").unlink()
    Path("film.mp4").unlink()
    assert gen("resume", JOB, plain=True)[0] == 0
    assert np.array_equal(read_frames("film.mp4"), final)
    assert (JOB / "segment_0001.plan.safetensors").exists()
    assert gen("populate", JOB, "--steps", 1, "--overwrite", plain=True)[0] == 0
    assert not np.array_equal(read_frames("film.mp4"), final)
    assert gen("populate", JOB, "--seed", 9, "--overwrite", plain=True)[0] == 6


def test_the_plan_keeps_its_steps_when_it_is_populated_with_others(gen: Gen) -> None:
    assert gen("plan", *FILM, "--steps", 1)[0] == 0
    code, _, err = gen("populate", JOB, "--steps", 2, "--populate_steps", 2, plain=True)
    assert code == 2
    assert "given twice" in err
    assert gen("populate", JOB, "--steps", 2, plain=True)[0] == 0
    settings = json.loads((JOB / "job.json").read_text())["settings"]
    assert (settings["steps"], settings["populate_steps"]) == (1, 2)


def test_a_folder_from_before_there_were_populate_steps(gen: Gen, tmp_path: Path) -> None:
    """It took as many for all groups, whatever the model says now."""
    model = write_small(tmp_path / "now", small_model(replace(DEFAULTS, populate_steps=1)))
    said = "--model_path", model, "--populate_steps", 2
    assert gen(*FILM, *said)[0] == 0
    whole = read_frames("film.mp4")
    job = json.loads((JOB / "job.json").read_text())
    del job["settings"]["populate_steps"]
    (JOB / "job.json").write_text(json.dumps(job))
    next(JOB.glob("segment_0002.fill_head.*")).unlink()
    Path("film.mp4").unlink()
    code, _, err = gen("resume", JOB, plain=True)
    assert code == 0, err
    assert np.array_equal(read_frames("film.mp4"), whole)
    code, _, err = gen(*FILM, "--model_path", model, "--overwrite")
    assert code == 6
    assert "got populate_steps 1; wanted populate_steps 2" in err


def test_an_unfinished_plan_is_not_populated_otherwise(gen: Gen) -> None:
    assert gen("plan", *FILM, "--steps", 1)[0] == 0
    (JOB / "segment_0002.plan.safetensors").unlink()
    code, _, err = gen("populate", JOB, "--steps", 3, plain=True)
    assert code == 3
    assert "segment_0002.plan" in err
