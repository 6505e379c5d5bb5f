"""Distilling a bundle, from the command line to a film of the model it makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmpl.checkpoint.bundle import Defaults, Model, load_model
from mmpl.checkpoint.folder import open_folder
from mmpl.cli import train
from mmpl.errors import ArgumentError
from mmpl.generate import Frames, Request, generate
from mmpl.layout.presets import by_name
from mmpl.train import tiny_fast
from mmpl.train.paths import Paths, jump_loss, read_paths
from mmpl.train.state import averaged_weights
from mmpl.train.tiny_fast import FastBlueprint, draw_of, teacher_of
from mmpl.wan.dit import Positions, dit, encode_context
from mmpl.wan.flow import schedule, x0_from_flow
from mmpl.wan.params import to_flat
from tests.small import CONFIGS, DEFAULTS, small_model, write_small

TAUGHT = replace(DEFAULTS, vocabulary=("circle",), width=32, height=32, shift=3.0)
WHOLE = tiny_fast.blueprint


def small(defaults: Defaults) -> FastBlueprint:
    made = WHOLE(defaults)
    return replace(
        made,
        teaching=replace(made.teaching, films=2, batch=2, fine=1),
        jump=replace(made.jump, steps=2),
        jump_batch=2,
        matching=replace(made.matching, batch=2, hand_overs=1),
        match=replace(made.match, steps=2, critic_updates=1, ema_from=0),
    )


@pytest.fixture
def model() -> Model:
    return small_model(TAUGHT)


@pytest.fixture
def folder(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tiny_fast, "blueprint", small)
    monkeypatch.chdir(tmp_path)
    return write_small(tmp_path / "teacher", model)


def distil(*words: object) -> int:
    threads = ("--threads", torch.get_num_threads())
    return train.main(["distil", *map(str, (*words, *threads))])


def test_from_a_bundle_to_a_film(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert distil("--model_path", folder, "--runs", "r") == 0
    jumped = averaged_weights(Path("r/jump"))[0]
    made = load_model(tmp_path / "r" / "bundle")
    assert all(torch.equal(tensor, to_flat(made.dit)[name]) for name, tensor in jumped.items())
    assert distil("--model_path", folder, "--runs", "r", "--stage", "match", "--steps", 1) == 0
    capfd.readouterr()
    assert distil("--model_path", folder, "--runs", "r", "--stage", "bundle") == 0
    out, err = capfd.readouterr()
    assert out == "r/bundle\n"
    assert err == ""
    made, teacher = load_model(tmp_path / "r" / "bundle"), load_model(folder)
    assert (made.defaults.solver, made.defaults.steps) == ("few_step", 4)
    assert (made.defaults.guidance_scale, made.defaults.noise) == (1.0, "off")
    kept = ("text", "tokenizer")
    assert all(made.digests[name] == teacher.digests[name] for name in kept)
    matched, step = averaged_weights(Path("r/match"))
    assert step == 1
    assert all(torch.equal(tensor, to_flat(made.dit)[name]) for name, tensor in matched.items())
    assert any(not torch.equal(matched[name], tensor) for name, tensor in jumped.items())
    frames = [e for e in generate(made, Request("circle", 1, frames=5)) if isinstance(e, Frames)]
    assert np.concatenate([e.pixels_FHWC for e in frames]).shape == (5, 32, 32, 3)
    # Again: everything is there; one step more is one step more.
    assert distil("--model_path", folder, "--runs", "r", "--stage", "match", "--steps", 2) == 0
    assert averaged_weights(Path("r/match"))[1] == 2


def test_trajectories_end_in_the_teachers_clips(model: Model, tmp_path: Path) -> None:
    """A path's levels are those of few steps: with the true flow, jumps would end at the clip."""
    teaching = replace(small(TAUGHT).teaching, layouts=(("mmpl_i2v", 1.0),), films=1, fine=8)
    teacher, draw = teacher_of(model), draw_of(model)
    list(tiny_fast.teach(teacher, draw, teaching, tmp_path, made_by={"teacher": "one"}))
    first, second = read_paths(tmp_path)
    assert (first.given, second.given) == ((0,), (0, 1))
    assert [group.name for group in first.groups] == ["second", "plan", "fill_head", "fill_tail"]
    assert [group.name for group in second.groups] == ["plan", "fill_head", "fill_tail"]
    assert first.x_KBCTHW.shape == (5, 2, CONFIGS.dit.in_dim, 21, 4, 4)
    x = first.x_KBCTHW.float()
    assert all(torch.equal(x[level][:, :, 0], x[-1][:, :, 0]) for level in range(5))
    assert x[0][:, :, 1:].std() == pytest.approx(1.0, abs=0.1)
    # Between levels a path goes on as the flow says: x = (1 - sigma) x0 + sigma noise.
    sigmas = schedule("few_step", 4, teaching.shift).sigmas
    gaps = [(x[i + 1] - x[i]).abs().mean() / (sigmas[i] - sigmas[i + 1]) for i in range(4)]
    assert max(gaps) < 2 * min(gaps)
    with pytest.raises(ArgumentError, match="another teacher"):
        list(tiny_fast.teach(teacher, draw, teaching, tmp_path, made_by={"teacher": "two"}))


