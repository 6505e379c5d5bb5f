"""The compiled block, and bfloat16, against the recorded reference: what is fast is also right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from mmpl.film.denoise import reset
from mmpl.film.segment import stack
from mmpl.wan.dit import Engine, block
from mmpl.wan.dit_block import BlockFn
from mmpl.wan.ops import ALL_BFLOAT16, BFLOAT16, FLOAT32, Precision
from tests.parity import golden, test_dit, test_mmpl
from tests.parity.test_dit import BF16_RMS, BF16_WORST, CASES, PLAIN_META, TOLERANCE
from tests.segments import make_segment

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")  # of inductor's own
QUICK = ("case3", "case5")  # one in float32, one in bfloat16
SEGMENT = ("mmpl_t2v_segment_tiny", "s4")


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    """Without gradient, and without the compilations of other tests, whose number is limited."""
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def compiled(backend: str = "inductor") -> BlockFn:
    """The block as a film's passes have it compiled."""
    return torch.compile(block, fullgraph=True, dynamic=False, backend=backend)


def check(case: str, block_fn: BlockFn) -> None:
    """Raises unless all samples of a case come out as recorded."""
    half = PLAIN_META[case]["bf16"]
    engine = Engine(precision=BFLOAT16 if half else FLOAT32, block_fn=block_fn)
    for x, t, context, wanted in test_dit.samples(case):
        got = test_dit.run_sample(case, x, t, context, engine)
        assert golden.worst(got, wanted) <= (BF16_WORST if half else TOLERANCE)


@pytest.mark.parametrize("case", QUICK)
def test_what_is_compiled(case: str) -> None:
    """The graph that inductor is given, by torch's own kernels: the C++ compiler takes too long."""
    check(case, compiled("aot_eager"))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_compiled(case: str) -> None:
    check(case, compiled())


@pytest.mark.slow
def test_compiled_over_a_cache() -> None:
    pairs = test_dit.cached_calls(Engine(block_fn=compiled()))
    assert max(golden.worst(got, wanted) for got, wanted in pairs) <= TOLERANCE


@pytest.mark.parametrize(("precision", "slack"), [(BFLOAT16, 1), (ALL_BFLOAT16, 2)])
def test_bfloat16_over_a_cache(precision: Precision, slack: int) -> None:
    """Against a recording in float32."""
    for got, wanted in test_dit.cached_calls(Engine(precision=precision)):
        assert golden.worst(got, wanted) < slack * BF16_WORST
        assert (got - wanted).square().mean().sqrt() < slack * BF16_RMS


@pytest.mark.slow
def test_a_compiled_segment() -> None:
    """All steps, groups and clean passes of one, against the released pipeline."""
    name, prefix = SEGMENT
    w = test_mmpl.world(name)
    made = make_segment(
        replace(w.network, engine=Engine(block_fn=compiled())),
        w.layout,
        reset(w.context),
        test_mmpl.given_of(w, prefix),
        test_mmpl.sampler_of(w, prefix),
        lambda group: test_mmpl.noise_of(w, prefix, group),
    )
    latents_BTCHW = stack(made, range(w.layout.frames)).transpose(1, 2)
    recorded = w.recorded[f"{prefix}.latents"]
    assert golden.worst(latents_BTCHW, recorded) < test_mmpl.LATENTS
