"""The embedding API on a small random model: frames, order, purity, and what bits depend on."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmpl.errors import ArgumentError, NumericError
from mmpl.film.denoise import Network, Sampler, open_context
from mmpl.film.segment import Latents, group_noise, hand_over, stack
from mmpl.generate import Film, Frames, Model, Planned, Request, Started, Stepped, film_of, generate
from mmpl.media.pixels import to_uint8
from mmpl.wan import vae
from mmpl.wan.dit import Engine, encode_context
from mmpl.wan.flow import schedule
from mmpl.wan.params import tree_map
from mmpl.wan.text import encode_prompts
from tests.segments import make_segment
from tests.small import CHANNELS, small_model

PROMPT = "red circle moves right"


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model()


def film(model: Model, request: Request) -> NDArray[np.uint8]:
    return np.concatenate(
        [e.pixels_FHWC for e in generate(model, request) if isinstance(e, Frames)]
    )


@pytest.mark.parametrize(
    ("length", "frames", "segments"),
    [
        ({"frames": 1}, 1, 1),
        ({"frames": 30}, 30, 1),
        ({"segments": 1}, 81, 1),
        ({"frames": 82}, 82, 2),
        ({"segments": 3}, 233, 3),
        ({"segments": 3, "seeding": "midpoint"}, 137, 3),
        ({"frames": 60, "layout": "chunked_3"}, 60, 1),
        ({"frames": 100, "layout": "chunked_2_3"}, 100, 2),
        ({"frames": 60, "layout": "bidirectional"}, 60, 1),
        ({"frames": 60, "noise": "paper"}, 60, 1),
        ({"frames": 60, "layout": "mmpl_t2v_head_sees_terminal"}, 60, 1),
        ({"frames": 90, "layout": "mmpl_i2v"}, 90, 2),
        ({"frames": 90, "layout": "without_midpoint"}, 90, 2),
        ({"frames": 90, "layout": "bidirectional_2"}, 90, 2),
    ],
)
def test_every_frame_once_and_in_order(
    model: Model, length: dict, frames: int, segments: int
) -> None:
    request = Request(PROMPT, seed=1, **length)
    events = list(generate(model, request))
    assert isinstance(events[0], Started)
    assert events[0].film.segments == segments
    at = 0
    for event in events:
        if isinstance(event, Frames):
            assert event.first_frame == at
            at += len(event.pixels_FHWC)
    assert at == frames
    assert [e.segment for e in events if isinstance(e, Planned)] == list(range(segments))
    steps = [e for e in events if isinstance(e, Stepped)]
    assert [e.work_done for e in steps] == sorted(e.work_done for e in steps)
    assert steps[-1].work_done == steps[-1].work
    kinds = [type(e) for e in events]
    assert kinds.index(Frames) > len(kinds) - 1 - kinds[::-1].index(Planned), "planned first"


@pytest.mark.parametrize("layout", ["mmpl_t2v", "mmpl_i2v", "chunked_2_3", "bidirectional_2"])
def test_a_film_is_made_as_by_hand(model: Model, layout: str) -> None:
    request = Request(PROMPT, seed=4, segments=2, layout=layout)
    wanted = film_of(model, request)
    parts: list[NDArray[np.uint8]] = []
    seeds: Latents = {}
    for segment in range(2):
        latents = by_hand(model, wanted, segment, seeds)
        z_BCTHW = stack(latents, range(wanted.chain.latents))
        with torch.no_grad():
            video, _ = vae.decode(model.vae, model.vae_config, z_BCTHW)
        parts.append(to_uint8(video[0, :, wanted.chain.overlap if segment else 0 :]))
        seeds = hand_over(model.vae, model.vae_config, wanted.chain, latents)
    difference = film(model, request).astype(int) - np.concatenate(parts).astype(int)
    assert abs(difference).max() <= 1  # streamed and one-shot decoding round differently


def by_hand(model: Model, film: Film, segment: int, seeds: Latents) -> Latents:
    """A segment made in one go, plan and fill together."""
    network = Network(model.dit, model.dit_config, Engine())
    texts = tuple(
        encode_context(
            model.dit,
            model.dit_config,
            encode_prompts(
                model.text, model.text_config, model.tokenizer, [text], model.dit_config.text_len
            ),
        )
        for text in (film.prompt, film.negative_prompt)
    )
    return make_segment(
        network,
        film.layout,
        open_context(network, film.layout, texts, latent_size=(4, 4)),
        seeds,
        Sampler(film.solver, schedule(film.solver, film.steps, film.shift), film.guidance_scale),
        lambda group: group_noise(film, segment, group, (CHANNELS, 4, 4)),
    )


def test_frame_rates_up_to_240(model: Model) -> None:
    assert film_of(model, Request(PROMPT, 1, duration_s=0.5, fps=240)).frames == 120


def test_a_shorter_film_is_the_beginning_of_a_longer_one(model: Model) -> None:
    short, long = (film(model, Request(PROMPT, 5, frames=n)) for n in (90, 157))
    assert np.array_equal(short, long[:90])


def test_groups_that_no_kept_frame_needs_are_not_made(model: Model) -> None:
    made = {
        (e.segment, e.group)
        for e in generate(model, Request(PROMPT, 1, frames=100))
        if isinstance(e, Stepped)
    }
    assert made == {
        (0, "init"), (0, "plan"), (0, "fill_head"), (0, "fill_tail"), (1, "plan"), (1, "fill_head"),
    }  # fmt: skip


def test_seed_prompt_and_guidance_change_the_film(model: Model) -> None:
    request = Request(PROMPT, seed=1, frames=5)
    base = film(model, request)
    assert np.array_equal(base, film(model, request))
    for change in (
        {"seed": 2},
        {"prompt": "red"},
        {"guidance_scale": 5.0},
        {"shift": 9.0},
        {"steps": 3},
        {"solver": "euler"},
        {"negative_prompt": "circle"},
    ):
        assert not np.array_equal(base, film(model, replace(request, **change))), change


def test_nothing_global_is_touched(model: Model) -> None:
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002
    random.seed(11)

    def world() -> tuple:
        return (
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),  # type: ignore[index]  # noqa: NPY002
            random.getstate(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
        )

    before = world()
    for _ in generate(model, Request(PROMPT, 1, frames=5)):
        assert world() == before
    with torch.no_grad():
        film(model, Request(PROMPT, 1, frames=5))
        assert not torch.is_grad_enabled()


def test_the_caller_may_stop_at_any_event(model: Model) -> None:
    for stop in range(12):
        for index, _ in enumerate(generate(model, Request(PROMPT, 1, frames=90))):
            if index == stop:
                break
    assert torch.is_grad_enabled()


def test_infinite_weights_are_an_error_that_names_segment_and_group(model: Model) -> None:
    def spoil(leaf: Tensor) -> Tensor:
        return leaf * float("inf") if leaf.dim() == 1 else leaf

    broken = replace(model, dit=replace(model.dit, head=tree_map(spoil, model.dit.head)))
    with pytest.raises(NumericError, match=r"segment 1, group init.*not finite"):
        film(broken, Request(PROMPT, 1, frames=5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"seed": -5}, "seed"),
        ({"frames": 0}, "num_frames"),
        ({"segments": -1}, "segments"),
        ({"duration_s": float("nan")}, "duration"),
        ({"duration_s": 1e9}, "duration"),
        ({"duration_s": 3.0, "segments": 2}, "twice"),
        ({"width": 40}, "wanted 32 or 48"),
        ({"steps": 0}, "steps"),
        ({"shift": float("inf")}, "shift"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"solver": "magic"}, "solver"),
        ({"noise": "loud"}, "noise"),
        ({"layout": "pile"}, "layout"),
        ({"seeding": "middle"}, "seeding"),
        ({"layout": "without_midpoint", "seeding": "midpoint"}, "middle keyframes"),
        ({"fps": 0}, "fps"),
        ({"frames": 9.5}, "whole number"),
        ({"width": 64.0}, "whole number"),
        ({"layout": "chunked_3", "frames": 82}, "cannot be chained"),
        ({"layout": "bidirectional", "segments": 2}, "cannot be chained"),
    ],
)
def test_requests_that_cannot_be_are_refused(model: Model, change: dict, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        film_of(model, replace(Request(PROMPT, 1), **change))


def test_anchor_noise_touches_only_the_first_frame_after_keyframes(model: Model) -> None:
    request = Request(PROMPT, 1, frames=81)
    off, unit = (film_of(model, replace(request, noise=mode)) for mode in ("off", "unit"))
    shape = (4, 8, 8)
    for group in off.layout.groups:
        a, b = (group_noise(f, 0, group, shape) for f in (off, unit))
        changed = [f for i, f in enumerate(group.frames) if not torch.equal(a[:, :, i], b[:, :, i])]
        assert changed == {"fill_head": [4], "fill_tail": [13]}.get(group.name, [])


def test_importing_waits_for_no_library_of_files() -> None:
    """A film's pixels need none of them; each takes longer to import than most of mmpl."""
    late = ("av", "PIL", "tokenizers", "ftfy", "html.entities")
    code = f"import sys, mmpl.generate; sys.exit(str([m for m in {late} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"
