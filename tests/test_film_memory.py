"""The memory plan says what films take that are made, and how large models fit their targets."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from mmpl.checkpoint.defaults import Defaults
from mmpl.checkpoint.folder import Configs
from mmpl.film import memory, studio, together
from mmpl.film.denoise import Context
from mmpl.film.memory import SPARE, Held, MemoryPlan, fits, least_offload, memory_plan
from mmpl.film.settings import Request, resolve
from mmpl.generate import Frames, Made, Model, Ranks, Stepped, film_of, generate
from mmpl.layout.work import Task
from mmpl.wan.choices import OFFLOADS
from mmpl.wan.config import DiTConfig, TextConfig, VAEConfig
from mmpl.wan.dit_params import dit_held
from mmpl.wan.ledger import Ledger
from mmpl.wan.offload import Offload
from tests.small import CHANNELS, CONFIGS, DEFAULTS, small_model

GB = 1e9
WAN_14B = Configs(
    DiTConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40), VAEConfig(), TextConfig()
)
WAN_1_3B = Configs(DiTConfig(), VAEConfig(), TextConfig())
WIDE = replace(CONFIGS, dit=replace(CONFIGS.dit, dim=96, ffn_dim=256, num_heads=4, num_layers=4))
REQUEST = Request("red", 1, segments=1, steps=1, width=64, height=64)


def measured(model: Model, held: Held, ranks: Ranks | None = None) -> dict[str, int]:
    """The most bytes on the device while a film is made: the host's are known, and taken off."""
    film, offload, ledger = film_of(model, REQUEST), Offload(held.offload), Ledger()
    dit = offload.place_dit(dit_held(model.dit, held.dtype, held.quantize))
    model = replace(model, dit=dit, offload=offload, vae_dtype=held.vae_dtype)
    ledger.hold(replace(dit, blocks=()) if held.offload != "none" else (dit, model.vae))
    frames = 15 * model.dit_config.frame_tokens(film.height // 8, film.width // 8)
    one_cache = 2 * model.dit_config.num_layers * frames * model.dit_config.dim
    hosted = sum(offload.hosts(branch) for branch in range(2)) * one_cache * held.dtype.itemsize
    most = {"passes": 0, "vae": 0}
    # The branches of guidance after each other, as on a GPU.
    with ledger, patch.object(together, "MOST_TOKENS", 0):
        for event in generate(model, REQUEST, ranks=ranks):
            if isinstance(event, Stepped | Frames | Made):
                hands = isinstance(event, Made) and event.task.kind != "make"
                part = "vae" if hands or isinstance(event, Frames) else "passes"
                most[part] = max(most[part], ledger.peak - hosted)
            ledger.peak = ledger.bytes
    return most


@pytest.mark.parametrize(
    "held",
    [
        Held(torch.float32, vae_dtype=torch.float32),
        Held(torch.float32),
        Held(offload="model"),
        Held(quantize="int8", offload="block", vae_dtype=torch.float32),
    ],
    ids=lambda held: f"{held.offload}-{held.vae_dtype}",
)
def test_the_plan_is_what_a_film_takes(monkeypatch: pytest.MonkeyPatch, held: Held) -> None:
    """But for latents, what the solver keeps of them, and pixels on their way out, which the plan
    leaves out."""
    monkeypatch.setattr(studio, "_FEW_STEPS", 0)
    model = small_model(DEFAULTS, configs=WIDE)
    film = film_of(model, REQUEST)
    plan, found = memory_plan(WIDE, film, held), measured(model, held)
    latents = 21 * CHANNELS * (film.height // 8) * (film.width // 8) * torch.float32.itemsize
    pixels = 81 * 3 * film.height * film.width * torch.float32.itemsize
    assert 0 <= found["passes"] - plan.passes <= 4 * latents
    assert 0 <= found["vae"] - plan.vae <= 4 * latents + pixels
    assert (plan.host > 0) == (held.offload != "none")


def test_few_steps_count_the_vae_beside_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    film = film_of(small_model(DEFAULTS, configs=WIDE), REQUEST)
    few = memory_plan(WIDE, film, Held())
    monkeypatch.setattr(studio, "_FEW_STEPS", 0)
    plan = memory_plan(WIDE, film, Held())
    slots, branches = 15, 2
    tokens = slots * WIDE.dit.frame_tokens(film.height // 8, film.width // 8)
    caches = branches * 2 * WIDE.dit.num_layers * tokens * WIDE.dit.dim * Held().dtype.itemsize
    assert few.passes == plan.passes
    assert few.vae - plan.vae > caches
    assert few.peak == few.vae


def test_a_cache_that_gave_way_to_the_vae_comes_again_to_the_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One process that populates each segment at once hands over between its groups."""
    model, opened = small_model(DEFAULTS), 0
    new_context = studio.Studio.new_context

    def counted(own: studio.Studio) -> Context:
        nonlocal opened
        opened += 1
        return new_context(own)

    monkeypatch.setattr(studio.Studio, "new_context", counted)
    request = Request("red", 1, frames=120, steps=2, guidance_scale=2.0)

    def latents(order: str) -> dict[Task, torch.Tensor]:
        events = generate(model, request, order=order)
        made = [event for event in events if isinstance(event, Made)]
        return {event.task: event.z_BCTHW for event in made if event.z_BCTHW is not None}

    wanted = latents("plan_first")
    assert opened == 1  # few steps: it stays
    monkeypatch.setattr(studio, "_FEW_STEPS", 0)
    for order in ("plan_first", "film_first"):
        opened = 0
        found = latents(order)
        assert opened == 3  # by the second, twice for the segment that hands over
        assert found.keys() == wanted.keys()
        assert all(torch.equal(z_BCTHW, wanted[task]) for task, z_BCTHW in found.items())


def large(configs: Configs, held: Held, seeding: str) -> MemoryPlan:
    defaults = Defaults(width=832, height=480)
    request = Request("x", 1, segments=6, guidance_scale=5.0, seeding=seeding)
    film = resolve(request, defaults, temporal_stride=4, pixel_step=16)
    return memory_plan(configs, film, held)


@pytest.mark.parametrize(
    ("configs", "held", "seeding", "most_gb"),
    [
        (WAN_14B, Held(), "terminal", 69.75),  # of 70; one name too long takes 0.1
        (WAN_14B, Held(), "midpoint", 55),
        (WAN_14B, Held(offload="model"), "terminal", 52),
        (WAN_14B, Held(offload="block", quantize="fp8"), "terminal", 24),
        (WAN_1_3B, Held(), "terminal", 13.5),
        (WAN_1_3B, Held(offload="block"), "terminal", 8),
    ],
    ids=["14B", "14B midpoint", "14B model", "14B block fp8", "1.3B", "1.3B block"],
)
def test_large_models_at_832x480(
    configs: Configs, held: Held, seeding: str, most_gb: float
) -> None:
    plan = large(configs, held, seeding)
    assert 0.3 * most_gb * GB < plan.peak <= most_gb * GB
    assert min(plan.text, plan.passes, plan.vae) > 0.1 * GB


def test_the_least_offloading_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    film = film_of(small_model(DEFAULTS, configs=WIDE), REQUEST)
    peaks = {"none": 9_000_000, "model": 5_000_000, "block": 1_000_000}
    plans = [MemoryPlan(Held(offload=kind), 0, peaks[kind], 0, 0) for kind in OFFLOADS]
    monkeypatch.setattr(
        memory, "memory_plan", lambda configs, film, held, mesh: plans[OFFLOADS.index(held.offload)]
    )
    for plan in plans:
        enough = int(plan.peak / (1 - SPARE)) + 1
        assert least_offload(WIDE, film, Held(), enough) == plan
        assert fits(plan, enough)
        assert not fits(plan, enough - 2)
    assert least_offload(WIDE, film, Held(), 1) == plans[-1]
