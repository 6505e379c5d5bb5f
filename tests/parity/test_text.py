"""The text encoder against recorded runs of the reference, and its names against the manifest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tokenizers
import torch
from torch import Tensor

from mmpl.errors import ArgumentError, CheckpointError
from mmpl.wan import text
from mmpl.wan.config import TextConfig
from mmpl.wan.params import Weight, to_flat, tree_map
from mmpl.wan.tokenizer import Tokenizer
from tests.parity import golden

TOLERANCE = 1e-4
WEIGHTS, RECORDED = golden.load("t5_tiny.weights"), golden.load("t5_tiny")
CASES = golden.cases(RECORDED, "case")
# The reference's names of the config's fields, where they differ.
OTHER_NAMES = {"vocab": "vocab_size", "max_dist": "max_distance"}


def config_of(recorded: dict[str, Any]) -> TextConfig:
    fields = {OTHER_NAMES.get(name, name): value for name, value in recorded.items()}
    fields.pop("shared_pos", None)
    return TextConfig(**fields)


CONFIG = config_of(golden.metadata("t5_tiny.weights")["config"])
PARAMS = text.text_from_flat(WEIGHTS, CONFIG)


def params_of(case: str) -> text.TextParams:
    """Some cases make the embedding tiny, so that the norm's eps shows."""
    scale = float(golden.metadata("t5_tiny").get(f"{case}_token_embedding_scale", 1.0))
    return replace(PARAMS, token_embedding=Weight(PARAMS.token_embedding.weight * scale))


@pytest.mark.parametrize("case", CASES)
def test_output(case: str) -> None:
    recorded = golden.under(RECORDED, case)
    got = text.encode_text(params_of(case), CONFIG, recorded["ids"], recorded["mask"])
    assert golden.worst(got, recorded["out"]) < TOLERANCE
    if "prompt_embeds" in recorded:
        padded = text.zero_pads(got, recorded["mask"])
        assert golden.worst(padded, recorded["prompt_embeds"]) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_pads_change_nothing_before_them(case: str) -> None:
    recorded = golden.under(RECORDED, case)
    for ids, mask, wanted in zip(recorded["ids"], recorded["mask"], recorded["out"], strict=True):
        length = int(mask.sum())
        ids_BJ = ids[None, :length]
        got = text.encode_text(params_of(case), CONFIG, ids_BJ, torch.ones_like(ids_BJ))
        assert golden.worst(got[0], wanted[:length]) < TOLERANCE


@pytest.mark.parametrize("case", [case for case in CASES if f"{case}.out_bf16" in RECORDED])
def test_bf16(case: str) -> None:
    """Nearer to the reference in bf16 than the reference in bf16 is to itself in float32."""
    recorded = golden.under(RECORDED, case)
    halved = tree_map(Tensor.bfloat16, params_of(case))
    got = text.encode_text(halved, CONFIG, recorded["ids"], recorded["mask"])
    assert got.dtype == torch.bfloat16
    wanted = recorded["out_bf16"].float()
    assert rms(got.float() - wanted) < rms(wanted - recorded["out"])


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def test_buckets_and_bias() -> None:
    rels = RECORDED["buckets.rel"].tolist()
    assert [text.bucket(CONFIG, rel) for rel in rels] == RECORDED["buckets.bucket"].tolist()
    wanted = RECORDED["bias0"][0]
    bias = text.position_bias(PARAMS.blocks[0], text.position_buckets(CONFIG, wanted.shape[-1]))
    assert golden.worst(bias, wanted) == 0.0


def test_names_and_shapes() -> None:
    manifest = golden.document("manifest_umt5_xxl_encoder")
    wanted = {name: tuple(shape) for name, shape in manifest["tensors"].items()}
    assert text.text_shapes(config_of(manifest["info"]["config"])) == wanted


def test_round_trip_and_refusal() -> None:
    flat = to_flat(PARAMS)
    assert flat.keys() == WEIGHTS.keys()
    assert all(flat[name] is WEIGHTS[name] for name in flat)
    missing = dict(list(WEIGHTS.items())[1:])
    with pytest.raises(CheckpointError, match=next(iter(WEIGHTS))):
        text.text_from_flat(missing, CONFIG)


def test_float16_overflow_is_put_back() -> None:
    loud = replace(PARAMS, token_embedding=Weight(PARAMS.token_embedding.weight * 1e3))
    blocks = tuple(
        replace(block, ffn=replace(block.ffn, fc2=Weight(block.ffn.fc2.weight * 1e4)))
        for block in loud.blocks
    )
    halved = tree_map(Tensor.half, replace(loud, blocks=blocks))
    ids = RECORDED["case0.ids"]
    assert text.encode_text(halved, CONFIG, ids, torch.ones_like(ids)).isfinite().all()


def test_gradient_reaches_every_parameter() -> None:
    leaves = tree_map(lambda leaf: leaf.clone().requires_grad_(), PARAMS)
    recorded = golden.under(RECORDED, CASES[0])
    text.encode_text(leaves, CONFIG, recorded["ids"], recorded["mask"]).square().sum().backward()
    for name, leaf in to_flat(leaves).items():
        assert leaf.grad is not None, name
        assert leaf.grad.abs().sum() > 0, name


def small_tokenizer(words: int) -> Tokenizer:
    """One token a word w0, w1, ..., after the four special ones."""
    pieces = ["<pad>", "</s>", "<s>", "<unk>", *(f"▁w{n}" for n in range(words))]
    model = tokenizers.models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return Tokenizer(tokenizer.to_str())


def test_encode_prompts() -> None:
    tokenizer = small_tokenizer(20)
    prompts = ["w1  w2\n&amp;", "", "w3 " * 30]
    text_len = 9
    got = text.encode_prompts(PARAMS, CONFIG, tokenizer, prompts, text_len)
    rows = [tokenizer.encode("w1 w2 &", text_len), [1], [4 + 3] * (text_len - 1) + [1]]
    assert [len(x) for x in got] == [len(row) for row in rows]
    ids = torch.tensor([row + [0] * (text_len - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (text_len - len(row)) for row in rows])
    together = text.zero_pads(text.encode_text(PARAMS, CONFIG, ids, mask), mask)
    for alone, padded in zip(got, together, strict=True):
        assert golden.worst(alone, padded[: len(alone)]) < TOLERANCE
        assert not padded[len(alone) :].any()
    # A prompt's bits do not depend on its companions.
    (again,) = text.encode_prompts(PARAMS, CONFIG, tokenizer, prompts[:1], text_len)
    assert torch.equal(again, got[0])


def test_a_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(ArgumentError, match="tokenizer"):
        text.encode_prompts(
            PARAMS,
            CONFIG,
            small_tokenizer(CONFIG.vocab_size + 9),
            [f"w{CONFIG.vocab_size}"],
            CONFIG.vocab_size,
        )


def test_shapes_of_ids_and_mask_must_agree() -> None:
    ids = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(ArgumentError, match="ids and mask"):
        text.encode_text(PARAMS, CONFIG, ids, ids[:, :2])
