"""Films: bytes, metadata, and above all that a bad film never gets the name of a good one."""

import json
import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmpl
from mmpl.errors import ArgumentError, InputError, OutputError
from mmpl.media import durable, video
from mmpl.media.image import Pixels

FRAMES, HEIGHT, WIDTH = 20, 48, 64
ROOT = Path(mmpl.__file__).parents[1]


def clip(frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> Pixels:
    """A disc that moves over a gradient: FHWC."""
    f, y, x = np.mgrid[:frames, :height, :width]
    disc = (x - 10 - 2 * f) ** 2 + (y - 20) ** 2 < 64
    return np.stack([200 * disc + 20, 3 * x, 255 - 3 * y], axis=-1).astype(np.uint8)


def write(path: Path, frames_FHWC: Pixels, fps: float | Fraction = 16, **options: Any) -> None:
    _, height, width, _ = frames_FHWC.shape
    with video.VideoWriter(path, width, height, fps, **options) as writer:
        writer.write(frames_FHWC)


def test_what_is_written_is_read(tmp_path: Path):
    frames, path = clip(), tmp_path / "film.mp4"
    write(path, frames)
    back = video.read_frames(path)
    assert back.dtype == np.uint8
    assert back.shape == frames.shape
    assert abs(back.astype(float) - frames).mean() < 5
    assert video.probe(path) == video.VideoInfo(
        FRAMES, WIDTH, HEIGHT, Fraction(16), "h264", "yuv420p", bt709=True
    )
    video.verify(path, FRAMES, WIDTH, HEIGHT)
    assert os.listdir(tmp_path) == ["film.mp4"]
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays before it is all there


def test_bytes_depend_on_frames_and_settings_only(tmp_path: Path):
    frames, path = clip(), tmp_path / "film.mp4"
    write(path, frames, metadata={"seed": 7})
    whole = path.read_bytes()
    mirrored = np.ascontiguousarray(frames[:, :, ::-1])
    with video.VideoWriter(path, WIDTH, HEIGHT, 16, metadata={"seed": 7}) as writer:
        for part in (mirrored[:1], mirrored[1:1], mirrored[1:8], mirrored[8:]):
            writer.write(part[:, :, ::-1])  # neither contiguous nor in one piece
    assert path.read_bytes() == whole
    write(path, frames, metadata={"seed": 8})
    assert path.read_bytes() != whole


def test_bytes_do_not_depend_on_what_was_in_memory(tmp_path: Path):
    """Memory that x264 read before anybody wrote it would show in what moves."""
    rows_H1, columns_1W = np.ogrid[:64, :64]
    frames = np.zeros((60, 64, 64, 3), np.uint8)
    for frame, pixels_HWC in enumerate(frames):
        pixels_HWC[..., 0] = 2 * columns_1W + rows_H1 + frame
        row, column = 32 + 21 * np.sin(frame / 9), 32 + 21 * np.cos(frame / 5)
        pixels_HWC[(rows_H1 - row) ** 2 + (columns_1W - column) ** 2 < 113] = 250, 60, frame
    path, found, rng = tmp_path / "film.mp4", set[bytes](), np.random.default_rng(0)
    for _ in range(4):
        left = [rng.bytes(size) for size in rng.integers(200, 120000, 400).tolist()]
        del left
        write(path, frames)
        found.add(path.read_bytes())
    assert len(found) == 1


def test_threads_and_quality_are_as_asked(tmp_path: Path):
    """x264 notes its settings in the film; left alone, it would count the processors."""
    path, frames = tmp_path / "film.mp4", clip(2, 256, 256)
    for options, noted in (
        ({}, (b" threads=1 ", b" crf=17.0 ")),
        ({"threads": 2}, (b" threads=2 ", b" crf=17.0 ")),
        ({"crf": 30.5}, (b" threads=1 ", b" crf=30.5 ")),
    ):
        write(path, frames, **options)
        data = path.read_bytes()
        assert all(note in data for note in noted)


@pytest.mark.parametrize("fps", [16, 23.976, Fraction(30000, 1001), 0.5, 1000])
def test_frame_rates(tmp_path: Path, fps: float | Fraction):
    write(tmp_path / "a.mp4", clip(3), fps=fps)
    info = video.probe(tmp_path / "a.mp4")
    assert info.frames == 3
    assert abs(info.fps / Fraction(fps) - 1) < 1e-4


@pytest.mark.parametrize("size", [(2, 2), (16, 2), (2, 16), (130, 66)])
def test_small_and_uneven_sizes(tmp_path: Path, size: tuple[int, int]):
    write(tmp_path / "a.mp4", clip(2, *size))
    video.verify(tmp_path / "a.mp4", 2, size[1], size[0])


@settings(deadline=None)
@given(st.integers(-4, 20000), st.integers(-4, 20000))
def test_sizes_are_legal_or_refused_with_a_legal_one(width: int, height: int):
    legal = all(2 <= side <= 16384 and side % 2 == 0 for side in (width, height))
    if legal and width * height <= 50_000_000:
        video.check_size(width, height)
        return
    with pytest.raises(ArgumentError, match=f"got {width}x{height}.*even") as caught:
        video.VideoWriter("never/made.mp4", width, height, 16)
    if caught.value.todo:
        near = caught.value.todo.split()[-1].split("x")
        video.check_size(int(near[0]), int(near[1]))


def test_bad_arguments_are_refused_before_any_file_exists(tmp_path: Path):
    path = tmp_path / "film.mp4"
    for options in (
        {"fps": 0},
        {"fps": -1},
        {"fps": float("nan")},
        {"fps": float("inf")},
        {"fps": 1e-9},
        {"fps": 1e9},
        {"crf": 0},
        {"crf": 52},
        {"crf": float("nan")},
        {"threads": 0},
        {"metadata": {"x": float("nan")}},
        {"metadata": {"x": object()}},
    ):
        with pytest.raises(ArgumentError):
            video.VideoWriter(path, 64, 64, **{"fps": 16, **options})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "wrong", [clip(2)[:, :-2], clip(2)[0], clip(2)[..., :2], clip(2).astype(np.float32)]
)
def test_wrong_frames_are_refused_and_leave_nothing(tmp_path: Path, wrong: Pixels):
    def make() -> None:
        with video.VideoWriter(tmp_path / "film.mp4", WIDTH, HEIGHT, 16) as writer:
            writer.write(clip(2))
            writer.write(wrong)

    with pytest.raises(ArgumentError, match="frames of the film"):
        make()
    assert os.listdir(tmp_path) == []


