"""Every way of making a long film that is compared, on the same weights.

    for pixels_FHWC in METHODS["rolling_kv"].make(model, Shot(prompt, seed=1, segments=6)): ...

All make the same number of frames, from keyed noise, with the model's own solver, schedule and
guidance. `steps` counts per latent frame, so every new latent frame takes `steps` noisy network
evaluations (of each branch of guidance) whatever the method; what comes besides:

| methods | new latents of a window | clean evaluations besides |
|---|---|---|
| mmpl_terminal and most ablations | 19 of 21 | 15: seeds, plan, fill_head, once each |
| mmpl_midpoint | 11 of 13 | 9: seeds, plan; 2 keyframes are planned and not shown |
| self_forcing_windows | 19 of 21 | 20: all but the last chunk, once |
| bidirectional_window | 19 of 21 | 2: the seeds |
| anti_drift | 19 of 21 | 18: seeds and all but the last group |
| causvid_windows | 18 of 21 | 18: all but the last chunk, once |
| rolling_kv, with sink, staggered_chunks | all, in chunks of 3 | 1 for every latent |
| diffusion_forcing | 16 of 21 | in every pass the finished and 5 of history |
| fifo | all | none |

A first window makes its seeds too. The last window, chunk or block is made whole and cut. Passes
of the VAE are not counted. `evaluations` has the numbers of a shot. A pass costs more the more its
frames see: that is not counted either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mmpl.checkpoint.bundle import Model
from mmpl.errors import ArgumentError
from mmpl.eval.rolling import Rolling, Window
from mmpl.eval.stage import Evaluations as Evaluations
from mmpl.eval.stage import Pixels, Way
from mmpl.eval.stage import Shot as Shot
from mmpl.eval.staggered import Fifo, Forcing, Pipeline
from mmpl.eval.windows import Windows, image_and_raw_latents, raw_latents
from mmpl.film.segment import hand_over_full_history

ALPHAS = (0.5, 0.7, 0.9)  # of the noise that a fill's first frame takes from the keyframes'
GUIDANCE = (1.0, 2.5)  # beside the model's own


@dataclass(frozen=True, slots=True)
class Method:
    """A way of making a shot: its name, what and whose it is, and the pieces of frames
    [F, H, W, 3] in film order, each as soon as it is final."""

    name: str
    what: str
    make: Callable[[Model, Shot], Iterator[Pixels]]


_WAYS: Mapping[str, tuple[str, Way]] = MappingProxyType(
    {
        "mmpl_terminal": (
            "MMPL, each segment from the end of the one before (the paper's maximum throughput)",
            Windows("mmpl_t2v", noise=None),
        ),
        "mmpl_midpoint": (
            "MMPL, each segment from the middle of the one before (the paper's minimum memory)",
            Windows("mmpl_t2v", seeding="midpoint", noise=None),
        ),
        "mmpl_without_early": (
            "MMPL without early keyframes (ablation of the paper, Table 2)",
            Windows("without_early", noise=None),
        ),
        "mmpl_without_midpoint": (
            "MMPL without middle keyframes (ablation of the paper, Table 2)",
            Windows("without_midpoint", noise=None),
        ),
        "mmpl_head_sees_terminal": (
            "MMPL, fill_head sees the terminal keyframes (as the released I2V code does)",
            Windows("mmpl_t2v_head_sees_terminal", noise=None),
        ),
        "mmpl_no_reencode": (
            "MMPL, the raw terminal latents as seeds (ablation of the paper, Table 13)",
            Windows("mmpl_t2v", raw_latents, noise=None),
        ),
        "mmpl_full_history": (
            "MMPL, seeds from the decode of the whole segment (the released one-GPU script)",
            Windows("mmpl_t2v", hand_over_full_history, noise=None),
        ),
        "mmpl_noise_off": (
            "MMPL, all noise independent (ablation of the paper, Table 14)",
            Windows("mmpl_t2v", noise="off"),
        ),
        **{
            f"mmpl_noise_{mode}_{alpha}": (
                f"MMPL, {how} from the keyframes, alpha {alpha}",
                Windows("mmpl_t2v", noise=mode, alpha=alpha),
            )
            for mode, how in (("paper", "raw noise (Eq. 14)"), ("unit", "noise of unit variance"))
            for alpha in ALPHAS
        },
        **{
            f"mmpl_guidance_{scale:g}": (
                "MMPL without guidance" if scale == 1 else f"MMPL, guidance {scale:g}",
                Windows("mmpl_t2v", noise=None, guidance_scale=scale),
            )
            for scale in GUIDANCE
        },
        "mmpl_populate_quarter": (
            "MMPL, a quarter of the steps for what lies between keyframes",
            Windows("mmpl_t2v", noise=None, populate_share=0.25),
        ),
        "self_forcing_windows": (
            "chunks of 3 latents inside MMPL's segments, the same seeds (autoregression, fair)",
            Windows("chunked_2_3"),
        ),
        "bidirectional_window": (
            "all of a segment at once from MMPL's seeds (sliding window of the plain model)",
            Windows("bidirectional_2"),
        ),
        "anti_drift": (
            "from MMPL's seeds the end, then backwards (FramePack's inverted anti-drift order)",
            Windows("inverted_2_3"),
        ),
        "causvid_windows": (
            "chunks of 3 latents in windows joined by an image and 2 raw latents (CausVid)",
            Windows("chunked_3", image_and_raw_latents, seeds=3, drops_end=True),
        ),
        "rolling_kv": (
            "chunks of 3 latents over a rolling window of 21 (Self-Forcing)",
            Rolling(Window()),
        ),
        "rolling_kv_sink": (
            "the same, and the first chunk stays, moved along (Self-Forcing with a sink)",
            Rolling(Window(sink=3)),
        ),
        "diffusion_forcing": (
            "windows with noise that rises along time, 5 latents of history (SkyReels-V2)",
            Forcing(),
        ),
        "fifo": ("a queue with one block on every noise level (FIFO-Diffusion)", Fifo()),
        "staggered_chunks": (
            "a pipeline of 4 chunks on staggered noise levels, causal (MAGI-1)",
            Pipeline(Window()),
        ),
    }
)

METHODS: Mapping[str, Method] = MappingProxyType(
    {name: Method(name, what, way.make) for name, (what, way) in _WAYS.items()}
)


def evaluations(name: str, model: Model, shot: Shot) -> Evaluations:
    """What the method called `name` takes for a shot, by arithmetic. ArgumentError for a name or
    a shot that cannot be."""
    if name not in _WAYS:
        raise ArgumentError("unknown method", got=name, wanted=f"one of {', '.join(_WAYS)}")
    return _WAYS[name][1].count(model, shot)
