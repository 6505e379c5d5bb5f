"""The transformer against the recorded reference: plain, masked and cached."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mmpl.wan import dit as network
from mmpl.wan.attention import token_mask
from mmpl.wan.cache import KVCache, SlotView, kv_allocate, kv_commit
from mmpl.wan.dit import CrossKV, Engine, Positions, dit, dit_cast, dit_shapes, encode_context
from mmpl.wan.ops import ALL_BFLOAT16, BFLOAT16, FLOAT32, Precision
from tests.parity import dit_tiny, golden

TOLERANCE = 2e-5
BF16_WORST, BF16_RMS = 0.1, 0.02
CONFIG = dit_tiny.config()
PLAIN = golden.load("dit_t2v_tiny")
PLAIN_META = golden.metadata("dit_t2v_tiny")
CAUSAL = golden.load("dit_causal_tiny")
CAUSAL_META = golden.metadata("dit_causal_tiny")
PARTS = ("x", "context", "out")
CASES = golden.cases(PLAIN, "case")
PLAIN_ENGINE = Engine()
CALLS = CAUSAL_META["kv"]["calls"]


@pytest.fixture(autouse=True)
def _without_gradient():
    with torch.no_grad():
        yield


# ------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("size", ["1.3b", "14b"])
def test_shapes_are_the_official_ones(size: str) -> None:
    manifest = golden.document(f"manifest_dit_t2v_{size}")
    shapes = dit_shapes(dit_tiny.config_from(manifest["info"]["config"]))
    assert shapes == {name: tuple(shape) for name, shape in manifest["tensors"].items()}


# --------------------------------------------------------------------------------------- plain


def samples(case: str) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Latent, timestep, context and recorded output of every sample of a case."""
    count = PLAIN_META[case]["batch"]
    flat = golden.under(PLAIN, case)
    return [
        (flat[f"x{i}"], flat["t"][i], flat[f"context{i}"], flat[f"out{i}"]) for i in range(count)
    ]


def run_sample(case: str, x: Tensor, t: Tensor, context: Tensor, engine: Engine) -> Tensor:
    params = dit_tiny.params(golden.under(PLAIN, f"{case}.override"))
    text = encode_context(params, CONFIG, [context], engine=engine)
    frames = x.shape[1]
    t_BT = t.float().expand(1, frames)
    where = Positions(positions=tuple(range(frames)))
    return dit(params, CONFIG, x[None], t_BT, text, frames=where, engine=engine)[0]


@pytest.mark.parametrize("case", [c for c in CASES if not PLAIN_META[c]["bf16"]])
def test_plain(case: str) -> None:
    """Samples of unequal size are run one by one: the reference pads them to a common length and
    masks the padding as keys, so it changes nothing."""
    for x, t, context, wanted in samples(case):
        got = run_sample(case, x, t, context, Engine())
        assert golden.worst(got, wanted) <= TOLERANCE


@pytest.mark.parametrize(("precision", "slack"), [(BFLOAT16, 1), (ALL_BFLOAT16, 2)])
@pytest.mark.parametrize("case", [c for c in CASES if PLAIN_META[c]["bf16"]])
def test_bfloat16(case: str, precision: Precision, slack: int) -> None:
    """The recording has float32 islands; without them the numbers are coarser."""
    for x, t, context, wanted in samples(case):
        got = run_sample(case, x, t, context, Engine(precision=precision))
        error = got.float() - wanted
        assert got.dtype == precision.island
        assert error.abs().max() < slack * BF16_WORST
        assert error.square().mean().sqrt() < slack * BF16_RMS


@pytest.mark.parametrize("case", [c for c in CASES if golden.under(PLAIN, f"{c}.inter")])
def test_intermediates(case: str) -> None:
    (x, t, context, _), *_ = samples(case)
    params = dit_tiny.params()
    padded = torch.nn.functional.pad(context, (0, 0, 0, CONFIG.text_len - len(context)))
    e_BTD, e_BT6D = network.time_embedding(params, CONFIG, t.float().expand(1, 1), FLOAT32)
    got = {
        "time_embedding": e_BTD[:, 0],
        "time_projection": e_BT6D.flatten(1),
        "text_embedding": network.text_embedding(params, padded[None], FLOAT32),
    }

    def recording_block(*arguments: object) -> Tensor:
        x_BLD = network.block(*arguments)  # type: ignore[arg-type]
        got[f"block{len(got) - 3}"] = x_BLD
        return x_BLD

    run_sample(case, x, t, context, Engine(block_fn=recording_block))
    last = got[f"block{CONFIG.num_layers - 1}"]
    got["head"] = network.head(params.head, CONFIG, last, e_BTD, FLOAT32)
    wanted = golden.under(PLAIN, f"{case}.inter")
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert golden.worst(got[name], value) <= TOLERANCE, name


def test_casting_ahead_changes_no_bit() -> None:
    case = CASES[0]
    (x, t, context, _), *_ = samples(case)
    engine = Engine(precision=BFLOAT16)
    rounded = dit_cast(dit_tiny.params(), BFLOAT16)
    text = encode_context(rounded, CONFIG, [context], engine=engine)
    where = Positions(positions=tuple(range(x.shape[1])))
    t_BT = t.float().expand(1, x.shape[1])
    got = dit(rounded, CONFIG, x[None], t_BT, text, frames=where, engine=engine)
    assert torch.equal(got[0], run_sample(case, x, t, context, engine))


# -------------------------------------------------------------------------------------- cached


def causal_text(engine: Engine) -> CrossKV:
    context = list(CAUSAL["kv.context"])
    return encode_context(dit_tiny.params(), CONFIG, context, engine=engine)


