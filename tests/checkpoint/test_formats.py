"""Every way that Wan weights are published loads to the tensors of the official names."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from mmpl.checkpoint.bundle import Model, load_model
from mmpl.checkpoint.convert import convert
from mmpl.checkpoint.defaults import Defaults
from mmpl.checkpoint.folder import check_folder, part_config
from mmpl.checkpoint.frame_rate import fold_frame_rate
from mmpl.checkpoint.names import Kind, official
from mmpl.checkpoint.published import given_of, network_of
from mmpl.checkpoint.recognise import look
from mmpl.errors import CheckpointError
from mmpl.wan.config import DiTConfig, TextConfig, VAEConfig
from mmpl.wan.params import to_flat
from tests.checkpoint import worlds
from tests.parity import golden

Damage = Callable[[Path], object]
DIT, VAE, TEXT = worlds.dit_state(), worlds.vae_state(), worlds.text_state()
COMFY_DIT = "diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors"
DIFFUSERS_DIT = "transformer/diffusion_pytorch_model.safetensors"
SHARDS = [f"diffusion_pytorch_model-{n:05}-of-00002.safetensors" for n in (1, 2)]


def same(tree: object, wanted: dict[str, Tensor]) -> bool:
    got = to_flat(tree)
    return got.keys() == wanted.keys() and all(torch.equal(got[k], wanted[k]) for k in wanted)


def equal(model: Model) -> bool:
    return same(model.dit, DIT) and same(model.vae, VAE) and same(model.text, TEXT)


# Each writes a model into a folder and returns what is given as --model_path.
FORMATS: dict[str, Callable[[Path], Path]] = {
    "diffusers": worlds.write_diffusers_folder,
    "diffusers in shards": lambda path: worlds.write_diffusers_folder(path, shards=3),
    "diffusers in shards without index": lambda path: without_index(
        worlds.write_diffusers_folder(path)
    ),
    "one shard of a diffusers folder": lambda path: (
        without_index(worlds.write_diffusers_folder(path)) / "transformer" / SHARDS[1]
    ),
    "ComfyUI": worlds.write_comfy_folder,
    "ComfyUI, all in one folder": lambda path: worlds.write_comfy_folder(path, flat=True),
    "odd names, no config": worlds.write_odd_folder,
    "one file of a ComfyUI folder": lambda path: worlds.write_comfy_folder(path) / COMFY_DIT,
    "one file of a diffusers folder": lambda path: (
        worlds.write_diffusers_folder(path) / DIFFUSERS_DIT
    ),
    "a training checkpoint": lambda path: worlds.write_odd_folder(path) / "three.ckpt",
    "the VAE of a folder": lambda path: worlds.write_odd_folder(path) / "one.sft",
}


@pytest.mark.parametrize("name", FORMATS)
def test_loads_to_the_same_tensors(tmp_path: Path, name: str) -> None:
    path = FORMATS[name](tmp_path / "model")
    model = load_model(path)
    assert equal(model)
    assert model.tokenizer.encode("red circle", 8)[-1] == model.tokenizer.eos_id
    assert model.vae_config == worlds.CONFIGS.vae
    if "diffusers" in name:
        assert model.dit_config == replace(worlds.CONFIGS.dit, text_len=512)
        assert model.text_config == worlds.CONFIGS.text


def test_kinds_of_folders_are_named(tmp_path: Path) -> None:
    for name, title in (("diffusers", "diffusers folder"), ("ComfyUI", "ComfyUI folder")):
        assert check_folder(FORMATS[name](tmp_path / title)).title == title
    wan = worlds.write_wan_folder(tmp_path / "wan")
    assert check_folder(wan).title == "Wan2.1 folder"


def test_parts_from_elsewhere(tmp_path: Path) -> None:
    """None of the four in one place; a flag wins over the folder's own."""
    comfy = worlds.write_comfy_folder(tmp_path / "comfy")
    other = worlds.random_state({k: tuple(v.shape) for k, v in VAE.items()}, 77)
    save_file(other, tmp_path / "other.safetensors")
    alone = tmp_path / "alone" / "in" / "here"
    alone.mkdir(parents=True)
    os.rename(comfy / COMFY_DIT, alone / "x.safetensors")
    found = check_folder(
        alone / "x.safetensors",
        vae=tmp_path / "other.safetensors",
        text_encoder=comfy / "text_encoders/umt5_xxl_fp16.safetensors",
        tokenizer=comfy / "text_encoders/tokenizer.json",
    )
    model = load_model(found)
    assert same(model.dit, DIT)
    assert same(model.vae, other)
    found = check_folder(comfy, checkpoint=alone / "x.safetensors")
    assert equal(load_model(found))


