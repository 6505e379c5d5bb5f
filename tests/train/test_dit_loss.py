"""From clips to a loss: shards of latents, the bundle's tokenizer, and tasks under the layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from mmpl.cli.train import NETWORKS, PLAIN
from mmpl.errors import ArgumentError
from mmpl.layout.layout import Layout
from mmpl.layout.presets import bidirectional_window, chunked, mmpl_i2v, mmpl_t2v
from mmpl.train import grammar, tiny
from mmpl.train.clips import caption, draw_spec
from mmpl.train.dit_loss import Data, DiTTraining, course, dit_loss
from mmpl.train.latents import (
    SHARD_CLIPS,
    LatentClips,
    clip_of,
    encode_shards,
    read_shards,
)
from mmpl.train.loop import Weights
from mmpl.train.start import start_transformer, start_vae
from mmpl.train.vocabulary import make_tokenizer
from mmpl.wan import vae
from mmpl.wan.config import TextConfig
from mmpl.wan.dit import dit_shapes
from mmpl.wan.text import text_shapes
from mmpl.wan.tokenizer import Tokenizer
from tests.small import CHANNELS, CONFIGS


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(make_tokenizer(captions=1000))


@pytest.fixture(scope="module")
def data() -> Data:
    z = torch.randn(8, CHANNELS, 21, 4, 4, generator=torch.Generator().manual_seed(0))
    return Data(LatentClips(z, torch.arange(8)), LatentClips(z[:, :, :2], torch.arange(0, 16, 2)))


SEEDS = range(0, 2 * SHARD_CLIPS, 2)
DIT = CONFIGS.dit


def text_config(tokenizer: Tokenizer) -> TextConfig:
    return replace(CONFIGS.text, vocab_size=tokenizer.vocab_size)


def start(tokenizer: Tokenizer) -> Weights:
    weights = {f"dit.{n}": t for n, t in start_transformer(dit_shapes(DIT), 0).items()}
    shapes = text_shapes(text_config(tokenizer))
    weights |= {f"text.{n}": t for n, t in start_transformer(shapes, 1).items()}
    return {name: tensor.requires_grad_() for name, tensor in weights.items()}


def test_every_caption_word_is_one_token(tokenizer: Tokenizer) -> None:
    for seed in range(50):
        words = caption(draw_spec(seed), seed)
        assert len(tokenizer.encode(words, 64)) == len(words.split()) + 1
    assert len(tokenizer.encode("zyzzyva", 64)) > 2, "unknown words are spelled"


def test_shards_are_encoded_once(tmp_path: Path) -> None:
    config = CONFIGS.vae
    params = vae.vae_from_flat(start_vae(config, 0), config)
    done = list(encode_shards(params, config, tmp_path, seeds=SEEDS, latents=3, size=16))
    assert done == [SHARD_CLIPS]
    (path,) = tmp_path.glob("shard-*")
    before = path.stat().st_mtime_ns
    list(encode_shards(params, config, tmp_path, seeds=SEEDS, latents=3, size=16))
    assert path.stat().st_mtime_ns == before
    other = vae.vae_from_flat(start_vae(config, 1), config)
    with pytest.raises(ArgumentError, match="another VAE"):
        list(encode_shards(other, config, tmp_path, seeds=SEEDS, latents=3, size=16))
    stored = read_shards(tmp_path)
    assert stored.seeds.tolist() == list(SEEDS)
    assert stored.z_BCTHW.shape == (SHARD_CLIPS, CHANNELS, 3, 2, 2)
    with pytest.raises(ArgumentError, match="no latents"):
        read_shards(tmp_path / "empty")


def test_training_clips_are_never_held_out() -> None:
    for seed in range(200):
        spec = clip_of(seed)
        assert not grammar.is_held_out(spec.shape, spec.hue_bin, spec.motion)
        assert (spec.start_frame > 0) == (seed % 2 == 1)


def test_a_course_teaches_all_but_what_is_given() -> None:
    found = course(mmpl_t2v(), 1.0, {"plan": 2.0})
    shares = {task.group.name: task.share for task in found.tasks}
    assert shares == {"init": 0.2, "plan": 0.4, "fill_head": 0.2, "fill_tail": 0.2}
    assert [task.group.name for task in found.tasks if task.fresh] == ["init"]
    names = [task.group.name for task in course(mmpl_i2v(), 1.0, {}).tasks]
    assert names == ["second", "plan", "fill_head", "fill_tail"]


def test_loss_depends_on_the_step_alone_and_reaches_every_weight(
    tokenizer: Tokenizer, data: Data
) -> None:
    training = DiTTraining((course(mmpl_t2v(), 1.0, {}),), frames=42, clips=4)
    weights = start(tokenizer)
    with torch.no_grad():
        weights["dit.head.head.weight"].normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    loss_of = dit_loss(DIT, text_config(tokenizer), tokenizer, data, training)
    loss = loss_of(weights)
    losses = [loss(step)[0].item() for step in range(4)]
    again = loss_of(weights)
    assert losses == [again(step)[0].item() for step in range(4)]
    assert len(set(losses)) == 4
    loss(0)[0].backward()
    untouched = [name for name, weight in weights.items() if weight.grad is None]
    assert untouched == []
    assert weights["text.blocks.0.attn.v.weight"].grad.abs().max() > 0  # type: ignore[union-attr]


def test_seeds_of_its_own_making_change_the_plan_alone(tokenizer: Tokenizer, data: Data) -> None:
    weights = start(tokenizer)
    with torch.no_grad():
        weights["dit.head.head.weight"].normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    for layout, changes in ((mmpl_t2v(), {"plan"}), (mmpl_i2v(), set())):
        found = {}
        for own_seeds in (0.0, 0.8):
            for name in ("plan", "fill_head"):
                shares = {g.name: float(g.name == name) for g in layout.groups}
                training = DiTTraining(
                    (course(layout, 1.0, shares),), frames=42, clips=4, own_seeds=own_seeds
                )
                loss = dit_loss(DIT, text_config(tokenizer), tokenizer, data, training)(weights)
                value, _ = loss(3)
                found[own_seeds, name] = value.item()
        changed = {name for name in ("plan", "fill_head") if found[0.0, name] != found[0.8, name]}
        assert changed == changes


def test_a_perfect_network_makes_the_seeds_as_they_were(
    tokenizer: Tokenizer, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Along straight flows any number of steps, guided however, ends at the truth."""
    seen = {}

    def perfect(*args: object, **_: object) -> torch.Tensor:
        x_BCTHW, t_BT = args[3], args[4]
        assert isinstance(x_BCTHW, torch.Tensor)
        assert isinstance(t_BT, torch.Tensor)
        if x_BCTHW.shape[2] != 2:
            seen["context"] = args[2]
            return torch.zeros_like(x_BCTHW)
        t_B1111 = (t_BT[:, :1, None, None, None] / 1000).clamp(min=1e-3)
        return (x_BCTHW - 0.5) / t_B1111  # the truth is 0.5 everywhere

    clips = LatentClips(torch.full_like(data.clips.z_BCTHW, 0.5), data.clips.seeds)
    shares = {"init": 0.0, "plan": 1.0, "fill_head": 0.0, "fill_tail": 0.0}
    training = DiTTraining(
        (course(mmpl_t2v(), 1.0, shares),), frames=42, clips=4, context_noise=0.0, own_seeds=0.9
    )
    weights = start(tokenizer)
    loss = dit_loss(DIT, text_config(tokenizer), tokenizer, Data(clips, clips), training)(weights)
    monkeypatch.setattr("mmpl.train.dit_loss.taught_flow", perfect)
    loss(0)
    context = seen["context"]
    assert isinstance(context, torch.Tensor)
    assert not context.requires_grad
    assert (context - 0.5).abs().max() < 1e-4


