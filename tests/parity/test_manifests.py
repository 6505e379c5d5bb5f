"""The real models' names and shapes: built on the meta device, official and other naming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch

from mmpl.checkpoint import sizes
from mmpl.checkpoint.names import Kind, official, to_diffusers, to_official
from mmpl.wan.config import DiTConfig, TextConfig, VAEConfig
from mmpl.wan.dit_params import dit_from_flat, dit_shapes
from mmpl.wan.params import to_flat
from mmpl.wan.text import text_from_flat, text_shapes
from mmpl.wan.vae import vae_from_flat, vae_shapes
from tests.parity import golden

OTHER_SUFFIXES = ("_diffusers", "_transformers")


@dataclass(frozen=True)
class Network:
    """How one kind of network is recognised, sized and built."""

    kind: Kind
    mark: str
    config: type
    sized: Callable[..., Any]
    shapes: Callable[..., Any]
    build: Callable[..., Any]


NETWORKS = (
    Network("dit", "dit", DiTConfig, sizes.dit_config, dit_shapes, dit_from_flat),
    Network("vae", "vae", VAEConfig, sizes.vae_config, vae_shapes, vae_from_flat),
    Network("text", "t5", TextConfig, sizes.text_config, text_shapes, text_from_flat),
)
NAMES = sorted(path.stem for path in golden.FOLDER.glob("manifest_*.json"))
OFFICIAL = [name for name in NAMES if not name.endswith(OTHER_SUFFIXES)]
OTHER = [name for name in NAMES if name.endswith(OTHER_SUFFIXES)]
KEYMAP = golden.document("keymap_official_to_diffusers")
MAPPED = [network for network in NETWORKS if network.mark in KEYMAP]
SPELLINGS = {"vocab": "vocab_size", "max_dist": "max_distance"}

NOT_IN_SHAPES = {
    *("num_heads", "text_len", "eps", "max_distance"),
    *("dim_mult", "num_res_blocks", "temporal_downsample", "latent_mean", "latent_std"),
}


def network_of(name: str) -> Network:
    return next(network for network in NETWORKS if network.mark in name)


def recorded(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in golden.document(name)["tensors"].items()}


def given(name: str) -> dict[str, Any]:
    """The recorded config of an official manifest, as a config file's entries."""
    network = network_of(name)
    stored = golden.document(name)["info"]["config"]
    named = {SPELLINGS.get(key, key): value for key, value in stored.items()}
    known = {field.name for field in fields(network.config)}
    entries = {key: value for key, value in named.items() if key in known}
    return sizes.typed(network.config, entries, where=name)


def partner(name: str) -> str:
    """The official manifest of the same model."""
    for suffix in OTHER_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def test_there_are_recordings() -> None:
    assert {network_of(name).kind for name in OFFICIAL} == {"dit", "vae", "text"}
    assert {network_of(name).kind for name in OTHER} == {"dit", "vae", "text"}
    assert len(MAPPED) == 3


@pytest.mark.parametrize("name", OFFICIAL)
def test_config_gives_the_official_keys_and_shapes(name: str) -> None:
    network = network_of(name)
    assert network.shapes(network.config(**given(name))) == recorded(name)


@pytest.mark.parametrize("name", OFFICIAL)
def test_sizes_are_read_off_the_shapes(name: str) -> None:
    network, whole = network_of(name), given(name)
    unreadable = {key: value for key, value in whole.items() if key in NOT_IN_SHAPES}
    config = network.sized(recorded(name), unreadable, where=name)
    assert config == network.config(**whole)


@pytest.mark.parametrize("name", OFFICIAL)
def test_tree_builds_on_meta(name: str) -> None:
    network = network_of(name)
    config = network.config(**given(name))
    shapes = network.shapes(config)
    flat = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    tree = network.build(flat, config)
    again = to_flat(tree)
    assert again.keys() == recorded(name).keys()
    assert all(again[key] is flat[key] for key in flat)


@pytest.mark.parametrize("name", OTHER)
def test_other_naming_reads_as_the_official_one(name: str) -> None:
    renamed = official(network_of(name).kind, recorded(name), where=name)
    assert renamed == recorded(partner(name))


@pytest.mark.parametrize("name", OTHER)
def test_official_naming_writes_as_the_other_one(name: str) -> None:
    network, wanted = network_of(name), recorded(name)
    renamed = {to_diffusers(network.kind, key): s for key, s in recorded(partner(name)).items()}
    tied = {key: shape for key, shape in wanted.items() if key not in renamed}
    assert {key: shape for key, shape in wanted.items() if key not in tied} == renamed
    assert set(tied) <= {"encoder.embed_tokens.weight"}


@pytest.mark.parametrize("network", MAPPED, ids=lambda network: network.kind)
def test_keymap(network: Network) -> None:
    table = KEYMAP[network.mark]
    assert {name: to_diffusers(network.kind, name) for name in table} == table
    assert {to_official(network.kind, other): other for other in table.values()} == table
