"""Pinned host memory, with the calls to CUDA written down: they need a GPU."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from mmpl.wan import pinned as module
from mmpl.wan.cache import kv_allocate
from mmpl.wan.config import DiTConfig
from mmpl.wan.offload import Offload
from mmpl.wan.pinned import locked, pinned, pinned_zeros

Calls = list[tuple[str, int]]
CARD = torch.device("cuda", 1)
inside: list[torch.device] = []


@contextmanager
def entered(device: torch.device) -> Iterator[None]:
    """For `torch.cuda.device`."""
    inside.append(device)
    yield
    inside.pop()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """What CUDA is asked for. It locks 1000 bytes at most."""
    made: Calls = []
    bare = {name: getattr(torch, name) for name in ("empty", "zeros")}

    def register(address: int, size: int, flags: int) -> int:
        made.append(("lock", size))
        assert inside == [CARD]  # where it would make itself at home
        return 0 if size <= 1000 else 1

    def allocating(name: str, *args: object, pin_memory: bool = False, **given: object) -> object:
        if given.get("device") == CARD:
            raise RuntimeError("what went wrong before")
        if pin_memory:
            made.append(("torch pins", bare[name](*args, **given).nbytes))
        return bare[name](*args, **given)

    cudart = SimpleNamespace(
        cudaHostRegister=register,
        cudaHostUnregister=lambda address: made.append(("unlock", 0)),
    )
    monkeypatch.setattr(module, "_LARGE", 100)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: made.append(("wait", 0)))
    monkeypatch.setattr(torch.cuda, "device", entered)
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda x: made.append(("torch pins", x.nbytes)) or x.clone()
    )
    for name in bare:
        monkeypatch.setattr(torch, name, lambda *a, name=name, **g: allocating(name, *a, **g))
    yield made
    gc.collect()  # before CUDA is its own again


def test_large_tensors_are_locked_where_they_are_and_freed_again(calls: Calls) -> None:
    x = torch.arange(100.0)[::2]
    held = pinned(x, CARD)
    assert torch.equal(held, x)
    assert held.is_contiguous()
    assert calls == [("lock", 200)]
    view = held[3:]
    del held
    assert calls == [("lock", 200)]
    del view
    assert calls == [("lock", 200), ("wait", 0), ("unlock", 0)]


def test_small_ones_are_left_to_torch(calls: Calls) -> None:
    assert torch.equal(pinned(torch.ones(5), CARD), torch.ones(5))
    assert torch.equal(pinned_zeros((5, 2), torch.int8, CARD), torch.zeros(5, 2, dtype=torch.int8))
    assert calls == [("torch pins", 20), ("torch pins", 10)]


def test_where_pages_cannot_be_locked_torch_makes_a_copy(calls: Calls) -> None:
    x = torch.ones(1000)
    found = locked(x, CARD)
    assert torch.equal(found, x)
    assert found.data_ptr() != x.data_ptr()
    assert calls == [("lock", 4000), ("torch pins", 4000)]


def test_what_an_offload_keeps_for_a_gpu_is_pinned(calls: Calls) -> None:
    config = DiTConfig(dim=4, ffn_dim=4, num_heads=1, num_layers=2, text_dim=4)
    cache = kv_allocate(config, batch=1, slots=3, frame_tokens=2, device=CARD, hosted=True)
    assert cache.k_IBSNK.device.type == "cpu"
    assert not cache.k_IBSNK.any()
    assert calls == [("lock", 192), ("lock", 192)]
    offload = Offload("block", CARD)
    weights = offload._host((torch.ones(10), torch.ones(50)))
    assert calls[2:] == [("torch pins", 40), ("lock", 200)]
    assert [leaf.sum().item() for leaf in weights] == [10, 50]
