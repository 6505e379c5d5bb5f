"""Matrices in 8 bits: how far off they are, and that nothing takes them for plain numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpl.errors import ArgumentError
from mmpl.generate import Request, film_of, job_of
from mmpl.wan.dit_params import compute_dtype, dit_cast, dit_quantised, quantised_kind
from mmpl.wan.ops import ALL_BFLOAT16, BFLOAT16, Precision, linear
from mmpl.wan.params import Linear, QuantisedLinear, to_flat, tree_map
from mmpl.wan.quantise import dequantise, fp8_product, quantised, quantised_rows
from tests.bench.quantised import measured
from tests.small import small_dit, small_model

ROWS = st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3)
EPS = 1e-5  # of float32 arithmetic


@given(st.lists(ROWS, min_size=1, max_size=4), st.floats(2.0**-20, 2.0**10, width=32))
@settings(deadline=None, max_examples=200)
def test_an_int8_is_off_by_half_a_step_at_most(rows: list[list[float]], size: float) -> None:
    weight = size * torch.tensor(rows)
    stored, scale = quantised_rows(weight, "int8")
    assert (stored.dtype, scale.shape) == (torch.int8, (len(rows), 1))
    off = (dequantise(stored, scale, torch.float64) - weight.double()).abs()
    assert (off <= 0.5 * scale + EPS * weight.abs()).all()


@given(st.lists(ROWS, min_size=1, max_size=4), st.floats(2.0**-20, 2.0**10, width=32))
@settings(deadline=None, max_examples=200)
def test_an_fp8_is_off_by_half_a_step_at_most(rows: list[list[float]], size: float) -> None:
    """Three bits after the first, of numbers down to 2**-6; below that steps of 2**-9."""
    weight = size * torch.tensor(rows)
    stored, scale = quantised_rows(weight, "fp8")
    assert stored.dtype is torch.float8_e4m3fn
    off = (dequantise(stored, scale, torch.float64) - weight.double()).abs()
    half_step = torch.maximum(weight.abs() / 2**4, scale / 2**10)
    assert (off <= half_step + EPS * weight.abs()).all()


def test_the_largest_of_a_row_and_rows_of_zeros_are_exact() -> None:
    weight = torch.tensor([[0.0, 0.0], [3.0, -1.5], [1e-30, 0.0], [-7.0, 7.0]])
    for kind in ("fp8", "int8"):
        found = dequantise(*quantised_rows(weight, kind), torch.float32)
        torch.testing.assert_close(found[:, 0], weight[:, 0], rtol=1e-6, atol=1e-30)
        assert not found[0].any()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ArgumentError, match="fp8 or int8"):
        quantised_rows(torch.ones(2, 2), "fp4")


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_the_product_is_that_of_the_plain_matrix(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    plain = Linear(torch.randn(32, 48, generator=generator), torch.randn(32, generator=generator))
    x = torch.randn(2, 5, 48, generator=generator)
    held = quantised(plain, kind)
    assert isinstance(held, QuantisedLinear)
    same = Linear(dequantise(held.weight, held.weight_scale, torch.float32), held.bias)
    assert torch.equal(linear(held, x, torch.float32), linear(same, x, torch.float32))
    assert quantised(held, kind) is held
    assert quantised(Linear(plain.bias, plain.bias), kind).weight is plain.bias  # a norm's


def test_the_product_in_fp8() -> None:
    """What cards with fp8 run, on the CPU: off by the roundings of both sides and no more."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 64, generator=generator).bfloat16()
    held = quantised(Linear(torch.randn(48, 64, generator=generator), torch.zeros(48)), "fp8")
    assert isinstance(held, QuantisedLinear)
    rows = quantised_rows(x.flatten(0, 1), "fp8")
    wanted = (
        dequantise(*rows, torch.float64).unflatten(0, (2, 5))
        @ dequantise(held.weight, held.weight_scale, torch.float64).mT
    )
    found = fp8_product(held, x)
    assert (found.dtype, found.shape) == (torch.bfloat16, (2, 5, 48))
    off = (found.double() - wanted).abs()
    assert (off <= 2.0**-8 * wanted.abs() + 1e-2).all()


@pytest.mark.parametrize("precision", [BFLOAT16, ALL_BFLOAT16])
@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_casts_leave_8_bits_and_their_scales_alone(precision: Precision, kind: str) -> None:
    params = dit_quantised(small_dit(), kind)
    before, after = to_flat(params), to_flat(dit_cast(params, precision))
    kept = [name for name in before if name.endswith("_scale")]
    assert len(kept) == len(params.blocks) * 10
    for scale in kept:
        for name in (scale, scale.removesuffix("_scale")):
            assert after[name] is before[name]
    moved = dit_cast(params, precision)
    assert (quantised_kind(moved), compute_dtype(moved)) == (kind, torch.bfloat16)
    assert quantised_kind(dit_cast(small_dit(), precision)) is None
    copied = to_flat(tree_map(lambda leaf: leaf.clone(), moved))
    assert all(torch.equal(copied[name].float(), after[name].float()) for name in after)


def test_a_job_knows_how_its_model_was_held() -> None:
    model = small_model()
    film = film_of(model, Request("red", 1, segments=1))
    held = replace(model, dit=dit_quantised(model.dit, "int8"))
    plain, other = (job_of(m, film)["settings"] for m in (model, held))
    assert {name for name in plain if plain[name] != other[name]} == {"quantize"}
    assert (plain["quantize"], other["quantize"]) == ("none", "int8")


def test_films_in_8_bits_are_near_those_of_the_plain_weights() -> None:
    """Not the same film, and int8 nearer than fp8, whose steps are coarser."""
    found = measured(small_model(), Request("red", 1, frames=5, steps=2))
    for latents, frames in found.values():
        assert 20 < latents < 100
        assert frames > 20
    assert found["int8"][0] > found["fp8"][0]
