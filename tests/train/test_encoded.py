"""Shards of encoded clips: what is in them, and that no accident leaves others than none would."""

from __future__ import annotations

import copy
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from mmpl.checkpoint.bundle import Encoders, load_encoders, load_model
from mmpl.errors import ArgumentError, CheckpointError, InputError, NumericError, OutputError
from mmpl.media import durable
from mmpl.media.image import Pixels
from mmpl.media.pixels import to_uint8
from mmpl.train import encoding
from mmpl.train.clips import held_out, render
from mmpl.train.encoded import EncodedClips
from mmpl.train.encoding import ShardDamaged, ShardDone, encode_clips
from mmpl.train.footage import Captions, Cut, Refused, Source, find_footage
from mmpl.train.latents import clip_of
from mmpl.train.manifest import Choices
from mmpl.train.procedural import ProceduralClip
from mmpl.wan import vae
from mmpl.wan.config import VAEConfig
from mmpl.wan.params import tree_map
from mmpl.wan.text import encode_prompts
from tests.small import write_small
from tests.train.videos import greys, write_video

SIDE = 16
CUT = Cut(frames=9, width=SIDE, height=SIDE, fps=16, clips_per_video=8)  # so 2 videos a shard
CHOICES = Choices(CUT, text_len=8, negative_prompt="blue")
CAPTIONS = Captions("a red circle moves right", "red circle")


@dataclass(frozen=True)
class Noise:
    """Something of `total` frames of noise; none where it cannot be read."""

    name: str
    captions: Captions = CAPTIONS
    total: int = 9
    file_bytes: int = 7

    def starts(self, cut: Cut) -> list[int]:
        if not cut.starts(self.total):
            raise InputError("too short", where=self.name)
        return cut.starts(self.total)

    def pixels(self, cut: Cut, starts: Sequence[int]) -> Iterator[Pixels]:
        for start in starts:
            random = np.random.default_rng([start, *self.name.encode()])
            yield random.integers(0, 256, (cut.frames, cut.height, cut.width, 3), np.uint8)


