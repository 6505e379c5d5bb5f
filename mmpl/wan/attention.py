"""Softmax attention backends, each with a name. A missing one is an error, never another one.

A backend is a function of queries [B, L, N, K], keys and values [B, S, N, K] and an optional
additive mask [L, S]; the scale is K ** -0.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.wan.choices import BACKENDS


class AttentionBackend(Protocol):
    """Attention of q_BLNK over k_BSNK, v_BSNK; `mask_LS` is added to the scores."""

    def __call__(
        self, q_BLNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor, mask_LS: Tensor | None = None
    ) -> Tensor: ...


_MODULES = {"flash3": "flash_attn_interface", "flash2": "flash_attn"}
_INSTALL = {
    "flash3": "install FlashAttention 3 (the `hopper` folder of flash-attention)",
    "flash2": "install flash-attn: pip install flash-attn",
    "cudnn": "install a CUDA build of torch with cuDNN and use an NVIDIA GPU",
}


def sdpa(q_BLNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor, mask_LS: Tensor | None = None) -> Tensor:
    """torch's scaled_dot_product_attention, which picks its own kernel."""
    q_BNLK, k_BNSK, v_BNSK = q_BLNK.transpose(1, 2), k_BSNK.transpose(1, 2), v_BSNK.transpose(1, 2)
    o_BNLK = F.scaled_dot_product_attention(q_BNLK, k_BNSK, v_BNSK, mask_LS)
    return o_BNLK.transpose(1, 2)


def cudnn(q_BLNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor, mask_LS: Tensor | None = None) -> Tensor:
    """The cuDNN kernel of torch's scaled_dot_product_attention.

    By its own name, as `sdpa_kernel` would choose it for all threads for a moment, in which the
    VAE's attention in another, which cuDNN does not do, would find no kernel.
    """
    q, k, v = (x.transpose(1, 2) for x in (q_BLNK, k_BSNK, v_BSNK))
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    made = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, mask_LS, differentiable)
    return made[0].transpose(1, 2)


def resolve_attention(
    name: str, device: torch.device | str, dtype: torch.dtype
) -> tuple[str, AttentionBackend]:
    """The backend called `name` and the name taken, which differs only for "auto".

    "auto" takes the first of `BACKENDS` that `device`, the format `dtype` of the passes and the
    installed packages support: all but sdpa take half precision only. Raises ArgumentError for an
    unknown name, or for a missing one, saying what to install.
    """
    device = torch.device(device)
    if name == "auto":
        name = next(n for n in BACKENDS if _available(n, device, dtype))
    if name not in BACKENDS:
        raise ArgumentError(
            "unknown attention backend", got=name, wanted=f"auto, {', '.join(BACKENDS)}"
        )
    if not _available(name, device, dtype):
        raise ArgumentError(
            f"attention backend {name} is not available",
            got=f"device {device}, {dtype}",
            todo=_INSTALL[name],
        )
    if name in _MODULES:
        return name, _flash(import_module(_MODULES[name]).flash_attn_func)
    return name, {"sdpa": sdpa, "cudnn": cudnn}[name]


@dataclass(frozen=True, slots=True)
class Piece:
    """A dense piece of a mask between the latent frames of one pass, in half-open ranges.

    Every frame of `queries` sees every frame of each range in `keys`, and nothing else. Pieces in
    a row replace a mask and skip the hidden pairs instead of computing them.
    """

    queries: tuple[int, int]
    keys: tuple[tuple[int, int], ...]


TokenPieces = tuple[tuple[slice, tuple[slice, ...]], ...]


class Masked(Protocol):
    """A mask over `tokens` tokens that comes with a kernel of its own."""

    @property
    def tokens(self) -> int: ...

    def attend(self, q_BLNK: Tensor, k_BLNK: Tensor, v_BLNK: Tensor) -> Tensor:
        """Attention under the mask."""
        ...


Visible = Tensor | TokenPieces | Masked | None


def attend(
    backend: AttentionBackend, q_BLNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor, visible: Visible
) -> Tensor:
    """Attention where all keys are visible (None), those of an additive mask, or of pieces. A mask
    with a kernel of its own does without `backend`."""
    if visible is None or isinstance(visible, Tensor):
        return backend(q_BLNK, k_BSNK, v_BSNK, visible)
    if not isinstance(visible, tuple):
        return visible.attend(q_BLNK, k_BSNK, v_BSNK)
    parts = [
        backend(q_BLNK[:, queries], _take(k_BSNK, keys), _take(v_BSNK, keys))
        for queries, keys in visible
    ]
    return torch.cat(parts, dim=1)


def token_pieces(pieces: tuple[Piece, ...], frames: int, frame_tokens: int) -> TokenPieces:
    """Pieces between tokens. ArgumentError unless their queries follow each other from the first
    to the last of `frames` frames."""
    ends = [0, *(piece.queries[1] for piece in pieces)]
    if [piece.queries[0] for piece in pieces] != ends[:-1] or ends[-1] != frames:
        raise ArgumentError(
            "the queries of pieces must follow each other",
            got=[piece.queries for piece in pieces],
            wanted=f"ranges from 0 to {frames}",
        )

    def rows(span: tuple[int, int]) -> slice:
        return slice(span[0] * frame_tokens, span[1] * frame_tokens)

    return tuple((rows(piece.queries), tuple(map(rows, piece.keys))) for piece in pieces)


def token_mask(mask_TT: Tensor, frame_tokens: int) -> Tensor:
    """A mask between latent frames [queries, keys] spread over their tokens."""
    return mask_TT.repeat_interleave(frame_tokens, 0).repeat_interleave(frame_tokens, 1)


def additive_mask(mask_LS: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where the boolean mask is true (visible), minus infinity elsewhere."""
    zeros = torch.zeros(mask_LS.shape, dtype=dtype, device=mask_LS.device)
    return zeros.masked_fill_(~mask_LS, float("-inf"))


def _take(x_BSNK: Tensor, spans: tuple[slice, ...]) -> Tensor:
    parts = [x_BSNK[:, span] for span in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _available(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    if name == "sdpa":
        return True
    half = dtype in (torch.float16, torch.bfloat16)
    if device.type != "cuda" or not half or not torch.cuda.is_available():
        return False
    major, _ = torch.cuda.get_device_capability(device)
    if name == "cudnn":
        return major >= 8 and torch.backends.cudnn.is_available()
    return major >= (9 if name == "flash3" else 8) and find_spec(_MODULES[name]) is not None


def _flash(kernel: Callable[..., Tensor | tuple[Tensor, ...]]) -> AttentionBackend:
    """A FlashAttention kernel as a backend; some versions return the softmax sums as well."""

    def flash(
        q_BLNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor, mask_LS: Tensor | None = None
    ) -> Tensor:
        if mask_LS is not None:
            raise ArgumentError("FlashAttention takes no mask", todo="use sdpa for masked passes")
        out = kernel(q_BLNK, k_BSNK, v_BSNK)
        return out[0] if isinstance(out, tuple) else out

    return flash