NASTY = {
    "prompt": 'a "red" circle\'s \\ way; 猫 😀 \u202e \0 \n \ud800',
    "seed": 2**63,
    "shift": 5.0,
    "prompts": ["one", None, True, {"deep": [1, 2]}],
}


def test_metadata_round_trip(tmp_path: Path):
    path = tmp_path / "film.mp4"
    for metadata in (NASTY, {}, {"prompt": "x" * 100_000}):
        write(path, clip(1), metadata=metadata)
        assert video.read_metadata(path) == metadata
    with av.open(str(path)) as container:  # where any other tool looks for it
        assert json.loads(container.metadata["comment"]) == {"prompt": "x" * 100_000}


@pytest.mark.parametrize("comment", [None, "", "made with love", "[1]", "[" * 100_000])
def test_a_film_without_settings(tmp_path: Path, comment: str | None):
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w", format="mp4") as container:
        if comment is not None:
            container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=16)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="no settings"):
        video.read_metadata(path)


@pytest.mark.parametrize("name", ["é 猫.mp4", "a:b.mp4", "frame%03d.mp4", "file:x.mp4", "-y.mp4"])
def test_names_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    write(Path(name), clip(2), metadata={"a": 1})
    video.verify(name, 2, WIDTH, HEIGHT)
    assert video.read_metadata(name) == {"a": 1}
    assert os.listdir(".") == [name]


def test_an_exception_keeps_the_old_film(tmp_path: Path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"old")

    def make(frames: int, error: BaseException) -> None:
        with video.VideoWriter(path, WIDTH, HEIGHT, 16) as writer:
            writer.write(clip(frames))
            raise error

    for frames, error in ((0, ValueError("x")), (1, FileNotFoundError("y")), (80, SystemExit())):
        with pytest.raises(type(error)) as caught:
            make(frames, error)
        assert caught.value is error  # not taken for a failure to write
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["film.mp4"]


def test_no_frames_is_an_error(tmp_path: Path):
    with pytest.raises(OutputError, match="no frames"):
        write(tmp_path / "film.mp4", clip(0))
    assert os.listdir(tmp_path) == []


