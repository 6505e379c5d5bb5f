"""--vae_dtype: by the real command; frames change by rounding, and the job goes on as it is."""

from __future__ import annotations

import numpy as np

from tests.cli.conftest import PROMPT, Gen
from tests.cli.test_film import again, frames_of, settings_of

FILM = ("--prompt", PROMPT, "--seed", 7, "--num_frames", 9, "--steps", 1)


def test_frames_in_bfloat16_of_the_same_latents(gen: Gen) -> None:
    code, _, err = gen(*FILM)
    assert (code, "frames in" in err, settings_of()["vae_dtype"]) == (0, False, "float32"), err
    plain = frames_of().astype(int)
    code, _, err = gen(*FILM, "--vae_dtype", "bf16", "--overwrite")
    assert (code, "frames in bfloat16" in err, "going on" in err) == (0, True, True), err
    assert settings_of()["vae_dtype"] == "bfloat16"
    printed = again(err)
    assert printed[printed.index("--vae_dtype") + 1] == "bfloat16"
    difference = np.abs(frames_of().astype(int) - plain)
    assert 0 < difference.mean() < 3
    code, _, err = gen(*FILM, "--vae_dtype", "fp32")  # there is another film of that name
    assert (code, "vae_dtype" in err) == (2, True), err


def test_a_film_goes_on_in_the_format_it_was_begun_in(gen: Gen) -> None:
    assert gen("plan", *FILM, "--vae_dtype", "bf16")[0] == 0
    for flags, wanted in (((), "bfloat16"), (("--vae_dtype", "fp32", "--overwrite"), "float32")):
        code, _, err = gen("resume", "film.mp4.job", *flags, plain=True)
        assert (code, settings_of()["vae_dtype"]) == (0, wanted), err


def test_another_format_is_refused(gen: Gen) -> None:
    code, _, err = gen(*FILM, "--vae_dtype", "fp16")
    assert (code, "auto, float32, bfloat16" in err) == (2, True), err
