"""The film code against recorded runs of the released MMPL pipelines: first and chained segments
of text-to-video, image-to-video, both hand-overs, and the contents of the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from mmpl.film.denoise import (
    Branch,
    Context,
    Network,
    Sampler,
    commit,
    open_context,
    reset,
    velocities,
)
from mmpl.film.segment import hand_over, hand_over_full_history, stack
from mmpl.layout.layout import Group, Layout
from mmpl.layout.presets import by_name
from mmpl.layout.timeline import Chain, chain_of
from mmpl.wan import vae
from mmpl.wan.config import VAEConfig
from mmpl.wan.dit import Engine, encode_context
from mmpl.wan.flow import schedule
from tests.parity import dit_tiny, golden
from tests.parity.test_vae import config_of
from tests.segments import make_segment

LATENTS, FLOW, SEEDS, CACHE, PIXELS, MEANS, SUMS = 2e-4, 3e-5, 5e-5, 1e-4, 1e-4, 5e-6, 5e-3
FILES = {
    name: by_name("mmpl_i2v" if "i2v" in name else "mmpl_t2v")
    for name in sorted(
        path.name.removesuffix(".safetensors") for path in golden.FOLDER.glob("mmpl_*.safetensors")
    )
    if "training" not in name
}


@dataclass(frozen=True)
class World:
    recorded: dict[str, Tensor]
    meta: dict[str, Any]
    layout: Layout
    network: Network
    context: Context
    vae_params: vae.VAEParams
    vae_config: VAEConfig

    @property
    def chain(self) -> Chain:
        return chain_of(
            self.layout, seeding="terminal", temporal_stride=self.vae_config.temporal_stride
        )


@cache
def world(name: str) -> World:
    recorded, meta = golden.load(name), golden.metadata(name)
    params, config = dit_tiny.params(), dit_tiny.config()
    network = Network(params, config, Engine())
    texts = tuple(
        encode_context(params, config, [recorded[key]]) for key in ("context", "context_null")
    )
    layout = FILES[name]
    context = open_context(network, layout, texts, latent_size=tuple(meta["latent_hw"]))
    vae_config = config_of(golden.metadata("vae_tiny.weights")["config"])
    vae_params = vae.vae_from_flat(golden.load("vae_tiny.weights"), vae_config)
    return World(recorded, meta, layout, network, context, vae_params, vae_config)


def runs(part: str = "latents") -> list[Any]:
    """Every recorded segment that has this part: (file, prefix)."""
    found = [(name, key) for name in FILES for key in golden.load(name) if key.endswith(f".{part}")]
    return [(name, key.removesuffix(f".{part}")) for name, key in found]


def steps_of(w: World, prefix: str) -> int:
    own = w.recorded.get(f"{prefix}.timesteps")
    if own is not None:
        return len(own)
    named = prefix.split(".")[0].removeprefix("s")
    return int(named) if named.isdigit() else w.meta["steps"]


def given_of(w: World, prefix: str) -> dict[int, Tensor]:
    seeds = w.recorded.get(f"{prefix}.seed_latents")
    if seeds is None and "image_latent" in w.recorded:
        seeds = w.recorded["image_latent"]
    return {} if seeds is None else dict(enumerate(seeds.transpose(1, 2).unbind(2)))


def sampler_of(w: World, prefix: str) -> Sampler:
    grid = schedule(w.meta["solver"], steps_of(w, prefix), w.meta["shift"])
    return Sampler(w.meta["solver"], grid, w.meta["guidance"])


def noise_of(w: World, prefix: str, group: Group) -> Tensor:
    return w.recorded[f"{prefix}.noise"][:, list(group.frames)].transpose(1, 2)


@cache
def made(name: str, prefix: str) -> dict[int, Tensor]:
    w = world(name)
    return make_segment(
        w.network,
        w.layout,
        reset(w.context),
        given_of(w, prefix),
        sampler_of(w, prefix),
        lambda group: noise_of(w, prefix, group),
    )


@pytest.mark.parametrize(("name", "prefix"), runs())
def test_latents_of_a_segment(name: str, prefix: str) -> None:
    w = world(name)
    latents_BTCHW = stack(made(name, prefix), range(w.layout.frames)).transpose(1, 2)
    assert golden.worst(latents_BTCHW, w.recorded[f"{prefix}.latents"]) < LATENTS


@dataclass(frozen=True)
class HandOver:
    """Seeds of the next segment, and the decode on the way to them: what went in, what came out."""

    seeds_BCTHW: Tensor
    z_BCTHW: Tensor
    pixels_BCFHW: Tensor


@cache
def handed_over(make: Callable[..., dict[int, Tensor]], name: str, prefix: str) -> HandOver:
    """A hand-over of a made segment. Decoding takes long, so every test looks at this one run."""
    w, decode, seen = world(name), vae.decode, []

    def watched(
        params: vae.VAEParams, config: VAEConfig, z_BCTHW: Tensor, state: vae.State | None = None
    ) -> tuple[Tensor, Any]:
        pixels_BCFHW, state = decode(params, config, z_BCTHW, state)
        seen.append((z_BCTHW, pixels_BCFHW))
        return pixels_BCFHW, state

    with mock.patch.object(vae, "decode", watched):
        seeds = make(w.vae_params, w.vae_config, w.chain, made(name, prefix))
    z_BCTHW, pixels_BCFHW = (torch.cat(parts, 2) for parts in zip(*seen))
    return HandOver(stack(seeds, sorted(seeds)), z_BCTHW, pixels_BCFHW.clamp(-1, 1))


@pytest.mark.parametrize(
    ("make", "key", "name", "prefix"),
    [
        (make, key, name, prefix)
        for make, key in (
            (hand_over, "next_seed_latents"),
            (hand_over_full_history, "full_history_next_seed_latents"),
        )
        for name, prefix in runs(key)
    ],
)
def test_seeds_handed_to_the_next_segment(
    make: Callable[..., dict[int, Tensor]], key: str, name: str, prefix: str
) -> None:
    seeds_BCTHW = handed_over(make, name, prefix).seeds_BCTHW
    wanted = world(name).recorded[f"{prefix}.{key}"]
    assert golden.worst(seeds_BCTHW.transpose(1, 2), wanted) < SEEDS


@pytest.mark.parametrize(("name", "prefix"), runs("pixel_frame_mean"))
def test_mean_colour_of_the_decoded_frames(name: str, prefix: str) -> None:
    w, whole = world(name), handed_over(hand_over_full_history, name, prefix)
    assert torch.equal(whole.z_BCTHW, stack(made(name, prefix), range(w.layout.frames)))
    means = ((whole.pixels_BCFHW + 1) / 2).mean(dim=(0, 3, 4)).T
    assert golden.worst(means, w.recorded[f"{prefix}.pixel_frame_mean"]) < MEANS


@pytest.mark.parametrize(("name", "prefix"), runs("full_history_clip"))
def test_pixels_of_the_hand_over_from_the_whole_segment(name: str, prefix: str) -> None:
    w, whole = world(name), handed_over(hand_over_full_history, name, prefix)
    clip = whole.pixels_BCFHW[:, :, -w.chain.overlap :].transpose(1, 2)
    assert golden.worst(clip, w.recorded[f"{prefix}.full_history_clip"]) < PIXELS


@pytest.mark.parametrize(("name", "prefix"), runs("handover_decoder_input"))
def test_latents_and_pixels_of_the_hand_over(name: str, prefix: str) -> None:
    w, short = world(name), handed_over(hand_over, name, prefix)
    wanted = golden.under(w.recorded, prefix)
    assert golden.worst(short.z_BCTHW.transpose(1, 2), wanted["handover_decoder_input"]) < LATENTS
    pixels = short.pixels_BCFHW.transpose(1, 2)
    if "handover_frames" in wanted:
        assert golden.worst((pixels + 1) / 2, wanted["handover_frames"]) < PIXELS
    if "handover_clip" in wanted:
        clip = pixels[:, slice(*w.chain.handover_frames)]
        assert golden.worst(clip, wanted["handover_clip"]) < PIXELS


@pytest.mark.parametrize(("name", "prefix"), runs("first_step_flow_cond"))
def test_flow_of_every_first_step(name: str, prefix: str) -> None:
    w = world(name)
    final, given = made(name, prefix), given_of(w, prefix)
    context = reset(w.context)
    start = sampler_of(w, prefix).schedule.timesteps[0]
    for group in w.layout.groups:
        if group.frames[0] not in given:
            x_BCTHW = noise_of(w, prefix, group)
            flows = velocities(w.network, context, group, x_BCTHW, start)
            for flow, branch in zip(flows, ("cond", "uncond"), strict=True):
                wanted = w.recorded[f"{prefix}.first_step_flow_{branch}"][:, list(group.frames)]
                assert golden.worst(flow.transpose(1, 2), wanted) < FLOW
        context = commit(w.network, context, group, stack(final, group.frames))


@pytest.mark.parametrize(("name", "prefix"), runs("kv_sums"))
def test_cache_after_every_group(name: str, prefix: str) -> None:
    w = world(name)
    final, context = made(name, prefix), reset(w.context)
    kept = [g for g in w.layout.groups if any(set(g.frames) & set(o.sees) for o in w.layout.groups)]
    frames = sorted(frame for group in kept for frame in group.frames)
    stored: set[int] = set()
    for index, wanted in enumerate(w.recorded[f"{prefix}.kv_sums"]):
        group = w.layout.groups[index]
        if group in kept:
            context = commit(w.network, context, group, stack(final, group.frames))
            stored.update(group.frames)
        for branch, sums in zip(context.branches, wanted, strict=True):
            for slot, frame in enumerate(frames):
                got = frame_sums(context, branch, frame) if frame in stored else torch.zeros(1)
                assert (got - sums[:, slot]).abs().max() < SUMS
    for branch, kind in zip(context.branches, ("cond", "uncond"), strict=True):
        for part, tensor in (("k", branch.cache.k_IBSNK), ("v", branch.cache.v_IBSNK)):
            rows = torch.cat([tensor[1][:, rows_of(context, branch, frame)] for frame in frames], 1)
            wanted = w.recorded.get(f"{prefix}.kv_layer1_{kind}_{part}")
            if wanted is not None:
                assert golden.worst(rows, wanted) < CACHE


def rows_of(context: Context, branch: Branch, frame: int) -> slice:
    tokens, slot = branch.cache.frame_tokens, context.slots.slot(frame)
    return slice(slot * tokens, (slot + 1) * tokens)


def frame_sums(context: Context, branch: Branch, frame: int) -> Tensor:
    """float64 [layer, 4]: sum k, sum |k|, sum v, sum |v| of one latent frame."""
    rows = rows_of(context, branch, frame)
    k, v = (t[:, :, rows].double() for t in (branch.cache.k_IBSNK, branch.cache.v_IBSNK))
    sums = [x.sum(dim=(1, 2, 3, 4)) for x in (k, k.abs(), v, v.abs())]
    return torch.stack(sums, dim=1)
