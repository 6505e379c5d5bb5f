"""mmpl-eval claims as users run it, on methods that stand in and whose drift is planted."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpl.checkpoint.bundle import load_model
from mmpl.cli import speedup
from mmpl.cli.evaluate import main
from mmpl.cli.shell import cores
from mmpl.eval import claims_ranks
from mmpl.eval.claims import BASE, Budget
from mmpl.eval.claims_arms import ARMS, METHOD_ARMS, NETWORK_ARMS, method_of
from mmpl.eval.claims_ranks import Bars
from mmpl.layout import schedule_search
from tests.eval.planted import Planted, methods_module
from tests.page import read_page
from tests.small import small_model, write_small

Capture = pytest.CaptureFixture[str]
PLANTED = {
    "mmpl_terminal": Planted(background_deg=8),
    "rolling_kv": Planted(background_deg=8, every=12),
    "bidirectional_window": Planted(background_deg=8.4),
    "mmpl_no_reencode": Planted(background_deg=8, jump=1),
}
GRID = Budget(programs=6, segments=2, seeds=1, arms=tuple(PLANTED), minutes=10.0)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The films that were begun, as (method, seed)."""
    films: list[tuple[str, int]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mmpl.eval.methods", methods_module(PLANTED, films))
    grids = {"10m": GRID, "3h": replace(GRID, segments=3)}
    monkeypatch.setattr("mmpl.cli.claims.BUDGETS", grids)
    monkeypatch.setattr(schedule_search, "EFFORT", 100)  # of the costs by arithmetic
    write_small(tmp_path / "model")
    return films


def call(*words: str) -> int:
    return main(["claims", "--model_path", "model", f"--threads={torch.get_num_threads()}", *words])


def test_every_method_has_its_generations() -> None:
    methods = pytest.importorskip("mmpl.eval.methods")
    assert set(methods.METHODS) == set(METHOD_ARMS)
    assert {method_of(name) for name in ARMS} == set(methods.METHODS)
    assert set(NETWORK_ARMS) == set(ARMS) - set(METHOD_ARMS)


def test_claims_come_out_as_planted(made: list[tuple[str, int]], capfd: Capture) -> None:
    assert call("--output", "page.html", "--json") == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    verdicts = {row["claim"]: row["verdict"] for row in found["claims"] if row["decides"]}
    assert verdicts["planning_against_rolling_kv"] == "reproduces"
    assert verdicts["one_curve"] == "reproduces"
    assert verdicts["planning_against_bidirectional"] == "reproduces"
    assert verdicts["re_encode"] == "does not"
    assert verdicts["early_keyframes"] == "not measured"
    assert len(made) == len(set(made)) == found["films"] == 24
    drift = found["methods"]["mmpl_terminal"]["by_segment"]["background_hue_drift_deg"][1]
    assert 5 < drift["low"] < drift["mean"] < drift["high"] < 11
    assert "6 programs x 2 segments x 1 seeds x 4 methods: 24 films, in runs/claims-10m" in err
    assert "23 films left, about " in err

    text = Path("page.html").read_text()
    page = read_page(text)
    assert page.count("svg") == len(page.svgs) == 14
    assert page.count("td", "verdict") == len(verdicts) + len(found["claims"])
    assert page.texts["td"].count("reproduces") >= 3
    assert "4465" in page.texts["td"]


def test_a_report_is_made_of_what_is_there(
    made: list[tuple[str, int]], capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"10m": replace(GRID, programs=2)}
    monkeypatch.setattr("mmpl.cli.claims.BUDGETS", few)
    assert call("--methods", "bidirectional_window", "--minutes", "0") == 0
    out, _ = capfd.readouterr()
    assert made == []
    assert "planning_against_bidirectional   not measured  -: background_drift\n" in out
    assert "  also" not in out
    assert "10: 60 s of film on 1 GPU, the paper's schedule, s" in out
    assert call("--methods", "bidirectional_window") == 0
    out, _ = capfd.readouterr()
    assert len(made) == 4
    line = next(line for line in out.splitlines() if line.startswith("planning_against_bid"))
    assert "inconclusive" in line
    assert line.endswith("], 2: background_drift")
    assert call("--methods", "bidirectional_window") == 0
    assert capfd.readouterr().out == out
    assert len(made) == 4, "nothing is made twice"
    assert len(os.listdir("runs/claims-10m")) == 5


def test_networks_of_their_own_on_real_films(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    """Nothing is a stand-in here but the size of the models and of the grid."""
    monkeypatch.chdir(tmp_path)
    grid = Budget(programs=1, segments=1, seeds=1, arms=(BASE,), minutes=10.0)
    monkeypatch.setattr("mmpl.cli.claims.BUDGETS", {"10m": grid})
    monkeypatch.setattr(schedule_search, "EFFORT", 100)  # of the costs by arithmetic
    write_small(Path("model"))
    os.mkdir("networks")
    own, other = small_model(), small_model(seed=5)
    write_small(Path("networks/control_chunks"), replace(own, dit=other.dit, text=other.text))
    shutil.copytree("model", "networks/tuned_none")
    asked = ("--steps", "1", "--json", "--networks", "networks")
    assert call(*asked) == 0
    out, err = capfd.readouterr()
    assert "x 3 methods: 3 films" in err
    methods = json.loads(out)["methods"]
    base, chunks, plain = (methods[n] for n in (BASE, "control_chunks", "tuned_none"))
    assert plain["measures"] == base["measures"], "the same weights and seeds"
    assert (plain["method"], chunks["method"]) == (BASE, "self_forcing_windows")
    assert chunks["evaluations"] > base["evaluations"] == plain["evaluations"]
    assert chunks["weights"]["dit"] == load_model("networks/control_chunks").digests["dit"]

    tuned = Path("networks/tuned_qk.safetensors")
    shutil.copy("networks/control_chunks/dit.safetensors", tuned)
    assert call(*asked) == 0
    out, err = capfd.readouterr()
    assert err.count(" films left") == 1
    found = json.loads(out)
    qk = found["methods"]["tuned_qk"]
    assert qk["measures"] != base["measures"]
    assert qk["weights"]["dit"] == chunks["weights"]["dit"]
    assert qk["weights"]["text"] == plain["weights"]["text"] != chunks["weights"]["text"]
    rows = {row["claim"]: row["difference"] for row in found["claims"] if row["decides"]}
    assert rows["tuning_against_none"] is None
    assert rows["own_networks"] is None
    assert "tuned_all, tuned_block3, which need" in found["not_tested"]

    tuned.write_bytes(Path("model/dit.safetensors").read_bytes())
    assert call(*asked) == 6
    err = capfd.readouterr().err
    assert "the films of tuned_qk in this folder were made by another network; remove" in err
    assert call("--steps", "1", "--minutes", "0") == 0
    assert "queries and keys tuned to plan, transformer" in capfd.readouterr().out


def test_networks_of_another_vae(made: list[tuple[str, int]], capfd: Capture) -> None:
    write_small(Path("networks/tuned_none"), small_model(seed=5))
    assert call("--networks", "networks") == 3
    out, err = capfd.readouterr()
    assert (out, made) == ("", [])
    assert "dit.safetensors: its VAE is not that of --model_path; got " in err


def test_a_folder_of_other_settings(made: list[tuple[str, int]], capfd: Capture) -> None:
    assert call("--minutes", "0", "--runs", "own") == 0
    capfd.readouterr()
    for words, what in ((["--steps", "3"], "sampling"), (["--budget", "3h"], "segments")):
        assert call("--minutes", "0", "--runs", "own", *words) == 6
        out, err = capfd.readouterr()
        assert out == ""
        assert (
            f"own: the films in this folder were made with other settings; got other {what}" in err
        )
    assert made == []


def test_a_film_is_timed_by_one_process_and_by_two(
    made: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    """By mmpl-gen itself; two processes are taken to halve each stage and to wait for none."""
    timed: list[list[Bars]] = []

    def halved(number: int, flags: Mapping[str, Any]) -> list[Bars]:
        if number == 1:
            timed.append(by_process(1, flags))
        bars = [{**b, "start_s": b["start_s"] / 2, "stop_s": b["stop_s"] / 2} for b in timed[0][0]]
        return timed[0] if number == 1 else [bars, bars]

    by_process = speedup.timed
    monkeypatch.setattr(speedup, "timed", halved)
    one_pair(monkeypatch)
    asked = ("--ranks", "2", "--steps", "1")
    assert call(*asked) == 0
    out, err = capfd.readouterr()
    assert "1 process " in err
    lines = [line for line in out.splitlines() if line.startswith("2 processes")]
    assert len(lines) == 2
    assert "2 segments" in lines[0]
    assert " 1.90 " in lines[0]
    assert len(timed) == len(made) == 1
    assert call(*asked) == 0, "with nothing left to do"
    capfd.readouterr()
    asked = ("--minutes", "0", "--ranks", "3", "--steps", "1")
    assert call(*asked, "--json", "--output", "page.html") == 0
    out, err = capfd.readouterr()
    assert "1 process " not in err
    assert len(timed) == 1
    (found,) = json.loads(out)["speed_ups"]
    assert (found["ranks"], found["pairs"], found["cores"]) == (2, 1, cores())
    assert found["speed_up"] == pytest.approx(2.0, rel=0.02)
    assert 0.1 < found["busy"] == pytest.approx(found["busy_of_one"], rel=0.02)
    assert "94.3%" in read_page(Path("page.html").read_text()).texts["td"]


@pytest.mark.slow  # five processes
def test_two_processes_make_the_film_that_is_timed(
    made: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    one_pair(monkeypatch)
    assert call("--ranks", "2", "--steps", "1", "--json") == 0
    (found,) = json.loads(capfd.readouterr().out)["speed_ups"]
    assert (found["ranks"], found["pairs"]) == (2, 1)
    assert 0.1 < found["speed_up"] < 3
    assert 0.05 < found["busy"] <= 1.0


def one_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two segments, and one film beside it."""
    monkeypatch.setattr(claims_ranks, "PAIRS", 1)
    monkeypatch.setattr(claims_ranks, "SEGMENTS", 2)
    monkeypatch.setattr("mmpl.cli.claims.BUDGETS", {"10m": replace(GRID, programs=1, arms=(BASE,))})


def test_films_that_cannot_be_timed(
    made: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.setattr(claims_ranks, "SEGMENTS", 10**6)
    assert call("--ranks", "2") == 5
    out, err = capfd.readouterr()
    assert (out, made) == ("", [])
    assert "was not made by 1 processes; got" in err
