"""The table of flags: names, aliases, values, help."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mmpl.checkpoint.defaults import Defaults
from mmpl.cli.arguments import FLAGS, help_text, parse
from mmpl.errors import ArgumentError
from mmpl.layout.mesh import Mesh
from mmpl.wan.flow import schedule

ALIASES = {
    "--ckpt_dir": "model_path",
    "--frame_num": "num_frames",
    "--sample_steps": "steps",
    "--num_inference_steps": "steps",
    "--sample_guide_scale": "guidance_scale",
    "--cfg": "guidance_scale",
    "--sample_shift": "shift",
    "--sample_solver": "solver",
    "--base_seed": "seed",
    "--save_file": "output",
}
SWITCHES = {
    "dry_run",
    "json",
    "json_progress",
    "keep_tail",
    "only_new",
    "fresh",
    "overwrite",
    "no_metadata",
    "examples",
    "quiet",
    "debug",
    "version",
}


@pytest.mark.parametrize("name", ["lightx2v", "self_forcing", "self_mmpl"])
def test_distilled_models_are_declared(name: str) -> None:
    """Self-Forcing's own steps, as its program is told them; flags beside it win."""
    given = parse(["--distilled", name])
    assert (given["solver"], given["guidance_scale"]) == ("few_step", 1.0)
    told = schedule(given["solver"], given["steps"], given["shift"]).timesteps
    assert told == pytest.approx((1000, 937.5, 833.333, 625), abs=1e-3)
    assert parse(["--steps", "2", "--distilled", name]) == {**given, "steps": 2}


def test_three_steps_are_near_their_own() -> None:
    given = parse(["--distilled", "fastwan"])
    told = schedule(given["solver"], given["steps"], given["shift"]).timesteps
    assert told == pytest.approx((1000, 757, 522), abs=42)


@pytest.mark.parametrize(
    ("flag", "text", "wanted"),
    [
        ("--prompt", "- a red circle", {"prompt": "- a red circle"}),
        ("--duration", "30", {"duration": 30.0}),
        ("--duration", "30s", {"duration": 30.0}),
        ("--duration", "1m30s", {"duration": 90.0}),
        ("--duration", "1h0.5m", {"duration": 3630.0}),
        ("--duration", "2.5", {"duration": 2.5}),
        ("--duration", "-5", {"duration": -5.0}),
        ("--size", "832x480", {"width": 832, "height": 480}),
        ("--size", "832*480", {"width": 832, "height": 480}),
        ("--size", "64X96", {"width": 64, "height": 96}),
        ("--seed", "-1", {"seed": -1}),
        ("--cfg", "4", {"guidance_scale": 4.0}),
        ("--sample_solver", "dpm++", {"solver": "dpm++"}),
        ("--dtype", "bf16", {"dtype": "bfloat16"}),
        ("--device", "cuda:1", {"device": "cuda:1"}),
        ("--noise", "paper", {"noise": "paper"}),
        ("--layout", "mmpl_i2v", {"layout": "mmpl_i2v"}),
        ("--gpus", "0,2", {"gpus": (0, 2)}),
        ("--parallel", "2x2x1", {"parallel": Mesh(2, 2, 1)}),
        ("--parallel", "auto", {"parallel": None}),
        ("--stage_seconds", "25,1.5", {"stage_seconds": (25.0, 1.5)}),
    ],
)
def test_values(flag: str, text: str, wanted: dict[str, Any]) -> None:
    assert parse([flag, text]) == wanted
    assert parse([f"{flag}={text}"]) == wanted


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_names_of_other_programs(alias: str, name: str) -> None:
    value = "euler" if name == "solver" else "7"
    assert parse([alias, value]) == parse([f"--{name}", value])


def test_every_flag_takes_hyphens() -> None:
    values = {"size": "64x64", "seeding": "midpoint", "noise": "off", "layout": "chunked_3"}
    values |= {"solver": "euler", "device": "cpu", "dtype": "float32", "attention": "sdpa"}
    values |= {"quantize": "int8", "distilled": "lightx2v", "offload": "block", "compile": "no"}
    values |= {"vae_dtype": "bf16"}
    values |= {"fit": "letterbox", "keyframe": "a.png@1s"}
    values |= {"schedule": "adaptive", "order": "plan_first", "parallel": "2x1x1", "link": "pcie"}
    for flag in FLAGS:
        for name in (flag.name, *flag.aliases):
            value = [] if flag.name in SWITCHES else [values.get(flag.name, "7")]
            parsed = parse([f"--{name}", *value])
            assert parse([f"--{name.replace('_', '-')}", *value]) == parsed
            assert parsed


def test_hyphens_in_values_stay() -> None:
    assert parse(["--output=my-film.mp4"]) == {"output": "my-film.mp4"}
    assert parse(["--prompt", "up-left", "--model-path", "a-b"]) == {
        "prompt": "up-left",
        "model_path": "a-b",
    }


def test_a_log_without_a_name() -> None:
    assert parse(["--log", "--quiet"]) == {"log": "", "quiet": ""}
    assert parse(["--log", "x.txt"]) == {"log": "x.txt"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--promt", "x"], "--promt; did you mean --prompt?"),
        (["--sample-step", "3"], "did you mean --sample_steps?"),
        (["--guidence_scale=3"], "did you mean --guidance_scale?"),
        (["-prompt", "x"], "did you mean --prompt?"),
        (["--zzzzqqq"], "unknown flag; got --zzzzqqq; see --help"),
        (["--prompt", "a", "red", "circle"], "quotes"),
        (["--prompt"], "expected one argument"),
        (["--steps", "many"], "--steps has a wrong value; got 'many'; wanted a whole number"),
        (["--steps", "2.5"], "a whole number"),
        (["--steps", "9" * 5000], "a whole number"),
        (["--cfg", "x"], "--guidance_scale"),
        (["--size", "64"], "as in 64x64"),
        (["--size", "64x64x64"], "as in 64x64"),
        (["--size", "64x64", "--width", "64"], "given twice"),
        (["--steps", "2", "--sample_steps", "3"], "--steps is given twice"),
        (["--duration", "1m30x"], "30, 30s or 1m30s"),
        (["--duration", ""], "30, 30s or 1m30s"),
        (["--duration", "1.2.3s"], "30, 30s or 1m30s"),
        (["--solver", "magic"], "unipc, dpm++, euler"),
        (["--device", "gpu"], "cuda"),
        (["--dtype", "int8"], "bfloat16"),
        (["--quantize", "fp4"], "none, fp8, int8"),
        (["--offload", "disk"], "auto, none, model, block"),
        (["--overwrite=yes"], "--overwrite"),
        (["--seeding", "middle"], "terminal, midpoint"),
        (["--layout", "none"], "mmpl_t2v"),
    ],
)
def test_refused(argv: list[str], words: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(words)):
        parse(argv)


def test_help_names_every_flag_with_its_aliases() -> None:
    text = " ".join(help_text(None).split())
    for flag in FLAGS:
        assert (f"--{flag.name}" in text) != flag.hidden
    for alias in ALIASES:
        assert alias in text
    assert "as the model says" in text


def test_help_shows_the_defaults_of_the_model() -> None:
    text = help_text(Defaults(steps=17, width=96, height=64, duration_s=12.0, noise="off"))
    for shown in ("[17]", "[96x64]", "[12s]", "[off]", "[unipc]"):
        assert shown in text
    assert "as the model says" not in text
