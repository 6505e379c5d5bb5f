"""Prompt cleaning and tokens against recorded ones; any text must pass."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import ftfy
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from mmpl.errors import ArgumentError, CheckpointError
from mmpl.wan.tokenizer import Tokenizer, clean_prompt
from tests.parity import golden

FILE = golden.FOLDER / "umt5_tokenizer.json"  # 9 MB: not in the project's own copy
RECORDED_IDS = golden.document("umt5_ids") if FILE.exists() else []
CLEANED = golden.document("text_clean")["cases"]

# Text of any code points, halves of surrogate pairs included.
anything = st.text(st.integers(0, 0x10FFFF).map(chr), max_size=60)


@pytest.fixture(scope="module")
def umt5() -> Tokenizer:
    return Tokenizer(FILE.read_bytes())


def small_json() -> dict[str, Any]:
    pieces = ["<pad>", "</s>", "<s>", "<unk>", "▁", *"abcdefghij", "▁ab", "cd"]
    model = tokenizers.models.Unigram([(p, -float(i)) for i, p in enumerate(pieces)], unk_id=3)
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return json.loads(made.to_str())


SMALL = Tokenizer(json.dumps(small_json()))


@pytest.mark.parametrize("case", CLEANED, ids=lambda case: ascii(case["input"]))
def test_cleaning(case: dict[str, str]) -> None:
    assert clean_prompt(case["input"]) == case["whitespace"]
    assert clean_prompt(case["basic"]) == case["whitespace"]


@pytest.mark.parametrize("case", RECORDED_IDS, ids=lambda case: ascii(case["text"]))
def test_ids(umt5: Tokenizer, case: dict[str, Any]) -> None:
    text, ids = case["text"], case["ids"]
    assert umt5.encode(text, len(ids) + 7) == umt5.encode(text, len(ids)) == ids
    assert umt5.tokens_cut(text, len(ids)) == 0
    for text_len in range(1, len(ids)):
        assert umt5.encode(text, text_len) == [*ids[: text_len - 1], umt5.eos_id]
        assert umt5.tokens_cut(text, text_len) == len(ids) - text_len


@given(text=anything, text_len=st.integers(1, 40))
def test_any_text_gives_ids(text: str, text_len: int) -> None:
    for version in (text, clean_prompt(text)):
        ids = SMALL.encode(version, text_len)
        assert ids[-1] == SMALL.eos_id
        assert all(0 <= id_ < SMALL.vocab_size for id_ in ids)
        whole = SMALL.encode(version, 1000)
        assert len(ids) == min(len(whole), text_len)
        assert ids[:-1] == whole[: len(ids) - 1]
        assert SMALL.tokens_cut(version, text_len) == len(whole) - len(ids)


@given(anything)
def test_cleaned_text_is_one_line(text: str) -> None:
    cleaned = clean_prompt(text)
    assert cleaned == " ".join(cleaned.split())
    cleaned.encode("utf-8")  # no half of a surrogate pair is left


def test_half_of_a_surrogate_pair_is_the_replacement_character() -> None:
    for half in ("\ud800", "\udc00"):
        assert SMALL.encode(f"a{half}b", 9) == SMALL.encode("a\ufffdb", 9)
        assert SMALL.encode(half, 9) == SMALL.encode("\ufffd", 9)
    assert clean_prompt("\x00a\x07") == "a"


def test_settings_of_the_file_do_not_cut_or_pad() -> None:
    document = small_json()
    document["truncation"] = {
        "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    document["padding"] = {
        "strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>",
    }  # fmt: skip
    text = "a b c d e f"
    assert Tokenizer(json.dumps(document)).encode(text, 30) == SMALL.encode(text, 30)


@pytest.mark.parametrize("broken", ["", "{}", "[]", "null", b"\xff\xfe", b"PK\x03\x04"])
def test_a_broken_file_is_one_kind_of_error(broken: str | bytes) -> None:
    with pytest.raises(CheckpointError, match=r"folder/file\.json: not a tokenizer"):
        Tokenizer(broken, where="folder/file.json")


def test_another_family_is_refused() -> None:
    document = small_json()
    document["model"]["vocab"][:2] = reversed(document["model"]["vocab"][:2])
    with pytest.raises(CheckpointError, match="umT5"):
        Tokenizer(json.dumps(document))


def test_there_is_always_room_for_the_eos() -> None:
    assert SMALL.encode("abc", 1) == [SMALL.eos_id]
    with pytest.raises(ArgumentError, match="text_len"):
        SMALL.encode("abc", 0)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_plain_text_needs_no_repair(text: str) -> None:
    """What is cleaned without ftfy is cleaned as with it."""
    repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
    assert clean_prompt(text) == re.sub(r"\s+", " ", repaired).strip()
