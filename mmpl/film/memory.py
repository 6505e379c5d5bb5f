"""What a film takes of a device's memory, before anything is loaded.

Found by running the film's own code on tensors without data: the text encoder, a pass of every
group, the VAE, each with what is in memory beside it. Not counted: what the allocator rounds up to
and what single kernels use inside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from mmpl.checkpoint.folder import Configs
from mmpl.film.denoise import Branch, Context, Network, commit
from mmpl.film.settings import Film
from mmpl.film.studio import Studio, furnished, read_texts
from mmpl.layout.mesh import Mesh
from mmpl.wan import vae
from mmpl.wan.choices import OFFLOADS
from mmpl.wan.dit import CrossKV, Engine
from mmpl.wan.dit_params import DiTParams, dit_from_flat, dit_held, dit_shapes
from mmpl.wan.ledger import Ledger
from mmpl.wan.offload import Offload
from mmpl.wan.params import Shapes, to_flat
from mmpl.wan.text import encode_text, text_from_flat, text_shapes
from mmpl.wan.ulysses import Ulysses

META = "meta"
_ALONE = Mesh(1)
SPARE = 0.08  # of a device's free memory, left for what is not counted
_DECODED = 3  # pieces of a clip, after which the decoder's memory no longer grows
_LAYERS = 2  # of a network that are run: all take the same, and no more than two are copied


@dataclass(frozen=True, slots=True)
class Held:
    """How a model is held: the format of its products, that of its blocks' matrices (fp8, int8 or
    None), where it lives (see `mmpl.wan.offload`), and the format in which frames are decoded."""

    dtype: torch.dtype = torch.bfloat16
    quantize: str | None = None
    offload: str = "none"
    vae_dtype: torch.dtype = torch.bfloat16


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The most bytes that live at once on the device while the texts are read, in the passes of
    the transformer, and in the VAE; and those that live in the host's memory for it, without the
    text encoder."""

    held: Held
    text: int
    passes: int
    vae: int
    host: int

    @property
    def peak(self) -> int:
        """The most bytes on the device."""
        return max(self.text, self.passes, self.vae)


@dataclass(frozen=True, slots=True, eq=False)
class _OneOf(Ulysses):
    """The first of `ranks` that share every pass, with nobody to share it."""

    ranks: int

    @property
    def size(self) -> int:
        return self.ranks

    @property
    def rank(self) -> int:
        return 0

    def _gather(self, x: Tensor) -> list[Tensor]:
        return [torch.empty_like(x) for _ in range(self.ranks)]

    def _exchange(self, sent: Tensor, out: list[int], into: list[int]) -> tuple[Tensor, ...]:
        return sent.new_empty(sum(into)).split(into)


def memory_plan(configs: Configs, film: Film, held: Held, mesh: Mesh = _ALONE) -> MemoryPlan:
    """What one process of `mesh` takes on its GPU for `film` with Wan-family networks of these
    sizes.

    The weights of the text encoder count as bfloat16. Where the VAE runs beside the transformer it
    counts beside it.
    """
    offload, ledger = Offload(held.offload, META), Ledger()
    dit = _transformer(configs, held, offload)
    decoder = offload.place_vae(vae.vae_from_flat(_flat(vae.vae_shapes(configs.vae)), configs.vae))
    ulysses = None if mesh.ulysses == 1 else _OneOf(cast(Any, None), mesh.ulysses)
    engine = Engine(attention=_fused, ulysses=ulysses, walk=offload.walk)
    network = Network(dit, configs.dit, engine)
    if mesh.cfg > 1:
        film = replace(film, guidance_scale=1.0)  # each process takes one branch
    hosted: list[object] = [] if held.offload == "none" else [dit.blocks, decoder]
    ledger.hold(replace(dit, blocks=()) if hosted else (dit, decoder))
    branches = 1 if film.guidance_scale == 1.0 else 2
    encoder = text_from_flat(_flat(text_shapes(configs.text), torch.bfloat16), configs.text)
    encoder = replace(encoder, blocks=encoder.blocks[:_LAYERS])
    with torch.no_grad(), ledger.peak_of() as text:
        ids_BJ = torch.zeros(1, configs.dit.text_len, dtype=torch.long, device=META)
        embeddings = [
            encode_text(encoder, configs.text, ids_BJ, ids_BJ, walk=offload.text_walk)[0]
            for _ in range(len(film.script) + branches - 1)
        ]
        texts = read_texts(film, network, embeddings)
        del embeddings
    given: dict[int, dict[int, Tensor]] = {}
    for pin in film.pins:
        given.setdefault(pin.segment, {})[pin.latent] = torch.empty(0, device=META)
    studio = furnished(film, network, texts, given, (decoder, configs.vae), offload, held.vae_dtype)
    context = studio.new_context()
    hosted += _hold(context, ledger)
    with torch.no_grad(), ledger.peak_of() as passes:
        _passes(studio, context)
    if studio.gives_way:
        del context
    offload.make_room()
    rest = ledger.bytes
    with torch.no_grad(), ledger.peak_of() as decoding:
        _decoding(studio)
    beside = passes() - rest if studio.beside else 0
    host = sum(leaf.nbytes for tree in hosted for leaf in to_flat(tree).values())
    return MemoryPlan(held, text(), passes(), decoding() + beside, host)


