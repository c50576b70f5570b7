"""Free functions over states.

A state is a tree (dict, list, tuple, NamedTuple) whose leaves are tensors with the batch axis first, and a *value*: no
function here changes its argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

State = Any
"""A tree of tensors, batch first. (Python's type system cannot spell the recursion usefully.)"""


def leaves(state: State) -> Iterator[Tensor]:
    """Every tensor of the tree, in a fixed order."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for key in sorted(state):
            yield from leaves(state[key])
    elif isinstance(state, (list, tuple)):
        for part in state:
            yield from leaves(part)
    elif state is not None:
        raise TypeError(f"A state holds tensors in dicts, lists and tuples; received {type(state).__name__}.")


def tree_map(function: Callable[..., Tensor], state: State, *others: State) -> State:
    """The tree with `function` applied to each tensor (and the tensors at the same place in `others`)."""
    if isinstance(state, Tensor):
        return function(state, *others)
    if isinstance(state, dict):
        return {key: tree_map(function, state[key], *(o[key] for o in others)) for key in state}
    if isinstance(state, (list, tuple)):
        parts = [tree_map(function, *group) for group in zip(state, *others, strict=True)]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    if state is None:
        return None
    raise TypeError(f"A state holds tensors in dicts, lists and tuples; received {type(state).__name__}.")


def nbytes(state: State) -> int:
    """Bytes of all tensors of the state."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(state))


def detach(state: State) -> State:
    """The state cut from the autograd graph (truncated back-propagation through time)."""
    return tree_map(lambda leaf: leaf.detach(), state)


def clone(state: State) -> State:
    """A copy that shares no memory."""
    return tree_map(lambda leaf: leaf.clone(), state)


def index_select(state: State, rows: Tensor) -> State:
    """The state of the chosen batch rows, in that order (beam search, dropping finished rows)."""
    return tree_map(lambda leaf: leaf.index_select(0, rows.to(leaf.device)), state)


def to(state: State, device: torch.device | str) -> State:
    """The state on another device."""
    return tree_map(lambda leaf: leaf.to(device), state)
