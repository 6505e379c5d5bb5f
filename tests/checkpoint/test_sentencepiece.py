"""SentencePiece models give the ids of their tokenizer.json; damaged ones one error."""

from __future__ import annotations

import json
import random
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mmpl.checkpoint.bundle import load_encoders
from mmpl.checkpoint.folder import check_folder
from mmpl.checkpoint.sentencepiece import EXTRA_IDS, tokenizer_json_of
from mmpl.checkpoint.tokenizer_file import read_tokenizer
from mmpl.errors import CheckpointError
from mmpl.wan.tokenizer import Tokenizer
from tests.checkpoint import worlds
from tests.parity import golden
from tests.parity.test_tokenizer import small_json

UMT5 = golden.FOLDER / "umt5_tokenizer.json"
UNKNOWN, CONTROL, ORDINARY = 2, 3, 1


def varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def written(vocab: list[tuple[str, float]], *, model_type: int = 1) -> bytes:
    """A spiece.model as sentencepiece writes one, with the T5 family's four special tokens."""
    kinds = {"<pad>": CONTROL, "</s>": CONTROL, "<s>": CONTROL, "<unk>": UNKNOWN}
    pieces = b"".join(
        message(
            1,
            message(1, text.encode())
            + varint(2 << 3 | 5)
            + struct.pack("<f", score)
            + number(3, kinds.get(text, ORDINARY)),
        )
        for text, score in vocab
    )
    trainer = message(2, number(3, model_type) + number(4, len(vocab)))
    return pieces + trainer + message(3, message(1, b"identity") + number(3, 1))


SMALL: dict[str, Any] = small_json()
MODEL = written(SMALL["model"]["vocab"])
TEXTS = ("ab cd", "  abc   d", "a<unk>b", "jihgfedcba zz", "", "<extra_id_5> ab", "</s> ab", "�")


def test_ids_of_a_small_model() -> None:
    got = Tokenizer(tokenizer_json_of(MODEL, where="spiece.model"))
    assert got.vocab_size == len(SMALL["model"]["vocab"]) + EXTRA_IDS
    whole = Tokenizer(json.dumps(SMALL))
    for text in ("ab cd", "jihgfedcba zz", "abc d", ""):
        assert got.encode(text, 64) == whole.encode(text, 64)
    first, last = (got.encode(f"<extra_id_{n}>", 8)[0] for n in (EXTRA_IDS - 1, 0))
    assert (first, last) == (got.vocab_size - EXTRA_IDS, got.vocab_size - 1)


@pytest.mark.skipif(not UMT5.exists(), reason="the 9 MB tokenizer is not in MMPL_GOLDEN")
def test_ids_of_umt5() -> None:
    recorded = UMT5.read_text(encoding="utf-8")
    vocab = json.loads(recorded)["model"]["vocab"][:-EXTRA_IDS]
    got, wanted = Tokenizer(tokenizer_json_of(written(vocab), where="x")), Tokenizer(recorded)
    assert got.vocab_size == wanted.vocab_size
    for text in (*TEXTS, *(case["text"] for case in golden.document("umt5_ids"))):
        assert got.encode(text, 512) == wanted.encode(text, 512)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (written(SMALL["model"]["vocab"], model_type=2), "model type 2"),
        (MODEL[:-3], "cut short"),
        (MODEL[:57], "cut short"),
        (b"", "no token for what is unknown"),
        (b"\xff" * 40, "ten bytes"),
        (json.dumps(SMALL).encode(), "not a SentencePiece"),
        (message(1, message(1, b"\xff")), "decode"),
        (number(1, 5), "a number where"),
    ],
)
def test_what_is_no_model_is_refused(model: bytes, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint) as caught:
        tokenizer_json_of(model, where="spiece.model")
    assert "\n" not in str(caught.value)


def test_damage_raises_nothing_else() -> None:
    dice = random.Random(0)
    for _ in range(2000):
        damaged = bytearray(MODEL)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        with suppress(CheckpointError):
            Tokenizer(tokenizer_json_of(bytes(damaged), where="spiece.model"))


def test_a_folder_without_tokenizer_json(tmp_path: Path) -> None:
    """ComfyUI's text encoder carries the model; a spiece.model beside it goes before that, and a
    tokenizer.json before both."""
    folder = worlds.write_comfy_folder(tmp_path / "comfy", tokenizer=MODEL)
    encoder = folder / "text_encoders" / "umt5_xxl_fp16.safetensors"
    assert check_folder(folder).files["tokenizer"] == encoder
    wanted = tokenizer_json_of(MODEL, where="x")
    assert read_tokenizer(encoder) == wanted
    separate = folder / "spiece.model"
    separate.write_bytes(MODEL)
    assert check_folder(folder).files["tokenizer"] == separate
    assert read_tokenizer(separate) == wanted
    tokens = Tokenizer(wanted).vocab_size  # more than the small encoder has
    with pytest.raises(CheckpointError, match=f"does not belong .* got {tokens} tokens"):
        load_encoders(folder)
    worlds.write_tokenizer(folder)
    assert check_folder(folder).files["tokenizer"] == folder / "tokenizer.json"


def test_bytes_that_are_no_tokenizer(tmp_path: Path) -> None:
    folder = worlds.write_comfy_folder(tmp_path / "comfy", tokenizer=b"not a model")
    encoder = check_folder(folder).files["tokenizer"]
    with pytest.raises(CheckpointError, match="not a SentencePiece model"):
        read_tokenizer(encoder)
    with pytest.raises(CheckpointError, match="spiece_model as bytes.*no such tensor"):
        read_tokenizer(folder / "vae" / "wan_2.1_vae.safetensors")
