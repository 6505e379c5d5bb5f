"""The rules of the house: floors, hidden state, safety, sizes. Read from source, nothing is run.

Each rule is a function from one source file to the problems it finds there.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

ROOT = Path(__file__).parents[1]
MOST_LINES, MOST_FUNCTION_LINES = 400, 60

FLOORS = {
    "errors": 0,
    "layout": 1,
    "wan": 2,
    "media": 3,
    "checkpoint": 4,
    "film": 5,
    "train": 5,
    "eval": 6,  # measures against the data that training draws
    "generate": 7,
    "cli": 8,
    "bin": 9,
}
NO_TORCH = (
    "mmpl.errors",
    "mmpl.layout.",
    "mmpl.wan.choices",
    "mmpl.wan.config",
    "mmpl.film.given_file",
    "mmpl.film.job",
    "mmpl.film.pins",
    "mmpl.film.settings",
    "mmpl.film.space",
    "mmpl.checkpoint.defaults",
    "mmpl.checkpoint.files",
    "mmpl.checkpoint.folder",
    "mmpl.checkpoint.gguf_file",
    "mmpl.checkpoint.lora_files",
    "mmpl.checkpoint.lora_names",
    "mmpl.checkpoint.lora_settings",
    "mmpl.checkpoint.names",
    "mmpl.checkpoint.published",
    "mmpl.checkpoint.quantised",
    "mmpl.checkpoint.recognise",
    "mmpl.checkpoint.search",
    "mmpl.checkpoint.sentencepiece",
    "mmpl.checkpoint.tokenizer_file",
    "mmpl.checkpoint.sizes",
    "mmpl.media.clip",
    "mmpl.media.fit",
    "mmpl.media.image",
    "mmpl.media.source",
    "mmpl.media.video",
    "mmpl.train.footage",
    "mmpl.train.grammar",
    "mmpl.train.manifest",
    "mmpl.train.origin",
    "mmpl.train.trainable",
    "mmpl.train.tuning",
    "mmpl.cli.",
)
# Imported once all else is checked.
NEEDS_TORCH = (
    *("mmpl.cli.make", "mmpl.cli.memory", "mmpl.cli.progress", "mmpl.cli.crew"),
    *("mmpl.cli.storyboard", "mmpl.cli.report", "mmpl.cli.showing"),
)
STARTS_PROCESSES = "mmpl.cli.ranks"  # its own command again
READS_PICKLES = "mmpl.checkpoint.read"
WRITES_PICKLES = "mmpl.checkpoint.write"  # plain tensors, which others' code loads
TERMINAL = ("print", "input", "sys.stdin", "sys.stdout", "sys.stderr", "sys.argv", "logging")
ENVIRONMENT = ("os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv")
PICKLES = ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
RUNS_CODE = ("eval", "exec", "compile", "os.system", "os.popen", "subprocess", "__import__")
PROCESS_STATE = (
    "torch.manual_seed",
    "torch.seed",
    "torch.set_rng_state",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "torch.set_grad_enabled",
    "torch.set_default_dtype",
    "torch.set_default_device",
    "torch.set_num_threads",
    "torch.use_deterministic_algorithms",
)
RANDOM = {
    f"torch.{name}{like}"
    for name in ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial")
    for like in ("", "_like")
}
RANDOM_IN_PLACE = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "log_normal_"}
GEOMETRY = {1560, 32760, 75600}  # tokens of a frame and of a clip at Wan's two sizes
KNOWS_GEOMETRY = ("mmpl.wan.config", "mmpl.layout.")
AT_IMPORT = {  # what may be called while a module is imported: pure and quick
    *("dict", "enumerate", "frozenset", "len", "range", "reversed", "set", "sorted", "tuple"),
    *("typing.TypeVar", "typing.get_args", "dataclasses.dataclass", "dataclasses.field"),
    *("math.factorial", "math.log", "math.radians", "math.sqrt", "re.compile"),
    "types.MappingProxyType",
    *("pathlib.Path", "torch.no_grad", "mmpl.wan.params.key"),
    *("mmpl.checkpoint.names._joined", "mmpl.cli.flags.one_of"),
    *("mmpl.cli.flags.whole", "mmpl.cli.flags.real"),
}
METHODS_AT_IMPORT = {"items", "join", "resolve"}
TOP_LEVEL = {
    *("mmpl", "weights", "bin", "tests", "pyproject.toml", "README.md"),
    *("LICENSE", "SECURITY.md", "constraints.txt", ".gitignore", ".ci"),
}


@dataclass(frozen=True)
class Source:
    """A file: its name as imports have it, and its text. Scripts are `bin.<name>`."""

    module: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.module)

    @cached_property
    def names(self) -> dict[str, str]:
        """Local name -> full name, of all its imports."""
        return local_names(self.tree)

    @cached_property
    def used(self) -> list[tuple[int, str]]:
        """Line and full name of everything it imports or reads."""
        found = [(node.lineno, full) for node, full in imports_of(self.tree)]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name | ast.Attribute):
                found.append((node.lineno, full_name(node, self.names)))
        return found

    @property
    def part(self) -> str:
        """The floor it belongs to; empty for the package itself."""
        return part_of(self.module)


def part_of(module: str) -> str:
    top, *rest = module.split(".")
    return "bin" if top == "bin" else rest[0] if rest else ""


def sources() -> dict[str, Source]:
    found = {}
    for path in sorted((ROOT / "mmpl").rglob("*.py")):
        steps = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(steps[:-1] if steps[-1] == "__init__" else steps)
        found[module] = Source(module, path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "bin").iterdir()):
        if path.is_file():
            found[f"bin.{path.name}"] = Source(f"bin.{path.name}", path.read_text("utf-8"))
    return found


# ------------------------------------------------------------------------- reading source


def imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Of an import statement: local name, full name."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            top = alias.name.split(".")[0]
            yield (alias.asname, alias.name) if alias.asname else (top, alias.name)
    elif isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        for alias in node.names:
            yield alias.asname or alias.name, f"{module}.{alias.name}"


def imports_of(tree: ast.Module) -> Iterator[tuple[ast.stmt, str]]:
    """Every import statement of a file, wherever it stands, with each full name."""
    for node in ast.walk(tree):
        for _, full in imported(node):
            yield cast("ast.stmt", node), full


def local_names(tree: ast.Module) -> dict[str, str]:
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        for local, full in imported(node):
            plain = isinstance(node, ast.Import) and local == full.split(".")[0]
            names[local] = local if plain else full
    return names


def full_name(node: ast.AST, names: Mapping[str, str]) -> str:
    """`np.random.rand` -> numpy.random.rand; empty for what is not a dotted name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = full_name(node.value, names)
        return f"{base}.{node.attr}" if base else ""
    return ""


