"""ListOps: nested lists of digits under MIN, MAX, MED and SM, whose value is a digit.

Nangia & Bowman 2018 (arXiv 1804.06028); the grammar and its lengths are the Long Range Arena's (Tay et al. 2020, 2011.04006).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from instar.errors import DataError

SYMBOLS = (*"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
"""Tokens by their number: a digit is its own."""
END = SYMBOLS.index("]")
_OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda given: (sorted(given)[(len(given) - 1) // 2] + sorted(given)[len(given) // 2]) // 2,
    "[SM": lambda given: sum(given) % 10,
}
_BRANCHES = 0.25  # LRA's chance that a node is an operator
_DRAWN = 1 << 16  # trees at a time

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Level:
    """The nodes of many trees at one depth, tree by tree and from left to right; so are their children one level below."""

    tree: Ints
    symbol: Ints
    children: Ints
    """0 for a digit, 2 or more for an operator."""

    @property
    def starts(self) -> Ints:
        """Where the children of each operator begin one level below."""
        return (self.children.cumsum() - self.children)[self.children > 0]

    def of(self, kept: NDArray[np.bool_]) -> Level:
        """The nodes of the trees that are kept, which are numbered anew."""
        here = kept[self.tree]
        return Level((kept.cumsum() - 1)[self.tree[here]], self.symbol[here], self.children[here])


def rows(
    count: int, *, tree_depth: int, args: int, shortest: int, longest: int, generator: torch.Generator
) -> tuple[list[NDArray[np.uint8]], Ints]:
    """`count` different sequences of `shortest` to `longest` tokens, and their values.

    A tree grows from an operator at depth 1. Deeper nodes are operators of 2 to `args` children with a chance of 1/4, and digits
    otherwise; all are digits at `tree_depth`. A list is read `[OP … ]`: two tokens more than its children have. Trees of other
    lengths are drawn again. Raises DataError where the grammar hardly makes such lengths.
    """
    found: dict[bytes, int] = {}
    for drawn in itertools.count(_DRAWN, _DRAWN):
        levels = _grow(_DRAWN, tree_depth, args, generator)
        lengths = np.zeros(_DRAWN, dtype=np.int64)
        for level in levels:
            lengths += np.bincount(level.tree, 1.0 + (level.children > 0), _DRAWN).astype(np.int64)
        kept = (lengths >= shortest) & (lengths <= longest)
        flat, values = _write([level.of(kept) for level in levels], lengths[kept])
        ends = lengths[kept].cumsum().tolist()
        for begin, end, value in zip([0, *ends], ends, values.tolist(), strict=False):
            found.setdefault(flat[begin:end].tobytes(), value)
        if len(found) >= count:
            break
        if drawn > 1_000_000 + 200 * count:
            raise DataError(
                f"{drawn} trees of depth {tree_depth} with up to {args} arguments gave {len(found)} different sequences of "
                f"{shortest} to {longest} tokens; {count} were asked. Ask for fewer, other lengths, or larger trees."
            )
    chosen = list(itertools.islice(found.items(), count))
    return [np.frombuffer(text, dtype=np.uint8) for text, _ in chosen], np.array([value for _, value in chosen])


def show(tokens: Sequence[int] | NDArray[np.uint8]) -> str:
    """A sequence as text: `[MAX 2 9 [MIN 4 7 ] 0 ]`."""
    return " ".join(SYMBOLS[int(token)] for token in tokens)


def value(text: str) -> int:
    """The value of a list given as text, found by reading it from left to right with a stack.

    It shares nothing with the drawing of trees, whose values it checks. Raises DataError for what is no list.
    """
    stack: list[tuple[str, list[int]]] = [("", [])]
    for word in text.split():
        if word in _OPERATORS:
            stack.append((word, []))
        elif word == "]" and len(stack) > 1 and stack[-1][1]:
            operator, given = stack.pop()
            stack[-1][1].append(_OPERATORS[operator](given))
        elif len(word) == 1 and word in "0123456789":
            stack[-1][1].append(int(word))
        else:
            raise DataError(f"'{text}' is no list: '{word}' cannot stand where it does. A list reads [MAX 2 9 [MIN 4 7 ] 0 ].")
    if len(stack) > 1 or len(stack[0][1]) != 1:
        raise DataError(f"'{text}' is no list: it must be one expression whose brackets are closed.")
    return stack[0][1][0]


def _grow(count: int, tree_depth: int, args: int, generator: torch.Generator) -> list[Level]:
    """Levels of `count` trees, from the roots down."""
    levels: list[Level] = []
    tree = np.arange(count)
    for depth in range(1, tree_depth + 1):
        shape = (len(tree),)
        branches = torch.rand(shape, generator=generator).numpy() < (_BRANCHES if depth > 1 else 1.0)
        branches &= depth < tree_depth
        children = np.where(branches, torch.randint(2, args + 1, shape, generator=generator).numpy(), 0)
        operators = torch.randint(10, END, shape, generator=generator).numpy()
        levels.append(Level(tree, np.where(branches, operators, torch.randint(10, shape, generator=generator).numpy()), children))
        tree = np.repeat(tree, children)
    return levels


def _write(levels: list[Level], lengths: Ints) -> tuple[NDArray[np.uint8], Ints]:
    """All trees as tokens, one behind the other, and the value of each: bottom up for sizes and values, top down for places."""
    sizes, values = [levels[-1].symbol * 0 + 1], levels[-1].symbol
    for level in reversed(levels[:-1]):
        inner = level.children > 0
        size, found = np.ones_like(level.symbol), level.symbol.copy()
        if inner.any():
            size[inner] = 2 + np.add.reduceat(sizes[-1], level.starts)
            found[inner] = _values(level.symbol[inner], level.children[inner], level.starts, values)
        sizes.append(size)
        values = found
    flat = np.zeros(int(lengths.sum()), dtype=np.uint8)
    place = lengths.cumsum() - lengths
    sizes.reverse()
    for level, size, below in zip(levels, sizes, [*sizes[1:], sizes[0][:0]], strict=True):
        inner = level.children > 0
        flat[place] = level.symbol
        flat[(place + size)[inner] - 1] = END
        before = below.cumsum() - below
        place = np.repeat(place[inner] + 1 - before[level.starts], level.children[inner]) + before
    return flat, values


def _values(operator: Ints, children: Ints, starts: Ints, given: Ints) -> Ints:
    """Values of lists whose members, all digits by now, stand one behind the other."""
    column = np.arange(int(children.max()))
    inside = column < children[:, None]
    table = np.full(inside.shape, 10)
    table[inside] = given
    table.sort(axis=1)  # what fills the rows is larger than every digit
    row = np.arange(len(operator))
    middle = (table[row, (children - 1) // 2] + table[row, children // 2]) // 2
    choices = [table[:, 0], table[row, children - 1], middle, np.add.reduceat(given, starts) % 10]
    return np.choose(operator - 10, choices)