@pytest.mark.parametrize("by", ["odds", "clips"])
def test_what_is_not_to_be_drawn_is_not(tokenizer: Tokenizer, data: Data, by: str) -> None:
    """A clip of odds 0, or behind the first `clips`, may hold anything."""
    specs = [data.clips.spec(i) for i in range(len(data.clips.seeds))]
    barred = {spec.shape for spec in specs} - {specs[0].shape}
    assert barred
    keep = torch.tensor([spec.shape not in barred for spec in specs])
    if by == "clips":
        keep = torch.arange(len(specs)) < 1

    def with_holes(clips: LatentClips, keep: torch.Tensor) -> LatentClips:
        z_BCTHW = clips.z_BCTHW.clone()
        z_BCTHW[~keep] = torch.nan
        return LatentClips(z_BCTHW, clips.seeds)

    own = tuple((shape, 0.0) for shape in barred) if by == "odds" else ()
    shares = {"init": 0.0}  # which is learned from beginnings
    for careful in (True, False):
        training = DiTTraining(
            (course(mmpl_t2v(), 1.0, shares),),
            frames=84,
            clips=1 if careful and by == "clips" else 8,
            odds=own if careful else (),
        )
        holed = Data(with_holes(data.clips, keep), data.beginnings)
        loss = dit_loss(DIT, text_config(tokenizer), tokenizer, holed, training)(start(tokenizer))
        assert all(loss(step)[0].isfinite() for step in range(3)) == careful


