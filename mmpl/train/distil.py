"""The loop of a distillation: a critic follows the generator, several updates for each of its own.

What a step draws depends on (seed, step) alone, and the checkpoint holds everything else, so a run
that was killed and resumed gives the same weights as one that was not.
Sources: DMD2 and Self-Forcing; paper Table 8.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.train.loop import Guard, Progress, Side, Step, Told, run_steps
from mmpl.train.recipe import Recipe
from mmpl.train.state import Weights, begin
from mmpl.train.world import ALONE, World

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class DistilRecipe:
    """Rates of a distillation; the values here are those of paper Table 8 and Self-Forcing.

    `steps` are updates of the generator, each after `critic_updates` of the critic. `most_norm`:
    gradients are scaled down to this norm. The average is the generator itself before step
    `ema_from`, from where on `ema_decay` is reached gradually.
    """

    steps: int
    generator_rate: float = 2e-6
    critic_rate: float = 4e-7
    critic_updates: int = 5
    beta1: float = 0.0
    beta2: float = 0.999
    weight_decay: float = 0.01
    most_norm: float = 10.0
    ema_decay: float = 0.99
    ema_from: int = 200

    def __post_init__(self) -> None:
        rates = self.generator_rate, self.critic_rate
        counts = self.steps > 0 and self.critic_updates > 0 and self.most_norm > 0
        if not (counts and all(0 < rate < 1 for rate in rates) and 0 <= self.ema_decay < 1):
            raise ArgumentError(
                "the recipe is out of range",
                got=f"steps {self.steps}, critic_updates {self.critic_updates}, rates {rates}, "
                f"most_norm {self.most_norm}, ema_decay {self.ema_decay}",
                wanted="counts and norm above 0, rates in (0, 1), ema_decay in [0, 1)",
            )

    @property
    def generator(self) -> Recipe:
        """How the generator moves."""
        return self._moves(self.generator_rate)

    @property
    def critic(self) -> Recipe:
        """How the critic moves."""
        return self._moves(self.critic_rate)

    def _moves(self, rate: float) -> Recipe:
        return Recipe(
            steps=self.steps,
            learning_rate=rate,
            matrix_rate=None,
            warmup=0,
            final_fraction=1.0,
            beta1=self.beta1,
            beta2=self.beta2,
            weight_decay=self.weight_decay,
            ema_decay=self.ema_decay,
            ema_start=self.ema_from,
            clip_norm=self.most_norm,
        )


@dataclass(frozen=True, slots=True)
class Turn:
    """One step: `critic(update)` is the critic's loss, then `generator()` the generator's. Each
    depends on the weights of both as they are when it is called."""

    critic: Callable[[int], Tensor]
    generator: Callable[[], tuple[Tensor, Metrics]]


TurnsOf = Callable[[Weights, Weights], Callable[[int], Turn]]  # generator, critic -> step -> Turn


def distil(  # noqa: PLR0913
    generator: Weights,
    critic: Weights,
    turns_of: TurnsOf,
    recipe: DistilRecipe,
    run: Path,
    *,
    setting: Mapping[str, object] = MappingProxyType({}),
    save_every: int = 10,
    report_every: int = 5,
    world: World = ALONE,
) -> Generator[Progress, None, None]:
    """Distils into the folder `run`, resuming what is there; yields progress.

    `turns_of` is called once, with the weights that are updated in place. The folder and what is
    raised are those of `mmpl.train.loop.train`, as is what several processes do; `averaged_weights`
    reads the generator's average.
    """
    states = {
        "": begin(generator, recipe.generator),
        "critic.": begin(critic, recipe.critic, averaged=False),
    }
    guard = Guard(run)
    leader, follower = (
        Side(own, moves, guard, world, of=f" of the {name}")
        for own, moves, name in zip(
            states.values(), (recipe.generator, recipe.critic), ("generator", "critic")
        )
    )

    def steps() -> Step:
        turns = turns_of(leader.state.weights, follower.state.weights)

        def step_(step: int) -> tuple[Told, Told]:
            turn, errors = turns(step), []
            for update in range(recipe.critic_updates):
                told, _ = follower.descend_(turn.critic(update), {}, step)
                errors.append(told["loss"])
            follower.state.drop_gradients()  # they would lie beside the generator's
            told, size = leader.descend_(*turn.generator(), step)
            told["critic"] = sum(errors) / len(errors)
            return told, {"gradient_norm": size}

        return step_

    yield from run_steps(
        states,
        steps,
        recipe,
        run,
        setting=setting,
        save_every=save_every,
        report_every=report_every,
        guard=guard,
        world=world,
    )
