"""The rules of `house_rules` hold, and every one of them can fail.

Each rule is also given code that breaks it, so that none passes because it looks at nothing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from tests.house_rules import (
    MOST_FUNCTION_LINES,
    MOST_LINES,
    NEEDS_TORCH,
    NO_TORCH,
    READS_PICKLES,
    ROOT,
    RULES,
    WRITES_PICKLES,
    Source,
    caller_keeps_state,
    circle,
    floors,
    inert_import,
    integers_only,
    keyed_noise,
    known_floor,
    no_geometry,
    no_globals,
    quiet,
    readable,
    safe_reading,
    sources,
    strangers,
    way_to_torch,
    within,
)

Rule = Callable[[Source], list[str]]

SOURCES = sources()


# ------------------------------------------------------------------------- the house keeps them


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule: Rule) -> None:
    assert len(SOURCES) > 30
    problems = [problem for source in SOURCES.values() for problem in rule(source)]
    assert not problems, "\n".join(problems)


def test_quick_answers_need_no_torch() -> None:
    quick = [n for n in SOURCES if within(n, NO_TORCH) and not within(n, NEEDS_TORCH)]
    assert {name.rstrip(".") for name in NO_TORCH} <= set(quick)
    ways = [way_to_torch(module, SOURCES) for module in quick]
    found = [" > ".join(way) for way in ways if way]
    assert not found, "\n".join(found)


def test_no_files_import_each_other() -> None:
    assert circle(SOURCES) == []


def test_top_level() -> None:
    try:
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    assert strangers({line.split("/")[0] for line in listed.splitlines()}) == set()


# ------------------------------------------------------------------------- every rule can fail

BROKEN = (
    (floors, "mmpl.errors", "from mmpl.layout import slots"),
    (floors, "mmpl.layout.slots", "import mmpl.wan.config"),
    (floors, "mmpl.wan.dit", "from mmpl.film.settings import Film"),
    (floors, "mmpl.wan.dit", "def f():\n    from mmpl import checkpoint"),
    (floors, "mmpl.wan.text", "from mmpl.media import video"),
    (floors, "mmpl.wan.text", "from mmpl.train.grammar import sentence"),
    (floors, "mmpl.media.video", "from mmpl.checkpoint.read import digest"),
    (floors, "mmpl.checkpoint.read", "import mmpl.film.settings as settings"),
    (floors, "mmpl.train.loop", "from mmpl.film import segment"),
    (floors, "mmpl.film.segment", "from mmpl.generate import generate"),
    (floors, "mmpl.eval.reader", "from mmpl.generate import generate"),
    (floors, "mmpl.train.loop", "from mmpl.eval import reader"),
    (floors, "mmpl.generate", "from mmpl.cli.shell import Console"),
    (floors, "mmpl", "from mmpl.generate import generate"),
    (floors, "mmpl.wan.dit", "from . import cache"),
    (known_floor, "mmpl.utils", ""),
    (integers_only, "mmpl.layout.mask", "import torch"),
    (integers_only, "mmpl.layout.mask", "def f():\n    from torch import Tensor"),
    (quiet, "mmpl.film.segment", "print('done')"),
    (quiet, "mmpl.generate", "import sys\nsys.stderr.write('x')"),
    (quiet, "mmpl.wan.ops", "import os\nFAST = os.environ.get('FAST')"),
    (quiet, "mmpl.wan.ops", "from os import getenv as look"),
    (quiet, "mmpl.checkpoint.read", "import logging"),
    (no_globals, "mmpl.wan.cache", "def f():\n    global TABLE\n    TABLE = 1"),
    (inert_import, "mmpl.wan.rope", "import torch\nTABLE = torch.arange(4)"),
    (inert_import, "mmpl.wan.rope", "TABLE = build()"),
    (inert_import, "mmpl.wan.rope", "class A:\n    path = open('x')"),
    (inert_import, "mmpl.wan.rope", "def f(x=make()):\n    return x"),
    (inert_import, "mmpl.wan.rope", "import torch\n@torch.compile()\ndef f(): ..."),
    (caller_keeps_state, "mmpl.generate", "import torch\ntorch.manual_seed(0)"),
    (caller_keeps_state, "mmpl.wan.ops", "from torch import set_num_threads"),
    (caller_keeps_state, "mmpl.wan.vae", "from torch import backends\nbackends.cuda.x = 1"),
    (caller_keeps_state, "mmpl.wan.vae", "import torch\ntorch.backends.cudnn.benchmark = True"),
    (keyed_noise, "mmpl.film.segment", "import torch\nx = torch.randn(3)"),
    (keyed_noise, "mmpl.wan.flow", "from torch import rand_like as r\nx = r(y)"),
    (keyed_noise, "mmpl.generate", "x.normal_()"),
    (keyed_noise, "mmpl.wan.noise", "import numpy as np\nx = np.random.rand()"),
    (safe_reading, "mmpl.media.video", "import torch as t\nx = t.load('f', weights_only=True)"),
    (safe_reading, "mmpl.film.segment", "from pickle import loads"),
    (safe_reading, "mmpl.train.loop", "import torch\ntorch.save({}, 'f')"),
    (safe_reading, WRITES_PICKLES, "import torch\nx = torch.load('f', weights_only=True)"),
    (safe_reading, "mmpl.checkpoint.folder", "x = eval('1')"),
    (safe_reading, "mmpl.media.video", "import subprocess"),
    (safe_reading, READS_PICKLES, "import torch\nx = torch.load('f')"),
    (safe_reading, READS_PICKLES, "import torch\nx = torch.load('f', weights_only=False)"),
    (no_geometry, "mmpl.film.segment", "TOKENS = 32760"),
    (no_geometry, "mmpl.wan.cache", "def f(n=1560): ..."),
    (readable, "mmpl.wan.dit", "x = 1\n" * (MOST_LINES + 1)),
    (readable, "mmpl.wan.dit", "def f():\n" + "    x = 1\n" * MOST_FUNCTION_LINES),
)
SOUND = (
    (floors, "mmpl.eval.reader", "from mmpl.train.grammar import hue_bin"),
    (floors, "mmpl.cli.gen", "from mmpl.generate import generate"),
    (floors, "bin.mmpl-gen", "from mmpl.cli.gen import main"),
    (quiet, "mmpl.cli.shell", "print('done')"),
    (quiet, "mmpl.film.segment", "blueprint = 1\ndef f(x): return x.print"),
    (inert_import, "mmpl.wan.rope", "import torch\ndef f():\n    return torch.arange(4)"),
    (inert_import, "mmpl.wan.rope", "if __name__ == '__main__':\n    run()"),
    (caller_keeps_state, "mmpl.wan.ops", "import torch\nx = torch.backends.cudnn.is_available()"),
    (keyed_noise, "mmpl.wan.flow", "import torch\nx = torch.randn(3, generator=g)"),
    (safe_reading, READS_PICKLES, "import torch\nx = torch.load('f', weights_only=True)"),
    (safe_reading, WRITES_PICKLES, "import torch\ntorch.save({}, 'f')"),
    (no_geometry, "mmpl.layout.presets", "TOKENS = 32760"),
)


@pytest.mark.parametrize(("rule", "module", "text"), BROKEN)
def test_rule_fails(rule: Rule, module: str, text: str) -> None:
    assert rule(Source(module, text)) != []


@pytest.mark.parametrize(("rule", "module", "text"), SOUND)
def test_rule_passes(rule: Rule, module: str, text: str) -> None:
    assert rule(Source(module, text)) == []


def test_every_rule_is_broken_once() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(RULES)


def test_torch_is_found_through_others() -> None:
    texts = {
        "mmpl": "",
        "mmpl.a": "from mmpl.b import f",
        "mmpl.b": "from mmpl import c",
        "mmpl.c": "import torch.nn",
        "mmpl.d": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
        "mmpl.e": "def f():\n    import torch",
        "mmpl.p": "from safetensors.torch import load_file",
        "mmpl.p.q": "x = 1",
        "mmpl.r": "import mmpl.p.q",
    }
    known = {module: Source(module, text) for module, text in texts.items()}
    assert way_to_torch("mmpl.a", known) == ["mmpl.a", "mmpl.b", "mmpl.c", "torch.nn"]
    assert way_to_torch("mmpl.r", known) == ["mmpl.r", "mmpl.p", "safetensors.torch.load_file"]
    assert way_to_torch("mmpl.d", known) == way_to_torch("mmpl.e", known) == []


def test_circles_are_found() -> None:
    texts = {
        "mmpl": "",
        "mmpl.a": "from mmpl import b",
        "mmpl.b": "def f():\n    from mmpl.c import x",
        "mmpl.c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mmpl.b.y",
        "mmpl.d": "import numpy\nfrom mmpl.e import z",
        "mmpl.e": "x = 1",
    }
    known = {module: Source(module, text) for module, text in texts.items()}
    assert circle(known) == ["mmpl.a", "mmpl.b", "mmpl.c"]
    del known["mmpl.c"]
    assert circle(known) == []


def test_strangers_are_found() -> None:
    assert strangers({"mmpl", "README.md", "setup.py", "docs"}) == {"setup.py", "docs"}
