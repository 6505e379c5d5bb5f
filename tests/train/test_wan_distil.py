"""A Wan-like model is distilled alike by one process and by two, whole, or sharded and cut."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mmpl.checkpoint.bundle import Transformer
from mmpl.checkpoint.read import digest
from mmpl.errors import ArgumentError, InputError
from mmpl.layout.presets import by_name
from mmpl.train.distil import DistilRecipe
from mmpl.train.log import rows
from mmpl.train.loop import averaged_weights
from mmpl.train.recompute import checkpointed
from mmpl.train.self_mmpl import Matching
from mmpl.train.wan_distil import Cast, Plan, distil_wan, draw_from
from mmpl.train.world import ALONE, World
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit import Engine, block, dit_shapes
from tests.checkpoint.worlds import random_state
from tests.dist.ranks import run_ranks
from tests.small import CONFIGS, small_model
from tests.train.encoded import FakeClips

# Student and teacher are of other sizes, as in Table 8.
TEACHER = replace(CONFIGS.dit, dim=36, num_heads=3, ffn_dim=40, num_layers=1)
CLIPS = FakeClips(CONFIGS.dit, 5, size=(4, 4))
MATCHING = Matching(
    (("mmpl_t2v", 0.5), ("mmpl_i2v", 0.5)), batch=2, scores="bidirectional", steps=2, hand_overs=1
)
RECIPE = DistilRecipe(
    steps=2, generator_rate=1e-3, critic_rate=1e-3, critic_updates=1, ema_decay=0.5, ema_from=0
)
CHECKPOINTED = Engine(block_fn=checkpointed(block))


def transformer(config: DiTConfig, seed: int) -> Transformer:
    flat = random_state(dit_shapes(config), seed, scale=0.3)
    return Transformer(flat, config, digest(flat))


def cast() -> Cast:
    model = small_model()
    return Cast(transformer(CONFIGS.dit, 1), transformer(TEACHER, 2), model.vae, model.vae_config)


def plan(**changes: object) -> Plan:
    return replace(Plan(MATCHING, RECIPE, 0.8, torch.float32), **changes)  # type: ignore[arg-type]


def distilled(
    run: Path, world: World = ALONE, *, stop: int | None = None, shard: bool = False
) -> None:
    begun = distil_wan(
        cast(), CLIPS, run, plan(shard=shard), engine=CHECKPOINTED, world=world, save_every=1
    )
    for _ in islice(begun, stop):
        pass
    begun.close()  # type: ignore[attr-defined]


def both_ways(rank: int, folder: Path) -> str:
    warnings.simplefilter("error")
    world = World(dist.group.WORLD)
    distilled(folder / "False", world)
    for stop in (1, None):
        distilled(folder / "True", world, shard=True, stop=stop)
    try:
        odd = plan(matching=replace(MATCHING, batch=3))
        list(distil_wan(cast(), CLIPS, folder / "odd", odd, world=world))
    except ArgumentError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("runs")
    distilled(folder / "alone")
    return folder, run_ranks(2, both_ways, folder)


Runs = tuple[Path, list[str]]


@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_distil_as_one(runs: Runs, shard: bool) -> None:
    (alone, _), (found, step) = (averaged_weights(runs[0] / n) for n in ("alone", str(shard)))
    start = cast().student.flat
    assert step == RECIPE.steps
    assert found.keys() == alone.keys() == start.keys()
    for name, weight in alone.items():
        moved = (weight - start[name]).abs().max()
        assert moved > 1e-4, name
        assert (found[name] - weight).norm() < 1e-3 * (weight - start[name]).norm(), name
    for one, other in zip(rows(runs[0] / "alone"), rows(runs[0] / str(shard)), strict=True):
        assert other == pytest.approx(one, rel=1e-3)


def test_a_batch_that_cannot_be_shared(runs: Runs) -> None:
    assert all("does not split over the processes; got 3 samples" in said for said in runs[1])


def test_captions_and_first_frames_are_those_of_the_same_clip() -> None:
    """In the shares asked for; an image is given where a layout begins with one, and only there."""
    drawn = draw_from(CLIPS, 0.75)
    batch = drawn(np.random.default_rng(0), 200, by_name("mmpl_i2v"))
    dense = {CLIPS.text(clip, "dense")[0, 0].item(): clip for clip in range(5)}
    short = {CLIPS.text(clip, "short")[0, 0].item(): clip for clip in range(5)}
    clips = [(dense | short)[text[0, 0].item()] for text in batch.texts]
    images = torch.stack([CLIPS.latents(clip)[:, 0].float() for clip in clips])
    assert torch.equal(batch.given[0], images)
    assert set(clips) == set(range(5))
    assert sum(text[0, 0].item() in dense for text in batch.texts) == pytest.approx(150, abs=25)
    assert drawn(np.random.default_rng(0), 2, by_name("mmpl_t2v")).given == {}


class Prompts(FakeClips):
    """The captions of the same clips, for latents of the same size: all that there is."""

    def __init__(self) -> None:
        stride = CONFIGS.vae.spatial_stride
        made = {"frames": 0, "height": 4 * stride, "width": 4 * stride}
        super().__init__(CONFIGS.dit, 5, made=made)

    def latents(self, index: int, /) -> torch.Tensor:
        raise AssertionError("prompts have no latents")


def test_prompts_do_where_no_layout_begins_with_an_image(tmp_path: Path) -> None:
    """They give the weights that the clips of the same captions give."""
    texts_alone = plan(matching=replace(MATCHING, layouts=(("mmpl_t2v", 1.0),)))
    found = []
    for name, data in {"clips": CLIPS, "prompts": Prompts()}.items():
        list(distil_wan(cast(), data, tmp_path / name, texts_alone))
        found.append(averaged_weights(tmp_path / name)[0])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    wanted = "clip 0: captions alone have no first frame to begin with; got layout mmpl_i2v"
    with pytest.raises(InputError, match=wanted):
        list(distil_wan(cast(), Prompts(), tmp_path / "image", plan()))
    wide = replace(TEACHER, text_dim=2 * TEACHER.text_dim)
    other = replace(cast(), teacher=transformer(wide, 2))
    with pytest.raises(InputError, match="the captions were encoded for another model"):
        list(distil_wan(other, Prompts(), tmp_path / "wide", texts_alone))


def test_a_layout_that_cannot_begin_with_own_seeds(tmp_path: Path) -> None:
    chunked = replace(MATCHING, layouts=(("chunked_3", 1.0),))
    with pytest.raises(ArgumentError, match="cannot begin with given frames; got chunked_3"):
        list(distil_wan(cast(), CLIPS, tmp_path / "run", plan(matching=chunked)))
    assert not (tmp_path / "run").exists()
