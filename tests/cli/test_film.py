"""Films made by the command: what is written, what is printed, what happens the second time."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mmpl.cli import model as model_module
from mmpl.media.video import probe, read_frames, read_metadata
from tests.checkpoint import worlds
from tests.cli.conftest import PROMPT, ROOT, SIZE, Gen, shell, write_model


def settings_of(path: str = "film.mp4") -> dict[str, object]:
    return read_metadata(path)["settings"]


def frames_of(path: str | Path = "film.mp4") -> np.ndarray:
    return read_frames(path)


def again(err: str) -> list[str]:
    """The words of the command that the summary prints, without the program."""
    line = next(line for line in err.splitlines() if line.strip().startswith("again "))
    return shlex.split(line)[2:]


def test_a_film(gen: Gen, bundle: Path) -> None:
    code, out, err = gen("--prompt", PROMPT, "--seed", 7)
    assert (code, out) == (0, "film.mp4\n"), err
    assert sorted(os.listdir()) == ["film.mp4", "film.mp4.job"]
    info = probe("film.mp4")
    assert (info.frames, info.width, info.height, info.fps) == (9, SIZE, SIZE, 16)
    for shown in (str(bundle), "float32", "sdpa", "cpu", "9 frames of 64x64", "1 segment", PROMPT):
        assert shown in err
    for phase in ("load", "plan", "populate", "decode", "write", "together"):
        assert f"{phase} " in err
    assert "memory" in err
    assert "warning" not in err


def test_settings_in_the_file(gen: Gen, bundle: Path) -> None:
    assert gen("--prompt", PROMPT, "--seed", 7, "--cfg", 1)[0] == 0
    metadata = read_metadata("film.mp4")
    digests = json.loads((bundle / "config.json").read_text())["digests"]
    assert metadata["weights"] == digests
    assert set(metadata["versions"]) == {"mmpl", "python", "torch", "numpy", "av"}
    assert metadata["settings"] == {
        "prompt": PROMPT,
        "negative_prompt": "",
        "seed": 7,
        "num_frames": 9,
        "width": SIZE,
        "height": SIZE,
        "fps": 16,
        "steps": 2,
        "populate_steps": 2,
        "guidance_scale": 1.0,
        "shift": 5.0,
        "solver": "unipc",
        "seeding": "terminal",
        "noise": "unit",
        "alpha": 0.5,
        "beta": 1.0,
        "layout": "mmpl_t2v",
        "cut": "",
        "segment_seeds": "",
        "given": "",
        "lead": 0,
        "device": "cpu",
        "dtype": "float32",
        "vae_dtype": "float32",
        "attention": "sdpa",
        "compile": "no",
        "quantize": "none",
        "threads": torch.get_num_threads(),
    }


def test_the_printed_command_makes_the_same_film(gen: Gen) -> None:
    prompt = 'it\'s a "red" circle\n$HOME `moves`'
    code, _, err = gen("--prompt", prompt, "--shift", 3, "--solver", "euler", "--fps", 8)
    assert code == 0
    line = next(line for line in err.splitlines() if line.strip().startswith("again "))
    printed = line.split("again", 1)[1].strip()
    # As a shell that knows $'...' reads it.
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {printed.split(' ', 1)[1]}"], capture_output=True, text=True
    ).stdout.split("\0")[:-1]
    assert words[:2] == ["--prompt", prompt]
    first, settings = frames_of(), settings_of()
    Path("film.mp4").unlink()
    assert gen(*words, plain=True)[0] == 0
    assert (frames_of() == first).all()
    assert settings_of() == settings


def test_the_settings_in_the_file_make_the_same_film(gen: Gen) -> None:
    assert gen("--prompt", PROMPT, "--steps", 1, "--num_frames", 5)[0] == 0
    code, out, err = gen("--config", "film.mp4", "--output", "b.mp4", plain=True)
    assert (code, out) == (0, "b.mp4\n"), err
    assert "warning" not in err
    assert (frames_of("b.mp4") == frames_of()).all()
    assert settings_of("b.mp4") == settings_of()
    more = ("--config", "film.mp4", "--output", "c.mp4", "--duration", "0.5", "--seed", 9)
    assert gen(*more, plain=True)[0] == 0
    assert settings_of("c.mp4") == settings_of() | {"num_frames": 8, "seed": 9}


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_film_of_8_bits(gen: Gen, kind: str) -> None:
    """Other pixels than without, the same again, and a job folder that knows the difference."""
    flags = ("--prompt", PROMPT, "--seed", 7, "--num_frames", 5, "--steps", 1)
    assert gen(*flags, "--output", "plain.mp4")[0] == 0
    code, _, err = gen(*flags, "--quantize", kind)
    assert code == 0, err
    assert f"float32 in {kind}" in err
    assert settings_of()["quantize"] == kind
    first = frames_of()
    assert (first != frames_of("plain.mp4")).any()
    code, _, plain = gen(*flags, "--overwrite")
    assert (code, "quantize none" in plain) == (6, True)
    printed = again(err)
    assert printed[printed.index("--quantize") + 1] == kind
    assert gen(*printed, "--overwrite", "--fresh", plain=True)[0] == 0
    assert (frames_of() == first).all()


def test_settings_in_a_json_file(gen: Gen) -> None:
    Path("job.json").write_text(json.dumps({"prompt": PROMPT, "size": "32x48", "steps": 1}))
    assert gen("--config", "job.json", "--seed", 1, "--num_frames", 1)[0] == 0
    info = probe("film.mp4")
    assert (info.frames, info.width, info.height) == (1, 32, 48)


def test_settings_of_a_film_made_with_other_weights(gen: Gen, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", seed=5)
    assert gen("--prompt", PROMPT, "--num_frames", 1, "--steps", 1)[0] == 0
    flags = ("--config", "film.mp4", "--output", "b.mp4", "--model_path", other)
    code, _, err = gen(*flags, plain=True)
    assert code == 0
    assert "the weights (dit, vae, text) are not those of the film" in err


def test_the_second_time_the_film_is_complete(gen: Gen) -> None:
    flags = ("--prompt", PROMPT, "--num_frames", 1, "--steps", 1)
    assert gen(*flags)[0] == 0
    before = Path("film.mp4").stat()
    for more in ([], ["--seed", settings_of()["seed"]], ["--device", "cpu"]):
        code, out, err = gen(*flags, *more)
        assert (code, out) == (0, "film.mp4\n")
        assert "complete already" in err
    for more, words in (
        (["--seed", "3"], "other seed"),
        (["--seed", "-1"], "other seed"),
        (["--fps", "8"], "other fps"),
        (["--dtype", "bf16"], "other dtype"),
        (["--quantize", "int8"], "other quantize"),
    ):
        code, out, err = gen(*flags, *more)
        assert (code, out) == (2, "")
        assert words in err
    assert Path("film.mp4").stat() == before
    assert gen(*flags, "--seed", "3", "--overwrite")[0] == 6, "the job is another film's"
    assert gen(*flags, "--seed", "3", "--overwrite", "--fresh")[0] == 0
    assert settings_of()["seed"] == 3


def test_a_film_of_other_weights_or_damaged_is_not_complete(gen: Gen, tmp_path: Path) -> None:
    flags = ("--prompt", PROMPT, "--num_frames", 5, "--steps", 1)
    assert gen(*flags)[0] == 0
    code, _, err = gen(*flags, "--model_path", write_model(tmp_path / "other", seed=5))
    assert code == 2
    assert "other weights" in err
    content = bytearray(Path("film.mp4").read_bytes())
    start = content.index(b"mdat")
    content[start + 400 :] = bytes(len(content) - start - 400)
    Path("film.mp4").write_bytes(content)
    code, _, err = gen(*flags)
    assert code == 2
    assert "damaged" in err
    assert Path("film.mp4").read_bytes() == content


def test_quiet(gen: Gen) -> None:
    flags = ("--prompt", "red zebra", "--num_frames", 1, "--steps", 1, "--quiet")
    assert gen(*flags) == (0, "film.mp4\n", "")
    assert gen(*flags) == (0, "film.mp4\n", "")


def test_no_metadata(gen: Gen) -> None:
    flags = ("--prompt", PROMPT, "--num_frames", 1, "--steps", 1, "--no-metadata")
    assert gen(*flags)[0] == 0
    assert PROMPT.encode() not in Path("film.mp4").read_bytes()
    code, _, err = gen(*flags)
    assert code == 2
    assert "not a film with its settings" in err


def test_log(gen: Gen) -> None:
    flags = ("--prompt", "zebra", "--num_frames", 1, "--steps", 1, "--quiet")
    assert gen(*flags, "--output", "a.mp4", "--log")[0] == 0
    assert gen(*flags, "--output", "b.mp4", "--log", "a.log", "--attention", "flash2")[0] == 2
    log = Path("a.log").read_text()
    assert "never taught: zebra" in log
    assert "again" in log
    assert "error: attention backend flash2" in log.splitlines()[-1]
    assert sorted(os.listdir()) == ["a.log", "a.mp4", "a.mp4.job"]


def test_words_that_were_not_taught_are_named_once(gen: Gen) -> None:
    flags = ("--num_frames", 1, "--steps", 1, "--cfg", 1)
    _, _, err = gen("--prompt", "a Zebra, red zebra; \x1b[31mdances", *flags)
    assert err.count("never taught: a, zebra, 31mdances;") == 1
    assert err.count("--examples") == 1
    assert "\x1b" not in err


def test_prompts_that_are_too_long(gen: Gen, sized_bundle: Path) -> None:
    flags = ("--num_frames", 1, "--steps", 1, "--model_path", sized_bundle)
    _, _, err = gen("--prompt", " ".join(["red"] * 10), *flags)
    assert "the last 3 tokens of the prompt are not used: this model reads 7" in err
    assert "never taught" not in err


def test_a_disk_that_is_too_small(gen: Gen, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--prompt", PROMPT, "--seed", 1, "--num_frames", 9, "--steps", 1)
    usage = shutil.disk_usage(".")

    def free(count: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=count))

    free(200)
    code, out, err = gen(*flags)
    assert (code, out) == (4, "")
    assert err.startswith("mmpl-gen: error: ")
    assert err.count("\n") == 1
    assert "the disk has not enough room; got 200 bytes free; wanted 9,223 bytes" in err
    assert os.listdir() == []
    free(10**9)
    assert gen("plan", *flags)[0] == 0
    planned = sum(path.stat().st_size for path in Path("film.mp4.job").glob("segment*"))
    free(planned)  # enough for the rest alone, and for less than a busy film
    code, _, err = gen(*flags)
    assert code == 0, err
    free(600)
    code, _, err = gen(*flags, "--overwrite")
    assert code == 0, err
    assert "the disk may fill up" in err
    free(3)
    assert gen(*flags, "--overwrite")[0] == 4
    assert Path("film.mp4").exists()


def test_examples(gen: Gen, bundle: Path, sized_bundle: Path) -> None:
    assert gen("--examples", "--model_path", bundle) == (0, f"{PROMPT}\nred circle\n", "")
    code, out, err = gen("--examples", "--model_path", sized_bundle)
    assert (code, out) == (0, "")
    assert "any prompt will do" in err


def test_the_embedded_model_is_the_default(
    gen: Gen, bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert model_module.EMBEDDED_MODEL == ROOT / "weights" / "tiny"
    monkeypatch.setattr(model_module, "EMBEDDED_MODEL", bundle)
    flags = ("--prompt", PROMPT, "--num_frames", 1, "--steps", 1)
    code, _, err = gen(*flags, plain=True)
    assert code == 0
    assert "--model_path" not in again(err)
    assert "model_path" not in settings_of()
    assert "[64x64]" in gen("--help", plain=True)[1]
    monkeypatch.setattr(model_module, "EMBEDDED_MODEL", tmp_path / "gone")
    code, _, err = gen(*flags, plain=True)
    assert code == 3
    assert "--model_path" in err
    assert "as the model says" in gen("--help", plain=True)[1]


@pytest.mark.parametrize("beside", [True, False])
def test_a_wan_folder_with_an_mmpl_checkpoint(gen: Gen, tmp_path: Path, beside: bool) -> None:
    """Published names and file kinds, toy widths: averaged weights under a wrapper's prefixes."""
    folder = worlds.write_wan_folder(tmp_path / "Wan2.1-T2V-14B", with_dit=False)
    weights = {name: 0.1 * tensor for name, tensor in worlds.dit_state().items()}
    vae = {name: 0.1 * tensor for name, tensor in worlds.vae_state().items()}
    torch.save(vae, folder / "Wan2.1_VAE.pth")
    checkpoint = (folder if beside else tmp_path) / "t2v_14B_8k.pt"
    saved = worlds.prefixed(weights, "model._fsdp_wrapped_module.")
    torch.save({"generator": {}, "generator_ema": saved}, checkpoint)
    flags = ["--prompt", "a cat", "--checkpoint", "t2v_14B_8k.pt" if beside else checkpoint]
    flags += ["--model_path", folder, "--size", "32*32", "--num_frames", 1, "--steps", 1]
    code, out, err = gen(*flags)
    assert (code, out) == (0, "film.mp4\n"), err
    assert f"Wan2.1 folder with {checkpoint}" in err
    assert read_metadata("film.mp4")["model"]["checkpoint"] == str(checkpoint)
    assert gen(*flags)[:2] == (0, "film.mp4\n")


