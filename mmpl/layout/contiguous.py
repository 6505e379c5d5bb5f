"""Orders of items in which chosen sets of items each lie in one piece.

All such orders at once are kept as a tree (a PQ-tree, Booth and Lueker 1976): the leaves are the
items, the children of a node may be put in any order, or, at a `fixed` node, only in the given
one or its reverse. Asking for one more set narrows the tree, or shows that no order is left.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

EMPTY, PARTIAL, FULL = range(3)  # how much of a subtree lies in the set


@dataclass(frozen=True, slots=True)
class Node:
    """An inner node: `children` in any order, or if `fixed` only as given or reversed."""

    children: tuple[Tree, ...]
    fixed: bool = False


Tree = int | Node


def any_order(items: int) -> Tree:
    """The tree of all orders of items 0..items-1."""
    return _free(range(items))


def narrow(tree: Tree, members: frozenset[int]) -> Tree | None:
    """The tree of those orders in `tree` where `members` lie in one piece; None if none do."""
    if isinstance(tree, int) or _state(tree, members) != PARTIAL:
        return tree
    touched = [child for child in tree.children if _state(child, members) != EMPTY]
    if len(touched) == 1:
        inner = narrow(touched[0], members)
        if inner is None:
            return None
        children = tuple(inner if child is touched[0] else child for child in tree.children)
        return Node(children, tree.fixed)
    if tree.fixed:
        first, last = tree.children.index(touched[0]), tree.children.index(touched[-1])
        pieces = _piece(tree.children[first : last + 1], members)
        if pieces is None:
            return None
        return Node((*tree.children[:first], *pieces, *tree.children[last + 1 :]), fixed=True)
    empty, partial, full = _sorted_children(tree, members)
    pieces = _piece((*partial[:1], *_grouped(full), *partial[1:]), members)
    if pieces is None:
        return None
    block = pieces[0] if len(pieces) == 1 else Node(pieces, fixed=True)
    return _free((*empty, block))


def first_order(tree: Tree) -> tuple[int, ...]:
    """One order of the tree's items: as near to ascending as sorting at each node gets."""
    if isinstance(tree, int):
        return (tree,)
    parts = [first_order(child) for child in tree.children]
    if not tree.fixed:
        parts.sort(key=min)
    elif parts[-1] < parts[0]:
        parts.reverse()
    return tuple(item for part in parts for item in part)


def _piece(children: tuple[Tree, ...], members: frozenset[int]) -> tuple[Tree, ...] | None:
    """`children` taken apart so that the members in them lie in one piece: only the outer two
    may hold other items, which go to the outside."""
    if len(children) == 1:
        return children
    if any(_state(child, members) != FULL for child in children[1:-1]):
        return None
    left, right = _leaning(children[0], members), _leaning(children[-1], members)
    if left is None or right is None:
        return None
    return (*left, *children[1:-1], *reversed(right))


def _leaning(tree: Tree, members: frozenset[int]) -> tuple[Tree, ...] | None:
    """Subtrees, in a fixed order, that put the members in `tree` at its right end."""
    if isinstance(tree, int) or _state(tree, members) != PARTIAL:
        return (tree,)
    if tree.fixed:
        ends = _state(tree.children[0], members), _state(tree.children[-1], members)
        row = tree.children if ends[0] <= ends[1] else tree.children[::-1]
    else:
        empty, partial, full = _sorted_children(tree, members)
        row = (*_grouped(empty), *partial, *_grouped(full))
    states = [_state(child, members) for child in row]
    if states != sorted(states) or states.count(PARTIAL) > 1:
        return None
    result: list[Tree] = []
    for child in row:
        parts = _leaning(child, members)
        if parts is None:
            return None
        result.extend(parts)
    return tuple(result)


def _sorted_children(tree: Node, members: frozenset[int]) -> tuple[list[Tree], ...]:
    """The children with none, some and all of their items in the set."""
    kinds: tuple[list[Tree], ...] = ([], [], [])
    for child in tree.children:
        kinds[_state(child, members)].append(child)
    return kinds


def _grouped(children: list[Tree]) -> tuple[Tree, ...]:
    """The children under one free node, as a row of that one; an empty row if there are none."""
    return (_free(children),) if children else ()


def _free(children: Iterable[Tree]) -> Tree:
    row = tuple(children)
    return row[0] if len(row) == 1 else Node(row)


def _state(tree: Tree, members: frozenset[int]) -> int:
    if isinstance(tree, int):
        return FULL if tree in members else EMPTY
    states = {_state(child, members) for child in tree.children}
    return states.pop() if len(states) == 1 else PARTIAL
