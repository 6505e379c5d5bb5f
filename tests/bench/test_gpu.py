"""The GPU bench at tiny sizes on the CPU: every row comes, and no row takes another one down."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmpl.wan import vae
from mmpl.wan.dit import Engine
from tests.bench.gpu import worker
from tests.bench.gpu.__main__ import chosen
from tests.bench.gpu.flops import decode_flops
from tests.bench.gpu.lab import REAL, TINY, Lab, Size
from tests.bench.gpu.passes import busy_share, segment_s
from tests.bench.gpu.record import Book, Figure, Record, Row, Wanted, perform
from tests.bench.gpu.rows import ROWS
from tests.bench.gpu.scene import segment
from tests.bench.gpu.worker import supervise

PLAIN = chosen(ROWS, "", official=False)


def found(rows: tuple[Row, ...], budget_s: float = 1e9) -> list[Record]:
    lab = Lab("cpu", TINY)
    return list(perform(rows, lab, start_s=time.monotonic(), budget_s=budget_s))


def figures(records: list[Record]) -> list[Record]:
    return [record["figure"] for record in records if "figure" in record]


# ----------------------------------------------------------------------------------- the figures


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return found(PLAIN)


def test_every_row_comes_with_sane_values(records: list[Record]) -> None:
    assert [record for record in records if "error" in record] == []
    with_figures = {record["row"] for record in records if "figure" in record}
    assert with_figures == {row.name for row in PLAIN}
    for figure in figures(records):
        values = {figure["name"]: figure["value"], **figure["beside"]}
        assert all(math.isfinite(value) and value >= 0 for value in values.values()), values


def test_what_is_aimed_at_is_measured(records: list[Record]) -> None:
    aims = {figure["name"]: figure["wanted"] for figure in figures(records) if figure["wanted"]}
    for part in (
        "14B plan",
        "14B fill_head",
        "14B fill_tail",
        "14B segment",
        "14B pass",
        "14B pass compiled",
        "1.3B segment",
        "1.3B of 4 steps",
        "1.3B film of 2 x 4 steps",
        "decode of 81 x 16x16, bf16",
        "hand-over",
        "device busy",
        "--offload model, peak",
        "--offload model, slowdown",
        "--offload block, apart",
        "apart from the plain way",
    ):
        assert any(part in name for name in aims), part
    near = [f["value"] for f in figures(records) if "peak beside plan" in f["name"]]
    assert len(near) == 5
    assert all(0.95 <= value <= 1.05 for value in near)
    apart = [f for f in figures(records) if "apart" in f["name"]]
    assert len(apart) == 7
    assert all(figure["reached"] for figure in apart)


def by_products(
    q_BLNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor, mask_LS: Tensor | None = None
) -> Tensor:
    """Attention of operations that torch counts on a CPU too."""
    scores = torch.einsum("blnk,bsnk->bnls", q_BLNK, k_BSNK).softmax(-1)
    return torch.einsum("bnls,bsnk->blnk", scores, v_BSNK)


def test_operations_are_those_that_torch_counts() -> None:
    lab, size = Lab("cpu", TINY), TINY["14B"]
    scene = segment(lab, size)
    for group in scene.layout.groups:
        call = scene.pass_call(lab, group, Engine(attention=by_products))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        assert scene.flops(group) == counter.get_total_flops()
    z_BCTHW = torch.randn(1, size.vae.z_dim, 5, *size.latent_size, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.decode(lab.vae(size.vae, torch.float64), size.vae, z_BCTHW)
    counted = counter.get_total_flops()
    assert decode_flops(size.vae, 5, size.latent_size) == pytest.approx(counted, rel=0.03)


def test_operations_at_real_sizes() -> None:
    """TFLOP of a pass and PFLOP of a segment as computed by hand from the paper's settings."""
    for name, wanted in (("14B", (83.9, 391.3, 383.2, 478.9)), ("1.3B", (9.9, 56.6, 59.3, 80.8))):
        made = [_real_flops(REAL[name], group) / 1e12 for group in range(4)]
        assert made == pytest.approx(wanted, abs=0.06)


