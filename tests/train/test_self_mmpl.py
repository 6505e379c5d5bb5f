"""Self-MMPL: where gradients go, which way they lead, and that a resumed run is the whole one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from mmpl.errors import ArgumentError, InputError, NumericError
from mmpl.layout.layout import Group, Layout
from mmpl.layout.presets import by_name
from mmpl.train import self_mmpl as module
from mmpl.train.distil import DistilRecipe, Turn, distil
from mmpl.train.rollout import (
    Memory,
    few_steps,
    open_memory,
    read,
    roll_out,
    stack,
    velocity,
)
from mmpl.train.self_mmpl import Batch, Matching, Teacher, matching_loss, scores_of, self_mmpl
from mmpl.train.state import Weights, averaged_weights
from mmpl.wan.dit import DEFAULT_ENGINE, dit_from_flat
from mmpl.wan.flow import schedule
from mmpl.wan.params import to_flat
from tests.small import CHANNELS, CONFIGS, small_dit, small_model

SHAPE = (CHANNELS, 4, 4)
GRID = schedule("few_step", 3, 3.0)
RECIPE = DistilRecipe(
    steps=4, generator_rate=1e-2, critic_rate=1e-2, critic_updates=2, ema_decay=0.5, ema_from=2
)
MATCHING = Matching((("mmpl_t2v", 1.0),), batch=2, scores="layout", steps=3, guidance=2.0)


def texts(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(3, CONFIGS.dit.text_dim, generator=generator) for _ in range(count)]


def draw(rng: np.random.Generator, count: int, layout: Layout) -> Batch:
    given = {0: torch.from_numpy(rng.normal(size=(count, *SHAPE))).float()}
    return Batch(texts(count), given if module.begins_with_image(layout) else {})


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    model = small_model()
    return Teacher(small_dit(), CONFIGS.dit, texts(1)[0], model.vae, model.vae_config, SHAPE)


def start() -> Weights:
    return to_flat(small_dit())


def learning() -> Weights:
    return {name: tensor.clone().requires_grad_() for name, tensor in start().items()}


def gradients(weights: Weights) -> Weights:
    """Of those that have one."""
    return {name: weight.grad for name, weight in weights.items() if weight.grad is not None}


def assert_close(got: Weights, wanted: Weights) -> None:
    assert got.keys() == wanted.keys()
    assert got
    for name, tensor in got.items():
        assert torch.allclose(tensor, wanted[name], rtol=1e-3, atol=1e-4), name


def noise_of(seed: int = 0) -> Callable[[Group, int], Tensor]:
    def noise(group: Group, step: int) -> Tensor:
        key = 1000 * seed + 100 * step + group.frames[0]
        generator = torch.Generator().manual_seed(key)
        return torch.randn((1, CHANNELS, len(group.frames), 4, 4), generator=generator)

    return noise


# ------------------------------------------------------------------------------------ rollout


@pytest.mark.parametrize("name", ["mmpl_t2v", "mmpl_i2v", "without_midpoint"])
def test_passes_that_store_nothing_see_what_passes_that_store_see(name: str) -> None:
    """Of the last group, whose own frames stand last, and of all others."""
    layout, params = by_name(name), small_dit()
    memory = open_memory(read(params, CONFIGS.dit, texts(1), DEFAULT_ENGINE), layout, SHAPE[1:])
    noise = noise_of()
    seen: dict[str, Tensor] = {}

    def make(memory: Memory, group: Group) -> Tensor:
        x = noise(group, 0)
        seen[group.name] = velocity(memory, group, x, 0.0)
        return x

    with torch.no_grad():
        latents = roll_out(memory, layout, layout.groups, {}, make)
    z = stack(latents, range(layout.frames))
    lesson = module.lesson_of(layout)
    flow = module.taught_flow(
        params,
        CONFIGS.dit,
        z[:, :, list(lesson.clean)],
        z[:, :, list(lesson.noisy)],
        torch.zeros(1, len(lesson.noisy)),
        memory.reader.context,
        lesson=lesson,
    )
    cached = torch.cat([seen[group.name] for group in layout.groups], dim=2)
    assert torch.allclose(cached, flow, rtol=0.0, atol=1e-5)


def exit_x0(weights: Weights, exit_step: int, given_to_plan: Tensor | None = None) -> Tensor:
    """The plan of a rollout, over an init that is made or, in value the same, given."""
    layout = by_name("mmpl_t2v")
    params = dit_from_flat(weights, CONFIGS.dit)
    memory = open_memory(read(params, CONFIGS.dit, texts(1), DEFAULT_ENGINE), layout, SHAPE[1:])
    given = {} if given_to_plan is None else dict(enumerate(given_to_plan.unbind(2)))
    latents = roll_out(
        memory,
        layout,
        layout.groups[:2],
        given,
        lambda memory, group: few_steps(memory, group, GRID, noise_of(), exit_step),
    )
    return stack(latents, layout.groups[1].frames if given else (0, 1))


@pytest.mark.parametrize("exit_step", [0, 1, 2])
def test_gradient_comes_from_the_exit_step_alone(exit_step: int) -> None:
    """As if the input of that step were a number."""
    weights = learning()
    exit_x0(weights, exit_step).square().sum().backward()
    again = learning()
    group, noise = by_name("mmpl_t2v").groups[0], noise_of()
    params = dit_from_flat(again, CONFIGS.dit)
    reader = read(params, CONFIGS.dit, texts(1), DEFAULT_ENGINE)
    memory = open_memory(reader, by_name("mmpl_t2v"), SHAPE[1:])
    x = noise(group, 0)
    for step, sigma in enumerate(GRID.sigmas[: exit_step + 1]):
        if step:
            x = ((1 - sigma) * x + sigma * noise(group, step)).detach()
        x = x - sigma * velocity(memory, group, x, GRID.timesteps[step])
    x.square().sum().backward()
    assert_close(gradients(weights), gradients(again))


def test_no_gradient_through_keys_and_values() -> None:
    """A plan's gradient is the same whether its init was made by the network or given."""
    weights, again = learning(), learning()
    init = exit_x0(learning(), 1).detach()
    layout = by_name("mmpl_t2v")
    params = dit_from_flat(weights, CONFIGS.dit)
    memory = open_memory(read(params, CONFIGS.dit, texts(1), DEFAULT_ENGINE), layout, SHAPE[1:])
    latents = roll_out(
        memory,
        layout,
        layout.groups[:2],
        {},
        lambda memory, group: few_steps(memory, group, GRID, noise_of(), 1),
    )
    stack(latents, layout.groups[1].frames).square().sum().backward()
    exit_x0(again, 1, init).square().sum().backward()
    assert_close(gradients(weights), gradients(again))


