"""From captioned clips to shards of latents and text embeddings, once, before a training.

Every clip goes through the encoders alone, so its bytes depend on nothing beside it: a run that was
stopped and gone on with leaves the same files as one that was not.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mmpl.checkpoint.bundle import Encoders
from mmpl.errors import InputError, NumericError
from mmpl.media import durable
from mmpl.media.image import Pixels
from mmpl.train.encoded import Record, read_record, write_shard
from mmpl.train.footage import MANIFEST_FILE, Cut, Refused, Source, ahead, refusal
from mmpl.train.manifest import (
    REFUSED_FILE,
    SHARDS,
    TEXTS_FILE,
    Choices,
    Made,
    made_of,
    require_made,
    require_same,
    shard_paths,
    shard_videos,
    write_manifest,
    write_refused,
)
from mmpl.wan import vae
from mmpl.wan.text import encode_prompts

_PIXELS_AT_ONCE = 1 << 21  # of a clip in the VAE, whose activations are some hundred times larger

Clips = list[tuple[int, Pixels]]  # first frame and FHWC of each


@dataclass(frozen=True, slots=True)
class ShardDone:
    """Shard `number` (from 1) of `shards` is there, with so many clips; `made` now, or before."""

    number: int
    shards: int
    clips: int
    made: bool
    refused: tuple[Refused, ...]


@dataclass(frozen=True, slots=True)
class ShardDamaged:
    """A file that was made before is damaged; it is made again."""

    path: Path


def encode_clips(
    sources: Sequence[Source],
    choices: Choices,
    encoders: Encoders,
    folder: str | Path,
    *,
    workers: int = 1,
    refused: Iterable[Refused] = (),
) -> Generator[ShardDone | ShardDamaged, None, None]:
    """Encodes the clips of `sources` into shards in `folder`, for `EncodedClips` to read; yields
    what is done.

    `workers` threads decode and scale videos ahead of the encoders; each holds the clips of one
    video. Shards that are there and whole are kept. A video that cannot be read is no error: it is
    listed in refused.jsonl, with what was `refused` before, and is not tried again as long as its
    shard is there. Raises ArgumentError where the folder
    was made otherwise or is at work already, InputError where no clip is left at all, NumericError,
    and OutputError, with all finished shards kept.
    """
    folder = Path(folder)
    made = made_of(sources, choices, encoders.digests)
    durable.make_folder(folder)
    with durable.locked(folder) as alone:
        if alone:
            durable.sweep_folder(folder, SHARDS, TEXTS_FILE, MANIFEST_FILE, REFUSED_FILE)
        if not require_same(folder, made):
            write_manifest(folder, made)
        texts = folder / TEXTS_FILE
        if _kept(texts, made) is None:
            if texts.exists():
                yield ShardDamaged(texts)
            prompts = {"negative_JD": choices.negative_prompt, "empty_JD": ""}
            write_shard(texts, Record(made), _texts(encoders, prompts, choices.text_len))
        clips, listed = 0, list(refused)
        for event in _shards(sources, choices, encoders, folder, made, workers):
            if isinstance(event, ShardDone):
                clips += event.clips
                listed += event.refused
            yield event
        write_refused(folder, sorted(listed, key=lambda one: (one.name, one.reason)))
    if not clips:
        raise InputError(
            "no clip is left",
            where=str(folder),
            got=f"{len(listed)} refused, first {listed[0].name}: {listed[0].reason}",
            todo=f"all of them are in {REFUSED_FILE}",
        )


def _shards(
    sources: Sequence[Source],
    choices: Choices,
    encoders: Encoders,
    folder: Path,
    made: Made,
    workers: int,
) -> Iterator[ShardDone | ShardDamaged]:
    paths, videos = shard_paths(folder, made), shard_videos(made)
    missing: list[int] = []
    for shard, path in enumerate(paths):
        record = _kept(path, made)
        if record is not None:
            yield _done(shard, len(paths), record, made=False)
            continue
        if path.exists():
            yield ShardDamaged(path)
        missing.append(shard)
    parts = {shard: sources[shard * videos : (shard + 1) * videos] for shard in missing}
    left = (source for part in parts.values() for source in part)
    with closing(ahead(partial(_clips, choices.cut), left, workers)) as decoded:
        for shard, part in parts.items():
            record, tensors = _encoded(part, decoded, encoders, choices, made)
            write_shard(paths[shard], record, tensors)
            yield _done(shard, len(paths), record, made=True)


def _kept(path: Path, made: Made) -> Record | None:
    """The record of a whole shard. Raises ArgumentError if it was made otherwise."""
    record = read_record(path, verify=True)
    if record is not None:
        require_made(path, record.made, made)
    return record


def _done(shard: int, shards: int, record: Record, *, made: bool) -> ShardDone:
    refused = tuple(Refused(name, reason) for name, reason in record.refused)
    return ShardDone(shard + 1, shards, len(record.clips), made, refused)


def _clips(cut: Cut, source: Source) -> Clips | Refused:
    """The pixels of all clips of a source, or why there are none."""
    try:
        starts = source.starts(cut)
        return list(zip(starts, source.pixels(cut, starts), strict=True))
    except InputError as error:
        return refusal(source.name, error)


def _encoded(
    sources: Sequence[Source],
    decoded: Iterator[Clips | Refused],
    encoders: Encoders,
    choices: Choices,
    made: Made,
) -> tuple[Record, dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    clips: list[tuple[int, int]] = []
    refused: list[tuple[str, str]] = []
    for video, source in enumerate(sources):
        found = next(decoded)
        if isinstance(found, Refused):
            refused.append((found.name, found.reason))
            continue
        for start, pixels_FHWC in found:
            if choices.cut.frames:
                z_CTHW = _latents(encoders, pixels_FHWC).to(getattr(torch, choices.dtype)).cpu()
                tensors[f"z_CTHW.{len(clips)}"] = _finite(z_CTHW, source.name)
            clips.append((video, start))
        captions = {"dense": source.captions.dense, "short": source.captions.short}
        texts = {f"{kind}_JD.{video}": text for kind, text in captions.items() if text}
        for name, text_JD in _texts(encoders, texts, choices.text_len).items():
            tensors[name] = _finite(text_JD, source.name)
    names = tuple(source.name for source in sources)
    return Record(made, names, tuple(clips), tuple(refused)), tensors


@torch.no_grad()
def _latents(encoders: Encoders, pixels_FHWC: Pixels) -> Tensor:
    """z_CTHW of a clip, a few frames at a time where they are large."""
    config, device = encoders.vae_config, encoders.vae.conv1.weight.device
    frames, height, width, _ = pixels_FHWC.shape
    stride = config.temporal_stride
    step = stride * max(1, _PIXELS_AT_ONCE // (stride * height * width))
    state, parts = None, []
    for start in range(1 - stride, frames, step):  # the first latent frame is one pixel frame
        part_FHWC = torch.from_numpy(pixels_FHWC[max(0, start) : start + step]).to(device)
        video_BCFHW = part_FHWC.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        z_BCTHW, state = vae.encode(encoders.vae, config, video_BCFHW, state)
        parts.append(z_BCTHW[0])
    return torch.cat(parts, dim=1)


@torch.no_grad()
def _texts(encoders: Encoders, texts: Mapping[str, str], text_len: int) -> dict[str, Tensor]:
    """The embedding [J, D] of each text, as the encoder gives it."""
    embeddings = encode_prompts(
        encoders.text, encoders.text_config, encoders.tokenizer, list(texts.values()), text_len
    )
    return {name: embedding.cpu() for name, embedding in zip(texts, embeddings, strict=True)}


def _finite(values: Tensor, where: str) -> Tensor:
    if not values.isfinite().all():
        raise NumericError("what was encoded holds NaN or infinity", where=where)
    return values