@pytest.mark.parametrize("layout", [chunked(21, 3), bidirectional_window(21, 0)])
def test_what_is_made_from_nothing_is_learned_from_beginnings(
    tokenizer: Tokenizer, data: Data, layout: Layout
) -> None:
    """Clips that continue a film may hold anything where a first group is learned from them."""
    shares = {group.name: float(not group.sees) for group in layout.groups}
    continues = data.clips.seeds % 2 == 1
    for odd in (True, False):
        z_BCTHW = data.clips.z_BCTHW.clone()
        z_BCTHW[continues == odd] = torch.nan
        training = DiTTraining((course(layout, 1.0, shares),), frames=42, clips=8)
        holed = Data(LatentClips(z_BCTHW, data.clips.seeds), data.beginnings)
        loss = dit_loss(DIT, text_config(tokenizer), tokenizer, holed, training)(start(tokenizer))
        assert all(loss(step)[0].isfinite() for step in range(3)) == odd


@pytest.mark.parametrize("levels", ["group", "frame"])
def test_levels_of_noise(
    tokenizer: Tokenizer,
    data: Data,
    levels: Literal["group", "frame"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[torch.Tensor] = []

    def spy(*args: object, **_: object) -> torch.Tensor:
        x_BCTHW, t_BT = args[3], args[4]
        assert isinstance(x_BCTHW, torch.Tensor)
        assert isinstance(t_BT, torch.Tensor)
        assert t_BT.shape == (len(x_BCTHW), x_BCTHW.shape[2])
        seen.append(t_BT)
        return torch.zeros_like(x_BCTHW)

    monkeypatch.setattr("mmpl.train.dit_loss.taught_flow", spy)
    own = course(bidirectional_window(21, 0), 1.0, levels=levels)
    training = DiTTraining((own,), frames=21 * 40, clips=8)
    loss = dit_loss(DIT, text_config(tokenizer), tokenizer, data, training)(start(tokenizer))
    loss(0)
    (t_BT,) = seen
    assert len(t_BT) == 40
    assert 0 <= t_BT.min() < t_BT.max() <= 1000
    alike = (t_BT == t_BT[:, :1]).all(dim=1)
    rising = (t_BT.diff() >= 0).all(dim=1)
    clean = (t_BT == 0).sum(dim=1)
    assert bool(alike.all()) == (levels == "group")
    if levels == "frame":
        assert 8 < rising.sum() < 32
        assert 8 < (clean == 0).sum() < 32
        assert 15 < clean.max() < 21
        assert all((row[:n] == 0).all() for row, n in zip(t_BT, clean, strict=True))


def test_networks_to_compare_methods_with_learn_equally_long() -> None:
    *_, last = tiny.blueprint().dit_stages
    steps = set()
    for network in (name for name in NETWORKS[1:] if name != PLAIN):
        found = tiny.blueprint(network)
        *before, own = found.dit_stages
        assert tuple(before) == tiny.blueprint().dit_stages
        assert before[-1] == last
        steps.add((own.recipe.steps, own.training.frames, own.training.clips))
        assert own.name == f"dit-{network}"
    assert len(steps) == 1


def test_a_few_steps_learn_a_single_clip(tokenizer: Tokenizer, data: Data) -> None:
    first = LatentClips(data.clips.z_BCTHW[:1], data.clips.seeds[:1])
    one = Data(first, LatentClips(first.z_BCTHW[:, :, :2], first.seeds))
    training = DiTTraining((course(mmpl_t2v(), 1.0, {}),), frames=60, clips=4, context_noise=0.0)
    weights = start(tokenizer)
    loss = dit_loss(DIT, text_config(tokenizer), tokenizer, one, training)(weights)
    optimizer = torch.optim.AdamW(weights.values(), lr=5e-3)

    def measured() -> float:
        with torch.no_grad():
            return sum(loss(step)[0].item() for step in range(8))

    before = measured()
    for step in range(100, 140):
        optimizer.zero_grad()
        loss(step)[0].backward()
        optimizer.step()
    assert measured() < 0.95 * before
