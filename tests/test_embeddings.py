"""Kept embeddings of prompts: the same bits without the encoder, and none that is not whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmpl.checkpoint import model as model_file
from mmpl.errors import OutputError
from mmpl.eval.stage import Shot, film_of, open_stage
from mmpl.film.embeddings import embeddings_of
from mmpl.generate import Made, Model, Request, Started, generate
from mmpl.wan.params import tree_map
from tests.small import small_model

PROMPTS = ("red", "blue circle", "red")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that the encoder has read."""
    prompts: list[str] = []
    encode = model_file.encode_prompts

    def noted(params: Any, config: Any, tokenizer: Any, some: Sequence[str], *args: Any, **kw: Any):
        prompts.extend(some)
        return encode(params, config, tokenizer, some, *args, **kw)

    monkeypatch.setattr(model_file, "encode_prompts", noted)
    return prompts


def keeping(model: Model, folder: Path) -> Model:
    return replace(model, text_cache=folder)


def equal(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return len(found) == len(wanted) and all(
        x.dtype is y.dtype and torch.equal(x, y) for x, y in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_second_time_the_encoder_does_nothing(
    tmp_path: Path, encoded: list[str], dtype: torch.dtype
) -> None:
    model = small_model()
    model = replace(model, text=tree_map(lambda leaf: leaf.to(dtype), model.text))
    wanted, _ = embeddings_of(model, PROMPTS)
    model = keeping(model, tmp_path / "new" / "texts")
    encoded.clear()
    for reads in (["red", "blue circle"], []):
        found, damaged = embeddings_of(model, PROMPTS)
        assert equal(found, wanted)
        assert (encoded, damaged) == (reads, ())
        encoded.clear()
    assert embeddings_of(model, ["blue  circle "])[0][0].equal(wanted[1])
    assert encoded == []  # the same after cleaning
    assert len(list((tmp_path / "new" / "texts").iterdir())) == 2


def test_films_are_the_same_bits(tmp_path: Path, encoded: list[str]) -> None:
    model = small_model()
    request = Request("red", 1, frames=5, steps=1, guidance_scale=2.0, negative_prompt="blue")

    def latents(model: Model) -> list[Tensor]:
        events = [event for event in generate(model, request) if isinstance(event, Made)]
        return [event.z_BCTHW for event in events if event.z_BCTHW is not None]

    wanted = latents(model)
    assert equal(latents(keeping(model, tmp_path)), wanted)
    encoded.clear()
    assert equal(latents(keeping(model, tmp_path)), wanted)
    assert encoded == []


def test_other_ways_of_making_films_read_what_is_kept(tmp_path: Path, encoded: list[str]) -> None:
    model = small_model()
    film = film_of(model, Shot("red", seed=1, segments=1))
    wanted = open_stage(model, film).texts
    model = keeping(model, tmp_path)
    for _ in range(2):
        encoded.clear()
        found = open_stage(model, film).texts
        assert equal([text.k_IBJNK for text in found], [text.k_IBJNK for text in wanted])
    assert encoded == []


CHANGES: dict[str, Callable[[Model], Model]] = {
    "weights": lambda model: replace(model, digests={**model.digests, "text": "other"}),
    "tokenizer": lambda model: replace(model, digests={**model.digests, "tokenizer": "other"}),
    "dtype": lambda model: replace(model, text=tree_map(lambda leaf: leaf.half(), model.text)),
    "length": lambda model: replace(
        model, dit_config=replace(model.dit_config, text_len=model.dit_config.text_len - 1)
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_another_model_kept_is_not_taken(
    tmp_path: Path, encoded: list[str], what: str
) -> None:
    model = keeping(small_model(), tmp_path)
    embeddings_of(model, PROMPTS)
    encoded.clear()
    _, damaged = embeddings_of(CHANGES[what](model), PROMPTS)
    assert (encoded, damaged) == (["red", "blue circle"], ())


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-3], lambda content: b"", flipped], ids=["cut", "0", "bit"]
)
def test_damaged_files_are_named_and_made_again(
    tmp_path: Path, encoded: list[str], damage: Callable[[bytes], bytes]
) -> None:
    model = keeping(small_model(), tmp_path)
    wanted, _ = embeddings_of(model, PROMPTS)
    path = sorted(tmp_path.iterdir())[0]
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    encoded.clear()
    started = next(generate(model, Request("red", 1, negative_prompt="blue circle")))
    assert isinstance(started, Started)
    assert started.damaged == (path,)
    assert len(encoded) == 1
    assert path.read_bytes() == whole
    assert equal(embeddings_of(model, PROMPTS)[0], wanted)


def test_files_that_changed_places_are_damaged(tmp_path: Path) -> None:
    model = keeping(small_model(), tmp_path)
    wanted, _ = embeddings_of(model, PROMPTS)
    one, other = sorted(tmp_path.iterdir())
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)
    found, damaged = embeddings_of(model, PROMPTS)
    assert equal(found, wanted)
    assert sorted(damaged) == [one, other]


def test_a_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file"):
        embeddings_of(keeping(small_model(), tmp_path / "file"), PROMPTS)