def test_few_steps_are_recognised(tmp_path: Path) -> None:
    fast = worlds.write_diffusers_folder(tmp_path / "fast", pipeline="WanDMDPipeline")
    defaults = check_folder(fast).defaults
    assert (defaults.solver, defaults.steps, defaults.guidance_scale) == ("few_step", 3, 1.0)
    assert check_folder(worlds.write_diffusers_folder(tmp_path / "slow")).defaults == Defaults()


# --------------------------------------------------------------------------------- SkyReels


def skyreels_state() -> dict[str, Tensor]:
    dim = worlds.CONFIGS.dit.dim
    shapes: dict[str, tuple[int, ...]] = {
        "fps_embedding.weight": (2, dim),
        "fps_projection.0.weight": (dim, dim),
        "fps_projection.0.bias": (dim,),
        "fps_projection.2.weight": (6 * dim, dim),
        "fps_projection.2.bias": (6 * dim,),
    }
    return DIT | worlds.random_state(shapes, 5)


@pytest.mark.parametrize("diffusers", [False, True])
def test_skyreels_is_told_24_frames_a_second(tmp_path: Path, diffusers: bool) -> None:
    state = skyreels_state()
    folder = worlds.write_wan_folder(tmp_path / "sky", with_dit=False)
    stored = worlds.renamed("dit", state) if diffusers else state
    save_file(stored, folder / "model.safetensors")
    worlds.write_config(folder, inject_sample_info=True)
    model = load_model(folder)
    assert model.defaults.fps == 24
    row = state["fps_embedding.weight"][1].double()
    weights = {name: tensor.double() for name, tensor in state.items()}
    hidden = F.silu(weights["fps_projection.0.weight"] @ row + weights["fps_projection.0.bias"])
    added = weights["fps_projection.2.weight"] @ hidden + weights["fps_projection.2.bias"]
    wanted = DIT["time_projection.1.bias"].double() + added
    got = to_flat(model.dit)
    assert (got.pop("time_projection.1.bias") - wanted).abs().max() < 1e-3
    assert all(torch.equal(tensor, DIT[name]) for name, tensor in got.items())


def test_part_of_a_frame_rate_is_not_dropped(tmp_path: Path) -> None:
    state = skyreels_state()
    del state["fps_projection.0.bias"]
    assert fold_frame_rate(state) == state
    folder = worlds.write_wan_folder(tmp_path / "sky")
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="4 unexpected .*fps_"):
        load_model(folder)


# ------------------------------------------------------------------------- full-size key lists

