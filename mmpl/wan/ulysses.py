"""Sequence parallelism of the transformer: each rank has some tokens, and in attention some heads.

Between the two an all-to-all of queries, keys, values and of what attention returns. Caches hold
a rank's own heads only, so context costs no traffic. Source: DeepSpeed-Ulysses (2309.14509).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Ulysses:
    """One of the ranks in `group`, which share every pass over the network. The heads must divide
    evenly; tokens need not."""

    group: dist.ProcessGroup

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    def rows(self, tokens: int) -> slice:
        """Which of `tokens` tokens are this rank's."""
        counts = self._counts(tokens)
        return slice(sum(counts[: self.rank]), sum(counts[: self.rank + 1]))

    def to_heads(self, x_BLNK: Tensor, tokens: int) -> Tensor:
        """Own tokens of all heads -> all `tokens` tokens of own heads."""
        counts = self._counts(tokens)
        B, L, N, K = x_BLNK.shape
        heads = N // self.size
        sent = x_BLNK.unflatten(2, (self.size, heads)).permute(2, 0, 1, 3, 4).contiguous()
        one = B * heads * K
        parts = self._exchange(sent, [one * L] * self.size, [one * count for count in counts])
        shaped = [part.view(B, count, heads, K) for part, count in zip(parts, counts, strict=True)]
        return torch.cat(shaped, dim=1)

    def to_tokens(self, x_BLNK: Tensor) -> Tensor:
        """All tokens of own heads -> own tokens of all heads."""
        B, tokens, heads, K = x_BLNK.shape
        counts = self._counts(tokens)
        own = counts[self.rank]
        sent = torch.cat([part.reshape(-1) for part in x_BLNK.split(counts, dim=1)])
        one = B * heads * K
        parts = self._exchange(sent, [one * count for count in counts], [one * own] * self.size)
        return torch.cat([part.view(B, own, heads, K) for part in parts], dim=2)

    def gather(self, x_BLD: Tensor, tokens: int) -> Tensor:
        """Own tokens -> all tokens."""
        counts = self._counts(tokens)
        B, _, D = x_BLD.shape
        longest = x_BLD.new_zeros(B, max(counts), D)
        longest[:, : x_BLD.shape[1]] = x_BLD
        parts = self._gather(longest)
        kept = [part[:, :count] for part, count in zip(parts, counts, strict=True)]
        return torch.cat(kept, dim=1)

    def _counts(self, tokens: int) -> list[int]:
        """Tokens of each rank: as even as can be."""
        whole, rest = divmod(tokens, self.size)
        return [whole + (rank < rest) for rank in range(self.size)]

    def _gather(self, x: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x, group=self.group)
        return parts

    def _exchange(self, sent: Tensor, out: list[int], into: list[int]) -> tuple[Tensor, ...]:
        received = sent.new_empty(sum(into))
        dist.all_to_all_single(received, sent.flatten(), into, out, group=self.group)
        return received.split(into)
