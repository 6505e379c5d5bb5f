"""--lora: what it changes in a film, that a film remembers it, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmpl.checkpoint.folder import check_folder
from mmpl.cli.lora import lora_files, lora_text
from mmpl.media.video import read_frames, read_metadata
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit_params import dit_shapes
from tests.checkpoint import lora_worlds
from tests.checkpoint.lora_worlds import Pairs
from tests.cli.conftest import PROMPT, ROOT, Gen, write_model
from tests.small import CONFIGS

FILM = ("--prompt", PROMPT, "--seed", 1, "--steps", 1, "--num_frames", 5)
COUNT = 10 * CONFIGS.dit.num_layers


def pairs(seed: int = 0, config: DiTConfig = CONFIGS.dit) -> Pairs:
    return lora_worlds.pairs_for(dit_shapes(config), seed=seed, scale=0.5)


def write(name: str, flat: Mapping[str, Tensor]) -> str:
    save_file(dict(flat), name)
    return name


def different(first: str, second: str) -> bool:
    return bool((read_frames(first) != read_frames(second)).any())


def test_a_film_with_a_lora(gen: Gen) -> None:
    lora = write("a:b.safetensors", lora_worlds.comfy(pairs()))
    assert gen(*FILM, "--output", "plain.mp4")[0] == 0
    code, _, err = gen(*FILM, "--lora", f"{lora}:0.5")
    assert code == 0, err
    assert f"  lora     a:b.safetensors at 0.5: matched {COUNT}/{COUNT} (ComfyUI" in err
    assert "warning" not in err
    assert f"--lora {lora}:0.5" in err.split("again", 1)[1]
    assert different("plain.mp4", "film.mp4")
    made, plain = read_metadata("film.mp4"), read_metadata("plain.mp4")
    assert made["model"]["lora"] == f"{lora}:0.5"
    assert made["weights"]["dit"] != plain["weights"]["dit"]
    assert made["weights"]["vae"] == plain["weights"]["vae"]

    # The film knows it: asked for again, and as settings of another.
    code, _, err = gen(*FILM, "--lora", f"{lora}:0.5")
    assert (code, "complete already" in err) == (0, True), err
    for other in (("--lora", f"{lora}:0.6"), ()):
        code, _, err = gen(*FILM, *other)
        assert (code, "other weights" in err) == (2, True), err
    code, _, err = gen(*FILM, "--output", "plain.mp4", "--lora", lora)
    assert (code, "other weights" in err) == (2, True), err
    code, _, err = gen("--config", "film.mp4", "--output", "b.mp4", plain=True)
    assert (code, "warning" in err) == (0, False), err
    assert not different("film.mp4", "b.mp4")

    # So does its job folder, wherever it is gone on from.
    Path("film.mp4").unlink()
    other = write("other.safetensors", lora_worlds.comfy(pairs(1)))
    code, _, err = gen("resume", "film.mp4.job", "--lora", f"{other}:0.5", plain=True)
    assert (code, "weights dit" in err) == (6, True), err
    code, _, err = gen("resume", "film.mp4.job", plain=True)
    assert code == 0, err
    assert not different("film.mp4", "b.mp4")
    Path("film.mp4").unlink()
    write(lora, lora_worlds.comfy(pairs(1)))
    code, _, err = gen("resume", "film.mp4.job", plain=True)
    assert (code, "weights lora" in err) == (6, True), err


def test_two_loras_that_cancel_each_other(gen: Gen) -> None:
    first = write("x.safetensors", lora_worlds.kohya(pairs()))
    second = write("y.safetensors", lora_worlds.diffusers(pairs()))
    assert gen(*FILM, "--output", "plain.mp4")[0] == 0
    code, _, err = gen(*FILM, "--lora", first, "--lora", f"{second}:-1")
    assert code == 0, err
    assert f"matched {COUNT}/{COUNT} (kohya" in err
    assert f"y.safetensors at -1: matched {COUNT}/{COUNT} (diffusers" in err
    gap = read_frames("plain.mp4").astype(int) - read_frames("film.mp4").astype(int)
    assert abs(gap).max() <= 2


def test_little_that_fits_is_a_warning_and_one_line(gen: Gen) -> None:
    flat = lora_worlds.lightx2v(pairs())
    for block in range(20):
        flat[f"diffusion_model.blocks.{block}.cross_attn.k_img.diff_b"] = torch.ones(24)
    code, _, err = gen(*FILM, "--lora", write("x.safetensors", flat))
    assert code == 0, err
    assert f"matched {COUNT}/{COUNT + 20}" in err
    assert "left out: 20 for image input" in err
    assert "only 20 of 40 parts of x.safetensors" in err
    assert err.count("k_img") == 0


def test_a_colon_in_a_path(bundle: Path, tmp_path: Path) -> None:
    folder = check_folder(bundle)
    for name in ("x.safetensors", "a:b.safetensors", "1:2:3.safetensors"):
        path = write(str(tmp_path / name), lora_worlds.peft(pairs()))
        for end, strength in (
            ("", 1.0),
            (":0.25", 0.25),
            (":-3", -3.0),
            (":0", 0.0),
            (":1e-3", 0.001),
        ):
            (found,) = lora_files(path + end, folder)
            assert (str(found.path), found.strength) == (path, strength)
            assert lora_files(lora_text([found]), folder) == (found,)


BIG = {"blocks.0.self_attn.q": (torch.ones(1, 1536), torch.ones(1536, 1))}
REFUSED = [
    (None, "", 3, "no such file"),
    (b"", "", 3, "empty"),
    (b"x" * 99, "", 3, "not a safetensors file"),
    (lora_worlds.comfy(pairs()), ":nan", 2, "strength"),
    (lora_worlds.comfy(pairs()), ":1e9", 2, "strength"),
    (lora_worlds.comfy(BIG), "", 3, "1536x1536 (Wan2.1 1.3B)"),
    (lora_worlds.comfy({"x": pairs()["blocks.0.ffn.0"]}), "", 3, "matched 0/1"),
    ({"lora_unet_blocks_0_ffn_0.hada_w1_a": torch.ones(2)}, "", 3, "LoHa"),
    ({"head.modulation": torch.ones(2)}, "", 3, "not a LoRA"),
]


@pytest.mark.parametrize(("content", "end", "code", "word"), REFUSED)
def test_refused(
    gen: Gen, content: bytes | dict[str, Tensor] | None, end: str, code: int, word: str
) -> None:
    if isinstance(content, bytes):
        Path("x.safetensors").write_bytes(content)
    elif content is not None:
        write("x.safetensors", content)
    got, _, err = gen(*FILM, "--lora", f"x.safetensors{end}")
    assert (got, word in err, err.count("\n")) == (code, True, 1), err
    assert not Path("film.mp4").exists()


def test_a_folder_is_refused_and_code_is_not_run(gen: Gen) -> None:
    torch.save({"a": lora_worlds.worlds.Attack(Path("canary"))}, "x.pt")
    for name in ("x.pt", "."):
        assert gen(*FILM, "--lora", name)[0] == 3
    assert not Path("canary").exists()


def test_it_is_refused_without_torch(bundle: Path, tmp_path: Path) -> None:
    write(str(tmp_path / "x.safetensors"), lora_worlds.comfy(BIG))
    flags = ("--model_path", bundle, *FILM, "--lora", "x.safetensors")
    code = (
        "import sys; from mmpl.cli.gen import main; code = main(sys.argv[1:]); "
        "sys.exit(99 if 'torch' in sys.modules else code)"
    )
    words = [sys.executable, "-c", code, *map(str, flags)]
    assert subprocess.run(words, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}).returncode == 3


def test_inspect(gen: Gen) -> None:
    write("x.safetensors", lora_worlds.comfy(BIG))
    code, out, err = gen("inspect", "x.safetensors", plain=True)
    assert code == 0, err
    assert "a LoRA as ComfyUI / diffusion-pipe writes them" in out
    assert "modules  1, 1 with pairs, rank 1" in out
    assert "fits     Wan2.1 1.3B, 1/1 of it\n" in out
    torch.save({"generator_lora": lora_worlds.longlive(pairs())}, "x.pt")
    _, out, _ = gen("inspect", "x.pt", plain=True)
    assert "no published size of Wan: layers [24, 32] wide" in out
    write("y.safetensors", {"lora_unet_blocks_0_ffn_0.lokr_w1": torch.ones(2)})
    code, _, err = gen("inspect", "y.safetensors", plain=True)
    assert (code, "LoKr" in err) == (3, True)


def test_a_plan_is_populated_with_a_lora(gen: Gen, bundle: Path) -> None:
    film = (*FILM[:-1], 21)
    assert gen("plan", *film, "--job_dir", "job")[0] == 0
    assert gen(*film, "--job_dir", "job", "--output", "plain.mp4")[0] == 0
    lora = write("x.safetensors", lora_worlds.comfy(pairs()))
    code, _, err = gen("populate", "job", "--lora", lora, "--output", "x.mp4", plain=True)
    assert code == 0, err
    assert different("plain.mp4", "x.mp4")
    model = json.loads(Path("job/job.json").read_text())["model"]
    assert model == {"model_path": str(bundle), "lora": f"{Path(lora).absolute()}:1.0"}
    Path("x.mp4").unlink()
    assert gen("resume", "job", "--output", "y.mp4", plain=True)[0] == 0


def test_a_film_is_not_revised_with_another_lora(gen: Gen, bundle: Path, tmp_path: Path) -> None:
    """Refused before anything of the job is touched; the same again, from elsewhere, is not."""
    first = write("x.safetensors", lora_worlds.comfy(pairs()))
    other = write("y.safetensors", lora_worlds.comfy(pairs(1)))
    film = (*FILM[:-1], 21)
    assert gen("plan", *film, "--job_dir", "job", "--lora", f"{first}:0.5")[0] == 0
    there = {path: path.read_bytes() for path in Path("job").rglob("*") if path.is_file()}
    another = write_model(tmp_path / "another", seed=5)
    for flags in (
        ("--lora", f"{other}:0.5"),
        ("--lora", f"{first}:0.6"),
        ("--lora", f"{first}:0.5", "--lora", f"{other}:0.5"),
        ("--lora", f"{first}:0.5", "--model_path", another),
    ):
        code, _, err = gen("reroll", "job", "--segment", 1, *flags, plain=True)
        assert (code, err.count("\n")) == (6, 1), err
        assert "made with other weights" in err
        after = {path: path.read_bytes() for path in Path("job").rglob("*") if path.is_file()}
        assert after == there
    Path("z.safetensors").write_bytes(Path(first).read_bytes())
    flags = ("--lora", "z.safetensors:0.5", "--model_path", bundle)
    code, _, err = gen("reroll", "job", "--segment", 1, *flags, plain=True)
    assert code == 0, err
