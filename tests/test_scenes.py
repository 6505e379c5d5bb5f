"""The embedded model shows another scene from the second on at which the script says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmpl.eval.reader import classify
from mmpl.generate import Frames, Request, film_of, generate, load_model


def test_a_red_circle_turns_into_a_blue_square() -> None:
    model = load_model(Path(__file__).parents[1] / "weights" / "tiny")
    script = "0s: a red circle stays still\n5s: a blue square stays still"
    request = Request(script, seed=5, cut="5s", duration_s=8.0)
    change = film_of(model, request).first_frame(1)
    assert change == 81  # shown from 5.06 s on
    events = generate(model, request)
    film = np.concatenate([e.pixels_FHWC for e in events if isinstance(e, Frames)])
    before, after = classify(film[:change]), classify(film[change:])
    assert (before.shape, before.hue_bin) == ("circle", "red")
    assert (after.shape, after.hue_bin) == ("square", "blue")
    for frame, hue in ((change - 1, "red"), (change, "blue")):
        assert classify(film[frame : frame + 1]).hue_bin == hue
