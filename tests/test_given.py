"""Films with given pictures: what is given stays, all else is made with it in sight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.generate import (
    Frames,
    Made,
    Model,
    Pictures,
    Pinned,
    Request,
    Store,
    film_of,
    generate,
    job_of,
    load_model,
    pinned,
)
from mmpl.media.pixels import to_uint8
from mmpl.train.clip_spec import draw_spec_of
from mmpl.train.clips import render
from mmpl.wan import vae
from tests.small import small_model

REQUEST = Request("a red circle", seed=1, frames=100)  # two segments, the last up to latent 6
RNG = np.random.default_rng(0)
ONE, OTHER = (RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(2))
CLIP = RNG.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def encoded(model: Model, frames_FHWC: np.ndarray) -> Tensor:
    """By the VAE, from scratch."""
    video = torch.from_numpy(frames_FHWC).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    return vae.encode(model.vae, model.vae_config, video)[0]


def made(
    model: Model, request: Request | Pinned
) -> tuple[dict[tuple[int, int], Tensor], np.ndarray]:
    """The latents by (segment, latent frame), and the film."""
    film = film_of(model, request.request if isinstance(request, Pinned) else request)
    latents, pieces = {}, []
    for event in generate(model, request):
        if isinstance(event, Made) and event.task.kind == "make":
            assert event.z_BCTHW is not None
            frames = film.layout.group(event.task.group).frames
            for frame, z in zip(frames, event.z_BCTHW.unbind(2), strict=True):
                latents[event.task.segment, frame] = z
        elif isinstance(event, Frames):
            assert event.first_frame == sum(map(len, pieces))
            pieces.append(event.pixels_FHWC)
    return latents, np.concatenate(pieces)


@pytest.mark.parametrize(
    ("frame", "place", "sees"),
    [
        (0, (0, 0), {(0, 1), (0, 20)}),  # image-to-video
        (40, (0, 10), {(0, 0), (0, 2), (0, 20), (1, 4)}),
        (25, (0, 7), {(0, 0), (0, 5), (0, 15)}),  # in a populated group
        (99, (1, 6), {(1, 2), (1, 5)}),  # the last frame
    ],
)
def test_a_picture_stays_and_all_that_is_near_sees_it(
    frame: int, place: tuple[int, int], sees: set[tuple[int, int]]
) -> None:
    model = small_model()
    films = {}
    for name, picture in (("one", ONE), ("other", OTHER)):
        wanted = pinned(model, REQUEST, Pictures(((frame, picture),)))
        latents, pixels = films[name] = made(model, wanted)
        repeated = np.stack([picture] * (1 if frame == 0 else 9))
        assert torch.equal(latents[place], encoded(model, repeated)[:, :, -1])
        assert len(pixels) == REQUEST.frames
    for spot in sees:
        assert not torch.equal(films["one"][0][spot], films["other"][0][spot]), spot


def test_the_first_picture_takes_the_image_to_video_layout() -> None:
    model = small_model()
    first = pinned(model, REQUEST, Pictures(((0, ONE),)))
    assert film_of(model, first.request).layout.name == "mmpl_i2v"
    named = replace(REQUEST, layout="mmpl_t2v")
    assert pinned(model, named, Pictures(((0, ONE),))).request.layout == "mmpl_t2v"
    assert pinned(model, REQUEST, Pictures(((8, ONE),))).request.layout is None


def test_a_clip_is_gone_on_with() -> None:
    model = small_model()
    wanted = pinned(model, REQUEST, Pictures(clip_FHWC=CLIP))
    film = film_of(model, wanted.request)
    assert (film.frames, film.lead, film.made_frames, film.layout.name) == (100, 5, 105, "mmpl_t2v")
    assert (film.kept(0), film.first_frame(0)) == ((5, 81), 0)
    assert (film.kept(1), film.first_frame(1)) == ((5, 29), 76)
    latents, pixels = made(model, wanted)
    assert len(pixels) == 100
    assert torch.equal(torch.stack([latents[0, 0], latents[0, 1]], 2), encoded(model, CLIP))
    still = pinned(model, REQUEST, Pictures(((0, ONE),), CLIP))  # the first frame after the clip
    assert [(pin.segment, pin.latent) for pin in film_of(model, still.request).pins][-1] == (0, 2)


def test_the_same_film_whoever_starts_where(tmp_path: Path) -> None:
    """A film is resumed in the middle of a segment with pins, its context made again."""
    model = small_model()
    wanted = pinned(model, REQUEST, Pictures(((40, ONE), (99, OTHER))))
    _, whole = made(model, wanted)
    store = Store(tmp_path / "job", job_of(model, film_of(model, wanted.request)))
    for event in generate(model, wanted, store=store):
        if isinstance(event, Made) and event.task.group == "fill_head":
            break
    events = list(generate(model, wanted, store=store))
    again = np.concatenate([e.pixels_FHWC for e in events if isinstance(e, Frames)])
    assert np.array_equal(again, whole)
    assert sum(isinstance(e, Made) for e in events) < 8


def test_latents_that_the_request_does_not_name_are_refused() -> None:
    model = small_model()
    wanted = pinned(model, REQUEST, Pictures(((40, ONE),)))
    for request in (wanted.request, Pinned(REQUEST, wanted.given)):
        with pytest.raises(ArgumentError, match="given latents"):
            list(generate(model, request))


@pytest.mark.parametrize("pixels", [ONE[:16], ONE.astype(np.float32), ONE[..., :1]])
def test_pictures_of_another_kind_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ArgumentError, match="size"):
        pinned(small_model(), REQUEST, Pictures(((40, pixels),)))


def test_a_pinned_picture_survives_in_the_embedded_model() -> None:
    """The film's frame is the VAE's own reconstruction of the picture, to 25 dB and more."""
    model = load_model(Path(__file__).parents[1] / "weights" / "tiny")
    spec = draw_spec_of(3, "circle", "red", "right")
    picture = to_uint8(render(spec, (0, 1)))[0]
    request = Request("a red circle moves right", seed=1, frames=60, steps=4)
    for frame, count in ((0, 1), (40, 9)):
        _, film = made(model, pinned(model, request, Pictures(((frame, picture),))))
        alone, _ = vae.decode(
            model.vae, model.vae_config, encoded(model, np.stack([picture] * count))
        )
        difference = film[frame].astype(float) - to_uint8(alone[0])[-1]
        assert np.mean(difference**2) <= 255**2 / 10**2.5, frame
