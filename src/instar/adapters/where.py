"""Which layers of a model are adapted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from torch import nn

from instar.anatomy import Anatomy, Block, Linear, anatomy
from instar.anatomy.linear import is_linear
from instar.errors import AdapterError, ModelError, UnknownNameError

_OF = "Name layers with where=, by the last part of their names or by a regular expression over whole ones."


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names a layer: as a whole, by the last parts of its name, or as a regular expression over all of it."""
    return name == pattern or name.endswith(f".{pattern}") or re.fullmatch(pattern, name) is not None


def chosen(
    model: nn.Module, where: str | Sequence[str], takes: Callable[[nn.Module], bool], what: str = "linear layer"
) -> list[str]:
    """The names of the layers that patterns choose, in the model's own order.

    Raises AdapterError for a pattern that chooses nothing, with names that are like it, or that is no regular expression.
    """
    patterns = [where] if isinstance(where, str) else list(where)
    names = [name for name, module in model.named_modules() if name and takes(module)]
    if not patterns:
        raise AdapterError(f"where= names no layer. {_OF}")
    if not names:
        raise AdapterError(f"{type(model).__name__} holds no {what} below itself that this adapter could take.")
    found: set[str] = set()
    for pattern in patterns:
        try:
            hit = [name for name in names if matches(pattern, name)]
        except re.error as error:
            raise AdapterError(f"where={pattern!r} is neither the name of a layer nor a regular expression: {error}.") from error
        if not hit:
            known = sorted({name.rsplit(".", 1)[-1] for name in names})
            raise AdapterError(str(UnknownNameError.among(what, pattern, known)))
        found.update(hit)
    return [name for name in names if name in found]


def linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer with a plain weight."""
    if not is_linear(module):
        return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 2 and weight.is_floating_point()


def trains(module: nn.Module) -> bool:
    """Whether a module holds anything to train."""
    return any(True for _ in module.parameters())


def by_role(model: nn.Module, role: Callable[[Block], Sequence[Linear | None]], what: str) -> list[str]:
    """The layers of a role in every block. Raises AdapterError where the model cannot be taken apart, or fuses them."""
    names: list[str] = []
    for block in _parts(model).blocks:
        for part in role(block):
            if part is None:
                fused = block.fused.name if block.fused is not None else block.name
                raise AdapterError(
                    f"{fused} is query, key and value in one layer, so that {what} cannot be adapted alone. Adapt all three "
                    f"with where={fused.rsplit('.', 1)[-1]!r}, or name other layers."
                )
            names.append(part.name)
    return names


def query_and_value(model: nn.Module) -> list[str]:
    """The default of most adapters. Raises AdapterError."""
    return by_role(model, lambda block: (block.query, block.value), "query and value")


def _parts(model: nn.Module) -> Anatomy:
    try:
        return anatomy(model)
    except ModelError as error:
        raise AdapterError(f"Which layers to adapt is not known of itself: {error} {_OF}") from error