def _real_flops(size: Size, index: int) -> int:
    from mmpl.layout.presets import mmpl_t2v
    from mmpl.layout.slots import slot_plan
    from tests.bench.gpu.flops import group_tokens, pass_flops

    layout = mmpl_t2v()
    name = layout.groups[index].name
    return pass_flops(size.dit, *group_tokens(slot_plan(layout), name, size.frame_tokens))


def test_a_segment_is_its_steps_and_the_clean_passes_that_are_read() -> None:
    seconds = {"init": 1.0, "plan": 10.0, "fill_head": 100.0, "fill_tail": 1000.0}
    assert segment_s(seconds, 50, 2) == 2 * (50 * 1110 + 111)


def test_gaps_are_seen_and_overlaps_count_once() -> None:
    assert busy_share([(0, 4), (5, 10), (1, 3), (9, 10)]) == 0.9
    assert busy_share([(2, 3)]) == 1.0


# --------------------------------------------------------------------------- rows and each other


def row(name: str, *made: Any, needs_s: float = 0) -> Row:
    def measure(lab: Lab) -> Iterator[Figure]:
        for one in made:
            if isinstance(one, Exception):
                raise one
            yield Figure(name, one, "s", {}, Wanted(most=2))

    return Row(name, needs_s, measure)


def test_a_row_that_fails_takes_nothing_with_it(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    book = Book(path)
    rows = (row("good", 1.0), row("bad", 3.0, ValueError("first\nsecond")), row("later", 2.0))
    for record in found(rows):
        book.enter(record)
        assert json.loads(path.read_text()) == json.loads(json.dumps(book.found))
    kept = json.loads(path.read_text())["rows"]
    assert list(kept) == ["good", "bad", "later"]
    assert kept["bad"]["error"] == "ValueError: first"
    assert [f["reached"] for one in kept.values() for f in one["figures"]] == [True, False, True]


def test_what_no_longer_fits_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lab, "is_gpu", property(lambda _: True))
    monkeypatch.setattr(Lab, "tidy", lambda _: None)
    made = found((row("short", 1.0, needs_s=1), row("long", 1.0, needs_s=99)), budget_s=50)
    assert [(one["row"], "left_out" in one) for one in made if "figure" not in one] == [
        ("short", False),
        ("short", False),
        ("long", True),
    ]


def test_rows_that_need_a_checkout_are_left_out_without_one() -> None:
    assert not [one for one in PLAIN if "official" in one.name]
    assert set(chosen(ROWS, "VAE", official=True)) > set(chosen(ROWS, "VAE", official=False))


STUB = """
import json, os, sys, time
pipe, skipped = int(sys.argv[1]), sys.argv[2].split("|")
def tell(**record):
    os.write(pipe, (json.dumps(record) + chr(10)).encode())
for name in ("first", "dies", "hangs", "last"):
    if name in skipped:
        continue
    tell(row=name, begins=True, needs_s=0)
    if name == "dies":
        os._exit(9)
    if name == "hangs":
        time.sleep(60)
    tell(row=name, seconds=1)
"""


def test_a_process_that_dies_or_hangs_is_started_again_behind_that_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "GRACE_S", 1.0)
    book = Book(None)
    supervise(
        lambda pipe, skipped: [sys.executable, "-c", STUB, str(pipe), "|".join(skipped)], book
    )
    assert {name: one.get("error") for name, one in book.rows.items()} == {
        "first": None,
        "dies": "its process ended: 9",
        "hangs": "no sign for too long",
        "last": None,
    }


def test_the_process_that_measures_tells_what_it_finds() -> None:
    book, program = Book(None), [sys.executable, "-m", "tests.bench.gpu", "--small"]
    supervise(lambda pipe, _: [*program, "--rows", "matmul", "--worker", str(pipe)], book)
    assert book.found["machine"]["device"] == "cpu"
    assert book.rows["matmul"]["figures"][0]["value"] > 0
    assert "error" not in book.rows["matmul"]
