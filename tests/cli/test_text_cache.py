"""--text_cache: the next film of a prompt does without the text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmpl.checkpoint import model as model_file
from tests.cli.conftest import PROMPT, Gen
from tests.cli.test_film import again, frames_of

FILM = ("--prompt", PROMPT, "--seed", 7, "--num_frames", 5, "--steps", 1, "--guidance_scale", 3)


def test_the_next_film_does_without_the_text_encoder(
    gen: Gen, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gen(*FILM)[0] == 0
    plain, folder = frames_of(), Path("kept texts")
    rest = ("--text_cache", folder, "--overwrite", "--fresh")
    code, _, err = gen(*FILM, *rest)
    assert code == 0, err
    assert (frames_of() == plain).all()
    printed = again(err)
    assert printed[printed.index("--text_cache") + 1] == str(folder)
    kept = sorted(folder.iterdir())
    assert len(kept) == 2

    encode = model_file.encode_prompts

    def none_or_one(*args: Any, **kwargs: Any) -> Any:
        assert len(args[3]) <= allowed
        return encode(*args, **kwargs)

    monkeypatch.setattr(model_file, "encode_prompts", none_or_one)
    allowed = 0
    code, _, err = gen(*FILM, *rest)
    assert (code, "damaged" in err) == (0, False), err
    assert (frames_of() == plain).all()

    kept[0].write_bytes(kept[0].read_bytes()[:-1])
    allowed = 1
    code, _, err = gen(*FILM, *rest)
    assert (code, f"is damaged, it is made again: {kept[0]}" in err) == (0, True), err
    assert (frames_of() == plain).all()


def test_a_folder_that_cannot_be_is_one_line(gen: Gen) -> None:
    Path("taken").write_text("x")
    code, _, err = gen(*FILM, "--text_cache", "taken")
    assert (code, "error: taken: cannot write" in err) == (4, True), err
    assert not Path("film.mp4").exists()