def test_threads_are_the_only_thing_set(gen: Gen) -> None:
    before = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.random.get_rng_state())
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert gen("--prompt", PROMPT, "--num_frames", 1, "--steps", 1)[0] == 0
    after = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.random.get_rng_state())
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


# ------------------------------------------------------------------------ as users run it


def test_from_any_folder(bundle: Path, tmp_path: Path) -> None:
    """33 frames, so that a fill runs as well; any Python warning is an error."""
    flags = ("--model-path", bundle, "--prompt", PROMPT, "--num-frames", 33, "--threads", 1)
    done = shell(*flags, "--output", "film.mp4", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "film.mp4\n"), done.stderr
    assert probe(tmp_path / "film.mp4").frames == 33
    assert f"{ROOT}/bin/mmpl-gen --prompt" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["film.mp4", "film.mp4.job"]


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGINT, 130, "stopped by Ctrl-C"), (signal.SIGTERM, 143, "stopped by SIGTERM")],
)
def test_stopped(bundle: Path, tmp_path: Path, number: int, code: int, words: str) -> None:
    (tmp_path / "film.mp4").write_bytes(b"an older film")
    argv = ["--model_path", bundle, "--prompt", PROMPT, "--segments", 200, "--threads", 1]
    process = subprocess.Popen(
        [sys.executable, ROOT / "bin" / "mmpl-gen", *map(str, argv), "--overwrite"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    begun = tmp_path / "film.mp4.job" / "segment_0001.init.safetensors"
    while not begun.exists():
        assert process.poll() is None, "ended before it was stopped"
        time.sleep(0.01)
    process.send_signal(number)
    process.send_signal(number)  # impatient
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, ""), err
    last = err.splitlines()[-1]
    assert words in last
    assert "segment" in last
    assert "film.mp4 was not written" in last
    assert "resume film.mp4.job" in last
    assert "Traceback" not in err
    assert sorted(os.listdir(tmp_path)) == ["film.mp4", "film.mp4.job"]
    assert (tmp_path / "film.mp4").read_bytes() == b"an older film"


def test_a_disk_that_fills_up(bundle: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    flags = ["--model_path", bundle, "--prompt", PROMPT, "--num_frames", 1, "--threads", 1]
    done = subprocess.run(
        [sys.executable, "-B", ROOT / "bin" / "mmpl-gen", *map(str, flags)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert "ulimit" in done.stderr.splitlines()[-1]
    assert os.listdir(tmp_path) == []


def test_nobody_reads_the_result(bundle: Path, tmp_path: Path) -> None:
    """A closed stdout or stderr does not turn a complete film into a failure."""
    flags = f"--model_path {bundle} --prompt red --num_frames 1 --steps 1 --threads 1"
    program = f"{sys.executable} {ROOT}/bin/mmpl-gen {flags}"
    script = f"set -o pipefail; {program} --output a.mp4 2>&- | true; echo $?"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "a.mp4.job"]


def test_help_is_quick(tmp_path: Path) -> None:
    """Processor time beyond that of starting Python, against that of importing some of its own
    library, 0.1 s on a usual machine: this one may be slow or busy."""

    def seconds(argv: list[str]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *argv], cwd=tmp_path, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    help_line = [str(ROOT / "bin" / "mmpl-gen"), "--help"]
    lines = (["-c", ""], ["-c", "import asyncio, unittest.mock"], help_line)
    bare, library, ours = (min(seconds(line) for _ in range(4)) for line in lines)
    assert ours - bare < 2.5 * (library - bare)


@pytest.mark.parametrize(
    "prompt",
    [
        "red " * 25_000,
        "red\x1b[31m\x07\x00circle\u202e",
        "\u0635\u0648\u0631\u0629 \u8d64\u3044\u5186 \U0001f534 e\u0301\u0327\u200d",
        "5s without a colon: #9 0x: red",
    ],
    ids=["long", "control", "scripts", "almost-a-script"],
)
def test_prompts_of_any_kind(gen: Gen, prompt: str) -> None:
    code, _, err = gen("--prompt", prompt, "--seed", 1)
    assert code == 0, err[:500]
    assert settings_of()["prompt"] == prompt
    assert all(char.isprintable() or char == "\n" for char in err)
    assert max(map(len, err.splitlines())) < 120_000
    code, _, again_err = gen("--config", "film.mp4", "--output", "again.mp4", plain=True)
    assert code == 0, again_err[:500]
    assert np.array_equal(read_frames("again.mp4"), read_frames("film.mp4"))
