"""Bad input: one line that says what to do, the right exit code, nothing left, no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mmpl.checkpoint.defaults import Defaults
from mmpl.cli.arguments import FLAGS
from mmpl.errors import ArgumentError
from tests.checkpoint import worlds
from tests.cli.conftest import PROMPT, ROOT, Gen, write_model

# flags, exit code, words of the message
BAD_FLAGS = [
    ([], 2, "no prompt"),
    (["--prompt", ""], 2, "the prompt is empty"),
    (["--prompt", " \n\t "], 2, "the prompt is empty"),
    (["--promt", "x"], 2, "did you mean --prompt?"),
    (["--prompt", "x", "--duration", "-1", "--num_frames", "9"], 2, "twice"),
    (["--prompt", "x", "--num_frames", "0"], 2, "num_frames is out of range; got 0; wanted 1 to"),
    (["--prompt", "x", "--num_frames", "-4"], 2, "num_frames"),
    (["--prompt", "x", "--num_frames", "1000000000"], 2, "num_frames"),
    (["--prompt", "x", "--size", "65x64"], 2, "multiple of 16; got 65; wanted 64 or 80"),
    (["--prompt", "x", "--size", "64x100"], 2, "height is not a multiple"),
    (["--prompt", "x", "--size", "1x1"], 2, "width is out of range"),
    (["--prompt", "x", "--size", "100000x100000"], 2, "width is out of range"),
    (["--prompt", "x", "--size", "8192x8192"], 2, "size of the film"),
    (["--prompt", "x", "--fps", "0"], 2, "fps is out of range"),
    (["--prompt", "x", "--steps", "0"], 2, "steps is out of range"),
    (["--prompt", "x", "--steps", "many"], 2, "--steps has a wrong value"),
    (["--prompt", "x", "--guidance_scale", "nan"], 2, "guidance_scale is out of range"),
    (["--prompt", "x", "--shift", "inf"], 2, "shift is out of range"),
    (["--prompt", "x", "--shift", "-1"], 2, "shift is out of range"),
    (["--prompt", "x", "--alpha", "2"], 2, "alpha is out of range"),
    (["--prompt", "x", "--beta", "nan"], 2, "beta is out of range"),
    (["--prompt", "x", "--seed", "-2"], 2, "seed is out of range"),
    (["--prompt", "x", "--seed", str(2**63)], 2, "seed is out of range"),
    (["--prompt", "x", "--threads", "0"], 2, "--threads has a wrong value; got '0'; wanted a"),
    (["--prompt", "x", "--solver", "magic"], 2, "one of unipc, dpm++, euler"),
    (["--prompt", "x", "--layout", "chunked_3", "--seeding", "midpoint"], 2, "middle keyframes"),
    (["--prompt", "x", "--model_path", "missing"], 3, "no such model folder"),
    (["--prompt", "x", "--checkpoint", "missing.pt"], 3, "no such file"),
    (["--prompt", "x", "--config", "missing.json"], 3, "no such file"),
    (["--prompt", "x", "--config", "missing.mp4"], 3, "cannot read"),
    (["--prompt", "x", "--output", "missing/film.mp4"], 4, "mkdir -p missing"),
    (["--prompt", "x", "--output", "."], 4, "folder"),
    (["--prompt", "x", "--output", ""], 2, "a name ending in .mp4"),
    (["--prompt", "x", "--output", "/dev/full"], 4, "device"),
    (["--prompt", "x", "--output", "film.avi"], 2, "a name ending in .mp4"),
    (["--prompt", "x", "--output", "a\0.mp4"], 2, "not a file name"),
    (["--prompt", "x", "--output", "n" * 300 + ".mp4"], 4, "too long"),
    (["--prompt", "x", "--log", "film.mp4"], 2, "log and output are one file"),
    (["--prompt", "x", "--log", "missing/log"], 4, "mkdir -p missing"),
    (["--prompt", "x", "--log", "."], 4, "log"),
]
BAD_DURATIONS = ["0", "-1", "nan", "inf", "-inf", "1e9", "1e-9", "1e400", "0s"]


def check_refusal(code: int, out: str, err: str, wanted: int, words: str) -> None:
    assert words in err
    assert (code, out) == (wanted, "")
    assert err.startswith("mmpl-gen: ")
    assert err.count("\n") == 1
    assert err.rstrip("\n").isprintable()
    assert "Traceback" not in err
    assert os.listdir() == []


@pytest.mark.parametrize(("flags", "code", "words"), BAD_FLAGS)
def test_bad_flags(gen: Gen, flags: list[str], code: int, words: str) -> None:
    check_refusal(*gen(*flags), code, words)


@pytest.mark.parametrize("text", BAD_DURATIONS)
def test_bad_durations(gen: Gen, bundle: Path, text: str) -> None:
    flags = ["--prompt", PROMPT, "--model_path", str(bundle), f"--duration={text}"]
    check_refusal(*gen(*flags, plain=True), 2, "duration out of range; got")


def test_sizes_that_the_model_was_not_made_for(gen: Gen, sized_bundle: Path) -> None:
    flags = ["--prompt", PROMPT, "--model_path", str(sized_bundle), "--size", "96x64"]
    check_refusal(*gen(*flags), 2, "does not make films of this size; got 96x64; wanted 64x64 or")


def test_a_default_size_that_is_not_among_the_sizes() -> None:
    assert Defaults(sizes=("832x480", "480x832")).sizes[1] == "480x832"
    with pytest.raises(ArgumentError, match="832x480 among them"):
        Defaults(sizes=("64x64",))


def test_the_order_of_checks(gen: Gen) -> None:
    bad = {"--steps": "x", "--model_path": "missing", "--fps": "0", "--output": "no/f.mp4"}
    for code, words in ((2, "--steps"), (3, "model folder"), (2, "fps"), (4, "mkdir")):
        flags = [word for pair in bad.items() for word in pair]
        check_refusal(*gen("--prompt", PROMPT, *flags), code, words)
        bad.pop(next(iter(bad)))


def test_none_of_these_waits_for_torch(bundle: Path, tmp_path: Path) -> None:
    """All of the table in one fresh process, which must not have imported torch at its end."""
    script = """
