"""What a model is run with unless the user says otherwise: part of a model folder. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmpl.errors import ArgumentError
from mmpl.layout.presets import by_name
from mmpl.wan.choices import NOISE_MODES, SOLVERS

# Wan2.1's own negative prompt: "garish colours, overexposed, static, blurred details, subtitles,
# ..., walking backwards". Its models were tuned with it.
WAN_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，"
    "低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，"
    "毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)

# What models that were distilled to few steps are run with. The first two take 1000, 750, 500 and
# 250, shifted; the others' 1000, 757 and 522 are not shifted, which this meets to 42 of 1000.
_FOUR_STEPS = {"solver": "few_step", "steps": 4, "shift": 5.0, "guidance_scale": 1.0}
_THREE_STEPS = {"solver": "few_step", "steps": 3, "shift": 1.85, "guidance_scale": 1.0}
DISTILLED: dict[str, dict[str, Any]] = {
    "self_mmpl": {**_FOUR_STEPS, "noise": "off"},  # as in its rollouts
    "self_forcing": _FOUR_STEPS,
    "lightx2v": _FOUR_STEPS,
    "causvid": _THREE_STEPS,
    "fastwan": _THREE_STEPS,
}


@dataclass(frozen=True, slots=True)
class Defaults:
    """Settings of a film; the values here are those of Wan2.1 with an MMPL checkpoint.

    `populate_steps`: of the groups between keyframes, if they need fewer than `steps`; by default
    they never take more. `noise`, `alpha`, `beta`: how a fill's first noise leans on the keyframes'
    (paper Eq. 14). `layout_t2v`, `layout_i2v`: names of the layouts the model was trained for.
    `vocabulary`: the words it was taught, empty when it is not limited to any. `examples`: prompts
    that work. `sizes`: the sizes it can make as "WIDTHxHEIGHT", empty when it is not limited to
    any.
    """

    solver: str = "unipc"
    steps: int = 50
    populate_steps: int | None = None
    shift: float = 5.0
    guidance_scale: float = 5.0
    negative_prompt: str = WAN_NEGATIVE_PROMPT
    noise: str = "unit"
    alpha: float = 0.5
    beta: float = 1.0
    layout_t2v: str = "mmpl_t2v"
    layout_i2v: str = "mmpl_i2v"
    width: int = 832
    height: int = 480
    fps: int = 16
    duration_s: float = 30.0
    vocabulary: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in (("solver", SOLVERS), ("noise", NOISE_MODES)):
            value = getattr(self, name)
            if value not in allowed:
                raise ArgumentError(
                    f"Defaults.{name} is unknown", got=repr(value), wanted=" or ".join(allowed)
                )
        by_name(self.layout_t2v)
        by_name(self.layout_i2v)
        for name, low, high in (
            ("steps", 1, 1000),
            ("populate_steps", 1, 1000),
            ("shift", 1e-3, 1e3),
            ("guidance_scale", 0, 100),
            ("alpha", 0, 1),
            ("beta", 0, 100),
            ("width", 16, 2**14),
            ("height", 16, 2**14),
            ("fps", 1, 240),
            ("duration_s", 1e-3, 1e6),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ArgumentError(
                    f"Defaults.{name} is out of range", got=value, wanted=f"{low} to {high}"
                )
        if self.sizes and f"{self.width}x{self.height}" not in self.sizes:
            raise ArgumentError(
                "Defaults.sizes do not hold the default size",
                got=ascii(self.sizes)[:80],
                wanted=f"{self.width}x{self.height} among them",
            )
