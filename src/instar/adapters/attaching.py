"""Putting adapters into a model, and taking them out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from instar import catalogue
from instar.adapters import where as places
from instar.adapters.attached import (
    Named,
    State,
    activate,
    adapted,
    bare,
    exchange,
    own_layers,
    remember,
    require,
    require_unmerged,
    state_of,
)
from instar.adapters.copying import Copy, tie
from instar.adapters.layer import Adapted
from instar.errors import AdapterError
from instar.interfaces import Adapter
from instar.receipt import Receipt, updating

_NAME = re.compile(r"[A-Za-z]\w*")


def attach(
    adapter: Adapter,
    model: nn.Module,
    where: str | Sequence[str] | None = None,
    *,
    name: str = "default",
    modules_to_save: Sequence[str] = (),
) -> Receipt:
    """See `interfaces.Adapter.attach`. Two passes over the bytes of the model; no copy of it."""
    layers, saved = _chosen(adapter, model, where, name, modules_to_save)
    settings = {**arguments(adapter), "name": name, "layers": layers, "modules_to_save": saved}
    with updating(model, method=slug(adapter), settings=settings, changes=()) as update:
        place(adapter, model, layers, saved, name)
    return update.receipt


def detach(model: nn.Module, name: str) -> Receipt:
    """Take an adapter out. Without the last one the model is its base again, object by object. Raises AdapterError."""
    adapter = require(model, name).adapter
    require_unmerged(model, "detach")
    with updating(model, method=f"{slug(adapter)}.detach", settings={"name": name}, changes=()) as update:
        state = state_of(model)
        for layer in own_layers(model, name).values():
            del layer.adapters[name]
        rest = {key: one for key, one in state.named.items() if key != name}
        exchange(model, {layer: layer.base_layer for layer in adapted(model).values() if not len(layer.adapters)})
        remember(model, replace(state, named=rest))
        if rest:
            activate(model, None if state.active == name else state.active)
        else:
            thaw(model, state)
    return update.receipt


def place(adapter: Adapter, model: nn.Module, layers: Sequence[str], saved: Sequence[str], name: str) -> None:
    """`attach` without questions and without a receipt."""
    state = state_of(model)
    with bare(model):
        bases = {path: model.get_submodule(path) for path in layers}
        made = adapter.layers(model, [path for path in layers if path not in saved])
        made |= {path: Copy(bases[path]) for path in saved}
        tie((one, bases[path]) for path, one in made.items() if isinstance(one, Copy))
        if not state.named:
            state = State(trainable=frozenset(n for n, p in model.named_parameters() if p.requires_grad))
        model.requires_grad_(False)
    standing = {layer.base_layer: layer for layer in adapted(model).values()}
    fresh = {base: Adapted(base) for base in bases.values() if base not in standing}
    exchange(model, fresh)
    for path, base in bases.items():
        (standing | fresh)[base].adapters[name] = made[path].train(base.training)
    remember(model, replace(state, named={**state.named, name: Named(adapter, tuple(layers), tuple(saved))}))
    activate(model, name)


def thaw(model: nn.Module, state: State) -> None:
    """Parameters take gradients as they did before the first adapter."""
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(path in state.trainable)


def slug(adapter: Adapter) -> str:
    """What a method is called: by its card, else by its class."""
    card = catalogue.of(type(adapter))
    return type(adapter).__name__.lower() if card is None else card.slug


def arguments(adapter: Adapter) -> dict[str, Any]:
    """What the constructor was given: every argument is an attribute of its name."""
    return {name: getattr(adapter, name) for name in inspect.signature(type(adapter)).parameters}


def _chosen(
    adapter: Adapter, model: nn.Module, where: str | Sequence[str] | None, name: str, modules_to_save: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The paths that are adapted, and those among them that are trained whole. Raises AdapterError."""
    attach_name(model, name)
    with bare(model):
        parts = adapter.targets(model) if where is None else places.chosen(model, where, adapter.takes, adapter.noun)
        saved = places.chosen(model, modules_to_save, places.trains, "module") if modules_to_save else []
        return in_order(model, parts, saved)


def in_order(model: nn.Module, parts: Sequence[str], saved: Sequence[str]) -> tuple[list[str], list[str]]:
    """Both lists in the order of a bare model, the first one with the second in it. Raises AdapterError where they overlap."""
    order = [path for path, _ in model.named_modules()]
    chosen = [path for path in order if path in {*parts, *saved}]
    _require_apart(chosen, model)
    return chosen, [path for path in order if path in saved]


def attach_name(model: nn.Module, name: str) -> None:
    """Raise AdapterError unless an adapter of this name can be attached now."""
    if not _NAME.fullmatch(name) or hasattr(nn.ModuleDict, name):
        raise AdapterError(f"An adapter's name expects letters, digits and _, such as 'task_a'; received {name!r}.")
    if name in state_of(model).named:
        raise AdapterError(f"This model has an adapter '{name}' already: detach it first, or take another name=.")
    require_unmerged(model, "attach another one")


def _require_apart(paths: Sequence[str], model: nn.Module) -> None:
    """No module is adapted inside of another one that is, by this adapter or by one that stands."""
    standing = {path for named in state_of(model).named.values() for path in named.layers}
    for path in paths:
        parents = {path.rsplit(".", n)[0] for n in range(1, path.count(".") + 1)}
        if outer := sorted(parents & {*paths, *standing}):
            raise AdapterError(f"{path} lies inside of {outer[0]}, which is adapted as a whole. Name one of the two.")
        if inner := [other for other in sorted(standing) if other.startswith(f"{path}.")]:
            raise AdapterError(f"{path} holds {inner[0]}, which another adapter of this model adapts.")
