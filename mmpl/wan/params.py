"""Parameters: frozen dataclass trees made strictly from flat official-name state dicts, and back.

A tree's fields are tensors, other trees, or tuples of trees; a field's key in the state dict is
its name unless `key("ffn.0")` says otherwise. `from_flat` uses every key exactly once or raises.
Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from mmpl.errors import CheckpointError

Tree = TypeVar("Tree")
Flat = Mapping[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

SCALE = ".weight_scale"  # what marks a QuantisedLinear in a flat state dict


def key(name: str) -> Any:
    """Declares a field stored under another name than its own: `head: Linear = key("x.0")`."""
    return field(metadata={"key": name})


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """`weight` [out, in], `bias` [out]."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedLinear(Linear):
    """`weight` [out, in] in 8 bits, to be multiplied by `weight_scale` [out, 1], which is float32.

    Stands where a `Linear` may. `bias` is in the format that products are computed in.
    """

    weight_scale: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A lone `weight`: a linear map without bias, an embedding, or a norm's gain."""

    weight: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Gamma:
    """A lone `gamma`: gain of the VAE's RMS norm, one number per channel."""

    gamma: Tensor


def from_flat(cls: type[Tree], flat: Flat, shapes: Shapes, *, where: str = "weights") -> Tree:
    """The tree of type `cls` whose leaves are exactly the tensors of `flat`.

    `shapes` is what the config asks for; a linear map with a `weight_scale` beside its weight
    becomes a QuantisedLinear. Raises CheckpointError naming missing, unexpected and wrongly shaped
    keys.
    """
    scales = {
        scale: (shape[0], 1)
        for name, shape in shapes.items()
        if (scale := name.removesuffix(".weight") + SCALE) in flat and len(shape) == 2
    }
    check_shapes(flat, shapes | scales, where=where)
    used: set[str] = set()
    tree = _build(cls, flat, "", used)
    if used != set(flat):
        raise AssertionError(f"{cls.__name__} does not use {sorted(set(flat) - used)[:5]}")
    return tree


def to_flat(tree: object, prefix: str = "") -> dict[str, Tensor]:
    """The flat official-name state dict of a tree; inverse of `from_flat`."""
    return dict(_walk(tree, prefix))


def tree_map(
    function: Callable[[Any], Any], tree: Tree, *, leaves: tuple[type, ...] = (Tensor,)
) -> Tree:
    """The same tree with `function` applied to every tensor, or to every part that is one of
    `leaves`, which then is not looked into."""
    if isinstance(tree, leaves):
        return function(tree)
    if isinstance(tree, tuple):
        parts = (tree_map(function, part, leaves=leaves) for part in tree)
        return tuple(parts)  # type: ignore[return-value]
    if is_dataclass(tree):
        values = ((f.name, getattr(tree, f.name)) for f in fields(tree))
        parts = {name: tree_map(function, part, leaves=leaves) for name, part in values}
        return type(tree)(**parts)  # type: ignore[return-value]
    return tree


def check_shapes(flat: Flat, shapes: Shapes, *, where: str = "weights") -> None:
    """Raises CheckpointError unless `flat` has exactly the keys and shapes of `shapes`."""
    missing = [name for name in shapes if name not in flat]
    unexpected = [name for name in flat if name not in shapes]
    wrong = [n for n, shape in shapes.items() if n in flat and tuple(flat[n].shape) != shape]
    if not (missing or unexpected or wrong):
        return
    found = []
    if missing:
        found.append(f"{len(missing)} missing ({_some(missing)})")
    if unexpected:
        found.append(f"{len(unexpected)} unexpected ({_some(unexpected)})")
    if wrong:
        name = wrong[0]
        found.append(
            f"{len(wrong)} of another shape ({name}: {tuple(flat[name].shape)} for {shapes[name]})"
        )
    raise CheckpointError(
        "these tensors do not fit the config",
        where=where,
        got=", ".join(found),
        wanted=f"{len(shapes)} tensors",
        todo="check that the file belongs to this model and size",
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _key_of(f: Any) -> str:
    return f.metadata.get("key", f.name)


def _walk(tree: object, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield prefix, tree
    elif isinstance(tree, tuple):
        for index, part in enumerate(tree):
            yield from _walk(part, f"{prefix}.{index}" if prefix else str(index))
    elif is_dataclass(tree):
        for f in fields(tree):
            name = _key_of(f)
            yield from _walk(getattr(tree, f.name), f"{prefix}.{name}" if prefix else name)


def _build(hint: Any, flat: Flat, prefix: str, used: set[str]) -> Any:
    if hint is Tensor:
        used.add(prefix)
        return flat[prefix]
    if hint is type(None):
        return None
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return _build(_pick(get_args(hint), flat, prefix), flat, prefix, used)
    if origin is tuple:
        parts, element = [], get_args(hint)[0]
        while any(name.startswith(f"{prefix}.{len(parts)}.") for name in flat):
            parts.append(_build(element, flat, f"{prefix}.{len(parts)}", used))
        return tuple(parts)
    if hint is Linear and f"{prefix}{SCALE}" in flat:
        hint = QuantisedLinear
    hints = get_type_hints(hint)
    values = {}
    for f in fields(hint):
        name = f"{prefix}.{_key_of(f)}" if prefix else _key_of(f)
        values[f.name] = _build(hints[f.name], flat, name, used)
    return hint(**values)


def _pick(options: tuple[Any, ...], flat: Flat, prefix: str) -> Any:
    """The alternative whose leading field is present in `flat`; None if that is allowed."""
    for option in options:
        if option is type(None):
            continue
        leading = f"{prefix}.{_key_of(fields(option)[0])}"
        if any(name == leading or name.startswith(leading + ".") for name in flat):
            return option
    return type(None)
