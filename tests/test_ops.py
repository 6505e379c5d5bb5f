"""Operations that have a short way and a general one."""

import pytest
import torch

from mmpl.wan import ops
from mmpl.wan.params import Weight

DTYPES = (torch.float32, torch.bfloat16)
EPS = ops.epsilon(1e-6, ops.FLOAT32, torch.device("cpu"))


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_has_the_same_bits_with_and_without_gradient(dtype: torch.dtype) -> None:
    x, gain = draw(2, 5, 24).to(dtype), Weight(1 + draw(24, seed=1))
    kept = x.clone()
    wanted = ops.rms_norm_(gain, x, EPS, torch.float32)
    assert torch.equal(x, kept)
    with torch.no_grad():
        got = ops.rms_norm_(gain, x, EPS, torch.float32)
    assert torch.equal(got, wanted)
    mean_square = kept.float().square().mean(-1, keepdim=True)
    rounded = (kept.float() * torch.rsqrt(mean_square + 1e-6)).to(dtype)
    assert torch.allclose(got, rounded * gain.weight, rtol=2.0**-7 if dtype.itemsize == 2 else 1e-6)


@pytest.mark.parametrize(
    ("dtype", "apart"), [*zip(DTYPES, (1e-6, 2.0**-7)), (torch.float64, 1e-12)]
)
def test_gelu_as_it_is_compiled(
    dtype: torch.dtype, apart: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.cat((8 * draw(500), torch.tensor([0.0, -1e30, 1e30]))).to(dtype)
    wanted = ops.gelu(x)
    assert torch.equal(wanted, torch.nn.functional.gelu(x, approximate="tanh"))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    got = ops.gelu(x)
    assert got.dtype is dtype
    assert torch.allclose(got, wanted, rtol=apart, atol=apart)


def test_one_shift_and_scale_for_all_frames_are_those_of_every_frame() -> None:
    x, m = draw(1, 6, 24), draw(1, 1, 2, 24, seed=1)
    one, each = ops.modulation(m), ops.modulation(m.expand(1, 3, 2, 24))
    assert [part.shape for part in (*one, *each)] == 2 * [(24,)] + 2 * [(1, 3, 1, 24)]
    got = ops.modulated_norm(x, one[0], one[1], 1e-6)
    assert torch.allclose(got, ops.modulated_norm(x, each[0], each[1], 1e-6), atol=1e-6)
    assert torch.equal(ops.gated_add(x, got, one[0]), ops.gated_add(x, got, each[0]))


def test_shifts_and_scales_are_those_of_their_clip_and_frame() -> None:
    x, m = draw(2, 6, 24), draw(2, 3, 2, 24, seed=1)
    shifts, scales = ops.modulation(m)
    got = ops.modulated_norm(x, shifts, scales, 1e-6)
    for clip in range(2):
        for frame in range(3):
            tokens, own = slice(2 * frame, 2 * frame + 2), m[clip : clip + 1, frame : frame + 1]
            shift, scale = ops.modulation(own)
            wanted = ops.modulated_norm(x[clip : clip + 1, tokens], shift, scale, 1e-6)
            assert torch.allclose(got[clip : clip + 1, tokens], wanted, atol=1e-6)


def test_a_gate_of_another_format_leaves_the_residual_in_its_own() -> None:
    x, y, gate = draw(1, 6, 24), draw(1, 6, 24, seed=1).bfloat16(), draw(1, 3, 1, 24, seed=2)
    got = ops.gated_add(x, y, gate)
    wanted = x + (gate * y.float().unflatten(1, (3, 2))).flatten(1, 2)
    assert got.dtype is torch.float32
    assert torch.allclose(got, wanted, atol=1e-6)