def in_child(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD + code, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


CHILD = """
import json, os, resource, sys, time
import numpy as np
from mmpl.errors import OutputError
from mmpl.media import video
def writer(path): return video.VideoWriter(path, 64, 48, 16)
frames = np.arange(20 * 48 * 64 * 3, dtype=np.uint32).reshape(20, 48, 64, 3).astype(np.uint8)
"""

KILLED = """
with writer(sys.argv[1]) as film:
    for _ in range(4): film.write(frames)
    print("written", flush=True)
    time.sleep(60)
"""

LIMITED = """
path, folder = sys.argv[1:]
with writer(path) as film: film.write(frames)
whole = os.path.getsize(path)
with open(path, "w") as file: file.write("old")
fractions = [0, 1, 40, 1000, whole // 2, whole - 1500, whole - 1000, whole - 30, whole - 1, whole]
for limit in fractions:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with writer(path) as film: film.write(frames)
        said = "written"
    except OutputError as error:
        said = str(error)
    old = os.path.getsize(path) == 3
    print(json.dumps([whole - limit, said, old, os.listdir(folder)]))
"""


def test_a_killed_writer_leaves_the_old_film(tmp_path: Path):
    path = tmp_path / "film.mp4"
    write(path, clip(3))
    old = path.read_bytes()
    with in_child(KILLED, str(path)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "written\n"
        child.send_signal(signal.SIGKILL)
    assert path.read_bytes() == old
    left = [name for name in os.listdir(tmp_path) if name != "film.mp4"]
    assert all(name.startswith(".film.mp4.") and name.endswith(".part") for name in left)


def test_a_disk_that_fills_up_at_any_byte(tmp_path: Path):
    """Emulated by a limit on the size of files: all or nothing, and said so."""
    path = tmp_path / "film.mp4"
    with in_child(LIMITED, str(path), str(tmp_path)) as child:
        output, _ = child.communicate()
    assert child.returncode == 0
    outcomes = [json.loads(line) for line in output.splitlines()]
    assert len(outcomes) == 10
    for missing, said, old, names in outcomes:
        assert names == ["film.mp4"]
        if missing:
            assert old
            assert str(path) in said
            assert "size limit" in said
        else:
            assert said == "written"
    video.verify(path, 20, 64, 48)


def test_a_film_that_does_not_read_back_never_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """libav may lose its last bytes without a word; cut the finished file just before the check."""
    path, real = tmp_path / "film.mp4", video._verify

    def cut_and_verify(temporary: Path, *arguments: Any) -> None:
        os.truncate(temporary, temporary.stat().st_size - 1)
        real(temporary, *arguments)

    monkeypatch.setattr(video, "_verify", cut_and_verify)
    with pytest.raises(OutputError, match=r"film\.mp4: the film does not read back"):
        write(path, clip())
    assert os.listdir(tmp_path) == []


def test_a_failing_rename_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(_: object) -> None:
        raise durable.output_error(tmp_path / "film.mp4", PermissionError(13, "no"))

    monkeypatch.setattr(durable, "commit", refuse)
    with pytest.raises(OutputError, match="no permission"):
        write(tmp_path / "film.mp4", clip(1))
    assert os.listdir(tmp_path) == []


def test_missing_folder_is_an_output_error(tmp_path: Path):
    with pytest.raises(OutputError, match="mkdir -p"):
        write(tmp_path / "none" / "film.mp4", clip(1))


def test_verify_refuses_what_was_not_promised(tmp_path: Path):
    path = tmp_path / "film.mp4"
    write(path, clip())
    for frames, width, height in (
        (FRAMES - 1, WIDTH, HEIGHT),
        (FRAMES + 1, WIDTH, HEIGHT),
        (FRAMES, HEIGHT, WIDTH),
    ):
        with pytest.raises(OutputError, match=f"got {FRAMES} frames of {WIDTH}x{HEIGHT}"):
            video.verify(path, frames, width, height)
    data = path.read_bytes()
    for cut in {len(data) * percent // 25 for percent in range(25)} | {len(data) - 1}:
        path.write_bytes(data[:cut])
        with pytest.raises(OutputError, match="does not read back"):
            video.verify(path, FRAMES, WIDTH, HEIGHT)
    path.unlink()
    with pytest.raises(OutputError, match="does not read back"):
        video.verify(path, FRAMES, WIDTH, HEIGHT)


def test_a_film_cut_by_one_byte_is_refused(tmp_path: Path):
    """Even of JPEG pictures, of which the last still decodes."""
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("mjpeg", rate=16)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        for pixels in clip(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    video.verify(path, 3, WIDTH, HEIGHT)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(InputError, match="cut short"):
        video.probe(path)


def test_damage_inside_is_not_concealed(tmp_path: Path):
    """Holes of 30 bytes. H.264 has no checksums, so a hole here and there may go unnoticed."""
    path, refused = tmp_path / "film.mp4", []
    write(path, clip())
    data = path.read_bytes()
    for at in range(data.index(b"mdat") + 800, len(data) - 40, 80):
        path.write_bytes(data[:at] + bytes(30) + data[at + 30 :])
        try:
            video.verify(path, FRAMES, WIDTH, HEIGHT)
            refused.append(False)
        except OutputError:
            refused.append(True)
    assert np.mean(refused) > 0.8


def test_what_is_no_video_is_refused(tmp_path: Path):
    path = tmp_path / "film.mp4"
    for data in (b"", b"a red circle", b"#EXTM3U\n#EXTINF:1,\nfile:///dev/zero\n", b"\0" * 5000):
        path.write_bytes(data)
        for read in (video.probe, video.read_frames, video.read_metadata):
            with pytest.raises(InputError) as caught:
                read(path)
            assert caught.value.exit_code == 3
            assert "\n" not in str(caught.value)
    for name in (str(tmp_path), "/dev/zero", "http://localhost/film.mp4", "pipe:0"):
        with pytest.raises(InputError):
            video.probe(name)


def test_a_video_without_pictures_is_refused(tmp_path: Path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="no video"):
        video.probe(path)


def test_checking_a_film_does_not_wait_for_torch():
    with in_child("print('torch' in sys.modules)") as child:
        output, _ = child.communicate()
    assert output == "False\n"
