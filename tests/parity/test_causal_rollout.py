"""Whole few-step rollouts, chunk by chunk over the cache, against the recorded reference.

Runs with a local window go over the rolling cache of `mmpl.eval`, which forgets frames; in the
reference the keys of the sink stay where they were made.
"""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from mmpl.eval.rolling import Window, entered
from mmpl.film.denoise import Network, open_context, velocities
from mmpl.wan import flow
from mmpl.wan.cache import KVCache, SlotView, kv_allocate, kv_commit
from mmpl.wan.dit import CrossKV, Engine, Positions, dit, encode_context
from tests.parity import dit_tiny, golden

TOLERANCE = 5e-5
STEPS_TOLERANCE = 1e-3
CONFIG = dit_tiny.config()
PARAMS = dit_tiny.params()
TENSORS = golden.load("causal_rollout_tiny")
META = golden.metadata("causal_rollout_tiny")
ALL = sorted(name for name, run in META.items() if "step_list" in run)
RUNS = [name for name in ALL if "local_attn_size" not in META[name]]
ROLLING = [name for name in ALL if name not in RUNS]


@pytest.fixture(autouse=True)
def _without_gradient():
    with torch.no_grad():
        yield


def latents(name: str) -> Tensor | None:
    """A recorded [B, F, C, H, W] tensor as BCTHW."""
    recorded = TENSORS.get(name)
    return None if recorded is None else recorded.transpose(1, 2)


@pytest.mark.parametrize("run", ALL)
def test_warped_steps(run: str) -> None:
    wanted = TENSORS[f"{run}.steps"]
    steps = META[run]["step_list"]
    if META[run]["warp"]:
        steps = flow.warp(steps, flow.flow_table(META[run]["shift"]))
    assert golden.worst(torch.tensor(steps), wanted) <= STEPS_TOLERANCE


@pytest.mark.parametrize("run", RUNS)
def test_rollout(run: str) -> None:
    noise, given, wanted = (latents(f"{run}.{n}") for n in ("noise", "initial_latent", "latents"))
    assert noise is not None
    assert wanted is not None
    batch, _, _, H, W = noise.shape
    text = encode_context(PARAMS, CONFIG, list(TENSORS["context"][:batch]))
    frame_tokens = CONFIG.frame_tokens(H, W)
    cache = kv_allocate(CONFIG, batch=batch, slots=wanted.shape[2], frame_tokens=frame_tokens)
    draws = iter(TENSORS[f"{run}.renoise"])
    size = META[run]["frames_per_chunk"]
    done: list[Tensor] = []
    for chunk in () if given is None else given.split(size, dim=2):
        cache = refresh(run, chunk, text, cache)
        done.append(chunk)
    for chunk in noise.split(size, dim=2):
        clean = denoise(run, chunk, text, cache, draws)
        cache = refresh(run, clean, text, cache)
        done.append(clean)
    assert golden.worst(torch.cat(done, dim=2), wanted) <= TOLERANCE
    assert next(draws, None) is None


@pytest.mark.parametrize("run", ROLLING)
def test_rolling_rollout(run: str) -> None:
    meta, noise, wanted = META[run], latents(f"{run}.noise"), latents(f"{run}.latents")
    assert noise is not None
    assert wanted is not None
    window = Window(meta["local_attn_size"], meta["frames_per_chunk"], meta["sink_size"])
    network = Network(PARAMS, CONFIG, Engine())
    texts = (encode_context(PARAMS, CONFIG, list(TENSORS["context"][: len(noise)])),)
    size = (noise.shape[3], noise.shape[4])
    context = open_context(network, window.layout, texts, latent_size=size, stored=window.frames)
    draws = iter(TENSORS[f"{run}.renoise"])
    done: list[Tensor] = []
    for number, chunk in enumerate(noise.split(window.chunk, dim=2)):
        context, group = entered(context, window, number), window.group(number)
        flow_of = partial(velocities, network, context, group)
        clean = few_steps(run, chunk, lambda x, t, _, flow_of=flow_of: flow_of(x, t)[0], draws)
        flow_of(clean, meta["context_noise"])
        done.append(clean)
    assert len(done) > window.frames // window.chunk, "some frame is forgotten"
    assert golden.worst(torch.cat(done, dim=2), wanted) <= TOLERANCE
    assert next(draws, None) is None


def test_a_run_with_a_window_was_recorded() -> None:
    assert ROLLING


def velocity(x: Tensor, t: float, text: CrossKV, cache: KVCache) -> tuple[Tensor, range]:
    """The flow of the chunk after everything committed so far, and that chunk's slots."""
    first = len(cache.committed)
    own = range(first, first + x.shape[2])
    frames = Positions(tuple(own), SlotView((own.start, own.stop), (0, own.stop)))
    t_BT = torch.full((x.shape[0], x.shape[2]), t)
    return dit(PARAMS, CONFIG, x, t_BT, text, cache, frames=frames), own


def refresh(run: str, clean: Tensor, text: CrossKV, cache: KVCache) -> KVCache:
    _, own = velocity(clean, META[run]["context_noise"], text, cache)
    return kv_commit(cache, own)


def denoise(
    run: str, noise: Tensor, text: CrossKV, cache: KVCache, draws: Iterator[Tensor]
) -> Tensor:
    return few_steps(run, noise, lambda x, t, _: velocity(x, t, text, cache)[0], draws)


def few_steps(run: str, noise: Tensor, flow_of: flow.Velocity, draws: Iterator[Tensor]) -> Tensor:
    table = flow.flow_table(META[run]["shift"])
    steps = TENSORS[f"{run}.steps"].tolist()
    batch = noise.shape[0]
    return flow.few_step(
        flow_of,
        noise,
        steps,
        table,
        lambda _: next(draws).unflatten(0, (batch, -1)).transpose(1, 2),
    )
