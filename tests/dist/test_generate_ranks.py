"""One film on several ranks: real processes, the same bits as on one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import mmpl.generate
from mmpl.film import studio
from mmpl.film.runtime import carry_out
from mmpl.generate import Frames, Made, Mesh, Ranks, Request, Started, generate
from tests.dist.ranks import run_ranks
from tests.small import small_model

PROMPT = "a red circle moves right"
Bits = tuple[dict[tuple[int, str, str], bytes], bytes]


def film_of_rank(rank: int, request: Request, options: dict[str, Any]) -> Bits:
    """Every final latent made on this rank, and the frames it yields."""
    options = dict(options)
    mesh, group = options.pop("mesh", None), dist.group.WORLD if dist.is_initialized() else None
    ranks = None if group is None else Ranks(group, mesh)
    latents: dict[tuple[int, str, str], bytes] = {}
    frames, at = [], 0
    for event in generate(small_model(), request, ranks=ranks, **options):
        match event:
            case Made(task=task, z_BCTHW=z_BCTHW):
                data = b"" if z_BCTHW is None else z_BCTHW.contiguous().numpy().tobytes()
                latents[task.segment, task.kind, task.group] = data
            case Frames():
                assert event.first_frame == at
                at += len(event.pixels_FHWC)
                frames.append(event.pixels_FHWC)
            case Started():
                assert at == 0
            case _:
                pass
    return latents, np.concatenate(frames).tobytes() if frames else b""


@pytest.fixture(scope="module")
def alone() -> dict[str, Bits]:
    """The films made on one rank, by request."""
    return {}


def on_one_rank(films: dict[str, Bits], request: Request) -> Bits:
    if repr(request) not in films:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        films[repr(request)] = film_of_rank(0, request, {})
        torch.set_num_threads(threads)
    return films[repr(request)]


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize(
    ("mode", "order"),
    [("round_robin", "film_first"), ("adaptive", "film_first"), ("adaptive", "plan_first")],
)
@pytest.mark.parametrize("seeding", ["terminal", "midpoint"])
def test_the_same_bits_on_any_number_of_ranks(
    alone: dict[str, Bits], ranks: int, mode: str, order: str, seeding: str
) -> None:
    request = Request(PROMPT, seed=3, frames=260, seeding=seeding)
    latents, frames = on_one_rank(alone, request)
    found = run_ranks(ranks, film_of_rank, request, {"mode": mode, "order": order})
    together = [key for part, _ in found for key in part]
    assert sorted(together) == sorted(latents), "each task once"
    assert all(latents[key] == data for part, _ in found for key, data in part.items())
    assert found[0][1] == frames
    assert all(part == b"" for _, part in found[1:]), "frames come out at rank 0 alone"
    assert sum(bool(part) for part, _ in found) > 1, "the work is shared"


def giving_way(rank: int, request: Request) -> Bits:
    """As of many steps, where the cache gives way to the VAE."""
    studio._FEW_STEPS = 0
    return film_of_rank(rank, request, {"order": "film_first"})


def test_a_cache_that_gives_way_changes_nothing(alone: dict[str, Bits]) -> None:
    request = Request(PROMPT, seed=3, frames=260)
    wanted, frames = on_one_rank(alone, request)
    found = run_ranks(2, giving_way, request)
    assert found[0][1] == frames
    assert found[0][0] | found[1][0] == wanted


def decoding_beside(rank: int, request: Request) -> Bits:
    """As on a GPU, where decodes run beside the denoising."""

    def beside(*args: Any, **options: Any) -> Any:
        return carry_out(*args, **{**options, "beside": True})

    mmpl.generate.carry_out = beside
    return film_of_rank(rank, request, {})


@pytest.mark.parametrize("ranks", [1, 3])
def test_decodes_beside_the_denoising_change_nothing(alone: dict[str, Bits], ranks: int) -> None:
    request = Request(PROMPT, seed=3, frames=260)
    latents, frames = on_one_rank(alone, request)
    found = run_ranks(ranks, decoding_beside, request)
    assert sorted(key for part, _ in found for key in part) == sorted(latents), "each task once"
    assert found[0][1] == frames


@pytest.mark.parametrize("mesh", [Mesh(1, cfg=2), Mesh(2, cfg=2)])
def test_guidance_pairs_make_the_same_bits(alone: dict[str, Bits], mesh: Mesh) -> None:
    request = Request(PROMPT, seed=3, frames=160)
    latents, frames = on_one_rank(alone, request)
    found = run_ranks(mesh.ranks, film_of_rank, request, {"mesh": mesh})
    assert found[0][1] == frames
    assert all(latents[key] == data for part, _ in found for key, data in part.items())


@pytest.mark.parametrize("mesh", [Mesh(1, ulysses=2), Mesh(2, ulysses=2), Mesh(1, 2, 2)])
def test_ulysses_makes_the_same_film_but_for_rounding(alone: dict[str, Bits], mesh: Mesh) -> None:
    request = Request(PROMPT, seed=3, frames=160)
    latents, frames = on_one_rank(alone, request)
    found = run_ranks(mesh.ranks, film_of_rank, request, {"mesh": mesh})
    for part, _ in found:
        for key, data in part.items():
            ours, theirs = (np.frombuffer(x, np.float32) for x in (data, latents[key]))
            np.testing.assert_allclose(ours, theirs, atol=1e-3)
    ours, theirs = (np.frombuffer(x, np.uint8).astype(int) for x in (found[0][1], frames))
    assert len(ours) == len(theirs)
    assert abs(ours - theirs).max() <= 2
