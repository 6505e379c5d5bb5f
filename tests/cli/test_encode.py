"""`mmpl-train encode`: bad input in one line before anything is loaded, and whole runs."""

from __future__ import annotations

import errno
import json
import os
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from mmpl.media import durable
from mmpl.train.encoded import EncodedClips
from mmpl.train.wan_loss import latent_size
from tests.cli.refusals import call, check_nothing_waits_for_torch, check_refused
from tests.small import CONFIGS, write_small
from tests.train.videos import greys, write_video

THREADS = f"--threads {torch.get_num_threads()}"  # those of the other tests
DATA = "encode --data data"
OUTPUT = f"{DATA} --output out"
# arguments, exit code, words of the message
BAD = [
    ("encode", 2, "no data to encode; wanted --data FOLDER; see --help"),
    ("encode data", 2, "an argument without a flag; got 'data'"),
    (DATA, 2, "no folder for the shards; wanted --output SHARDS, or --list"),
    (f"{OUTPUT} --list", 2, "--output means nothing here; got --list"),
    (f"{DATA} --list --device cuda", 2, "--device means nothing here; got --list"),
    (f"{OUTPUT} --worker 2", 2, "did you mean --workers?"),
    (f"{OUTPUT} --workers 0", 2, "--workers has a wrong value; got '0'; wanted a whole number, 1"),
    (f"{OUTPUT} --clips_per_video 0", 2, "--clips_per_video has a wrong value"),
    (f"{OUTPUT} --dtype float32", 2, "--dtype has a wrong value; got 'float32'; wanted one of"),
    (f"{OUTPUT} --size 64", 2, "--size has a wrong value; got '64'; wanted WIDTHxHEIGHT"),
    (f"{OUTPUT} --size 60x64", 2, "size of the clips; got 60x64; wanted multiples of 16 and 16"),
    (f"{OUTPUT} --size 0x64", 2, "size of the clips; got 0x64"),
    (f"{OUTPUT} --size 65536x64", 2, "at most 8192"),
    (f"{OUTPUT} --model_path missing", 3, "missing: no such model folder"),
    ("encode --data procedural:0 --output out", 2, "--data has a wrong value; got '0'"),
    ("encode --data procedural:few --output out", 2, "--data has a wrong value; got 'few'"),
    ("encode --data missing --output out", 3, "missing: no such data"),
    ("encode --data data/a.mp4 --output out", 3, "data/a.mp4: not data to learn from"),
    ("encode --data empty --list", 3, "empty: no video with a caption; got nothing"),
    ("encode --data missing.txt --list", 3, "missing.txt: cannot read"),
    ("encode --data none.txt --list", 3, "none.txt: no prompts in this file; wanted one a line"),
    ("encode --data latin.txt --list", 3, "latin.txt: not a UTF-8 text"),
    ("encode --data none.txt --list --workers 2", 2, "--workers means nothing with prompts; got -"),
    (f"{DATA} --output data/a.mp4/out", 4, "data/a.mp4/out: cannot write: a part of its path"),
    (f"{DATA} --output made", 2, "made: the clips there were encoded otherwise"),
]

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of 81 frames at 16 a second, one of them long enough for two clips, and what is
    refused."""
    data = tmp_path_factory.mktemp("data")
    write_video(data / "a.mp4", greys(152), unit=Fraction(1, 30))
    write_video(data / "b.mkv", greys(162))
    (data / "a.txt").write_text("a red circle moves right")
    (data / "b.json").write_text('{"dense_caption": "a blue star", "short_caption": "a star"}')
    (data / "c\n.mp4").write_bytes(b"?")
    (data / "c\n.txt").write_text("a")
    (data / "d.txt").write_text("a")
    return data


@pytest.fixture(autouse=True)
def _folders(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data, nothing, and what was encoded otherwise, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(data)
    Path("empty").mkdir()
    Path("made").mkdir()
    Path("none.txt").write_text(" \n\n")
    Path("latin.txt").write_bytes(b"\xe9t\xe9\n")
    made = {"format": "mmpl-encoded", "version": 1, "width": 8}
    Path("made", "encoded.json").write_text(json.dumps(made))


@pytest.mark.parametrize(("command", "code", "words"), BAD, ids=[case[0] for case in BAD])
def test_bad_input(capfd: Capture, command: str, code: int, words: str) -> None:
    check_refused(capfd, command, code, words)


def test_neither_these_nor_the_list_wait_for_torch() -> None:
    check_nothing_waits_for_torch(BAD, "encode --help", f"{DATA} --list")


def test_list(capfd: Capture) -> None:
    assert call(f"{DATA} --list --clips_per_video 2 --workers 2") == 0
    out, err = capfd.readouterr()
    assert out.splitlines() == [
        "a.mp4#0  a red circle moves right",
        "b.mkv#0  a blue star",
        "b.mkv#81  a blue star",
    ]
    lines = err.splitlines()
    assert lines[0] == "refused: d.txt: a caption without a video"
    assert lines[1].startswith(r"refused: c\n.mp4: not a video this program reads")
    assert lines[2:] == ["3 clips of 3 videos; 2 refused"]
    assert sorted(os.listdir()) == ["data", "empty", "latin.txt", "made", "none.txt"]


def test_the_embedded_model(capfd: Capture) -> None:
    """Two clips of a whole segment with weights/tiny; then damage, then other settings."""
    assert call(f"{OUTPUT} {THREADS}") == 0
    out, err = capfd.readouterr()
    assert out == "out\n"
    assert err.splitlines()[0] == "shard 1 of 1: 2 clips"
    assert err.splitlines()[-1] == "2 clips of 3 videos; 2 refused"
    clips = EncodedClips("out")
    assert [clips.name(i) for i in range(len(clips))] == ["a.mp4#0", "b.mkv#40"]
    assert [clips.latents(i).shape for i in (0, 1)] == [(16, 21, 8, 8)] * 2
    assert clips.latents(0).dtype == torch.float16
    assert [len(clips.text(1, "dense")), len(clips.text(1, "short"))] == [4, 3]  # and the end
    refused = [json.loads(line) for line in Path("out/refused.jsonl").read_text().splitlines()]
    assert [entry["name"] for entry in refused] == ["c\n.mp4", "d.txt"]

    whole = Path("out/shard-00000.safetensors").read_bytes()
    Path("out/shard-00000.safetensors").write_bytes(whole[:-1])
    assert call(f"{OUTPUT} {THREADS} --workers 3") == 0
    damaged = "mmpl-train: warning: out/shard-00000.safetensors is damaged, and is made again"
    assert capfd.readouterr().err.splitlines()[:2] == [damaged, "shard 1 of 1: 2 clips"]
    assert Path("out/shard-00000.safetensors").read_bytes() == whole
    assert call(f"{OUTPUT} {THREADS}") == 0
    assert capfd.readouterr().err.startswith("shard 1 of 1: 2 clips, made before\n")

    assert call(f"{OUTPUT} --clips_per_video 2") == 2
    assert "got clips_per_video 1; wanted clips_per_video 2" in capfd.readouterr().err
    write_small(Path("model"))
    assert call(f"{OUTPUT} --model_path model --size 64x64") == 2
    assert "the clips there were encoded otherwise" in capfd.readouterr().err


def test_procedural(capfd: Capture) -> None:
    write_small(Path("model"))
    usual = f"encode --data procedural:2 --model_path model --size 16x32 --output out {THREADS}"
    assert call(usual) == 0
    assert capfd.readouterr().out == "out\n"
    clips = EncodedClips("out")
    assert [clips.name(i) for i in range(len(clips))] == ["procedural-0#0", "procedural-1#0"]
    assert clips.latents(0).shape == (4, 21, 4, 2)


def test_prompts(capfd: Capture) -> None:
    """Every line that says something, without a video; what needs clips says what they are."""
    write_small(Path("model"))
    Path("prompts.TXT").write_text("a red circle\r\n\n  a blue star\u2028moves \n")
    assert call("encode --data prompts.TXT --list --model_path model") == 0
    listed = ["line 1#0  a red circle", r"line 3#0  a blue star\u2028moves"]
    assert capfd.readouterr().out.splitlines() == listed
    usual = f"encode --data prompts.TXT --model_path model --size 32x16 {THREADS} --output"
    assert call(f"{usual} out") == 0
    assert capfd.readouterr().err.splitlines() == ["shard 1 of 1: 2 prompts", "2 prompts"]
    clips = EncodedClips("out")
    assert [clips.name(i) for i in range(len(clips))] == ["line 1#0", "line 3#0"]
    assert len(clips.text(0, "short")) == len(clips.text(0, "dense")) == 4
    assert latent_size(clips, CONFIGS.vae.spatial_stride) == (2, 4)
    assert call(f"tune --model_path model --data out --runs r {THREADS}") == 3
    err = capfd.readouterr().err
    assert "error: out: these are captions alone, without clips; encode videos for this" in err


def test_a_full_disk(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, mode: str) -> object:
        if "shard" in Path(path).name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open(path, mode)  # noqa: SIM115

    write_small(Path("model"))
    monkeypatch.setattr(durable, "open", full, raising=False)
    command = f"encode --data procedural:1 --model_path model --size 16x16 --output out {THREADS}"
    assert call(command) == 4
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "out/shard-00000.safetensors: cannot write: the disk is full" in err
    assert sorted(os.listdir("out")) == ["encoded.json", "texts.safetensors"]


def test_no_gpu(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call(f"{OUTPUT} --device cuda {THREADS}") == 2
    assert "there is no GPU" in capfd.readouterr().err
    assert not Path("out").exists()
