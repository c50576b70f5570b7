"""Which adapters a model has, which one is active, and the model without them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from instar.adapters.layer import Adapted, Merged
from instar.errors import AdapterError, UnknownNameError
from instar.interfaces import Adapter

_STATE = "_instar_adapters"


@dataclass(frozen=True)
class Named:
    """An adapter of a model, under its name."""

    adapter: Adapter
    layers: tuple[str, ...]
    """Paths of what it adapts, as in the model without adapters."""
    saved: tuple[str, ...]
    """Paths of modules that it trains whole, among them."""


@dataclass(frozen=True)
class State:
    """Everything that a model knows of its adapters. A value: each change is another one."""

    named: Mapping[str, Named] = field(default_factory=dict)
    active: str | None = None
    trainable: frozenset[str] = frozenset()
    """Parameters that took gradients before the first adapter came."""


def state_of(model: nn.Module) -> State:
    """The state of a model; an empty one where it has no adapters."""
    found = vars(model).get(_STATE)
    return found if isinstance(found, State) else State()


def remember(model: nn.Module, state: State) -> None:
    """Keep the state with the model; nothing is kept without adapters."""
    if state.named:
        setattr(model, _STATE, state)
    else:
        vars(model).pop(_STATE, None)


def names(model: nn.Module) -> list[str]:
    """The adapters of a model, the oldest first."""
    return list(state_of(model).named)


def active(model: nn.Module) -> str | None:
    """The name of the active adapter; None where there is none, or it is off."""
    return state_of(model).active


def require(model: nn.Module, name: str) -> Named:
    """The adapter of this name. Raises AdapterError with the names that there are."""
    known = state_of(model).named
    if name not in known:
        raise AdapterError(str(UnknownNameError.among("adapter of this model", name, known)))
    return known[name]


def adapted(model: nn.Module) -> dict[str, Adapted]:
    """Path -> the adapted layer, of all."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Adapted)}


def own_layers(model: nn.Module, name: str) -> dict[str, Adapted]:
    """Path -> the adapted layer, of one adapter."""
    return {path: module for path, module in adapted(model).items() if name in module.adapters}


def parameters(model: nn.Module, name: str | None = None) -> list[nn.Parameter]:
    """What an adapter trains (the active one by default): give these to the optimiser. Raises AdapterError."""
    chosen = active(model) if name is None else name
    if chosen is None:
        raise AdapterError(f"No adapter is active; there are: {', '.join(names(model)) or 'none'}.")
    require(model, chosen)
    found = [p for layer in own_layers(model, chosen).values() for p in layer.adapters[chosen].parameters()]
    return list({id(p): p for p in found}.values())


def switch(model: nn.Module, name: str | None) -> None:
    """Make an adapter the active one, the only one that takes gradients; None turns all off. Raises AdapterError."""
    if name is not None:
        require(model, name)
    require_unmerged(model, "switch")
    activate(model, name)


def activate(model: nn.Module, name: str | None) -> None:
    """`switch` without questions."""
    for layer in adapted(model).values():
        layer.active = name if name is not None and name in layer.adapters else None
        for key, one in layer.adapters.items():
            one.requires_grad_(key == name)
    remember(model, replace(state_of(model), active=name))


@contextlib.contextmanager
def off(model: nn.Module) -> Iterator[None]:
    """Inside the block the model computes as its base. Raises AdapterError while an adapter is merged."""
    require_unmerged(model, "turn it off")
    layers = {layer: layer.active for layer in adapted(model).values()}
    try:
        for layer in layers:
            layer.active = None
        yield
    finally:
        for layer, name in layers.items():
            layer.active = name


@contextlib.contextmanager
def bare(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is the very modules of its base, under their own names."""
    found = list(adapted(model).values())
    exchange(model, {layer: layer.base_layer for layer in found})
    try:
        yield
    finally:
        exchange(model, {layer.base_layer: layer for layer in found})


def exchange(model: nn.Module, pairs: Mapping[Any, nn.Module]) -> None:
    """Put modules in the place of others, everywhere that they stand."""
    for parent in list(model.modules()):
        if isinstance(parent, Adapted) or parent in pairs:
            continue
        for key, child in parent._modules.items():
            if child in pairs:
                parent._modules[key] = pairs[child]


def merged(model: nn.Module) -> bool:
    """Whether an adapter is merged into the base and can be unmerged."""
    return any(isinstance(layer, Merged) for layer in adapted(model).values())


def require_unmerged(model: nn.Module, what: str) -> None:
    """Raise AdapterError while an adapter is merged."""
    if merged(model):
        raise AdapterError(f"An adapter is merged into this model: unmerge it first, then {what}.")
