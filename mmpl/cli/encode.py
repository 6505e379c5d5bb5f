"""`mmpl-train encode`: videos with captions, or prompts alone, made into what a training reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmpl.checkpoint.folder import ModelFolder
from mmpl.cli import training
from mmpl.cli.flags import (
    DEBUG,
    MACHINE,
    SIZE,
    THREADS,
    Command,
    Flag,
    carried_out,
    one_of,
    whole,
)
from mmpl.cli.model import model_folder
from mmpl.cli.shell import Console, cores, print_result, printable
from mmpl.errors import ArgumentError, InputError
from mmpl.layout.presets import by_name
from mmpl.media.durable import check_folder_writable
from mmpl.train.footage import Cut, Footage, Refused, Source, ahead, find_footage, refusal
from mmpl.train.manifest import REFUSED_FILE, Choices, made_of, require_same
from mmpl.train.prompts import SUFFIX as PROMPTS
from mmpl.train.prompts import find_prompts

VERB = "encode"
PROCEDURAL = "procedural:"
DATA, FILES = "data", "files"
LARGEST_SIDE = 2**13
MOST_CLIPS = 64  # of a video, which are all held at once
MOST_PROCEDURAL = 10**7
MOST_WORKERS = 256
USUAL_WORKERS = 4
TOLD = 20  # refusals on the terminal

ENCODE = Command(
    name=f"mmpl-train {VERB}",
    usage=f"mmpl-train {VERB} --data FOLDER --output SHARDS [flags]\n"
    f"       mmpl-train {VERB} --data FOLDER --list [flags]",
    description="Cuts clips from videos with captions and encodes them, once, with the VAE and the "
    "text encoder of a model. Goes on where it stopped. What cannot be used is listed with its "
    "reason and is no error.",
    epilog="A caption is a .txt or .json file beside its video (.json: dense_caption, "
    "short_caption), or a column or key of an index (.csv, .jsonl: video, caption, dense_caption, "
    "short_caption). Hyphens may stand for underscores. The path of the shards (or the list) is "
    "printed on stdout, all else on stderr. Exit codes: 0 done, 1 internal error, 2 wrong argument "
    "or a folder encoded otherwise, 3 model or all data refused, 4 output or disk, 7 not-a-number, "
    "8 out of memory, 130 Ctrl-C, 143 SIGTERM.",
    groups=(DATA, FILES, MACHINE),
    flags=(
        Flag(
            "data", DATA, "FOLDER", "videos (mp4, mkv, mov, webm) with captions; or an index, .csv "
            f"or .jsonl, in their folder; or {PROCEDURAL}COUNT; or prompts for `distil`, which "
            f"needs no videos: a {PROMPTS} file, one a line",
        ),
        Flag("list", DATA, "", "print the clips there are, and what is refused; encode nothing"),
        Flag(
            "clips_per_video", DATA, "N", "how many clips a long video gives at most",
            **whole(1, MOST_CLIPS), default="1",
        ),
        Flag("size", DATA, "WxH", "videos are scaled and cropped to it", **SIZE,
             default="that of the model"),
        Flag("model_path", FILES, "FOLDER", "a model", default="the embedded weights/tiny"),
        Flag("output", FILES, "FOLDER", "the shards"),
        Flag(
            "dtype", FILES, "NAME", "format of the latents in them",
            **one_of("float16", "bfloat16"), default="float16",
        ),
        Flag(
            "workers", MACHINE, "N", "videos decoded at a time, ahead of the encoder; each holds "
            "its clips in memory", **whole(1, MOST_WORKERS), default=f"{USUAL_WORKERS} at most",
        ),
        Flag("device", MACHINE, "NAME", "cpu or cuda", **one_of("cpu", "cuda"), default="cpu"),
        THREADS,
        DEBUG,
    ),
)  # fmt: skip


def encode(argv: Sequence[str], console: Console) -> int:
    """Exit code of `mmpl-train encode`."""
    return carried_out(ENCODE, _encode, argv, console)


def _encode(given: Mapping[str, Any], console: Console) -> None:
    _check(given)
    folder, _ = model_folder(given)
    choices = Choices(
        cut=_cut(folder, given),
        text_len=folder.configs.dit.text_len,
        negative_prompt=folder.defaults.negative_prompt,
        dtype=given.get("dtype", "float16"),
    )
    workers = given.get("workers", min(USUAL_WORKERS, cores()))
    sources, refused = _sources(given["data"])
    if "list" in given:
        _list(sources, refused, choices.cut, workers, console)
        return
    output = Path(given["output"])
    require_same(output, made_of(sources, choices, folder.digests))

    import torch

    from mmpl.checkpoint.bundle import load_encoders
    from mmpl.train.encoded import EncodedClips
    from mmpl.train.encoding import ShardDamaged, encode_clips

    torch.set_num_threads(given.get("threads", cores()))
    device = training.require_device(given.get("device", "cpu"))
    encoders = load_encoders(folder, device=device)
    listed = list(refused)
    for event in encode_clips(sources, choices, encoders, output, workers=workers, refused=refused):
        if isinstance(event, ShardDamaged):
            console.warn(f"{event.path} is damaged, and is made again")
            continue
        listed += event.refused
        how = "" if event.made else ", made before"
        what = _counted(event.clips, choices.cut)
        console.say(f"shard {event.number} of {event.shards}: {what}{how}")
    _tell(listed, console)
    clips = len(EncodedClips(output, verify=False))
    _sum_up(clips, choices.cut, sources, listed, console)
    print_result(str(output))


def _check(given: Mapping[str, Any]) -> None:
    """What can be refused before any file is looked at."""
    if "data" not in given:
        raise ArgumentError("no data to encode", wanted="--data FOLDER; see --help")
    if "list" in given:
        for flag in ("output", "dtype", "device", "threads"):
            if flag in given:
                raise ArgumentError(f"--{flag} means nothing here", got="--list")
    elif "output" not in given:
        raise ArgumentError("no folder for the shards", wanted="--output SHARDS, or --list")
    else:
        check_folder_writable(given["output"])
    for flag in ("clips_per_video", "dtype", "workers"):
        if flag in given and _alone(given["data"]):
            raise ArgumentError(
                f"--{flag} means nothing with prompts", got=f"--data {given['data']}"
            )


def _alone(data: str) -> bool:
    """Whether these are captions without videos."""
    return data.lower().endswith(PROMPTS)


def _cut(folder: ModelFolder, given: Mapping[str, Any]) -> Cut:
    """Clips of a whole segment of the model, or of no frames for prompts alone. Raises
    ArgumentError for a size it cannot encode."""
    configs, defaults = folder.configs, folder.defaults
    width, height = given.get("size", (defaults.width, defaults.height))
    rows, columns = (configs.vae.spatial_stride * side for side in configs.dit.patch_size[1:])
    for side, step in ((width, columns), (height, rows)):
        if not step <= side <= LARGEST_SIDE or side % step:
            raise ArgumentError(
                "size of the clips",
                got=f"{width}x{height}",
                wanted=f"multiples of {columns} and {rows}, at most {LARGEST_SIDE}",
            )
    frames = configs.vae.pixel_frames(by_name(defaults.layout_t2v).frames)
    frames = 0 if _alone(given["data"]) else frames
    return Cut(frames, width, height, defaults.fps, given.get("clips_per_video", 1))


def _sources(data: str) -> tuple[Sequence[Source], list[Refused]]:
    if _alone(data):
        return find_prompts(data), []
    if not data.startswith(PROCEDURAL):
        found: tuple[Sequence[Footage], list[Refused]] = find_footage(data)
        return found
    wanted = whole(1, MOST_PROCEDURAL)
    count = Flag("data", DATA, "", "", **wanted).value(data.removeprefix(PROCEDURAL))

    from mmpl.train.procedural import ProceduralClip  # draws with torch

    return [ProceduralClip(seed) for seed in range(count)], []


def _list(
    sources: Sequence[Source], refused: list[Refused], cut: Cut, workers: int, console: Console
) -> None:
    """Every clip: video, first frame, caption. All videos are decoded for it."""
    clips = 0
    found = ahead(partial(_starts, cut), sources, workers)
    for source, starts in zip(sources, found, strict=True):
        if isinstance(starts, Refused):
            refused.append(starts)
            continue
        clips += len(starts)
        caption = source.captions.dense or source.captions.short
        for start in starts:
            print_result(printable(f"{source.name}#{start}  {caption}"))
    _tell(refused, console, most=len(refused))
    _sum_up(clips, cut, sources, refused, console)


def _counted(clips: int, cut: Cut) -> str:
    return f"{clips} {'clips' if cut.frames else 'prompts'}"


def _sum_up(
    clips: int, cut: Cut, sources: Sequence[Source], refused: Sequence[Refused], console: Console
) -> None:
    videos = f" of {len(sources)} videos; {len(refused)} refused" if cut.frames else ""
    console.say(_counted(clips, cut) + videos)


def _starts(cut: Cut, source: Source) -> list[int] | Refused:
    try:
        return source.starts(cut)
    except InputError as error:
        return refusal(source.name, error)


def _tell(refused: Sequence[Refused], console: Console, most: int = TOLD) -> None:
    for one in refused[:most]:
        console.say(printable(f"refused: {one.name}: {one.reason}"))
    if len(refused) > most:
        console.say(f"refused: {len(refused) - most} more, see {REFUSED_FILE}")