def test_a_jump_is_to_the_end_of_its_path(model: Model) -> None:
    """The loss is 0 where the end is what the student predicts, and only there."""
    teaching = small(TAUGHT).teaching
    layout = by_name("bidirectional")
    texts = draw_of(model)(np.random.default_rng(0), 2, layout).texts
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, CONFIGS.dit.in_dim, 21, 4, 4, generator=generator).half().float()
    with torch.no_grad():
        context = encode_context(model.dit, model.dit_config, texts)
        ends = []
        for sigma in schedule("few_step", 4, teaching.shift).sigmas[:-1]:
            t_BT = torch.full((2, 21), 1000.0 * sigma)
            frames = Positions(tuple(range(21)))
            v = dit(model.dit, model.dit_config, x, t_BT, context, frames=frames)
            ends.append(x0_from_flow(v, x, sigma))
    weights = {name: tensor.clone() for name, tensor in to_flat(model.dit).items()}
    for level, end in enumerate(ends):
        paths = Paths(torch.stack([*[x] * 4, end]), layout, (), texts)
        losses = []
        for seed in range(8):
            loss = jump_loss(model.dit_config, [paths], replace(teaching, seed=seed), batch=1)
            losses.append(loss(weights)(0)[0].item())
        assert min(losses) < 1e-8, level
        assert max(losses) > 1e-4, level


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--stage", "matching"], 2, "--stage has a wrong value; got 'matching'; wanted one of"),
        (["--stage", "jump", "--films", 3], 2, "--films means nothing here; got stage jump"),
        (["--model_path", "missing"], 3, "missing: no such model folder"),
        (["--stage", "jump"], 2, "no trajectories; make them first"),
        (["--stage", "match"], 2, "no checkpoint in this run folder"),
        (["--steps", 0], 2, "--steps has a wrong value"),
    ],
)
def test_bad_input(
    folder: Path, capfd: pytest.CaptureFixture[str], words: list, code: int, message: str
) -> None:
    own = () if "--model_path" in words else ("--model_path", folder)
    assert distil(*own, *words) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_models_of_other_films_are_refused(model: Model) -> None:
    with pytest.raises(ArgumentError, match="procedural clips"):
        draw_of(small_model())


def test_the_embedded_few_step_bundle_is_its_teacher_but_for_the_transformer() -> None:
    weights = Path(tiny_fast.__file__).parents[2] / "weights"
    teacher, fast = (open_folder(weights / name) for name in ("tiny", "tiny-fast"))
    same = {part for part in teacher.digests if teacher.digests[part] == fast.digests[part]}
    assert same == teacher.digests.keys() - {"dit"}
    assert fast.defaults == tiny_fast.sampled(teacher.defaults)
    assert fast.configs == teacher.configs


def test_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert train.main(["distil", "--help"]) == 0
    assert capfd.readouterr().out.startswith("usage: mmpl-train distil ")