import json, sys
from mmpl.cli.gen import main
codes = [main(argv) for argv in json.load(sys.stdin)]
print(json.dumps([codes, "torch" in sys.modules]))
"""
    usual = ["--model_path", str(bundle)]
    argvs = [[*f, *([] if "--model_path" in f else usual)] for f, _, _ in BAD_FLAGS]
    argvs += [["--prompt", "x", *usual, f"--duration={text}"] for text in BAD_DURATIONS]
    wanted = [code for _, code, _ in BAD_FLAGS] + [2] * len(BAD_DURATIONS)
    argvs += [["--help"], ["--version"], ["--examples", *usual]]
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(argvs),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [[*wanted, 0, 0, 0], False], done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        ("{", 3, "not valid JSON"),
        ("[]", 3, "wanted an object"),
        ('{"settings": 3}', 3, "settings is not a table"),
        ('{"settings": {"prompt": "x"}, "weights": 3}', 3, "weights is not a table"),
        ('{"prompt": ["x"]}', 3, "neither a text nor a number"),
        ('{"prompt": "x", "steps": true}', 3, "neither a text nor a number"),
        ('{"prompt": "x", "stpes": 3}', 3, "unknown setting; got 'stpes'"),
        ('{"prompt": "x", "output": "/tmp/x.mp4"}', 3, "unknown setting"),
        ('{"prompt": "x", "steps": 2.5}', 2, "--steps has a wrong value"),
        ('{"prompt": "x", "steps": 0}', 2, "steps is out of range"),
        ('{"prompt": ""}', 2, "the prompt is empty"),
        ('{"steps": 2}', 2, "no prompt"),
    ],
)
def test_bad_job_files(gen: Gen, tmp_path: Path, content: str, code: int, words: str) -> None:
    (tmp_path / "job.json").write_text(content)
    check_refusal(*gen("--config", tmp_path / "job.json"), code, words)


@pytest.mark.parametrize("content", [b"", b"not a video", b"\0" * 5000])
def test_an_output_that_is_something_else(gen: Gen, content: bytes) -> None:
    Path("film.mp4").write_bytes(content)
    code, out, err = gen("--prompt", PROMPT)
    assert (code, out) == (2, "")
    assert "exists" in err
    assert "--overwrite" in err
    assert err.count("\n") == 1
    assert Path("film.mp4").read_bytes() == content


def test_an_output_that_is_a_link(gen: Gen, tmp_path: Path) -> None:
    Path("film.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    code, _, err = gen("--prompt", PROMPT, "--overwrite")
    assert code == 4
    assert "symbolic link" in err
    assert not (tmp_path / "elsewhere.mp4").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_without_write_permission(gen: Gen, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    check_refusal(*gen("--prompt", "x", "--output", tmp_path / "closed/f.mp4"), 4, "permission")


@pytest.mark.parametrize("part", ["dit", "vae", "text"])
def test_truncated_weights(gen: Gen, tmp_path: Path, part: str) -> None:
    model = write_model(tmp_path / "model")
    path = model / f"{part}.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    check_refusal(*gen("--prompt", PROMPT, "--model_path", model), 3, f"{part}.safetensors")


def test_missing_weights(gen: Gen, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (model / "vae.safetensors").unlink()
    check_refusal(*gen("--prompt", PROMPT, "--model_path", model), 3, "no such file")


def test_weights_of_another_shape(gen: Gen, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    flat = load_file(model / "dit.safetensors")
    wide = torch.nn.functional.pad(flat["head.head.weight"], (0, 8))
    save_file({**flat, "head.head.weight": wide}, model / "dit.safetensors")
    check_refusal(*gen("--prompt", PROMPT, "--model_path", model), 3, "head.head.weight")


def test_changed_weights(gen: Gen, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    flat = load_file(model / "dit.safetensors")
    save_file({name: tensor + 1 for name, tensor in flat.items()}, model / "dit.safetensors")
    check_refusal(*gen("--prompt", "red", "--model_path", model), 3, "film.mp4 was not written")


def test_a_pickle_with_code_in_it(gen: Gen, bundle: Path, tmp_path: Path) -> None:
    canary, pickle = tmp_path / "canary", tmp_path / "t2v_14B_8k.pt"
    torch.save({"generator": {"x": worlds.Attack(canary)}}, pickle)
    check_refusal(*gen("--prompt", "red", "--checkpoint", pickle), 3, "t2v_14B_8k.pt")
    assert not canary.exists()


def test_latents_that_are_not_finite(gen: Gen, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", broken=True)
    code, out, err = gen("--prompt", "red", "--model_path", model, "--quiet")
    check_refusal(code, out, err, 7, "segment 1, group init: the latents are not finite")


def test_attention_that_this_machine_does_not_have(gen: Gen) -> None:
    outcome = gen("--prompt", "red", "--device", "cpu", "--attention", "flash2")
    check_refusal(*outcome, 2, "install flash-attn")


def test_a_gpu_that_this_machine_does_not_have(gen: Gen) -> None:
    check_refusal(*gen("--prompt", "red", "--device", "cuda:77"), 2, "use --device cpu")


TEXTS = (
    st.sampled_from(["nan", "-1", "0", "1e9", "64x64", "80*64", "cpu", "off", "paper", "euler"])
    | st.integers(-3, 200).map(str)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.text(max_size=20)
)
NAMES = st.sampled_from([flag.name for flag in FLAGS if flag.name not in ("config", "log")])
ANSWERED = ("version", "examples")  # these end well, whatever stands beside them


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(flags=st.dictionaries(NAMES.filter(lambda n: n not in ANSWERED), TEXTS, max_size=6))
def test_any_values(gen: Gen, flags: dict[str, str]) -> None:
    """Whatever the flags hold, they end in one of the documented ways. The output cannot be
    written, so that good values end as well."""
    argv = [f"--{name}={text}" for name, text in flags.items() if name != "output"]
    code, out, err = gen(*argv, "--output", "missing/film.mp4")
    assert code in {2, 3, 4}
    assert out == ""
    assert err.count("\n") == 1
    assert err.rstrip("\n").isprintable()
    assert os.listdir() == []


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(prompt=st.text(max_size=300).filter(lambda text: text.strip() and "\0" not in text))
def test_any_prompt(gen: Gen, prompt: str) -> None:
    code, out, err = gen(f"--prompt={prompt}", "--output", "missing/film.mp4")
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert os.listdir() == []
