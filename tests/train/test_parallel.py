"""Two real processes train as one does on the same batch, replicated or sharded, cut or not."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mmpl.errors import ArgumentError, MmplError, NumericError
from mmpl.train import parallel
from mmpl.train.log import rows
from mmpl.train.loop import Loss, LossOf, Recipe, Weights, averaged_weights, train
from mmpl.train.parallel import Network
from mmpl.train.recompute import checkpointed
from mmpl.train.state import export
from mmpl.train.world import ALONE, World
from mmpl.wan.dit import Engine, Positions, block, dit, dit_shapes, encode_context
from mmpl.wan.ops import FLOAT32
from tests.checkpoint.worlds import random_state
from tests.dist.ranks import run_ranks
from tests.small import CONFIGS

CONFIG = CONFIGS.dit
# A large eps: Adam's first steps are signs of gradients, which rounding would turn.
RECIPE = Recipe(
    *(4, 1e-3, None),
    warmup=0,
    beta1=0.5,
    eps=1e-2,
    weight_decay=0.1,
    clip_norm=0.05,
    ema_decay=0.5,
)
STOP_AFTER = 3
ENGINE = Engine(FLOAT32, block_fn=checkpointed(block))


def flat() -> Weights:
    """Frozen weights, and one that is trained, come in another format."""
    weights = random_state(dit_shapes(CONFIG), 1, scale=0.3)
    narrow = set(weights) - TRAINED | {"head.head.weight"}
    return {n: t.bfloat16() if n in narrow else t for n, t in weights.items()}


TRAINED = {
    name for name in dit_shapes(CONFIG) if "ffn.0" not in name and "patch_embedding" not in name
}


def loss_of(network: Network, world: World, bad: int = -1) -> LossOf:
    """Flow matching on two clips a step, of which every process takes its share."""

    def of(weights: Weights) -> Loss:
        params = network.params_of(weights)

        def loss(step: int) -> tuple[Tensor, dict[str, float]]:
            generator = torch.Generator().manual_seed(step)
            clips = torch.randn(2, CONFIG.in_dim, 2, 4, 4, generator=generator)
            texts = torch.randn(2, 3, CONFIG.text_dim, generator=generator)
            own = list(world.share(range(2)))
            context = encode_context(params, CONFIG, list(texts[own]), engine=network.engine)
            flow = dit(
                *(params, CONFIG, clips[own], torch.full((len(own), 2), 500.0), context),
                frames=Positions((0, 1)),
                engine=network.engine,
            )
            value = F.mse_loss(flow, clips[own])
            if step == bad and 1 in own:
                value = value * float("nan")
            return value, {"spread": flow.detach().std(dim=(1, 2, 3, 4)).mean().item()}

        return loss

    return network.around(of)


def network_of(kind: str, world: World) -> Network:
    if kind == "sharded":
        return parallel.sharded(flat(), CONFIG, TRAINED, world, ENGINE)
    return parallel.whole(flat(), CONFIG, TRAINED, ENGINE)


def trained(folder: Path, kind: str, world: World, *, stop_after: int | None = None) -> None:
    network = network_of(kind, world)
    begun = train(
        *(network.start, loss_of(network, world), RECIPE, folder),
        save_every=2,
        report_every=1,
        world=world,
    )
    for _ in islice(begun, stop_after):
        pass
    begun.close()


def refused(what: Callable[[], object]) -> str:
    try:
        what()
    except MmplError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def together(rank: int, folder: Path) -> dict[str, str]:
    """What both processes do, in one go; returns what was refused."""
    warnings.simplefilter("error")
    world = World(dist.group.WORLD)
    assert (world.rank, world.size) == (rank, 2)
    for kind in ("replicated", "sharded"):
        trained(folder / kind, kind, world)
        trained(folder / f"{kind}-cut", kind, world, stop_after=STOP_AFTER)
        left = folder / f"{kind}-cut" / f"state.{STOP_AFTER}.rank{rank}of2.safetensors"
        left.write_bytes(b"of a process that was killed before the set was whole")
        world.wait()
        trained(folder / f"{kind}-cut", kind, world)
    network = network_of("sharded", world)
    spoiled = loss_of(network, world, bad=1)

    def begin(recipe: Recipe, run: str, loss: LossOf = spoiled) -> object:
        return list(train(network.start, loss, recipe, folder / run, save_every=1, world=world))

    return {
        "muon": refused(lambda: begin(replace(RECIPE, matrix_rate=0.1), "muon")),
        "nan": refused(lambda: begin(RECIPE, "nan")),
        "mixed": refused(lambda: begin(RECIPE, "replicated")),
        "batch": refused(lambda: world.share(range(3))),
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    folder = tmp_path_factory.mktemp("runs")
    trained(folder / "alone", "replicated", ALONE)
    return folder, run_ranks(2, together, folder)


Runs = tuple[Path, list[dict[str, str]]]


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_two_processes_are_one_on_the_same_batch(runs: Runs, kind: str) -> None:
    (alone, steps), (found, done) = (averaged_weights(runs[0] / run) for run in ("alone", kind))
    assert done == steps == RECIPE.steps
    assert set(found) == set(alone) == TRAINED
    begun = flat()
    for name, weight in alone.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6)
        assert (found[name] - begun[name]).norm() > 1e-4, f"{name} does not move"
        assert found[name].dtype is torch.float32
    for one, other in zip(rows(runs[0] / "alone"), rows(runs[0] / kind), strict=True):
        assert other == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_a_cut_run_of_two_processes_is_the_whole_one(runs: Runs, kind: str) -> None:
    whole, cut = runs[0] / kind, runs[0] / f"{kind}-cut"
    (one, _), (other, _) = averaged_weights(whole), averaged_weights(cut)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (whole / "log.jsonl").read_bytes() == (cut / "log.jsonl").read_bytes()
    assert {path.name for path in whole.iterdir()} == {path.name for path in cut.iterdir()}


def test_every_process_writes_its_part_and_old_ones_go(runs: Runs) -> None:
    found = sorted(path.name for path in (runs[0] / "sharded").glob("state*"))
    parts = [f"state.{RECIPE.steps}.rank{rank}of2.safetensors" for rank in (0, 1)]
    assert found == [*parts, "state.json"]
    sizes = [(runs[0] / "sharded" / part).stat().st_size for part in parts]
    assert max(sizes) < 0.6 * (runs[0] / "alone" / "state.safetensors").stat().st_size


def test_a_set_without_one_of_its_parts_is_refused(runs: Runs, tmp_path: Path) -> None:
    for path in (runs[0] / "sharded").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / f"state.{RECIPE.steps}.rank1of2.safetensors").unlink()
    assert "damaged" in refused(lambda: averaged_weights(tmp_path))
    (tmp_path / "state.json").write_text('{"step": 4}')
    assert "state.json" in refused(lambda: averaged_weights(tmp_path))


def test_what_two_processes_refuse(runs: Runs) -> None:
    for refusals in runs[1]:  # both processes stop, and say the same
        assert "Muon needs whole matrices" in refusals["muon"]
        assert refusals["nan"].startswith(f"{NumericError.__name__}: step 1: the loss")
        assert "written by other processes" in refusals["mixed"]
        assert "does not split" in refusals["batch"]
    assert json.loads((runs[0] / "nan" / "state.json").read_text())["step"] == 1


def test_the_average_is_exported_whole_in_official_keys(runs: Runs, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = tmp_path / "model.safetensors"
    assert export(runs[0] / "sharded", path, flat(), torch.bfloat16) == RECIPE.steps
    found, averaged = load_file(path), averaged_weights(runs[0] / "sharded")[0]
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == dit_shapes(CONFIG)
    for name, tensor in found.items():
        assert torch.equal(tensor, averaged.get(name, flat()[name]).bfloat16()), name


def test_a_lone_process_and_unknown_weights_are_refused() -> None:
    with pytest.raises(ArgumentError, match="one process alone"):
        parallel.sharded(flat(), CONFIG, TRAINED, ALONE)
    with pytest.raises(ArgumentError, match="no such weights"):
        parallel.whole(flat(), CONFIG, ["blocks.9.modulation"])
