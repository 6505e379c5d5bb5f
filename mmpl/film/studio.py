"""A model made ready for one film: texts read, an empty cache, the way through its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmpl.checkpoint.model import Model
from mmpl.film.denoise import Context, Network, Sampler, open_context
from mmpl.film.embeddings import embeddings_of
from mmpl.film.given import Given
from mmpl.film.segment import Latents
from mmpl.film.settings import Film
from mmpl.film.team import ALONE, Team
from mmpl.film.together import joined, together
from mmpl.layout.given import with_given
from mmpl.layout.layout import Layout
from mmpl.layout.slots import stored_slots
from mmpl.wan.attention import resolve_attention
from mmpl.wan.compiled import compiled_block, resolve_compiled
from mmpl.wan.config import VAEConfig
from mmpl.wan.dit import CrossKV, Engine, block, encode_context
from mmpl.wan.dit_params import compute_dtype
from mmpl.wan.flow import Renoise, schedule
from mmpl.wan.offload import Offload
from mmpl.wan.ulysses import Ulysses
from mmpl.wan.vae import VAEParams, latents_at_once, shown_dtype, vae_cast

_FEW_STEPS = 8  # of 50, the decode takes no more than 3 % of a segment's time, and waits its turn


@dataclass(frozen=True, slots=True, eq=False)
class Studio:
    """All that a team needs to make any part of a film. `texts`: for each cue of the script, what
    the branches of guidance that are taken here read. `latent_shape` is (channels, rows, columns).
    `given`: for each segment with pins its latents that are not made.
    `vae` is where `offload` has it, in float32. `shows`: the format in which it decodes frames.
    """

    film: Film
    network: Network
    texts: tuple[tuple[CrossKV, ...], ...]
    vae: VAEParams
    vae_config: VAEConfig
    latent_shape: tuple[int, int, int]
    given: Mapping[int, Latents]
    offload: Offload
    shows: torch.dtype

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return self.offload.device

    @property
    def beside(self) -> bool:
        """Whether the VAE may run beside the transformer: both are in memory, and of so few steps
        the decode is a good part of the work."""
        return self.offload.kind == "none" and self.film.steps <= _FEW_STEPS

    @property
    def gives_way(self) -> bool:
        """Whether a cache is given up for the VAE: nothing else makes room for it."""
        return self.offload.kind == "none" and not self.beside

    def new_context(self) -> Context:
        """An empty context that does for all segments of the film."""
        return open_context(
            self.network,
            self.film.layout,
            self.texts[0],
            latent_size=self.latent_shape[1:],
            device=self.device,
            stored=self._stored(),
            hosts=self.offload.hosts,
        )

    def _stored(self) -> int:
        """The slots that need memory, in the segment that needs most."""
        made = self.film.work.made
        layouts = [with_given(self.film.layout, latents) for latents in self.given.values()]
        return max(stored_slots(layout, made) for layout in (self.film.layout, *layouts))

    def layout_of(self, segment: int) -> Layout:
        """The layout of a segment, with what is given in it."""
        return with_given(self.film.layout, self.given.get(segment, ()))

    def pieces(self, segment: int) -> list[range]:
        """The latent frames that show what the film keeps of a segment, in pieces as large as the
        VAE decodes at once."""
        film, config = self.film, self.vae_config
        last = film.kept(segment)[1] - 1
        frames = config.latent_frames(last + config.temporal_stride)
        step = latents_at_once(config, 1, film.height, film.width, self.shows)
        return [range(at, min(at + step, frames)) for at in range(0, frames, step)]

    def vae_here(self) -> VAEParams:
        """The VAE on the device, and room made for what it computes."""
        return self.offload.brought_vae(self.vae)

    def vae_to_show(self) -> VAEParams:
        """The same for frames, which no latents are made of. Cast for each segment anew: a copy
        that stays would take memory from the passes."""
        return vae_cast(self.vae_here(), self.shows)


@dataclass(frozen=True, slots=True, eq=False)
class Readied:
    """A model that has read the texts of a film. `texts`: as of a `Studio`. `attention`: the
    backend that was taken. `compiled`: whether blocks are. `damaged`: the files of the model's
    `text_cache` that were."""

    network: Network
    texts: tuple[tuple[CrossKV, ...], ...]
    attention: str
    compiled: bool
    damaged: tuple[Path, ...]


def readied(
    model: Model, film: Film, attention: str = "auto", compiled: str = "auto", team: Team = ALONE
) -> Readied:
    """`model` made ready for the passes of `film`, each branch of guidance by itself; `attention`
    and `compiled` as for `generate`. Raises ArgumentError, or OutputError where the text cache
    cannot be written."""
    attention, backend = resolve_attention(attention, model.device, compute_dtype(model.dit))
    ulysses = None if team.ulysses is None else Ulysses(team.ulysses)
    compiles, _ = resolve_compiled(
        compiled, model.device, model.dit_config, ulysses=ulysses is not None
    )
    engine = Engine(
        attention=backend,
        block_fn=compiled_block() if compiles else block,
        ulysses=ulysses,
        walk=model.offload.walk,
    )
    network = Network(model.dit, model.dit_config, engine, team.pair)
    embeddings, damaged = embeddings_of(model, _prompts(film))
    return Readied(network, read_texts(film, network, embeddings), attention, compiles, damaged)


def open_studio(model: Model, film: Film, ready: Readied, given: Given | None = None) -> Studio:
    """The studio of `film`, whose branches of guidance are joined where that is as good."""
    texts, given = ready.texts, given or {}
    both_are_here = len(texts[0]) > 1 and model.offload.kind == "none"
    if both_are_here and together(model.dit, _tokens(film, given, model)):
        texts = tuple((joined(branches),) for branches in texts)
    vae = model.vae, model.vae_config
    shows = shown_dtype(model.vae_dtype, model.device)
    return furnished(film, ready.network, texts, given, vae, model.offload, shows)


def furnished(
    film: Film,
    network: Network,
    texts: tuple[tuple[CrossKV, ...], ...],
    given: Given,
    vae: tuple[VAEParams, VAEConfig],
    offload: Offload,
    shows: torch.dtype,
) -> Studio:
    """The studio of `film`, whose parts are where they belong."""
    params, config = vae
    stride, device = config.spatial_stride, offload.device
    return Studio(
        film,
        network,
        texts,
        params,
        config,
        (config.z_dim, film.height // stride, film.width // stride),
        {
            segment: {frame: z_BCHW.to(device) for frame, z_BCHW in latents.items()}
            for segment, latents in given.items()
        },
        offload,
        shows,
    )


def sampler_of(film: Film, steps: int, renoise: Renoise | None = None) -> Sampler:
    """How a group of `film` is sampled in so many steps."""
    noise_levels = schedule(film.solver, steps, film.shift)
    return Sampler(film.solver, noise_levels, film.guidance_scale, renoise)


def _prompts(film: Film) -> list[str]:
    prompts = [cue.prompt for cue in film.script]
    return prompts if film.guidance_scale == 1.0 else [*prompts, film.negative_prompt]


@torch.no_grad()
def read_texts(
    film: Film, network: Network, embeddings: Sequence[Tensor]
) -> tuple[tuple[CrossKV, ...], ...]:
    """For each cue of the script what the branches that are taken here read. `embeddings`
    [J, text_dim]: of the cues and, with guidance, of the negative prompt."""
    read = [
        encode_context(network.params, network.config, [text], engine=network.engine)
        for text in embeddings
    ]
    cues, negative = read[: len(film.script)], read[len(film.script) :]
    branches = [(cue, *negative) for cue in cues]
    if network.branch is not None:
        branches = [(both[network.branch],) for both in branches]
    return tuple(branches)


def _tokens(film: Film, given: Given, model: Model) -> tuple[int, ...]:
    """The tokens of every pass there is."""
    stride = model.vae_config.spatial_stride
    of_frame = model.dit_config.frame_tokens(film.height // stride, film.width // stride)
    layouts = (film.layout, *(with_given(film.layout, latents) for latents in given.values()))
    groups = [group for layout in layouts for group in layout.groups]
    return tuple(len(group.frames) * of_frame for group in groups)