def calls(source: Source) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            yield node, full_name(node.func, source.names)


def within(name: str, places: tuple[str, ...]) -> bool:
    """Whether `name` is one of `places` or below it."""
    return any(name == p.rstrip(".") or name.startswith(p.rstrip(".") + ".") for p in places)


def found_in(source: Source, unwanted: tuple[str, ...], what: str) -> list[str]:
    hits = {(line, name) for line, name in source.used if within(name, unwanted)}
    return [f"{source.module}:{line}: {what}: {name}" for line, name in sorted(hits)]


def at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node that is evaluated when the module is imported for its names."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in (
            "TYPE_CHECKING",
            "__name__ == '__main__'",
        ):
            todo += node.orelse
            continue
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            defaults = [default for default in node.args.kw_defaults if default]
            todo += [*node.decorator_list, *node.args.defaults, *defaults]
        elif not isinstance(node, ast.Lambda):
            todo += ast.iter_child_nodes(node)


# ------------------------------------------------------------------------- the rules


def floors(source: Source) -> list[str]:
    """A file imports only from floors below its own, and from its own folder."""
    problems = []
    for node, name in imports_of(source.tree):
        line = node.lineno
        if name.startswith("."):
            problems.append(f"{source.module}:{line}: relative import of {name}")
        elif name.split(".")[0] == "mmpl":
            part, own = part_of(name), source.part
            if part in ("", own):
                continue
            if part in FLOORS and not (own in FLOORS and FLOORS[part] < FLOORS[own]):
                problems.append(f"{source.module}:{line}: {own} is not above {part}: {name}")
    return problems


def known_floor(source: Source) -> list[str]:
    """There is no folder or page besides those of the design."""
    named = source.module == "mmpl" or source.part in FLOORS
    return [] if named else [f"{source.module}: not on any floor"]


def integers_only(source: Source) -> list[str]:
    """Layouts are integers: no torch there, not even inside a function."""
    return found_in(source, ("torch",), "torch in layout") if source.part == "layout" else []


def quiet(source: Source) -> list[str]:
    """Only the commands print or read the environment."""
    if source.part in ("cli", "bin"):
        return []
    return found_in(source, TERMINAL + ENVIRONMENT, "terminal or environment")


def no_globals(source: Source) -> list[str]:
    """No function rebinds a name of its module."""
    nodes = (node for node in ast.walk(source.tree) if isinstance(node, ast.Global))
    return [f"{source.module}:{node.lineno}: global {', '.join(node.names)}" for node in nodes]


def inert_import(source: Source) -> list[str]:
    """Importing a module calls nothing but what is pure and quick."""
    if source.part == "bin":
        return []
    problems = []
    for node in at_import(source.tree):
        if isinstance(node, ast.Call) and not _pure(node, source.names, source.module):
            problems.append(f"{source.module}:{node.lineno}: at import: {ast.unparse(node)[:60]}")
    return problems


