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
from mmpl.checkpoint.names import Kind, to_diffusers
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


def renamed(kind: Kind, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under diffusers' names, or for the text encoder under transformers'."""
    return {to_diffusers(kind, name) or "": tensor for name, tensor in state.items()}


def diffusers_configs() -> dict[str, dict[str, object]]:
    """What config.json of each network of a published diffusers folder holds, with other sizes."""
    dit, vae, text = CONFIGS.dit, CONFIGS.vae, CONFIGS.text
    return {
        "transformer": {
            "_class_name": "WanTransformer3DModel", "_diffusers_version": "0.33.0",
            "num_attention_heads": dit.num_heads, "attention_head_dim": dit.head_dim,
            "in_channels": dit.in_dim, "out_channels": dit.out_dim, "ffn_dim": dit.ffn_dim,
            "num_layers": dit.num_layers, "text_dim": dit.text_dim, "freq_dim": dit.freq_dim,
            "eps": dit.eps, "patch_size": [1, 2, 2], "qk_norm": "rms_norm_across_heads",
            "cross_attn_norm": True, "added_kv_proj_dim": None, "image_dim": None,
            "pos_embed_seq_len": None, "rope_max_seq_len": 1024,
        },
        "vae": {
            "_class_name": "AutoencoderKLWan", "base_dim": vae.dim, "z_dim": vae.z_dim,
            "dim_mult": list(vae.dim_mult), "num_res_blocks": vae.num_res_blocks,
            "temperal_downsample": list(vae.temporal_downsample), "attn_scales": [],
            "dropout": 0.0, "latents_mean": list(vae.latent_mean),
            "latents_std": list(vae.latent_std),
        },
        "text_encoder": {
            "architectures": ["UMT5EncoderModel"], "model_type": "umt5", "d_model": text.dim,
            "d_kv": text.dim_attn // text.num_heads, "d_ff": text.dim_ffn,
            "num_heads": text.num_heads, "num_layers": text.num_layers,
            "vocab_size": text.vocab_size, "feed_forward_proj": "gated-gelu",
            "is_gated_act": True, "dense_act_fn": "gelu_new", "layer_norm_epsilon": text.eps,
            "relative_attention_num_buckets": text.num_buckets,
            "relative_attention_max_distance": text.max_distance, "num_decoder_layers": 24,
        },
    }  # fmt: skip


def write_diffusers_folder(folder: Path, *, shards: int = 0, pipeline: str = "WanPipeline") -> Path:
    """A folder as diffusers publishes Wan2.1."""
    for name, config in diffusers_configs().items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
    if shards:
        write_shards(folder / "transformer", renamed("dit", dit_state()), shards)
    else:
        stem = "diffusion_pytorch_model.safetensors"
        save_file(renamed("dit", dit_state()), folder / "transformer" / stem)
    save_file(renamed("vae", vae_state()), folder / "vae/diffusion_pytorch_model.safetensors")
    text = renamed("text", text_state())
    text["encoder.embed_tokens.weight"] = text["shared.weight"].clone()
    save_file(text, folder / "text_encoder/model.safetensors")
    write_tokenizer(folder / "tokenizer")
    index = {"_class_name": pipeline, "transformer": ["diffusers", "WanTransformer3DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_comfy_folder(folder: Path, *, flat: bool = False, tokenizer: bytes = b"") -> Path:
    """Weights as ComfyUI repacks them, in its folders or all in one; and a tokenizer.json, unless
    the text encoder carries a SentencePiece model `tokenizer`."""
    held = torch.frombuffer(bytearray(tokenizer or bytes(9)), dtype=torch.uint8)
    text = renamed("text", text_state()) | {"spiece_model": held}
    dit = prefixed(dit_state(), "model.diffusion_model.")
    for name, state in (
        ("diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors", dit),
        ("vae/wan_2.1_vae.safetensors", vae_state()),
        ("text_encoders/umt5_xxl_fp16.safetensors", text),
    ):
        path = folder / (name.split("/")[1] if flat else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, path)
    if not tokenizer:
        write_tokenizer(folder if flat else folder / "text_encoders")
    return folder


def write_odd_folder(folder: Path) -> Path:
    """Official names in files called anything, without config.json; the VAE with a prefix (as
    Kijai's), the text encoder as an old pickle, the transformer inside a training checkpoint."""
    folder.mkdir(parents=True)
    save_file(prefixed(vae_state(), "model."), folder / "one.sft")
    torch.save(text_state(), folder / "two.bin", _use_new_zipfile_serialization=False)
    torch.save({"generator_ema": prefixed(dit_state(), "model."), "step": 3}, folder / "three.ckpt")
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


class Attack:
    """Makes a file when it is unpickled by a careless reader."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.canary),)
