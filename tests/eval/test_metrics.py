"""Films whose drift and jumps are planted, so that the right answers are known."""

from __future__ import annotations

import colorsys
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from mmpl.cli.evaluate import main
from mmpl.errors import InputError
from mmpl.eval.metrics import measure
from mmpl.layout.layout import Layout
from mmpl.layout.presets import mmpl_i2v, mmpl_t2v
from mmpl.layout.timeline import Chain, chain_of, joints
from mmpl.media.video import VideoWriter
from tests.eval.planted import colour

Pixels = NDArray[np.uint8]
FPS = 8


def plain(rgb: Pixels | tuple[int, int, int], size: int = 16) -> Pixels:
    return np.broadcast_to(np.array(rgb, np.uint8), (size, size, 3)).copy()


@settings(deadline=None)
@given(start=st.integers(0, 359), shift=st.integers(-120, 120))
def test_a_planted_shift_of_hue_is_read(start: int, shift: int) -> None:
    """A tenth of the shift each second, from the second second on."""
    colours = [colour(start + shift * second / 10) for second in range(11)]
    film = [plain(colours[n // FPS]) for n in range(11 * FPS)]
    found = measure(film, FPS)
    first, last = (colorsys.rgb_to_hsv(*rgb)[0] * 360 for rgb in (colours[0], colours[-1]))
    stored = (last - first + 180) % 360 - 180  # of bytes, as each colour is rounded to
    assert stored == pytest.approx(shift, abs=0.8)
    assert found.hue_drift_deg_first_last == pytest.approx(stored, abs=0.05)
    assert found.mean_hue_drift_deg == pytest.approx(abs(shift) * 0.55, abs=0.6)
    assert len(found.seconds) == 11
    assert found.hue_l1_first_last == (2.0 if abs(shift) > 2 else pytest.approx(0.0, abs=2.0))
    assert abs(found.mean_brightness_drift) < 0.5
    assert found.contrast_drift_first_last == pytest.approx(0.0, abs=1e-6)


def test_ten_degrees_read_ten_degrees() -> None:
    film = [plain(colour(40))] * FPS + [plain(colour(50))] * FPS
    found = measure(film, FPS)
    assert found.hue_drift_deg_first_last == pytest.approx(10.0, abs=0.3)
    assert found.mean_hue_drift_deg == pytest.approx(10.0, abs=0.3)
    assert (found.hue_l1_first_last, found.frames) == (2.0, 16)
    coarse = measure(film, FPS, hue_bins=6)  # both in the bin of 0 to 60 degrees
    assert (coarse.hue_l1_first_last, coarse.hue_correlation_first_last) == (0.0, 1.0)


def test_half_the_picture_changes_its_hue() -> None:
    before, after = plain(colour(0)), plain(colour(0))
    before[:8], after[:8] = colour(120), colour(240)
    found = measure([before, after], FPS)
    assert found.hue_l1_first_last == pytest.approx(1.0)
    assert found.hue_correlation_first_last == pytest.approx(0.5, abs=0.02)


def test_a_grey_film_has_brightness_and_contrast_and_no_hue() -> None:
    flat, chequered = plain((100, 100, 100)), plain((100, 100, 100))
    chequered[::2], chequered[1::2] = 50, 200
    found = measure([flat] * FPS + [chequered] * FPS, FPS)
    assert found.mean_hue_drift_deg is None
    assert found.hue_drift_deg_first_last is None
    assert found.brightness_drift_first_last == pytest.approx(25 / 255)
    assert found.contrast_drift_first_last == pytest.approx(75 / 255)


def test_a_jump_is_read_against_its_neighbours() -> None:
    """A gradient that moves by 1 level a frame, and by 7 at frame 20."""
    film = [plain((level, level, level)) for level in (20 + n + 6 * (n >= 20) for n in range(40))]
    found = measure(film, FPS, joints=[{20, 30, 400}])
    assert [joint.frame for joint in found.joints] == [20, 30]
    assert [joint.jump_ratio for joint in found.joints] == pytest.approx([7.0, 1.0], rel=1e-4)
    assert found.mean_jump_ratio == pytest.approx(4.0, rel=1e-4)
    still = measure([plain((9, 9, 9))] * 20, FPS, joints=[range(5, 100, 5)])
    assert [joint.jump_ratio for joint in still.joints] == [None] * 3
    assert still.mean_jump_ratio is None


def test_nothing_to_measure() -> None:
    with pytest.raises(InputError, match="nothing to measure"):
        measure([], FPS)
    one = measure([plain((1, 2, 3))], FPS)
    assert (one.frames, one.mean_hue_drift_deg, one.hue_l1_first_last) == (1, None, 0.0)


@pytest.mark.parametrize("layout", [mmpl_t2v(), mmpl_i2v()])
def test_where_the_joints_of_mmpl_are(layout: Layout) -> None:
    """Those of the paper's tables 13 and 14: keyframes meet what is filled in at the frames 8, 32,
    44 and 68 that a later segment shows; what begins the film has a joint of its own."""
    chain: Chain = chain_of(layout, seeding="terminal", temporal_stride=4)
    found = joints(layout, chain, 81 + 2 * 76)
    assert found["segment"] == [81, 157]
    own = [n for n in found["group"] if n < 81]
    assert [n - 81 for n in found["group"] if 81 <= n < 157] == [8, 32, 44, 68]
    assert own[-4:] == [13, 37, 49, 73]
    assert [n for n in joints(layout, chain, 40)["group"] if n > 5] == [13, 37]


@pytest.fixture
def films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, shift in (("a.mp4", 0), ("b.mp4", 30)):
        with VideoWriter(name, 32, 32, FPS) as writer:
            for n in range(3 * FPS):
                writer.write(plain(colour(100 + shift * (n // FPS)), 32)[None])


@pytest.mark.usefixtures("films")
def test_films_side_by_side(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["a.mp4", "b.mp4", "--compare"]) == 0
    out, _ = capfd.readouterr()
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:]}
    assert out.split()[:2] == ["a.mp4", "b.mp4"]
    assert rows["frames"] == ["24", "24", "(+0)"]
    a, b, difference = rows["hue_drift_deg_first_last"]
    assert abs(float(a)) < 1
    assert abs(float(b) - 60) < 3
    assert abs(float(difference.strip("()")) - 60) < 3
    assert not any(name.endswith("joints") for name in rows)


@pytest.mark.usefixtures("films")
def test_numbers_for_programs(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["b.mp4", "--json", "--joint-every", "8", "--hue-bins", "18"]) == 0
    film = json.loads(capfd.readouterr().out)["films"]["b.mp4"]
    assert film["hue_bins"] == 18
    assert [joint["frame"] for joint in film["joints"]] == [8, 16]
    assert film["mean_hue_l1_at_segment_joints"] == pytest.approx(2.0)
    assert 20 < film["mean_hue_drift_deg"] < 50
    assert len(film["seconds"]) == 3


@pytest.mark.usefixtures("films")
def test_a_page_of_curves(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["a.mp4", "b.mp4", "--report", "page.html"]) == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.count("</svg>") == 6
    assert "b.mp4" in page
    turned = re.findall(r"second 3: ([\d.]+), start of the film: 0.0<", page)
    assert [float(text) for text in turned] == pytest.approx([0, 60], abs=3)
    assert "http" not in page.replace("http-equiv", "")
    capfd.readouterr()
    assert main(["a.mp4", "--report", "missing/page.html"]) == 4


@pytest.mark.usefixtures("films")
def test_an_encoder_of_the_user(capfd: pytest.CaptureFixture[str]) -> None:
    Path("own_encoder.py").write_text("def mean(x_BCHW):\n    return x_BCHW.mean((2, 3))\n")
    words = ["b.mp4", "a.mp4", "--encoder", "own_encoder:mean", "--encoder_frames", "3"]
    assert main([*words, "--jepa_rank", "3", "--json"]) == 0
    films = json.loads(capfd.readouterr().out)["films"]
    assert films["a.mp4"]["consistency"] > films["b.mp4"]["consistency"]
    assert films["a.mp4"]["encoder_frames"] == 3
    # The mean of n pixels has three singular values of n ** -0.5, in every frame.
    assert films["b.mp4"]["jepa_score_std"] == pytest.approx(0.0, abs=1e-5)
    assert main(["a.mp4", "--encoder", "own_encoder:mean"]) == 0
    assert "consistency" in capfd.readouterr().out


@pytest.mark.usefixtures("films")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--encoder", "own"], "--encoder is no function; got 'own'; wanted MODULE:NAME"),
        (["--encoder", "no_such:name"], "--encoder cannot be imported: No module named"),
        (["--encoder", "json:no_such"], "--encoder cannot be imported"),
        (["--jepa_rank", "3"], "mean nothing without --encoder"),
    ],
)
def test_encoders_that_are_none(
    capfd: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["a.mp4", *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err


@pytest.mark.usefixtures("films")
def test_t_lpips_by_a_distance_of_the_user(capfd: pytest.CaptureFixture[str]) -> None:
    Path("own.py").write_text(
        "def far(one_BCHW, other_BCHW):\n    return (one_BCHW - other_BCHW).abs().mean()\n"
        "def two(one_BCHW, other_BCHW):\n    return one_BCHW.mean((0, 2, 3))\n"
    )
    assert main(["b.mp4", "--lpips", "own:far", "--joint_every", "4", "--json"]) == 0
    film = json.loads(capfd.readouterr().out)["films"]["b.mp4"]
    at = {joint["frame"]: joint["t_lpips"] for joint in film["joints"]}
    assert film["lpips"] == "own:far"
    assert list(at) == [4, 8, 12, 16, 20]
    step = np.abs(np.subtract(colour(100), colour(130), dtype=float)).mean() * 2 / 255
    assert at[8] == pytest.approx(step, rel=0.05)
    assert max(at[4], at[12]) < step / 10
    assert film["mean_t_lpips_at_segment_joints"] == pytest.approx(sum(at.values()) / 5)
    assert main(["b.mp4", "--lpips", "own:far"]) == 0
    out, err = capfd.readouterr()
    assert "--joint_every says where they are" in err
    assert "t_lpips" not in out
    assert main(["b.mp4", "--lpips", "own:two", "--joint_every", "8"]) == 2
    assert "what the distance returns; got (3,); wanted one number" in capfd.readouterr().err
    assert main(["b.mp4", "--lpips", "own:no_such"]) == 2
    assert "--lpips cannot be imported" in capfd.readouterr().err


@pytest.mark.usefixtures("films")
@pytest.mark.parametrize("error", [OSError("no way"), RuntimeError("no way")])
def test_lpips_without_its_network(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Its weights are downloaded at first use, by a torchvision that must be of this torch."""
    package = ModuleType("lpips")

    def load(*, net: str, verbose: bool) -> None:
        raise error

    package.__dict__["LPIPS"] = load
    monkeypatch.setitem(sys.modules, "lpips", package)
    assert main(["b.mp4", "--lpips", "alex"]) == 3
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"cannot load its network; got {type(error).__name__}: no way; " in err


@pytest.mark.usefixtures("films")
def test_lpips_is_an_extra(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)  # as if it were not installed
    assert main(["b.mp4", "--lpips", "alex"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "t-LPIPS needs the package lpips; got no module lpips; pip install 'mmpl[lpips]'" in err

    class LPIPS:  # the part of the package that is used
        def __init__(self, *, net: str, verbose: bool) -> None:
            self.found = float(net == "vgg" and not verbose)

        def eval(self) -> LPIPS:
            return self

        def __call__(self, one_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
            assert one_BCHW.shape == other_BCHW.shape == (1, 3, 32, 32)
            return torch.full((1, 1, 1, 1), self.found)

    package = ModuleType("lpips")
    monkeypatch.setattr(package, "LPIPS", LPIPS, raising=False)
    monkeypatch.setitem(sys.modules, "lpips", package)
    assert main(["b.mp4", "--lpips", "vgg", "--joint_every", "8", "--json"]) == 0
    film = json.loads(capfd.readouterr().out)["films"]["b.mp4"]
    assert film["mean_t_lpips_at_segment_joints"] == 1.0


def test_names_for_vbench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recorded = {"prompt": "a red circle", "layout": "mmpl_t2v", "seeding": "terminal"}
    for name, prompt in (("1.mp4", "a red circle"), ("2.mp4", "a red circle"), ("3.mp4", "a/b")):
        of_film = {"settings": {**recorded, "prompt": prompt, "num_frames": 9}}
        with VideoWriter(name, 32, 32, FPS, metadata=of_film) as writer:
            writer.write(np.stack([plain((9, 9, 9), 32)] * 9))
    assert main(["1.mp4", "2.mp4", "--vbench", "vbench"]) == 0
    assert sorted(path.name for path in Path("vbench").iterdir()) == [
        "a red circle-0.mp4",
        "a red circle-1.mp4",
    ]
    assert Path("vbench/a red circle-1.mp4").read_bytes() == Path("2.mp4").read_bytes()
    capfd.readouterr()
    assert main(["3.mp4", "--vbench", "vbench"]) == 2
    assert "cannot be a file name" in capfd.readouterr().err