SOURCES: tuple[Source, ...] = (
    Noise("a", total=30),
    Noise("b", Captions(dense="circle")),
    Noise("c", total=8),
    Noise("d", Captions(short="red")),
    Noise("e"),
)
CLIPS = ["a#0", "a#10", "a#20", "b#0", "d#0", "e#0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def encoders(model: Path) -> Encoders:
    return load_encoders(model)


@pytest.fixture(scope="module")
def whole(encoders: Encoders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run leaves."""
    folder = tmp_path_factory.mktemp("whole") / "shards"
    listed = [Refused("z.txt", "alone")]
    events = list(encode_clips(SOURCES, CHOICES, encoders, folder, refused=listed))
    assert events == [
        ShardDone(1, 3, 4, True, ()),
        ShardDone(2, 3, 1, True, (Refused("c", "too short"),)),
        ShardDone(3, 3, 1, True, ()),
    ]
    return folder


def encode(encoders: Encoders, folder: Path, workers: int = 1) -> list[ShardDone | ShardDamaged]:
    listed = [Refused("z.txt", "alone")]
    return list(encode_clips(SOURCES, CHOICES, encoders, folder, workers=workers, refused=listed))


def made(events: Sequence[ShardDone | ShardDamaged]) -> list[bool]:
    return [event.made for event in events if isinstance(event, ShardDone)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "shards"))


# ------------------------------------------------------------------------------- what is in them


def test_clips_are_what_the_encoders_make_of_them(whole: Path, encoders: Encoders) -> None:
    clips = EncodedClips(whole)
    assert [clips.name(i) for i in range(len(clips))] == CLIPS
    assert clips.made["width"] == SIDE
    by_name = {source.name: source for source in SOURCES}
    for index, name in enumerate(CLIPS):
        source, start = by_name[name[0]], int(name[2:])
        (pixels_FHWC,) = source.pixels(CUT, [start])
        x_BCFHW = torch.from_numpy(pixels_FHWC).permute(3, 0, 1, 2)[None] / 127.5 - 1
        with torch.no_grad():
            z_BCTHW, _ = vae.encode(encoders.vae, encoders.vae_config, x_BCFHW)
        assert clips.latents(index).shape == (4, 3, 2, 2)
        assert clips.latents(index).equal(z_BCTHW[0].half())
        dense, short = source.captions.dense, source.captions.short
        assert clips.text(index).equal(text_of(encoders, dense or short))
        assert clips.text(index, "short").equal(text_of(encoders, short or dense))
    assert clips.negative.equal(text_of(encoders, "blue"))
    assert clips.empty.equal(text_of(encoders, ""))
    assert len(clips.text(0)) > len(clips.text(0, "short")) > len(clips.empty) - 1


@torch.no_grad()
def text_of(encoders: Encoders, prompt: str) -> torch.Tensor:
    parts = encoders.text, encoders.text_config, encoders.tokenizer
    return encode_prompts(*parts, [prompt], 8)[0]


def test_large_clips_are_encoded_in_parts(
    encoders: Encoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels_FHWC = next(Noise("a", total=13).pixels(replace(CUT, frames=13), [0]))
    at_once = encoding._latents(encoders, pixels_FHWC)
    calls: list[int] = []
    encode_part = vae.encode

    def counted(
        params: vae.VAEParams,
        config: VAEConfig,
        video_BCFHW: torch.Tensor,
        state: vae.State | None = None,
    ) -> tuple[torch.Tensor, vae.State]:
        calls.append(video_BCFHW.shape[2])
        return encode_part(params, config, video_BCFHW, state)

    monkeypatch.setattr(vae, "encode", counted)
    for pixels, wanted in ((1, [1, 4, 4, 4]), (8 * SIDE * SIDE, [5, 8])):
        calls.clear()
        monkeypatch.setattr(encoding, "_PIXELS_AT_ONCE", pixels)
        in_parts = encoding._latents(encoders, pixels_FHWC)
        assert calls == wanted
        assert (in_parts - at_once).abs().max() < 1e-5 * at_once.abs().max()


def test_encoders_are_those_of_the_model(model: Path, encoders: Encoders, tmp_path: Path) -> None:
    full = load_model(model)
    assert encoders.digests == {part: full.digests[part] for part in ("vae", "text", "tokenizer")}
    assert encoders.vae.conv1.weight.equal(full.vae.conv1.weight)
    assert encoders.text.norm.weight.equal(full.text.norm.weight)
    other = Path(shutil.copytree(model, tmp_path / "model"))
    flip(other / "dit.safetensors")
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(other)
    assert load_encoders(other).digests == encoders.digests  # of the transformer nothing is read


def test_latents_in_bfloat16(encoders: Encoders, whole: Path, tmp_path: Path) -> None:
    list(encode_clips(SOURCES, replace(CHOICES, dtype="bfloat16"), encoders, tmp_path / "b"))
    other = EncodedClips(tmp_path / "b").latents(0)
    assert other.dtype == torch.bfloat16
    usual = EncodedClips(whole).latents(0).float()
    assert (other.float() - usual).abs().max() < 0.01 * usual.abs().max()


def test_real_videos(encoders: Encoders, tmp_path: Path) -> None:
    """A film of 20 frames at 30 a second: 11 at 16, of which the middle 9 are one clip."""
    data = tmp_path / "data"
    data.mkdir()
    for name, frames in (("a", 20), ("b", 6)):
        pictures = greys(frames, 2 * SIDE, SIDE)
        write_video(data / f"{name}.mp4", pictures, unit=Fraction(1, 30))
        (data / f"{name}.txt").write_text("red circle")
    (data / "c.mp4").write_bytes(b"?")
    (data / "c.json").write_text('{"short_caption": "a star"}')
    sources, refused = find_footage(data)
    assert refused == []
    list(encode_clips(sources, CHOICES, encoders, tmp_path / "shards", workers=3))
    clips = EncodedClips(tmp_path / "shards")
    assert [clips.name(i) for i in range(len(clips))] == ["a.mp4#1"]
    lines = (tmp_path / "shards" / "refused.jsonl").read_text().splitlines()
    assert [line[:38] for line in lines] == [
        '{"name": "b.mp4", "reason": "the video',
        '{"name": "c.mp4", "reason": "not a vid',
    ]


@pytest.mark.parametrize(("width", "height"), [(16, 16), (32, 16), (16, 32)])
def test_procedural_clips_are_a_source(width: int, height: int) -> None:
    source = ProceduralClip(5)
    cut = replace(CUT, width=width, height=height)
    assert source.starts(cut) == [0]
    (pixels_FHWC,) = source.pixels(cut, [0])
    assert pixels_FHWC.shape == (9, height, width, 3)
    side = max(width, height)
    full_FHWC = to_uint8(render(clip_of(5), (0, 9), size=side))
    top, left = (side - height) // 2, (side - width) // 2
    wanted = full_FHWC[:, top : top + height, left : left + width].astype(int)
    assert abs(pixels_FHWC - wanted).max() <= 1
    assert not held_out(clip_of(5))
    assert "background" in source.captions.dense
    assert "background" not in source.captions.short
    assert source.captions.dense.startswith(source.captions.short)


# ----------------------------------------------------------------------------------- accidents


def test_workers_change_nothing(whole: Path, encoders: Encoders, tmp_path: Path) -> None:
    encode(encoders, tmp_path / "shards", workers=4)
    assert contents(tmp_path / "shards") == contents(whole)


def test_gone_on_with_is_as_uninterrupted(whole: Path, encoders: Encoders, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    events = encode_clips(
        SOURCES, CHOICES, encoders, folder, workers=2, refused=[Refused("z.txt", "alone")]
    )
    next(events)
    with pytest.raises(ArgumentError, match="another process is at work"):
        encode(encoders, folder)
    events.close()
    assert sorted(path.name for path in folder.iterdir()) == [
        "encoded.json",
        "shard-00000.safetensors",
        "texts.safetensors",
    ]
    with pytest.raises(InputError, match=r"not all encoded; got 1 shards; wanted 3"):
        EncodedClips(folder)
    (folder / durable.begin(folder / "shard-00001.safetensors").temporary.name).write_bytes(b"?")
    assert made(encode(encoders, folder)) == [False, True, True]
    assert contents(folder) == contents(whole)
    assert made(encode(encoders, folder)) == [False] * 3
    assert contents(folder) == contents(whole)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def other_record(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'\\"fps\\": 16', b'\\"fps\\": 17'))


@pytest.mark.parametrize("damage", [flip, cut_short, other_record, Path.unlink])
@pytest.mark.parametrize("name", ["shard-00000.safetensors", "texts.safetensors"])
def test_what_is_damaged_is_made_again(
    whole: Path, encoders: Encoders, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder = copied(whole, tmp_path)
    damage(folder / name)
    assert contents(folder) != contents(whole)
    with pytest.raises(InputError, match=r"run mmpl-train encode again"):
        EncodedClips(folder)
    told = [
        event.path.name for event in encode(encoders, folder) if isinstance(event, ShardDamaged)
    ]
    assert told == ([] if damage is Path.unlink else [name])
    assert contents(folder) == contents(whole)


def test_checksums_are_looked_at_when_wanted_only(whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path)
    flip(folder / "shard-00000.safetensors")
    assert len(EncodedClips(folder, verify=False)) == len(CLIPS)
    cut_short(folder / "shard-00000.safetensors")
    with pytest.raises(InputError, match="damaged or gone"):
        EncodedClips(folder, verify=False)


def test_a_shard_that_goes_missing_later(whole: Path, tmp_path: Path) -> None:
    clips = EncodedClips(copied(whole, tmp_path))
    (tmp_path / "shards" / "shard-00002.safetensors").unlink()
    assert copy.deepcopy(clips).latents(0).equal(clips.latents(0))
    with pytest.raises(InputError, match="damaged or gone"):
        clips.latents(len(clips) - 1)


@pytest.mark.parametrize(
    ("sources", "choices", "words"),
    [
        (SOURCES, replace(CHOICES, cut=replace(CUT, width=32)), "got width 16; wanted width 32"),
        (SOURCES, replace(CHOICES, negative_prompt="a"), "got negative_prompt 'blue'"),
        (SOURCES, replace(CHOICES, dtype="bfloat16"), "wanted dtype 'bfloat16'"),
        (SOURCES[:-1], CHOICES, "got videos 5, sources"),
        ((Noise("a", total=30, file_bytes=8), *SOURCES[1:]), CHOICES, "wanted sources '"),
        ((Noise("a", Captions("b"), total=30), *SOURCES[1:]), CHOICES, "wanted sources '"),
    ],
)
@pytest.mark.parametrize("manifest", [True, False])
def test_other_settings_are_refused(
    whole: Path,
    encoders: Encoders,
    tmp_path: Path,
    sources: tuple[Source, ...],
    choices: Choices,
    words: str,
    manifest: bool,
) -> None:
    folder = copied(whole, tmp_path)
    if not manifest:  # the shards say it themselves
        (folder / "encoded.json").unlink()
        (folder / "texts.safetensors").unlink()
    before = contents(folder)
    with pytest.raises(ArgumentError) as caught:
        list(encode_clips(sources, choices, encoders, folder))
    assert "the clips there were encoded otherwise, or of other data" in str(caught.value)
    assert words in str(caught.value)
    assert before.items() <= contents(folder).items()


def test_other_weights_are_refused(whole: Path, encoders: Encoders, tmp_path: Path) -> None:
    other = replace(encoders, digests={**encoders.digests, "vae": "0" * 64})
    with pytest.raises(ArgumentError, match=r"wanted vae '000"):
        encode(other, copied(whole, tmp_path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot read what these clips are"),
        ("[]", "not clips that this program encoded"),
        ('{"format": "mmpl-encoded", "version": 2}', "not clips that this program encoded"),
    ],
)
def test_strange_manifests(encoders: Encoders, tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "encoded.json").write_text(content)
    for use in (EncodedClips, lambda folder: encode(encoders, folder)):
        with pytest.raises(InputError, match=words):
            use(tmp_path)


def test_shards_of_another_folder(whole: Path, encoders: Encoders, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path)
    list(encode_clips(SOURCES, replace(CHOICES, dtype="bfloat16"), encoders, tmp_path / "b"))
    shutil.copy(tmp_path / "b" / "shard-00001.safetensors", folder)
    with pytest.raises(InputError, match="belongs to other encoded clips"):
        EncodedClips(folder)


def test_no_clips_here(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=r"no encoded clips here; make them"):
            EncodedClips(folder)


def test_a_full_disk_keeps_what_is_finished(
    whole: Path, encoders: Encoders, tmp_path: Path
) -> None:
    """At the write of every file in turn; half of it is written."""
    for turn, there in enumerate((0, 1, 2, 3, 4, 5)):
        folder = tmp_path / str(turn)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(durable, "open", FullDisk(turn), raising=False)
            with pytest.raises(OutputError) as caught:
                encode(encoders, folder, workers=2)
        assert "the disk is full; free some space" in str(caught.value)
        assert caught.value.exit_code == 4
        left = contents(folder)
        assert len(left) == there
        assert left.items() <= contents(whole).items()
        encode(encoders, folder)
        assert contents(folder) == contents(whole)


class FullDisk:
    """The function open, whose file of number `turn` finds no room."""

    def __init__(self, turn: int) -> None:
        self.turn = turn

    def __call__(self, path: Path, mode: str) -> IO[Any]:
        self.turn -= 1
        file = open(path, mode)  # noqa: SIM115
        if self.turn < 0:
            with file:
                file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return file


def test_nothing_is_left(encoders: Encoders, tmp_path: Path) -> None:
    short = [Noise("a", total=8), Noise("b", total=1)]
    with pytest.raises(InputError) as caught:
        list(encode_clips(short, CHOICES, encoders, tmp_path / "s"))
    assert "no clip is left; got 2 refused, first a: too short" in str(caught.value)
    assert (tmp_path / "s" / "refused.jsonl").read_text().count("\n") == 2
    assert len(EncodedClips(tmp_path / "s")) == 0


def test_not_a_number_stops_with_the_name(encoders: Encoders, tmp_path: Path) -> None:
    broken = replace(encoders, vae=tree_map(lambda leaf: leaf * torch.nan, encoders.vae))
    with pytest.raises(NumericError, match=r"^a: what was encoded holds NaN"):
        encode(broken, tmp_path / "s")
    assert not list(tmp_path.glob("s/shard-*"))


def test_any_reader_of_safetensors_can_read_them(whole: Path) -> None:
    with safe_open(whole / "shard-00001.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == ["short_JD.1", "z_CTHW.0"]
