"""Counts of the transformer against their limits, and the counter against known arithmetic."""

import math
import sys
import time
from pathlib import Path

import pytest
import torch

from mmpl.layout.presets import mmpl_t2v
from mmpl.wan.ops import BFLOAT16, FLOAT32, Precision
from tests.bench.cases import Row, block_call, forward_call, inputs
from tests.bench.counter import count
from tests.bench.figures import STEP, Figures, eager_block, step_figures
from tests.bench.official import module
from tests.bench.timing import floor_call, in_turns

SMALL = Row(48, 128, 2, 1, (3, 4, 5))


def over(figures: Figures, limits: Figures) -> dict[str, tuple[float, float]]:
    """What is above its limit, and the limit."""
    return {n: (figures[n], most) for n, most in limits.items() if figures[n] > most}


@pytest.mark.parametrize(
    ("precision", "cached", "kernels", "numbers", "peak"),
    [
        (BFLOAT16, False, 41, 155, 4.1),
        (BFLOAT16, True, 42, 159, 4.1),
        (FLOAT32, True, 37, 176, 6.4),
    ],
)
def test_a_block_stays_as_lean_as_it_is(
    precision: Precision, cached: bool, kernels: int, numbers: float, peak: float
) -> None:
    limits = {
        "kernels": kernels,
        "bytes per token-channel": numbers,
        "peak activations": peak,
        "syncs": 0,
    }
    assert over(eager_block(precision, cached=cached), limits) == {}


def test_a_step_copies_nothing_but_its_own_keys_and_values() -> None:
    """Where each group has slots of its own."""
    limits = {
        "copies of own K and V": 1.01,
        "copied besides": 5,  # the latents of two branches into patches and out of them
        "largest copy": 6 / 15,
        "syncs": 0,
        "RoPE tables": 1,
        "time embeddings": 1,
        "texts": 0,
    }
    frames = mmpl_t2v().frames
    assert over(step_figures(stored=frames), limits) == {}


def test_what_a_context_without_slots_for_its_last_group_costs() -> None:
    """The keys and values of 15 latents are copied beside its own 6, instead of storing these."""
    spare, whole = step_figures(), step_figures(stored=mmpl_t2v().frames)
    layers, branches, of_one = STEP.layers, 2, STEP.dim / inputs(STEP)[0].shape[1] / 4
    joined = 2 * 21 / 6 * layers * branches * of_one
    assert spare["copies of own K and V"] < 0.01
    assert spare["copied besides"] == pytest.approx(whole["copied besides"] + joined, rel=0.01)
    assert spare["largest copy"] == 21 / 15
    assert spare["syncs"] == 0


# ------------------------------------------------------------------------------ the instruments


def test_kernels_and_bytes_of_known_arithmetic() -> None:
    x, row = torch.randn(10, 8), torch.randn(8)
    counts = count(lambda: (x + row).view(-1).add_(1.0))
    assert dict(counts.kernels) == {"add": 1, "add_": 1}
    assert counts.other_bytes == 4 * (80 + 8 + 80) + 4 * (80 + 80)
    assert (counts.gemm_bytes, counts.moved_bytes, counts.allocations) == (0, 0, 1)
    spread = count(lambda: row.expand(10, 8) * 2)
    assert spread.other_bytes == 4 * (8 + 80)
    product = count(lambda: x @ x.t())
    assert (product.total, product.gemm_bytes) == (1, 4 * (80 + 80 + 100))  # both views of x read


def test_copies_and_waits_are_seen() -> None:
    x = torch.randn(10, 8)
    moved = count(lambda: (torch.cat((x, x)), torch.empty(10, 8).copy_(x), x[[1, 2]]))
    assert moved.moved_bytes == 4 * (160 + 80 + 16)
    assert moved.largest_move == 4 * 160
    assert moved.copies_bytes == 4 * 80
    assert count(lambda: torch.empty(8, dtype=torch.half).copy_(x[0])).moved_bytes == 0
    assert count(lambda: (x.sum().item(), x.tolist(), bool(x[0, 0] > 0))).syncs == 3


def test_the_peak_is_of_what_is_alive_at_once() -> None:
    x = torch.randn(100)

    def one_after_the_other() -> None:
        for _ in range(3):
            x.neg()

    def together() -> list[torch.Tensor]:
        return [x.neg() for _ in range(3)]

    assert count(one_after_the_other).peak_bytes == 400
    assert count(together).peak_bytes == 1200


def test_sides_are_timed_in_turns() -> None:
    order: list[str] = []
    sides = {name: lambda name=name: order.append(name) for name in "ab"}
    taken = in_turns(sides, 3)
    assert "".join(order) == "ab" * 4
    assert set(taken) == {"a", "b"}
    order.clear()
    in_turns(sides, 3, in_a_row=2)
    assert "".join(order) == "aabb" * 4


def test_calls_in_a_row_are_timed_as_one() -> None:
    sides = {"a": lambda: time.sleep(0.05)}
    assert in_turns(sides, 2, in_a_row=4)["a"].wall_s < 0.15


def test_the_floor_is_the_products_and_the_attention_of_a_forward() -> None:
    floor, whole = (count(make(SMALL, FLOAT32)) for make in (floor_call, forward_call))
    around = 2 + 4 + 1  # the text's, the time's and the patches' products, and the head
    found = {name: whole.kernels[name] - floor.kernels[name] for name in floor.kernels}
    assert found == {"addmm": around, "_scaled_dot_product_flash_attention_for_cpu": 0}


def test_a_block_that_sees_no_cache_gives_numbers_of_a_sensible_size() -> None:
    """So that times are not of denormal or infinite numbers."""
    size = block_call(Row(48, 128, 2, 20, (3, 4, 5)), FLOAT32, cached=False)().std().item()
    assert math.isfinite(size)
    assert 0.1 < size < 100


def test_a_checkout_is_run_with_stand_ins_that_leave_no_trace(tmp_path: Path) -> None:
    folder = tmp_path / "wan" / "modules"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(
        "import torch.cuda.amp as amp\n"
        "from diffusers.configuration_utils import ConfigMixin, register_to_config\n"
        "from diffusers.models.modeling_utils import ModelMixin\n"
        "from .attention import flash_attention\n"
    )
    before = dict(sys.modules)
    found = module(tmp_path, "model")
    changed = {
        name for name in before | sys.modules if before.get(name) is not sys.modules.get(name)
    }
    assert not {name for name in changed if name.split(".")[0] in ("diffusers", "official_wan")}
    q, k, v = (torch.randn(1, size, 2, 4) for size in (3, 5, 5))
    seen = found.flash_attention(q=q, k=k, v=v.bfloat16(), k_lens=None)
    assert (seen.shape, seen.dtype) == ((1, 3, 2, 4), torch.bfloat16)