MANIFESTS: dict[str, tuple[Kind, str]] = {
    "manifest_dit_t2v_1.3b": ("dit", "Wan2.1's own naming"),
    "manifest_dit_t2v_14b": ("dit", "Wan2.1's own naming"),
    "manifest_dit_t2v_14b_diffusers": ("dit", "diffusers naming"),
    "manifest_vae": ("vae", "Wan2.1's own naming"),
    "manifest_vae_diffusers": ("vae", "diffusers naming"),
    "manifest_umt5_xxl_encoder": ("text", "Wan2.1's own naming"),
    "manifest_umt5_xxl_encoder_transformers": ("text", "transformers and ComfyUI naming"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_real_key_lists_are_recognised(tmp_path: Path, name: str) -> None:
    """As an index, a pickle and an old pickle, each in well under a second."""
    network, family = MANIFESTS[name]
    keys = golden.document(name)["tensors"]
    index = tmp_path / "any.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(keys, "x.safetensors")}))
    flat = {key: torch.zeros(1) for key in keys}
    torch.save(
        {"model": {"model." + key: tensor for key, tensor in flat.items()}}, index.parent / "a.pt"
    )
    torch.save({"generator": flat}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    start = time.process_time()
    seen = [look(path) for path in (index, tmp_path / "a.pt", tmp_path / "b.pt")]
    assert time.process_time() - start < 1
    assert [weights.network for weights in seen] == [network] * 3
    assert not any(weights.relative for weights in seen)
    assert [weights.family for weights in seen[:2]] == [family] * 2
    assert "training checkpoint" in seen[2].family


@pytest.mark.parametrize(
    "name", [n for n in MANIFESTS if n.endswith(("_diffusers", "_transformers"))]
)
def test_real_configs_agree_with_their_shapes(name: str) -> None:
    part, _ = MANIFESTS[name]
    recorded = golden.document(name)
    config = {"_class_name": recorded["info"]["class_name"], **recorded["info"]["config"]}
    shapes = {key: tuple(shape) for key, shape in recorded["tensors"].items()}
    given = given_of(part, config, where=name)
    found = part_config(part, official(part, shapes, where=name), given, where=name)
    large = DiTConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
    assert found == {"dit": large, "vae": VAEConfig(), "text": TextConfig()}[part]
    assert network_of(config) == part


@pytest.mark.parametrize("old", [False, True])
def test_changed_pickles_are_looked_at_without_harm(tmp_path: Path, old: bool) -> None:
    content = {"generator": VAE, "x": worlds.Attack(tmp_path / "canary")}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not old)
    whole = (tmp_path / "x.pt").read_bytes()
    ends = whole[:9000], whole[-9000:]  # what is looked at lies there
    generator = torch.Generator().manual_seed(3)
    found = set()
    for _ in range(200):
        changed = [bytearray(end) for end in ends]
        for end in changed:
            where, value = torch.randint(0, len(end), (2,), generator=generator).tolist()
            end[where] = value % 256
        (tmp_path / "y.pt").write_bytes(changed[0] + whole[9000:-9000] + changed[1])
        start = time.process_time()
        try:
            found.add(look(tmp_path / "y.pt").network)
        except CheckpointError as error:
            assert str(error).isprintable()  # noqa: PT017
        assert time.process_time() - start < 1
    assert "vae" in found
    assert not (tmp_path / "canary").exists()


def test_comfy_names_of_the_real_text_encoder() -> None:
    stored = golden.document("manifest_umt5_xxl_encoder_transformers")["tensors"]
    stored = {key: shape for key, shape in stored.items() if "embed_tokens" not in key}
    renamed = official("text", {**stored, "spiece_model": [4548313]}, where="x")
    assert renamed == golden.document("manifest_umt5_xxl_encoder")["tensors"]


# ------------------------------------------------------------------------------- bad input


def edit(name: str, **changes: object) -> Damage:
    """Changes of a JSON file; None takes an entry away."""

    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def replaced(make: Damage) -> Damage:
    """Something else in the transformer's place."""

    def damage(folder: Path) -> None:
        (folder / DIFFUSERS_DIT).unlink()
        make(folder / DIFFUSERS_DIT)

    return damage


def saved(state: dict[str, Tensor]) -> Damage:
    return lambda path: save_file(state, path)


def loop(folder: Path) -> None:
    (folder / "vae/again").symlink_to(folder, target_is_directory=True)
    (folder / DIFFUSERS_DIT).unlink()


def without_index(folder: Path, change: Damage = lambda transformer: None) -> Path:
    (folder / DIFFUSERS_DIT).unlink()
    worlds.write_shards(folder / "transformer", worlds.renamed("dit", DIT)).unlink()
    change(folder / "transformer")
    return folder


def one_less(transformer: Path) -> None:
    state = load_file(transformer / SHARDS[0])
    del state[next(name for name in state if name.startswith("blocks.0.ffn"))]
    save_file(state, transformer / SHARDS[0])


def in_both_shards(transformer: Path) -> None:
    one, other = (load_file(transformer / shard) for shard in SHARDS)
    save_file(one | dict(list(other.items())[:1]), transformer / SHARDS[0])


TRANSFORMER = "transformer/config.json"
BAD: dict[str, tuple[Damage, str]] = {
    "two families": (lambda f: save_file(DIT, f / "x.safetensors"), "several .*--checkpoint"),
    "two VAEs": (lambda f: torch.save(VAE, f / "x.pth"), "several .*a video VAE.*--vae"),
    "a missing shard": (
        lambda f: without_index(f, lambda t: (t / SHARDS[1]).unlink()),
        f"{SHARDS[1]}: no such file",
    ),
    "the last shard alone": (
        lambda f: without_index(f, lambda t: (t / SHARDS[0]).unlink()),
        f"{SHARDS[0]}: no such file",
    ),
    "a shard cut short": (
        lambda f: without_index(f, lambda t: os.truncate(t / SHARDS[1], 100)),
        f"{SHARDS[1]}: the file is cut short",
    ),
    "a tensor in two shards": (
        lambda f: without_index(f, in_both_shards),
        f"{SHARDS[1]}: a shard holds what another",
    ),
    "shards of two models": (
        lambda f: without_index(f, lambda t: worlds.write_shards(t, DIT, 3).unlink()),
        "several files hold a transformer.*all shards of one",
    ),
    "a T5 in its place": (
        replaced(saved(TEXT)),
        "no transformer .*transformer/diffusion.* .a text encoder",
    ),
    "a LoRA": (replaced(saved({"blocks.0.ffn.0.lora_A.weight": torch.ones(2)})), "LoRA"),
    "VACE": (replaced(saved(DIT | {"vace_blocks.0.x": torch.ones(2)})), "Wan VACE"),
    "FastWan VSA": (
        replaced(saved(DIT | {"blocks.0.to_gate_compress.weight": torch.ones(2)})),
        "sparse attention",
    ),
    "a scale alone": (replaced(saved(DIT | {"x.scale_weight": torch.ones(1)})), "no weight"),
    "Wan2.2 A14B": (edit("model_index.json", transformer_2=["diffusers", "x"]), "Wan2.2 A14B"),
    "an empty file": (replaced(lambda path: path.touch()), "empty"),
    "a folder as file": (replaced(lambda path: path.mkdir()), "no transformer"),
    "a pipe": (replaced(os.mkfifo), "a pipe"),
    "a link to itself": (replaced(lambda path: path.symlink_to(path.name)), "cannot be read"),
    "a folder in itself": (loop, "no transformer"),
    "other heads": (edit(TRANSFORMER, attention_head_dim=12), "contradict"),
    "other layers": (edit(TRANSFORMER, num_layers=4), "contradict"),
    "heads of text": (edit(TRANSFORMER, num_attention_heads="2"), "wrong type"),
    "another norm": (edit(TRANSFORMER, qk_norm="layer"), "qk_norm"),
    "image input": (edit(TRANSFORMER, image_dim=1280), "image_dim"),
    "another class": (edit(TRANSFORMER, _class_name="WanVACETransformer3DModel"), "WanVACE"),
    "an unknown entry": (edit(TRANSFORMER, window=[5]), "unknown settings.*window"),
    "another VAE width": (edit("vae/config.json", base_dim=8), "contradict"),
    "a VAE of other latents": (edit("vae/config.json", z_dim=48), "one entry per latent channel"),
    "a residual VAE": (edit("vae/config.json", is_residual=True), "is_residual"),
    "statistics of zero": (edit("vae/config.json", latents_std=[0.0] * 16), "latent_std"),
    "another text width": (edit("text_encoder/config.json", d_model=32), "contradict"),
    "other text heads": (edit("text_encoder/config.json", d_kv=9), "contradict"),
    "another activation": (edit("text_encoder/config.json", dense_act_fn="relu"), "dense_act_fn"),
    "config.json cut": (lambda f: (f / TRANSFORMER).write_text("{"), "JSON"),
}


def refused(message: str, path: Path, **options: Any) -> None:
    start = time.process_time()
    with pytest.raises(CheckpointError, match=message) as caught:
        check_folder(path, **options)
    assert time.process_time() - start < 1
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 900
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", BAD)
def test_bad_folders(tmp_path: Path, name: str) -> None:
    folder = worlds.write_diffusers_folder(tmp_path / "model")
    damage, message = BAD[name]
    damage(folder)
    refused(message, folder)


def test_shards_must_be_complete_together(tmp_path: Path) -> None:
    folder = without_index(worlds.write_diffusers_folder(tmp_path / "model"), one_less)
    with pytest.raises(CheckpointError, match=r"missing .*blocks\.0\.ffn"):
        load_model(folder)


def test_bad_files_for_a_part(tmp_path: Path) -> None:
    folder = worlds.write_odd_folder(tmp_path / "model")
    refused(
        "not hold a transformer; got a text .*--checkpoint", folder, checkpoint=folder / "two.bin"
    )
    refused("not hold a video VAE; got a transformer", folder, vae=folder / "three.ckpt")
    refused("not hold a text encoder; got a video VAE", folder, text_encoder=folder / "one.sft")
    lora = {"diffusion_model.blocks.0.ffn.0.lora_A.weight": torch.ones(2)}
    save_file(lora, tmp_path / "lora.safetensors")
    refused("a LoRA.*with --lora", folder, checkpoint=tmp_path / "lora.safetensors")
    refused("a LoRA.*with --lora", tmp_path / "lora.safetensors")
    refused("no such file", folder, tokenizer=folder / "none.json")
    save_file({"x": torch.ones(1)}, folder / "x.safetensors")
    refused("not a part of a model", folder / "x.safetensors")
    vace = DIT | {"vace_blocks.0.x": torch.ones(1)}
    torch.save(vace, folder / "vace.pt")
    refused("Wan VACE", folder, checkpoint=folder / "vace.pt")


def test_the_depth_of_a_pickle_is_that_of_the_generator(tmp_path: Path) -> None:
    folder = worlds.write_wan_folder(tmp_path / "model")
    deep = {name.replace("blocks.0.", "blocks.7."): tensor for name, tensor in DIT.items()}
    torch.save({"generator": DIT, "critic": deep}, folder / "with_critic.pt")
    assert same(load_model(folder, checkpoint=folder / "with_critic.pt").dit, DIT)
    torch.save({"generator": DIT | deep}, folder / "deep.pt")
    refused("another size .*got 8 blocks", folder, checkpoint=folder / "deep.pt")


def test_too_many_files(tmp_path: Path) -> None:
    for number in range(201):
        (tmp_path / f"{number}.pt").touch()
    refused("too much lies here.*201 files", tmp_path)


# --------------------------------------------------------------------------------- convert


@pytest.mark.parametrize("name", ["diffusers in shards", "ComfyUI", "odd names, no config"])
def test_convert_keeps_every_bit(tmp_path: Path, name: str) -> None:
    found = check_folder(FORMATS[name](tmp_path / "model"))
    digests = convert(found, tmp_path / "bundle")
    again = load_model(tmp_path / "bundle")
    assert equal(again)
    assert again.digests == digests == load_model(found).digests
    assert again.dit_config == load_model(found).dit_config
    assert {path.suffix for path in (tmp_path / "bundle").iterdir()} == {".safetensors", ".json"}


def test_convert_to_another_format(tmp_path: Path) -> None:
    found = check_folder(worlds.write_odd_folder(tmp_path / "model"))
    convert(found, tmp_path / "bundle", dtype=torch.bfloat16)
    got = to_flat(load_model(tmp_path / "bundle").dit)
    wanted = to_flat(load_model(found, dtype=torch.bfloat16).dit)
    assert got.keys() == wanted.keys()
    assert {leaf.dtype for leaf in got.values()} == {torch.bfloat16, torch.float32}
    for key, leaf in wanted.items():
        assert got[key].dtype is leaf.dtype
        assert torch.equal(got[key], leaf)
