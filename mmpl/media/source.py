"""Videos from strangers: opened safely, decoded frame by frame, never half right without a word.

Local files of a few known kinds only, whatever their name says; no URLs, playlists or scripts. No
decoder runs before there is a limit on pixels, and any damage that can be seen refuses the file.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream

from mmpl.errors import InputError
from mmpl.media.image import MAX_PIXELS, readable_file

_WANTED = f"an intact mp4, mov, mkv, webm, avi or ts file, at most {MAX_PIXELS:,} pixels a frame"
_FORMATS = "mov,matroska,avi,mpegts"
# What cameras, phones, editors and screen recorders write. The many others of FFmpeg are rare in
# films and common in attacks.
_CODECS = {
    *("h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video"),
    *("h263", "mjpeg", "prores", "dnxhd", "dvvideo", "ffv1"),
}
_STILLS = {"avif", "avis", "heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1", "miaf"}
_BOXES = {  # that may stand at the top of an mp4 or mov file
    *(b"ftyp", b"moov", b"mdat", b"moof", b"mfra", b"free", b"skip", b"wide", b"uuid", b"styp"),
    *(b"sidx", b"ssix", b"prft", b"emsg", b"meta", b"pnot", b"udta"),
}
_MOST_PARTS = 100_000
_UNKNOWN = (1 << 32) - 1  # size of a RIFF file that was never finished
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


@contextmanager
def open_video(
    path: str | os.PathLike[str],
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """An untrusted video, with a limit on pixels and no concealing of damage. Raises `InputError`,
    for libav's errors in the body too."""
    where = os.fspath(readable_file(path))
    _check_length(where)
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": _FORMATS,
        # None. Otherwise the search for streams would decode, in some formats without any limit.
        "codec_whitelist": ",",
    }
    try:
        with av.open(f"file:{where}", "r", options=options) as container:
            stream = _pictures(container, where)
            stream.codec_context.options = {
                "err_detect": "explode",
                "max_pixels": str(MAX_PIXELS),
            }
            yield container, stream
    except (FFmpegError, UnicodeError) as error:
        raise InputError(
            "not a video this program reads, or damaged", where=where, wanted=_WANTED
        ) from error


def decode(
    container: InputContainer, stream: VideoStream, path: str | os.PathLike[str]
) -> Iterator[av.VideoFrame]:
    """The frames of a stream, at least one. Raises `InputError`."""
    empty = True
    for packet in container.demux(stream):
        if packet.is_corrupt:  # cut short; its frame may decode all the same
            raise InputError("the video is cut short", where=os.fspath(path))
        for frame in packet.decode():
            if frame.is_corrupt:
                raise InputError("a frame is damaged", where=os.fspath(path))
            empty = False
            yield frame
    if empty:
        raise InputError("no frames in this file", where=os.fspath(path))


def _pictures(container: InputContainer, where: str) -> VideoStream:
    """The first stream of moving pictures; the cover of a record is none."""
    # A grid of tiles, of which the first stream would be one.
    if container.metadata.get("major_brand", "").strip() in _STILLS:
        raise InputError("a still picture, not a video", where=where, wanted=_WANTED)
    for stream in container.streams.video:
        if stream.disposition & Disposition.attached_pic:
            continue
        codec = stream.codec_context.name if stream.codec_context else "an unknown codec"
        if codec not in _CODECS:
            raise InputError(
                "video of a kind this program does not read",
                where=where,
                got=codec,
                wanted="h264, hevc, av1, vp9 or another common codec",
            )
        return stream
    raise InputError("no video in this file", where=where)


def _check_length(where: str) -> None:
    """Refuse a file that says itself that it is longer. Decoding would not notice a cut between
    two frames of Matroska or of a fragmented mp4."""
    with open(where, "rb") as file:
        length, size = _stated_length(file), os.fstat(file.fileno()).st_size
    if length > size:
        raise InputError("the video is cut short", where=where, got=f"{size:,} of {length:,} bytes")


def _stated_length(file: BinaryIO) -> int:
    """Bytes that a file must have by its outermost headers; 0 where they do not say."""
    head = file.read(4)
    if head == _EBML:
        return _matroska_length(file)
    end = 0
    for _ in range(_MOST_PARTS):
        file.seek(end)
        part = file.read(16).ljust(16, b"\0")
        size = _riff_size(part) if head == b"RIFF" else _box_size(part)
        if size == 0:
            break
        end += size
    return end


def _riff_size(part: bytes) -> int:
    """Bytes of a RIFF chunk with its header, even; 0 for anything else that may lie behind it."""
    kind, size = struct.unpack_from("<4sI", part)
    return 8 + size + size % 2 if kind == b"RIFF" and 0 < size < _UNKNOWN else 0


def _box_size(part: bytes) -> int:
    """Bytes of a top-level box of an mp4 with its header; 0 where it goes on to the end of the
    file, and for anything else."""
    size, kind, long_size = struct.unpack(">I4sQ", part)
    size = long_size if size == 1 else size
    return size if kind in _BOXES and size >= 8 else 0


def _matroska_length(file: BinaryIO) -> int:
    end = 0
    for marker in (_EBML, _SEGMENT):
        file.seek(end)
        header = file.read(12).ljust(12, b"\0")
        if header[:4] != marker or header[4] == 0:
            return 0
        octets = 9 - header[4].bit_length()  # of the size; the highest bit set says how many
        size = int.from_bytes(header[4 : 4 + octets]) & ((1 << 7 * octets) - 1)
        if size == (1 << 7 * octets) - 1:  # not known when it was written: a live recording
            return 0
        end += 4 + octets + size
    return end
