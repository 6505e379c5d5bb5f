"""The growing film: at any moment a file that opens and holds all frames so far."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmpl.errors import OutputError
from mmpl.media.preview import PreviewWriter
from mmpl.media.video import probe, read_frames


def test_it_can_be_opened_after_every_write(tmp_path: Path) -> None:
    path = tmp_path / "preview.mp4"
    frames = np.repeat(np.linspace(0, 255, 40, dtype=np.uint8)[:, None, None, None], 3, axis=3)
    frames = np.broadcast_to(frames, (40, 32, 48, 3)).copy()
    with PreviewWriter(path, 48, 32, 16) as preview:
        for start, stop in ((0, 2), (2, 20), (20, 40)):
            preview.write(frames[start:stop])
            seen = read_frames(path)
            assert len(seen) == stop - 1
            assert np.abs(seen.astype(int) - frames[: stop - 1]).max() < 12
    info = probe(path)
    assert (info.frames, info.width, info.height, info.fps) == (40, 48, 32, 16)
    assert info.bt709


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    preview = PreviewWriter(tmp_path / "no" / "preview.mp4", 48, 32, 16)
    with pytest.raises(OutputError, match="folder does not exist"):
        preview.__enter__()
