"""The names of what can be chosen in the networks' sampling, as flags and config files have them.

The one list of each. No torch here, so that the command line refuses a wrong name at once.
"""

from typing import Literal, get_args

SOLVERS = ("unipc", "dpm++", "euler", "few_step")
"""Of `mmpl.wan.flow`; the last is for distilled models."""

NoiseMode = Literal["off", "paper", "unit"]
NOISE_MODES: tuple[str, ...] = get_args(NoiseMode)
"""Of `mmpl.wan.noise.mix_anchor_noise`."""

BACKENDS = ("flash3", "cudnn", "flash2", "sdpa")
"""Of `mmpl.wan.attention`, fastest first on Hopper cards."""

COMPILED = ("auto", "yes", "no")
"""Of `mmpl.wan.compiled`."""

OFFLOADS = ("none", "model", "block")
"""Of `mmpl.wan.offload`, from the fastest to the one that takes least memory."""

QUANTISED = ("fp8", "int8")
"""Of `mmpl.wan.quantise`."""