def _pure(call: ast.Call, names: Mapping[str, str], module: str) -> bool:
    name = full_name(call.func, names)
    if isinstance(call.func, ast.Attribute) and call.func.attr in METHODS_AT_IMPORT:
        return True
    if isinstance(call.func, ast.Name) and name == call.func.id and not hasattr(builtins, name):
        name = f"{module}.{name}"
    makes_value = name.startswith("mmpl.") and name.split(".")[-1][:1].isupper()
    return name in AT_IMPORT or makes_value


def caller_keeps_state(source: Source) -> list[str]:
    """The library leaves seeds, grad mode, default dtype, threads and backends as they are."""
    if source.part in ("cli", "bin"):
        return []
    names = source.names
    return found_in(source, PROCESS_STATE, "state of the process") + [
        f"{source.module}:{node.lineno}: sets {full_name(node, names)}"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if full_name(node, names).startswith("torch.")
    ]


def keyed_noise(source: Source) -> list[str]:
    """Nothing that makes a film draws from a generator that it was not given."""
    if source.part not in ("film", "wan", "generate"):
        return []
    problems = found_in(source, ("random", "numpy.random"), "random numbers")
    for call, name in calls(source):
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        drawn = name in RANDOM or method in RANDOM_IN_PLACE
        if drawn and not any(keyword.arg == "generator" for keyword in call.keywords):
            problems.append(f"{source.module}:{call.lineno}: no generator: {ast.unparse(call)}")
    return problems


def safe_reading(source: Source) -> list[str]:
    """Pickles are opened in one file, with weights_only; nothing runs text as code."""
    if source.module != READS_PICKLES:
        allowed = {("subprocess", STARTS_PROCESSES), ("torch.save", WRITES_PICKLES)}
        unsafe = (*PICKLES, "torch.load", "torch.save", *RUNS_CODE)
        return found_in(
            source, tuple(n for n in unsafe if (n, source.module) not in allowed), "unsafe"
        )
    problems = found_in(source, RUNS_CODE, "unsafe")
    for call, name in calls(source):
        options = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if name == "torch.load" and options.get("weights_only") != "True":
            problems.append(f"{source.module}:{call.lineno}: torch.load without weights_only=True")
    return problems


def no_geometry(source: Source) -> list[str]:
    """Sizes of one model are derived, not written down."""
    if within(source.module, KNOWS_GEOMETRY):
        return []
    return [
        f"{source.module}:{node.lineno}: geometry literal {node.value}"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value in GEOMETRY
    ]


def readable(source: Source) -> list[str]:
    """Files and functions are short enough to be read in one go."""
    lines = source.text.count("\n")
    problems = [f"{source.module}: {lines} lines"] if lines > MOST_LINES else []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MOST_FUNCTION_LINES:
                problems.append(f"{source.module}:{node.lineno}: {node.name}: {length} lines")
    return problems


RULES: tuple[Callable[[Source], list[str]], ...] = (
    floors, known_floor, integers_only, quiet, no_globals, inert_import, caller_keeps_state,
    keyed_noise, safe_reading, no_geometry, readable,
)  # fmt: skip


def way_to_torch(module: str, known: Mapping[str, Source]) -> list[str]:
    """The chain of imports by which importing `module` imports torch; empty if it does not."""
    todo, seen = [[module]], {module}
    while todo:
        way = todo.pop(0)
        source = known.get(way[-1])
        nodes = at_import(source.tree) if source else iter(())
        for full in (full for node in nodes for _, full in imported(node)):
            if within(full, ("torch", "safetensors.torch")):
                return [*way, full]
            steps = full.split(".")
            parents = {".".join(steps[:count]) for count in range(1, len(steps) + 1)}
            for name in sorted((parents & known.keys()) - seen):
                seen.add(name)
                todo.append([*way, name])
    return []


def circle(known: Mapping[str, Source]) -> list[str]:
    """Files that import each other in a circle, and those that import such, for whatever end and
    wherever the imports stand; empty if there are none."""
    left = {
        module: {_file_of(full, known) for _, full in imports_of(source.tree)} - {module, ""}
        for module, source in known.items()
    }
    while free := [module for module, others in left.items() if not others & left.keys()]:
        for module in free:
            del left[module]
    return sorted(left)


def _file_of(full: str, known: Mapping[str, Source]) -> str:
    """The file that a full name is of; "" if it is none of these."""
    while full and full not in known:
        full = full.rpartition(".")[0]
    return full


def strangers(names: set[str]) -> set[str]:
    """What is at the top of the repository and should not be."""
    return names - TOP_LEVEL
