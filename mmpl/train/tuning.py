"""What makes one teacher forcing of a Wan transformer another than the next. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmpl.errors import ArgumentError
from mmpl.layout.layout import Layout
from mmpl.layout.presets import PRESETS, by_name

RELEASED_I2V = "mmpl_i2v_released"
"""`mmpl_i2v` under the mask that the released model was trained with, which differs by a slip."""
LAYOUTS = (*PRESETS, RELEASED_I2V)
TIMESTEPS = ("group", "block3")
WEIGHTINGS = ("bell", "none")


@dataclass(frozen=True, slots=True)
class Tuning:
    """The paper's training step (section 3.2, Table 8), over whole segments.

    `shift` moves the drawn timesteps towards noise. Latent frames that share a timestep: "group",
    those of a group, as at inference; "block3", three after each other, as in the released code.
    `weighting`: of the loss by timestep. `prompt_dropout`: how often a whole batch has the negative
    prompt for text. `dense_captions`: share of dense captions, the others being short ones.
    `clean_noise`: largest noise level of the clean frames, which the network is not told, for at
    inference nobody knows how wrong they are. `batch`: segments a step, of all processes.
    """

    layout: str = "mmpl_t2v"
    shift: float = 5.0
    timesteps: str = "group"
    weighting: str = "bell"
    prompt_dropout: float = 0.1
    dense_captions: float = 0.8
    clean_noise: float = 0.0
    batch: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("layout", LAYOUTS),
            ("timesteps", TIMESTEPS),
            ("weighting", WEIGHTINGS),
        ):
            if getattr(self, name) not in allowed:
                raise ArgumentError(
                    f"{name} is unknown", got=getattr(self, name), wanted=", ".join(allowed)
                )
        for name, low, high in (
            ("shift", 1e-3, 1e3),
            ("prompt_dropout", 0, 1),
            ("dense_captions", 0, 1),
            ("clean_noise", 0, 1),
            ("batch", 1, math.inf),
            ("seed", 0, math.inf),
        ):
            if not low <= getattr(self, name) <= high:
                raise ArgumentError(
                    f"{name} is out of range", got=getattr(self, name), wanted=f"{low} to {high}"
                )

    def groups(self) -> Layout:
        """The groups of latent frames."""
        return by_name("mmpl_i2v" if self.layout == RELEASED_I2V else self.layout)

    def together(self) -> tuple[tuple[int, ...], ...]:
        """The latent frames that share a timestep."""
        layout = self.groups()
        if self.timesteps == "group":
            return tuple(group.frames for group in layout.groups)
        every = range(layout.frames)
        return tuple(tuple(every[start : start + 3]) for start in every[::3])
