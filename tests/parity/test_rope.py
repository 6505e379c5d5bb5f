"""Rotary embedding and time sinusoid against the recorded reference."""

import pytest
import torch
from torch import Tensor

from mmpl.wan.config import DiTConfig
from mmpl.wan.ops import sinusoid
from mmpl.wan.rope import axis_angles, rope, rope_table
from tests.parity import golden

TOLERANCE = 1e-6
TENSORS = golden.load("rope")
META = golden.metadata("rope")
HEADS = golden.cases(TENSORS, "hd")
SINUSOIDS = golden.cases(TENSORS, "time_sinusoid")


def config_of(case: str) -> DiTConfig:
    """A one-head network whose head has the case's width."""
    return DiTConfig(dim=TENSORS[f"{case}.x"].shape[-1], num_heads=1)


@pytest.mark.parametrize("case", HEADS)
def test_channel_split(case: str) -> None:
    assert list(config_of(case).rope_dims) == META[case]["real_dims_t_h_w"]


@pytest.mark.parametrize("case", HEADS)
def test_table_rows(case: str) -> None:
    positions = torch.tensor(META[case]["table_positions"])
    angles = [axis_angles(positions, d, META[case]["theta"]) for d in config_of(case).rope_dims]
    angles = torch.cat(angles, dim=1)
    assert golden.worst(angles.cos(), TENSORS[f"{case}.freqs_real"]) <= TOLERANCE
    assert golden.worst(angles.sin(), TENSORS[f"{case}.freqs_imag"]) <= TOLERANCE


@pytest.mark.parametrize("output", ["out", "out_start"])
@pytest.mark.parametrize("case", HEADS)
def test_application(case: str, output: str) -> None:
    """The recording leaves tokens past the grid alone; we have none, so only the grid is turned."""
    start = META[case]["start_frame"] if output == "out_start" else 0
    for index, (frames, rows, columns) in enumerate(META[case]["grids"]):
        turned, wanted = _turned(case, output, index, (start, frames, rows, columns))
        assert golden.worst(turned, wanted) <= TOLERANCE


def _turned(
    case: str, output: str, index: int, grid: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor]:
    start, frames, rows, columns = grid
    table = rope_table(config_of(case), range(start, start + frames), rows, columns)
    tokens = slice(0, frames * rows * columns)
    x = TENSORS[f"{case}.x"][index : index + 1, tokens]
    return rope(x, table), TENSORS[f"{case}.{output}"][index : index + 1, tokens]


@pytest.mark.parametrize("case", HEADS)
def test_compiled_formulation(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torch.compile the same rotation is written in real numbers."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    turned, wanted = _turned(case, "out", 0, (0, *META[case]["grids"][0]))
    assert golden.worst(turned, wanted) <= TOLERANCE


def test_same_bits_with_and_without_gradient() -> None:
    table = rope_table(DiTConfig(dim=24, num_heads=2), range(2), 2, 3)
    x = torch.randn(1, 12, 2, 12, generator=torch.Generator().manual_seed(0), requires_grad=True)
    turned = rope(x, table)
    with torch.no_grad():
        assert torch.equal(rope(x, table), turned)
    # A turn keeps lengths, so the gradient of half a squared length is what was turned.
    (gradient,) = torch.autograd.grad(turned, x, turned.detach())
    assert golden.worst(gradient, x.detach()) <= TOLERANCE


@pytest.mark.parametrize("case", SINUSOIDS)
def test_sinusoid(case: str) -> None:
    wanted = TENSORS[f"{case}.out"]
    got = sinusoid(TENSORS[f"{case}.t"], wanted.shape[-1])
    assert got.dtype == torch.float64
    assert golden.worst(got, wanted) <= TOLERANCE
