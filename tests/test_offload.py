"""Weights and caches that visit the device: the same bits, and no more of them there than said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from mmpl.checkpoint.folder import open_folder
from mmpl.errors import ArgumentError
from mmpl.generate import (
    Frames,
    Made,
    Model,
    Request,
    generate,
    load_model,
    model_from_state_dicts,
)
from mmpl.wan.cache import KVCache, Rows, kv_allocate, kv_read, kv_write_
from mmpl.wan.choices import OFFLOADS
from mmpl.wan.dit import Walk, in_place
from mmpl.wan.dit_params import dit_held
from mmpl.wan.ledger import Ledger
from mmpl.wan.offload import Offload
from mmpl.wan.params import to_flat
from tests.small import CONFIGS, small_dit, small_model, write_small

SLOTS = 6
CONFIG = CONFIGS.dit


def offloaded(model: Model, kind: str) -> Model:
    offload = Offload(kind)
    return replace(
        model,
        dit=offload.place_dit(model.dit),
        vae=offload.place_vae(model.vae),
        text=offload.place_text(model.text),
        offload=offload,
    )


def film(model: Model, request: Request) -> list[Tensor]:
    """All latents and frames of it."""
    found: list[Tensor] = []
    for event in generate(model, request):
        if isinstance(event, Frames):
            found.append(torch.from_numpy(event.pixels_FHWC))
        if isinstance(event, Made) and event.z_BCTHW is not None:
            found.append(event.z_BCTHW)
    return found


@pytest.mark.parametrize("held", [None, "int8", "fp8"])
def test_films_are_the_same_bits_wherever_the_weights_live(held: str | None) -> None:
    model = small_model()
    model = replace(model, dit=dit_held(model.dit, torch.bfloat16 if held else None, held))
    frames = 81 + 40 if held is None else 5
    request = Request("red", 1, frames=frames, steps=1, guidance_scale=2.0, negative_prompt="blue")
    wanted = film(model, request)
    for kind in ("model", "block"):
        found = film(offloaded(model, kind), request)
        assert len(found) == len(wanted)
        assert all(torch.equal(x, y) for x, y in zip(found, wanted))


def run(walk: Walk, cache: KVCache, views: list[tuple[slice | None, Rows]]) -> list[Tensor]:
    """What passes over a cache read, each pass and block writing numbers of its own."""
    seen: list[Tensor] = []
    blocks = small_dit().blocks
    for number, (write, read) in enumerate(views):
        for index, (block, layer) in enumerate(walk(blocks, cache, write, read)):
            assert layer is not None
            mark = torch.tensor(100.0 * number + index) + block.modulation[0, 0, 0]
            if write is not None:
                own = mark.expand_as(layer.k_BSNK[:, write])
                kv_write_(layer, own, -own, write)
            seen += [part.clone() for part in kv_read(layer, read)]
    return seen


@st.composite
def passes(draw: st.DrawFn) -> list[tuple[slice | None, Rows]]:
    """Rows that follow each other, with what is written inside, outside or not at all; or any."""

    def rows() -> slice:
        start, stop = sorted(draw(st.tuples(st.integers(0, SLOTS), st.integers(0, SLOTS))))
        return slice(start, stop)

    views: list[tuple[slice | None, Rows]] = []
    for _ in range(draw(st.integers(1, 4))):
        write = draw(st.sampled_from([None, rows()]))
        some = draw(st.lists(st.integers(0, SLOTS - 1), unique=True))
        views.append((write, draw(st.sampled_from([rows(), torch.tensor(some, dtype=torch.long)]))))
    return views


@given(passes(), st.sampled_from(["model", "block"]))
@settings(deadline=None, max_examples=80)
def test_a_cache_in_the_hosts_memory_is_read_and_written_as_any(
    views: list[tuple[slice | None, Rows]], kind: str
) -> None:
    plain, hosted = (
        kv_allocate(CONFIG, batch=1, slots=SLOTS, frame_tokens=1, hosted=hosted)
        for hosted in (False, True)
    )
    walk = Offload(kind).walk
    for found, wanted in zip(run(walk, hosted, views), run(in_place, plain, views), strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(hosted.k_IBSNK, plain.k_IBSNK)
    assert torch.equal(hosted.v_IBSNK, plain.v_IBSNK)


def nbytes(tree: object) -> int:
    return sum(x.nbytes for x in to_flat(tree).values())


def lives(walk: Callable[[], Iterator[object]], ledger: Ledger) -> list[int]:
    """Bytes alive with each block, and afterwards."""
    with ledger:
        return [*(ledger.bytes for _ in walk()), ledger.bytes]


def test_two_blocks_are_on_the_device_and_none_afterwards() -> None:
    blocks = small_dit().blocks * 2
    ledger = Ledger()
    *during, after = lives(lambda: Offload("block").walk(blocks, None, None, None), ledger)
    assert (set(during), after) == ({2 * nbytes(blocks[0])}, 0)
    with ledger:
        stopped = Offload("block").walk(blocks, None, None, None)
        next(stopped)
        del stopped
    assert ledger.bytes == 0


def test_all_blocks_stay_until_there_must_be_room() -> None:
    blocks, other, offload, ledger = (
        small_dit().blocks,
        small_dit().blocks,
        Offload("model"),
        Ledger(),
    )
    size = len(blocks) * nbytes(blocks[0])
    for some in (blocks, blocks, other):
        assert set(lives(partial(offload.walk, some, None, None, None), ledger)) == {size}
    offload.make_room()
    assert ledger.bytes == 0
    model = offloaded(small_model(), "model")
    with ledger:
        list(model.offload.walk(model.dit.blocks, None, None, None))
        model.vae_here()
    assert ledger.bytes == 0


def test_blocks_of_several_formats_visit_too() -> None:
    plain = small_dit()
    mixed = (plain.blocks[0], dit_held(plain, torch.bfloat16, "int8").blocks[1], plain.blocks[1])
    for wanted, (found, _) in zip(mixed, Offload("block").walk(mixed, None, None, None)):
        names = to_flat(wanted)
        assert all(torch.equal(x, names[name]) for name, x in to_flat(found).items())


def test_layers_of_the_text_encoder_come_in_turn() -> None:
    blocks, ledger = small_model().text.blocks * 3, Ledger()
    *during, after = lives(lambda: Offload("none", "meta").text_walk(blocks), ledger)
    assert (len(during), set(during), after) == (3, {2 * nbytes(blocks[0])}, 0)
    assert all(x is y for x, y in zip(Offload("block").text_walk(blocks), blocks))


@pytest.mark.parametrize("source", ["folder", "state dicts"])
def test_models_are_loaded_with_their_weights_in_place(tmp_path: Path, source: str) -> None:
    folder, known = write_small(tmp_path), open_folder(tmp_path)

    def loaded(offload: str) -> Model:
        if source == "folder":
            return load_model(folder, offload=offload)
        return model_from_state_dicts(
            dit=load_file(folder / "dit.safetensors"),
            vae=load_file(folder / "vae.safetensors"),
            text=load_file(folder / "text.safetensors"),
            tokenizer_json=(folder / "tokenizer.json").read_text(encoding="utf-8"),
            configs=known.configs,
            defaults=known.defaults,
            offload=offload,
        )

    request = Request("red", 1, frames=5, steps=1)
    wanted = film(load_model(folder), request)
    for kind in OFFLOADS:
        model = loaded(kind)
        assert model.offload.kind == kind
        assert all(torch.equal(x, y) for x, y in zip(film(model, request), wanted, strict=True))
    with pytest.raises(ArgumentError, match="none, model, block"):
        loaded("disk")