# ------------------------------------------------------------------------------------- turns


@pytest.mark.parametrize("scores", ["layout", "bidirectional"])
@pytest.mark.parametrize(("layout", "own_seeds"), [("mmpl_t2v", 0.0), ("mmpl_i2v", 1.0)])
def test_a_turn_teaches_each_side_alone(
    teacher: Teacher, layout: str, own_seeds: float, scores: module.ScoresOf
) -> None:
    matching = replace(
        MATCHING, layouts=((layout, 1.0),), own_seeds=own_seeds, scores=scores, batch=1, fresh=False
    )
    generator, critic = learning(), learning()
    turn = self_mmpl(teacher, CONFIGS.dit, draw, matching)(generator, critic)(0)
    turn.critic(0).backward()
    assert not gradients(generator)
    assert any(bool(grad.any()) for grad in gradients(critic).values())
    for weight in critic.values():
        weight.grad = None
    critic["head.head.weight"].data.add_(0.1)  # or both scores were the same
    turn.generator()[0].backward()
    assert not gradients(critic)
    assert any(bool(grad.any()) for grad in gradients(generator).values())
    assert all(not tensor.requires_grad for tensor in to_flat(teacher.params).values())


def test_exit_step_is_shared_by_groups_and_drawn_per_step(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    exits: list[int] = []

    def noted(memory: Memory, group: Group, grid: object, noise: object, exit_step: int) -> Tensor:
        exits.append(exit_step)
        return torch.zeros(2, CHANNELS, len(group.frames), 4, 4)

    monkeypatch.setattr(module, "few_steps", noted)
    turns = self_mmpl(teacher, CONFIGS.dit, draw, replace(MATCHING, own_seeds=0.0, fresh=False))
    made = turns(learning(), learning())
    for step in range(12):
        made(step)
    by_step = [exits[i : i + 4] for i in range(0, len(exits), 4)]
    assert len(by_step) == 12
    assert all(len(set(four)) == 1 for four in by_step)
    assert {four[0] for four in by_step} == {0, 1, 2}


def test_own_seeds_are_handed_over_and_not_learned(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[set[int]] = []

    def noted(memory: Memory, layout: Layout, groups: object, latents: dict, make: object) -> dict:
        given.append(set(latents))
        return {frame: torch.zeros(2, *SHAPE) for frame in range(layout.frames)}

    monkeypatch.setattr(module, "roll_out", noted)
    monkeypatch.setattr(module.vae, "encode_again", lambda *_: torch.zeros(2, CHANNELS, 2, 4, 4))
    turns = self_mmpl(teacher, CONFIGS.dit, draw, replace(MATCHING, fresh=False))
    begin = turns(start(), start())
    for step in range(40):
        begin(step)
    handed = [seeds for seeds in given if seeds]
    assert all(seeds == {0, 1} for seeds in handed)
    assert 10 < len(handed) < 30  # half of the steps
    assert len(given) == 40 + len(handed)


def test_shared_rollouts_are_made_once(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, whole = {}, module._rolled_out
    for fresh in (True, False):
        made: list[int] = []

        def noted(game: object, step: int, part: int, number: None, made: list = made) -> object:
            made.append(part)
            return whole(game, step, part, number)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(module, "_rolled_out", noted)
            turn = self_mmpl(teacher, CONFIGS.dit, draw, replace(MATCHING, fresh=fresh, batch=1))(
                learning(), learning()
            )(0)
            for update in range(2):
                turn.critic(update)
            turn.generator()
        counts[fresh] = made
    assert counts == {True: [1, 2, 0], False: [0]}


def test_clips_made_one_by_one_are_the_same_in_any_process(teacher: Teacher) -> None:
    """Each of its own randomness; layout, exit step and way to begin are those of the step."""
    matching = replace(MATCHING, batch=3, layouts=(("mmpl_t2v", 0.5), ("mmpl_i2v", 0.5)))

    def drawn(*share: int) -> list[tuple[float, str, int]]:
        seen: list[tuple[float, str, int]] = []

        def noted(rng: np.random.Generator, count: int, layout: Layout) -> Batch:
            seen.append((rng.random(), layout.name, count))
            return draw(rng, count, layout)

        turns = self_mmpl(teacher, CONFIGS.dit, noted, matching, share=share)(learning(), start())
        for step in range(3):
            turns(step).generator()
        return seen

    together, alone = drawn(0, 1, 2), drawn(1)
    assert alone == together[1::3]
    assert len({key for key, _, _ in together}) == 9
    assert {count for _, _, count in together} == {1}
    assert all(len({name for _, name, _ in together[i : i + 3]}) == 1 for i in (0, 3, 6))


def test_clips_made_one_by_one_cannot_be_kept(teacher: Teacher) -> None:
    with pytest.raises(ArgumentError, match="cannot be kept"):
        self_mmpl(teacher, CONFIGS.dit, draw, replace(MATCHING, fresh=False), share=(0,))


# ---------------------------------------------------------------------------------- matching


def test_the_mean_moves_to_the_teachers() -> None:
    """Real and fake scores of Gaussians are known: the student is N(mean, 1), data are N(3, 1)."""
    mean = torch.zeros((), requires_grad=True)
    generator = torch.Generator().manual_seed(0)

    def predicted(x: Tensor, sigma: float, centre: float) -> Tensor:
        """E[x0 | x] for x0 of N(centre, 1)."""
        gain = (1 - sigma) / ((1 - sigma) ** 2 + sigma**2)
        return centre + gain * (x - (1 - sigma) * centre)

    for _ in range(100):
        clip = mean + torch.randn(64, 5, generator=generator)
        sigma = 0.02 + 0.96 * float(torch.rand((), generator=generator))
        noisy = torch.lerp(clip.detach(), torch.randn(64, 5, generator=generator), sigma)
        real, fake = predicted(noisy, sigma, 3.0), predicted(noisy, sigma, mean.item())
        (slope,) = torch.autograd.grad(matching_loss(clip, real, fake), [mean])
        mean = (mean - 0.5 * slope).detach().requires_grad_()
    assert mean.item() == pytest.approx(3.0, abs=0.2)


def test_the_gradient_is_the_normalised_difference() -> None:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    real, fake = x.detach() + 2.0, x.detach() + 5.0
    matching_loss(x, real, fake).backward()
    assert x.grad is not None
    assert torch.allclose(x.grad * x.numel(), torch.full_like(x, 3.0 / 2.0))


def test_scores_of_models() -> None:
    assert scores_of("mmpl_t2v") == "layout"
    assert scores_of("bidirectional") == "bidirectional"


@pytest.mark.parametrize("change", [{"scores": "causal"}, {"batch": 0}, {"own_seeds": 2.0}])
def test_matchings_out_of_range_are_refused(change: dict) -> None:
    with pytest.raises(ArgumentError):
        replace(MATCHING, **change)


# ------------------------------------------------------------------------------------- loop


def toy(calls: list[str]) -> Callable[[Weights, Weights], Callable[[int], Turn]]:
    def turns_of(generator: Weights, critic: Weights) -> Callable[[int], Turn]:
        def turn(step: int) -> Turn:
            def random(key: int) -> Tensor:
                return torch.randn(3, generator=torch.Generator().manual_seed(100 * step + key))

            def follow(update: int) -> Tensor:
                calls.append("critic")
                made = (generator["w"] * random(9)).detach()
                return (critic["w"] * random(update) - made).square().mean()

            def lead() -> tuple[Tensor, dict[str, float]]:
                calls.append("generator")
                late = generator["late"].sum() if step > 1 else 0.0
                return (generator["w"] - critic["w"].detach()).square().mean() + late, {"m": 1.0}

            return Turn(follow, lead)

        return turn

    return turns_of


def toy_run(folder: Path, recipe: DistilRecipe = RECIPE, stop: int = 99) -> list[str]:
    calls: list[str] = []
    sides = {"w": torch.ones(3), "late": torch.ones(1)}, {"w": torch.zeros(3)}
    for progress in distil(*sides, toy(calls), recipe, folder, save_every=2, report_every=1):
        if progress.step == stop:
            break
    return calls


def test_critic_updates_come_before_each_of_the_generator(tmp_path: Path) -> None:
    calls = toy_run(tmp_path, replace(RECIPE, critic_updates=5))
    assert calls == (["critic"] * 5 + ["generator"]) * 4


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resuming_gives_the_same_bits(tmp_path: Path, stop: int) -> None:
    toy_run(tmp_path / "whole")
    toy_run(tmp_path / "cut", stop=stop)
    toy_run(tmp_path / "cut")
    states = [(tmp_path / name / "state.safetensors").read_bytes() for name in ("whole", "cut")]
    assert states[0] == states[1]


def test_a_distillation_resumes_to_the_same_bits(teacher: Teacher, tmp_path: Path) -> None:
    turns = self_mmpl(teacher, CONFIGS.dit, draw, replace(MATCHING, batch=1, steps=2))
    recipe = replace(RECIPE, steps=2, critic_updates=1)
    for name, parts in (("whole", (2,)), ("cut", (1, 2))):
        for steps in parts:
            part = replace(recipe, steps=steps)
            for _ in distil(start(), start(), turns, part, tmp_path / name):
                pass
    states = [(tmp_path / name / "state.safetensors").read_bytes() for name in ("whole", "cut")]
    assert states[0] == states[1]
    moved, step = averaged_weights(tmp_path / "whole")
    assert step == 2
    assert any(not torch.equal(moved[name], tensor) for name, tensor in start().items())


def test_the_average_begins_late(tmp_path: Path) -> None:
    toy_run(tmp_path, replace(RECIPE, steps=2))
    early = averaged_weights(tmp_path)[0]["w"]
    toy_run(tmp_path / "later", replace(RECIPE, ema_from=0, steps=2))
    late = averaged_weights(tmp_path / "later")[0]["w"]
    assert (early - 1).abs().max() > (late - 1).abs().max()


def test_a_run_of_another_recipe_is_refused(tmp_path: Path) -> None:
    toy_run(tmp_path)
    with pytest.raises(ArgumentError, match=r"another recipe.*got critic_rate 0\.02"):
        toy_run(tmp_path, replace(RECIPE, critic_rate=0.02))
    with pytest.raises(ArgumentError, match="out of range"):
        replace(RECIPE, critic_updates=0)


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    def turns_of(generator: Weights, critic: Weights) -> Callable[[int], Turn]:
        good = toy([])(generator, critic)

        def turn(step: int) -> Turn:
            factor = float("nan") if step == 3 else 1.0
            return Turn(lambda update: factor * good(step).critic(update), good(step).generator)

        return turn

    sides = {"w": torch.ones(3), "late": torch.ones(1)}, {"w": torch.zeros(3)}
    with pytest.raises(NumericError, match=r"step 3: the loss of the critic"):
        list(distil(*sides, turns_of, RECIPE, tmp_path, save_every=2))
    assert averaged_weights(tmp_path)[1] == 2


def test_a_damaged_state_is_refused_and_a_folder_in_use_too(tmp_path: Path) -> None:
    sides = {"w": torch.ones(3), "late": torch.ones(1)}, {"w": torch.zeros(3)}
    first = distil(*sides, toy([]), RECIPE, tmp_path, save_every=1, report_every=1)
    next(first)
    with pytest.raises(ArgumentError, match="another process is at work"):
        toy_run(tmp_path)
    first.close()
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"state\.safetensors: the state of the .* is damaged"):
        toy_run(tmp_path)


def test_the_critic_has_no_average(tmp_path: Path) -> None:
    toy_run(tmp_path)
    with safe_open(tmp_path / "state.safetensors", framework="pt") as file:
        kept = {name for name in file.keys() if "optimizer" not in name}  # noqa: SIM118
    assert kept == {"weights.w", "weights.late", "ema.w", "ema.late", "critic.weights.w"}
