"""Where it is measured: the device, the sizes, clocks, memory, and networks of random weights.

On a GPU times are of CUDA events, medians after warm-ups, and memory is the allocator's own peak.
On a CPU, where tiny sizes only show that every row works, the clock is the wall's and memory is
that of the tensors that live.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.wan import vae
from mmpl.wan.attention import AttentionBackend, resolve_attention
from mmpl.wan.choices import BACKENDS
from mmpl.wan.compiled import compiled_block
from mmpl.wan.config import WAN_14B, DiTConfig, TextConfig, VAEConfig
from mmpl.wan.dit import Engine, block
from mmpl.wan.dit_block import BlockFn
from mmpl.wan.dit_params import DiTParams, dit_from_flat, dit_held, dit_shapes
from mmpl.wan.ledger import Ledger
from mmpl.wan.params import Shapes

Call = Callable[[], Any]

_LONG_S = 0.3  # calls that take longer are repeated less often


@dataclass(frozen=True, slots=True)
class Size:
    """Networks and frames."""

    name: str
    dit: DiTConfig
    vae: VAEConfig
    text: TextConfig
    width: int
    height: int

    @property
    def latent_size(self) -> tuple[int, int]:
        """Rows and columns of a latent frame."""
        stride = self.vae.spatial_stride
        return self.height // stride, self.width // stride

    @property
    def frame_tokens(self) -> int:
        """Tokens of a latent frame."""
        return self.dit.frame_tokens(*self.latent_size)

    def of_layers(self, most: int) -> Size:
        """The same with at most so many layers of the transformer."""
        layers = min(most, self.dit.num_layers)
        return replace(self, dit=replace(self.dit, num_layers=layers))


REAL = {
    name: Size(name, dit, VAEConfig(), replace(TextConfig(), num_layers=2), 832, 480)
    for name, dit in (("14B", WAN_14B), ("1.3B", DiTConfig()))
}
_TINY_DIT = DiTConfig(
    dim=48, ffn_dim=96, num_heads=2, num_layers=2, freq_dim=16, text_dim=16, text_len=8
)
_TINY_TEXT = TextConfig(vocab_size=32, dim=16, dim_attn=16, dim_ffn=16, num_heads=2, num_layers=1)
_TINY_VAE = VAEConfig(dim=4, dim_mult=(1, 1, 1), num_res_blocks=1, temporal_downsample=(True, True))
TINY = {name: Size(name, _TINY_DIT, _TINY_VAE, _TINY_TEXT, 16, 16) for name in REAL}


class Lab:
    """A device, and what is measured on it. `official`: a checkout of the official modules."""

    def __init__(
        self, device: torch.device | str, sizes: Mapping[str, Size], official: Any = None
    ) -> None:
        self.device, self.sizes, self.official = torch.device(device), sizes, official
        self._tflops: float | None = None
        self._traced: BlockFn | None = None

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def compute(self) -> torch.dtype:
        """The format of the transformer's products."""
        return torch.bfloat16

    @property
    def shows(self) -> torch.dtype:
        """The format in which films decode their frames."""
        return vae.shown_dtype(None, self.device)

    # ------------------------------------------------------------------------------------- time

    def seconds(self, call: Call, *, warm_ups: int = 3, repeats: int = 7) -> float:
        """The median time of a call on the device, after `warm_ups` that do not count."""
        return self.in_turns({"": call}, warm_ups=warm_ups, repeats=repeats)[""]

    @torch.no_grad()
    def in_turns(
        self, sides: Mapping[str, Call], *, warm_ups: int = 3, repeats: int = 7
    ) -> dict[str, float]:
        """The same of several sides that take turns. Long calls are repeated three times."""
        if not self.is_gpu:
            warm_ups, repeats = 0, 1
        warm_s = [max(self._once(call) for call in sides.values()) for _ in range(warm_ups)]
        if warm_s and warm_s[-1] > _LONG_S:
            repeats = min(repeats, 3)
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, call in sides.items():
                taken[name].append(self._once(call))
        return {name: statistics.median(found) for name, found in taken.items()}

    def _once(self, call: Call) -> float:
        if not self.is_gpu:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def wall_s(self, call: Call) -> float:
        """The time that passes until all that a call started is done."""
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    @property
    def matmul_side(self) -> int:
        """Rows and columns of the product that the device is measured by."""
        return 8192 if self.is_gpu else 64

    @property
    def matmul_tflops(self) -> float:
        """The rate of this device at a large product of random matrices in bfloat16."""
        if self._tflops is None:
            side = self.matmul_side
            a, b = (torch.randn(side, side, device=self.device).bfloat16() for _ in range(2))
            self._tflops = 2 * side**3 / self.seconds(lambda: a @ b, repeats=20) / 1e12
        return self._tflops

    # ----------------------------------------------------------------------------------- memory

    @contextmanager
    def peak_of(self, *held: object) -> Iterator[Callable[[], int]]:
        """`with lab.peak_of(trees) as peak:` then `peak()` is the most bytes that lived at once on
        the device within; `held` are those that live there before."""
        if self.is_gpu:
            self.wait()
            torch.cuda.reset_peak_memory_stats(self.device)
            yield lambda: torch.cuda.max_memory_allocated(self.device)
            return
        ledger = Ledger()
        ledger.hold(held)
        with ledger.peak_of() as peak:
            yield peak

    def tidy(self) -> None:
        """Gives back the device's memory that nobody uses any more."""
        if self.is_gpu:
            gc.collect()
            torch.cuda.empty_cache()

    # --------------------------------------------------------------------------------- networks

    def backends(self) -> dict[str, AttentionBackend]:
        """The attention backends that this device has, the one that `auto` takes first."""
        found: dict[str, AttentionBackend] = {}
        for name in ("auto", *BACKENDS):
            try:
                taken, backend = resolve_attention(name, self.device, self.compute)
            except (ArgumentError, ImportError, AttributeError):  # not here, or not whole
                continue
            found.setdefault(taken, backend)
        return found

    def engine(self, *, compiled: bool = False, attention: str | None = None) -> Engine:
        """How a film's passes are done; with its blocks compiled anew."""
        backends = self.backends()
        backend = backends[attention or next(iter(backends))]
        return Engine(attention=backend, block_fn=self.compiled() if compiled else block)

    def compiled(self) -> BlockFn:
        """The transformer's block, compiled as films have it; what was compiled before is
        forgotten, so that every row pays for its own. On a CPU it is compiled as far as the graph
        alone, and kept: the rest takes a minute."""
        if self.is_gpu:
            torch._dynamo.reset()
            return compiled_block()
        if self._traced is None:
            self._traced = compiled_block("eager")
        return self._traced

    def transformer(self, config: DiTConfig, kind: str | None = None) -> DiTParams:
        """Random weights on the device, as a film in bfloat16 holds them."""
        flat = self.random(dit_shapes(config), self.compute)
        return dit_held(dit_from_flat(flat, config), self.compute, kind)

    def vae(self, config: VAEConfig, dtype: torch.dtype = torch.float32) -> vae.VAEParams:
        """Random weights on the device, the same in every format but for rounding."""
        flat = self.random(vae.vae_shapes(config), torch.float32)
        return vae.vae_cast(vae.vae_from_flat(flat, config), dtype)

    def random(self, shapes: Shapes, dtype: torch.dtype) -> dict[str, Tensor]:
        """Tensors under their names, of sizes that keep activations near 1."""
        generator = torch.Generator(self.device).manual_seed(0)
        made: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            x = torch.empty(shape, dtype=dtype, device=self.device)
            if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
                made[name] = x.fill_(1)
                continue
            matrix = len(shape) > 1 and "modulation" not in name
            scale = prod(shape[1:]) ** -0.5 if matrix else 0.02
            made[name] = x.normal_(0, scale, generator=generator)
        return made

    def noise(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random numbers on the device, the same for the same shape."""
        generator = torch.Generator(self.device).manual_seed(1)
        return torch.randn(shape, dtype=dtype, device=self.device, generator=generator)


def apart(found: Tensor, wanted: Tensor) -> float:
    """How far two results are from each other: root mean squares, of the difference over that of
    what is wanted."""
    difference = (found.double() - wanted.double()).square().mean().sqrt()
    return (difference / wanted.double().square().mean().sqrt()).item()


def machine(lab: Lab) -> dict[str, str]:
    """What it is measured on."""
    words = {"torch": str(torch.__version__), "device": str(lab.device)}
    if lab.is_gpu:
        card = torch.cuda.get_device_properties(lab.device)
        words |= {
            "card": card.name,
            "memory": f"{card.total_memory / 1e9:.0f} GB",
            "CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),
            "TF32 convolutions": "yes" if torch.backends.cudnn.allow_tf32 else "no",
        }
    return words | {"attention": " ".join(lab.backends())}
