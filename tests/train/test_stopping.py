"""Ctrl-C and SIGTERM wait for the end of a step, which is saved; a second one does not wait."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mmpl.cli import shell
from mmpl.train import state, stopping
from mmpl.train.log import rows
from mmpl.train.loop import Loss, LossOf, Recipe, Weights, averaged_weights, train
from mmpl.train.world import ALONE, World
from tests.dist.ranks import run_ranks

RECIPE = Recipe(steps=6, learning_rate=0.1, matrix_rate=None, warmup=0, ema_decay=0.5)
STOPS_AT = 3  # steps done when a signal comes in the middle of the next one


def never(step: int) -> None:
    """Nothing comes."""


def loss_of(comes: Callable[[int], None], world: World = ALONE) -> LossOf:
    def of(weights: Weights) -> Loss:
        def loss(step: int) -> tuple[Tensor, dict[str, float]]:
            comes(step)
            clips = torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
            own = clips[list(world.share(range(2)))]
            return (own @ weights["w"] - 1).square().mean(), {}

        return loss

    return of


def run_all(folder: Path, comes: Callable[[int], None] = never, world: World = ALONE) -> None:
    start = {"w": torch.ones(3)}
    loss = loss_of(comes, world)
    for _ in train(start, loss, RECIPE, folder, save_every=100, report_every=1, world=world):
        pass


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> object:
    """Signals as a program in the foreground has them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [(signal.SIGINT, 130, "stopped by Ctrl-C"), (signal.SIGTERM, 143, "stopped by SIGTERM")],
)
def test_a_stopped_step_is_done_and_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, code: int, text: str
) -> None:
    def comes(step: int) -> None:
        if step == STOPS_AT:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # torchrun says it again

    def command(_: list[str], __: shell.Console) -> int:
        run_all(tmp_path / "cut", comes)
        return 0

    assert shell.run(command, [], name="x") == code
    wanted = f"x: {text}; step {STOPS_AT + 1} is saved, the same command goes on from there\n"
    assert capsys.readouterr().err == wanted
    assert state.steps_done(tmp_path / "cut") == len(rows(tmp_path / "cut")) == STOPS_AT + 1
    run_all(tmp_path / "cut")
    run_all(tmp_path / "whole")
    whole, cut = (averaged_weights(tmp_path / run)[0] for run in ("whole", "cut"))
    assert torch.equal(whole["w"], cut["w"])
    for name in ("log.jsonl", "log.csv", "curve.svg"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_a_second_wish_to_stop_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "_BOUNCE_S", 0.0)

    def comes(step: int) -> None:
        if step == STOPS_AT:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        run_all(tmp_path, comes)
    assert not hasattr(stopped.value, "__notes__")
    assert state.steps_done(tmp_path) == 0


def test_signals_that_python_does_not_handle_are_left_alone(tmp_path: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    seen = []

    def comes(step: int) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))
        os.kill(os.getpid(), signal.SIGTERM)

    run_all(tmp_path, comes)
    assert seen == RECIPE.steps * [signal.SIG_IGN]


def test_a_thread_trains_without_signals(tmp_path: Path) -> None:
    handlers = []
    thread = threading.Thread(
        target=run_all,
        args=(tmp_path, lambda _: handlers.append(signal.getsignal(signal.SIGINT))),
    )
    thread.start()
    thread.join()
    assert handlers == RECIPE.steps * [signal.default_int_handler]
    assert state.steps_done(tmp_path) == RECIPE.steps


def stopped_rank(rank: int, folder: Path) -> tuple[str, bool]:
    """A signal to the second of two processes alone."""
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def comes(step: int) -> None:
        if rank == 1 and step == STOPS_AT:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        run_all(folder, comes, World(dist.group.WORLD))
    except KeyboardInterrupt as stopped:
        return stopped.__notes__[0], signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return "nothing", False


def test_all_processes_stop_at_the_same_step(tmp_path: Path) -> None:
    note = f"step {STOPS_AT + 1} is saved, the same command goes on from there"
    assert run_ranks(2, stopped_rank, tmp_path / "cut") == 2 * [(note, True)]
    assert state.steps_done(tmp_path / "cut") == STOPS_AT + 1
