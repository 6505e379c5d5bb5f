"""A model in memory: its networks with all that is needed to use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mmpl.checkpoint.defaults import Defaults
from mmpl.checkpoint.lora import Merged
from mmpl.wan.config import DiTConfig, TextConfig, VAEConfig
from mmpl.wan.dit_params import DiTParams
from mmpl.wan.offload import Offload
from mmpl.wan.text import TextParams, encode_prompts
from mmpl.wan.tokenizer import Tokenizer
from mmpl.wan.vae import VAEParams, shown_dtype, vae_cast


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """All that is needed to make films. `digests` tell its weights and tokenizer from others';
    `loras` is what was merged into the transformer. `offload` says where the weights live, and
    on which device films are made of them. In the folder `text_cache` embeddings of prompts are
    kept, if there is one. `vae_dtype`: in which pixels are decoded that are seen and no more, see
    `shown_dtype`; whatever goes into latents is computed in float32."""

    dit: DiTParams
    dit_config: DiTConfig
    vae: VAEParams
    vae_config: VAEConfig
    text: TextParams
    text_config: TextConfig
    tokenizer: Tokenizer
    defaults: Defaults
    digests: Mapping[str, str]
    loras: tuple[Merged, ...] = ()
    offload: Offload = field(default_factory=Offload)
    text_cache: Path | None = None
    vae_dtype: torch.dtype | None = None

    @property
    def device(self) -> torch.device:
        """Where films are made."""
        return self.offload.device

    def vae_here(self) -> VAEParams:
        """The VAE on that device, and room made for what it computes."""
        return self.offload.brought_vae(self.vae)

    def vae_to_show(self) -> VAEParams:
        """The same, in the format in which pixels are decoded that are seen and no more."""
        return vae_cast(self.vae_here(), shown_dtype(self.vae_dtype, self.device))

    @torch.no_grad()
    def encoded(self, prompts: Sequence[str]) -> list[Tensor]:
        """One embedding [J, dim] per prompt, as `encode_prompts` makes it, for its transformer."""
        return encode_prompts(
            self.text,
            self.text_config,
            self.tokenizer,
            prompts,
            self.dit_config.text_len,
            walk=self.offload.text_walk,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Encoders:
    """A model without its transformer: what makes latents of pixels and embeddings of texts."""

    vae: VAEParams
    vae_config: VAEConfig
    text: TextParams
    text_config: TextConfig
    tokenizer: Tokenizer
    digests: Mapping[str, str]