def least_offload(
    configs: Configs, film: Film, held: Held, free: int, mesh: Mesh = _ALONE
) -> MemoryPlan:
    """The plan with the least offloading that does with `free` bytes, some of them left over; the
    one that takes least, where none does."""
    plans = (memory_plan(configs, film, replace(held, offload=kind), mesh) for kind in OFFLOADS)
    found = None
    for found in plans:
        if fits(found, free):
            break
    assert found is not None
    return found


def fits(plan: MemoryPlan, free: int) -> bool:
    """Whether `free` bytes do, with some left over for what is not counted."""
    return plan.peak <= (1 - SPARE) * free


def _flat(shapes: Shapes, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: torch.empty(shape, dtype=dtype, device=META) for name, shape in shapes.items()}


def _transformer(configs: Configs, held: Held, offload: Offload) -> DiTParams:
    flat = _flat(dit_shapes(configs.dit), held.dtype)
    tree = dit_held(dit_from_flat(flat, configs.dit), held.dtype, held.quantize)
    return offload.place_dit(tree)


def _hold(context: Context, ledger: Ledger) -> list[object]:
    """Counts the caches; those in the host's memory are returned."""
    hosted: list[object] = []
    for branch in context.branches:
        caches = branch.cache.k_IBSNK, branch.cache.v_IBSNK
        (hosted.append if branch.cache.hosted else ledger.hold)(caches)
    return hosted


def _passes(studio: Studio, context: Context) -> None:
    """One pass of every group that is made and every branch, through a few of the layers beside all
    the others."""
    network, offload = studio.network, studio.offload
    blocks = network.params.blocks
    if offload.kind == "model":  # all of them come
        blocks = tuple(block for block, _ in offload.walk(blocks, None, None, None))
        offload = Offload("none", META)
    network = replace(
        network,
        params=replace(network.params, blocks=blocks[:_LAYERS]),
        config=replace(network.config, num_layers=min(_LAYERS, len(blocks))),
        engine=replace(network.engine, walk=offload.walk),
    )
    context = replace(context, branches=tuple(map(_short, context.branches)))
    channels, rows, columns = studio.latent_shape
    made = studio.film.work.made
    for group in studio.film.layout.groups:
        if group.name not in made:
            continue
        z_BCTHW = torch.empty(1, channels, len(group.frames), rows, columns, device=META)
        context = commit(network, context, group, z_BCTHW)


def _short(branch: Branch) -> Branch:
    text, cache = branch.context, branch.cache
    return Branch(
        CrossKV(text.k_IBJNK[:_LAYERS], text.v_IBJNK[:_LAYERS]),
        replace(cache, k_IBSNK=cache.k_IBSNK[:_LAYERS], v_IBSNK=cache.v_IBSNK[:_LAYERS]),
    )


def _decoding(studio: Studio) -> None:
    """A hand-over, or some latents of a segment."""
    config, chain = studio.vae_config, studio.film.chain
    film, shape, size = studio.film, (1, config.z_dim), studio.latent_shape[1:]
    if film.segments > 1:
        seeds = torch.empty(*shape, len(chain.handover), *size, device=META)
        vae.encode_again(studio.vae_here(), config, seeds, chain.handover_frames)
    pieces = studio.pieces(0)[:_DECODED]
    latents = (torch.empty(*shape, len(piece), *size, device=META) for piece in pieces)
    for _ in vae.decode_each(studio.vae_to_show(), config, latents):
        pass


def _fused(q_BLNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor, mask_LS: Tensor | None = None) -> Tensor:
    """What a fused attention kernel makes: its result, and a number for every row."""
    torch.empty(q_BLNK.shape[:3], dtype=torch.float32, device=q_BLNK.device)
    return torch.empty_like(q_BLNK)