def causal_cache(frames: int, precision: Precision = FLOAT32) -> KVCache:
    batch, _, _, H, W = CAUSAL["kv.call0.x"].shape
    tokens, dtype = CONFIG.frame_tokens(H, W), precision.compute
    return kv_allocate(CONFIG, batch=batch, slots=frames, frame_tokens=tokens, dtype=dtype)


def run_cached(
    x: Tensor, t: Tensor, cache: KVCache, first: int, engine: Engine = PLAIN_ENGINE
) -> Tensor:
    stop = first + x.shape[2]
    where = Positions(tuple(range(first, stop)), SlotView((first, stop), (0, stop)))
    text = causal_text(engine)
    return dit(dit_tiny.params(), CONFIG, x, t, text, cache, frames=where, engine=engine)


def cached_calls(engine: Engine) -> Iterator[tuple[Tensor, Tensor]]:
    """Every call's output, and every block's rows after it, each beside what was recorded, in the
    recorded order."""
    meta = CAUSAL_META["kv"]
    slots = meta["frames_per_chunk"] * meta["chunks"]
    cache = causal_cache(slots, engine.precision or FLOAT32)
    for call in CALLS:
        recorded = golden.under(CAUSAL, f"kv.call{call['call']}")
        first = call["current_start"] // meta["frame_tokens"]
        yield run_cached(recorded["x"], recorded["t"], cache, first, engine), recorded["out"]
        for layer in range(CONFIG.num_layers):
            rows = cache.layer(layer)
            for part, found in (("k", rows.k_BSNK), ("v", rows.v_BSNK)):
                wanted = recorded[f"cache{layer}.{part}"]
                yield found[:, : wanted.shape[1]].clone(), wanted
        if call["kind"].startswith("refresh"):
            cache = kv_commit(cache, range(first, first + meta["frames_per_chunk"]))


def test_cached_calls() -> None:
    pairs = list(cached_calls(PLAIN_ENGINE))
    assert len(pairs) == len(CALLS) * (1 + 2 * CONFIG.num_layers)
    assert max(golden.worst(got, wanted) for got, wanted in pairs) <= TOLERANCE


def test_cross_cache() -> None:
    text = causal_text(PLAIN_ENGINE)
    for layer in range(CONFIG.num_layers):
        wanted = golden.under(CAUSAL, f"kv.crosscache{layer}")
        assert golden.worst(text.layer(layer).k_BSNK, wanted["k"]) <= TOLERANCE
        assert golden.worst(text.layer(layer).v_BSNK, wanted["v"]) <= TOLERANCE


def test_time_of_its_own_for_every_frame() -> None:
    recorded = golden.under(CAUSAL, "perframe")
    got = run_cached(recorded["x"], recorded["t"], causal_cache(recorded["x"].shape[2]), 0)
    assert golden.worst(got, recorded["out"]) <= TOLERANCE


# -------------------------------------------------------------------------------------- masked


def chunk_of(frames: int, per_chunk: int, first: int) -> Tensor:
    """The chunk that each frame is in, when the first chunk has `first` frames."""
    return (torch.arange(frames) - first).div(per_chunk, rounding_mode="floor") + 1


def run_masked(x: Tensor, t: Tensor, mask_TT: Tensor, positions: tuple[int, ...]) -> Tensor:
    mask_LL = token_mask(mask_TT, CONFIG.frame_tokens(*x.shape[3:]))
    where = Positions(positions, mask_LL=mask_LL)
    return dit(dit_tiny.params(), CONFIG, x, t, causal_text(PLAIN_ENGINE), frames=where)


@pytest.mark.parametrize(("case", "small_first"), [("blockcausal", False), ("firstframe", True)])
def test_block_causal(case: str, small_first: bool) -> None:
    meta, recorded = CAUSAL_META[case], golden.under(CAUSAL, case)
    per_chunk = meta["frames_per_block"]
    chunk = chunk_of(meta["frames"], per_chunk, 1 if small_first else per_chunk)
    mask_TT = chunk[:, None] >= chunk[None, :]
    got = run_masked(recorded["x"], recorded["t"], mask_TT, tuple(range(meta["frames"])))
    assert golden.worst(got, recorded["out"]) <= TOLERANCE


def teacher_forcing_mask() -> Tensor:
    """[2T, 2T], clean frames first."""
    meta = CAUSAL_META["teacher_forcing"]
    chunk = chunk_of(meta["frames"], meta["frames_per_block"], meta["frames_per_block"])
    past, own = chunk[:, None] > chunk[None, :], chunk[:, None] == chunk[None, :]
    clean = torch.cat((past | own, torch.zeros_like(own)), dim=1)
    return torch.cat((clean, torch.cat((past, own), dim=1)))


def test_teacher_forcing_mask() -> None:
    got = token_mask(teacher_forcing_mask(), CAUSAL_META["teacher_forcing"]["frame_tokens"])
    assert torch.equal(got, CAUSAL["teacher_forcing.mask"].bool())


@pytest.mark.parametrize("output", ["out", "out_aug"])
def test_teacher_forcing(output: str) -> None:
    recorded = golden.under(CAUSAL, "teacher_forcing")
    frames = CAUSAL_META["teacher_forcing"]["frames"]
    clean_t = recorded["aug_t"] if output == "out_aug" else torch.zeros_like(recorded["t"])
    x = torch.cat((recorded["clean_x"], recorded["x"]), dim=2)
    t = torch.cat((clean_t, recorded["t"]), dim=1)
    got = run_masked(x, t, teacher_forcing_mask(), tuple(range(frames)) * 2)
    assert golden.worst(got[:, :, frames:], recorded[output]) <= TOLERANCE
