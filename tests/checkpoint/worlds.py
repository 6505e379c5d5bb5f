"""Small model folders with random weights under the real key names, written as real tools do."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers
from torch import Tensor

from mmpl.checkpoint.defaults import Defaults
from mmpl.checkpoint.folder import Configs
from mmpl.wan.config import DiTConfig, TextConfig, VAEConfig
from mmpl.wan.dit_params import dit_shapes
from mmpl.wan.params import Shapes
from mmpl.wan.text import text_shapes
from mmpl.wan.vae import vae_shapes

# Wan's structure at toy widths.
CONFIGS = Configs(
    dit=DiTConfig(
        dim=48, ffn_dim=64, num_heads=2, num_layers=3, freq_dim=16, text_dim=24, text_len=8
    ),
    vae=VAEConfig(dim=4),
    text=TextConfig(
        vocab_size=40, dim=24, dim_attn=16, dim_ffn=32, num_heads=2, num_layers=2, num_buckets=8
    ),
)
WORDS = ("red", "circle", "moves", "right")
DEFAULTS = Defaults(width=64, height=64, steps=8, vocabulary=WORDS, examples=("a red circle",))


def random_state(shapes: Shapes, seed: int, *, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def dit_state(seed: int = 0) -> dict[str, Tensor]:
    return random_state(dit_shapes(CONFIGS.dit), seed)


def vae_state(seed: int = 1) -> dict[str, Tensor]:
    return random_state(vae_shapes(CONFIGS.vae), seed)


def text_state(seed: int = 2) -> dict[str, Tensor]:
    return random_state(text_shapes(CONFIGS.text), seed)


def tokenizer_json(extra: int = 0) -> str:
    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS)]
    pieces += [f"extra{number}" for number in range(extra)]
    library = Library(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    return library.to_str()


def official_config(**changes: object) -> dict[str, object]:
    """What config.json of a published Wan2.1 folder holds, with other sizes."""
    dit = asdict(CONFIGS.dit)
    published = {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "model_type": "t2v"}
    sizes = {name: value for name, value in dit.items() if name not in ("patch_size", "text_dim")}
    return {**published, **sizes, **changes}


def write_config(folder: Path, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps(official_config(**changes)))


def write_wan_folder(folder: Path, *, with_dit: bool = True) -> Path:
    """A folder as Wan2.1 is published."""
    (folder / "google/umt5-xxl").mkdir(parents=True)
    write_config(folder)
    if with_dit:
        save_file(dit_state(), folder / "diffusion_pytorch_model.safetensors")
    torch.save(vae_state(), folder / "Wan2.1_VAE.pth")
    halves = {name: tensor.bfloat16() for name, tensor in text_state().items()}
    torch.save(halves, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    (folder / "google/umt5-xxl/tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    return folder


def write_shards(folder: Path, state: dict[str, Tensor], count: int = 2) -> Path:
    """The state dict as shards with an index; returns the index."""
    stem, table = "diffusion_pytorch_model", {}
    for number in range(count):
        shard = f"{stem}-{number + 1:05}-of-{count:05}.safetensors"
        names = sorted(state)[number::count]
        save_file({name: state[name] for name in names}, folder / shard)
        table |= dict.fromkeys(names, shard)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": table}))
    return index


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


class Attack:
    """Makes a file when it is unpickled by a careless reader."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.canary),)
