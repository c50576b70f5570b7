"""Adapters written into the weights of their base, and the way back to the bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from instar.adapters.attached import (
    State,
    activate,
    active,
    adapted,
    bare,
    exchange,
    names,
    own_layers,
    remember,
    require,
    require_unmerged,
    state_of,
)
from instar.adapters.attaching import slug, thaw
from instar.adapters.layer import Adapted, AdapterLayer, Merged
from instar.errors import AdapterError
from instar.receipt import Receipt, updating


def merge(model: nn.Module, name: str | None = None) -> Receipt:
    """Write an adapter into the base: same outputs, and no other operation than those of the base.

    name: the active one by default. Merging a second one applies it to what the first one left (of two multipliers the product,
    of two increments the sum). Until `unmerge`, which restores the exact bits, the base's own tensors of these layers are kept.
    `undo` of the receipt does the same. Raises AdapterError: unknown name, one that is merged already, values that are not
    finite, a weight that is tied to a layer which the adapter does not change, a bias where the base has no place for one.
    """
    chosen = _name(model, name)
    if any(chosen in layer.merged for layer in own_layers(model, chosen).values() if isinstance(layer, Merged)):
        raise AdapterError(
            f"The adapter '{chosen}' is merged already: a second time it would count twice. unmerge takes it back."
        )
    with updating(model, method=f"{slug(require(model, chosen).adapter)}.merge", settings={"name": chosen}, changes=()) as update:
        exchange(model, {layer: Merged(layer, before, chosen) for layer, before in _write(model, chosen).items()})
        for layer in adapted(model).values():
            layer.active = None
            layer.adapters.requires_grad_(False)  # gradients would not reach them
    return update.receipt


def unmerge(model: nn.Module) -> Receipt:
    """The base's own tensors come back, to the bit, and the adapter that was active is active. Raises AdapterError."""
    layers = [layer for layer in adapted(model).values() if isinstance(layer, Merged)]
    if not layers:
        raise AdapterError("No adapter is merged into this model.")
    with updating(model, method="unmerge", changes=()) as update:
        for layer in layers:
            for before in reversed(layer.kept):
                for path, tensor in before.items():
                    _restore(layer.base_layer, path, tensor)
        exchange(model, {layer: layer.unmerged() for layer in layers})
        activate(model, active(model))
    return update.receipt


def _restore(base: nn.Module, path: str, tensor: Tensor | None) -> None:
    owner, key = _owner(base, path)
    table: dict[str, Any] = owner._buffers if key in owner._buffers else owner._parameters
    if tensor is not None:  # the model may have gone elsewhere meanwhile, or to another type
        tensor.data = tensor.data.to(table[key].device, table[key].dtype)
    table[key] = tensor


def merge_and_unload(model: nn.Module, name: str | None = None) -> Receipt:
    """Write an adapter into the base and take all adapters out: what is left is the plain model, of the same modules as before.

    name: the active one by default; the others are dropped. `undo` of the receipt brings everything back. Raises as `merge`.
    """
    chosen = _name(model, name)
    require_unmerged(model, "merge and unload")
    state = state_of(model)
    with updating(
        model, method=f"{slug(require(model, chosen).adapter)}.merge_and_unload", settings={"name": chosen}, changes=()
    ) as update:
        _write(model, chosen)
        exchange(model, {layer: layer.base_layer for layer in adapted(model).values()})
        thaw(model, state)
        remember(model, State())
    return update.receipt


def _name(model: nn.Module, name: str | None) -> str:
    chosen = active(model) if name is None else name
    if chosen is None:
        raise AdapterError(f"No adapter is active: name one of {', '.join(names(model)) or 'none (attach one first)'}.")
    require(model, chosen)
    return chosen


@torch.no_grad()
def _write(model: nn.Module, name: str) -> dict[Adapted, dict[str, Tensor | None]]:
    """Put the merged tensors into the base layers as new objects; what stood there before, by layer and name."""
    layers = own_layers(model, name)
    values: dict[str, dict[str, Tensor]] = {}
    for path, layer in layers.items():
        part = layer.adapters[name]
        assert isinstance(part, AdapterLayer)
        values[path] = part.merged(layer.base_layer)
        _require_fit(path, layer.base_layer, values[path])
    _require_untied(model, {path: (layers[path].base_layer, found) for path, found in values.items()})
    made: dict[int, nn.Parameter] = {}
    old: dict[Adapted, dict[str, Tensor | None]] = {}
    for path, found in values.items():
        layer = layers[path]
        old[layer] = {}
        for key, value in found.items():
            owner, last = _owner(layer.base_layer, key)
            if last in owner._buffers:
                old[layer][key] = owner._buffers[last]
                owner._buffers[last] = value.detach().clone()
                continue
            before = owner._parameters[last]
            old[layer][key] = before
            fresh = nn.Parameter(value.detach().clone(), requires_grad=False)
            owner._parameters[last] = fresh if before is None else made.setdefault(id(before), fresh)
    return old


def _owner(base: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, last = path.rpartition(".")
    return base.get_submodule(parent), last


def _require_fit(path: str, base: nn.Module, found: dict[str, Tensor]) -> None:
    for key, value in found.items():
        owner, last = _owner(base, key)
        before = owner._buffers[last] if last in owner._buffers else owner._parameters.get(last)
        if before is None:
            raise AdapterError(f"{path} has no {key} to merge into; leave the adapter's shift out there.")
        if before.shape != value.shape or before.dtype != value.dtype:
            raise AdapterError(
                f"{path}.{key} is {before.dtype} {tuple(before.shape)}; the adapter gives {value.dtype} {tuple(value.shape)}."
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise AdapterError(f"Merging would make {path}.{key} hold values that are not finite. Nothing was written.")


def _require_untied(model: nn.Module, values: dict[str, tuple[nn.Module, dict[str, Tensor]]]) -> None:
    """Every place of a parameter that is written gets the same value, or none is written."""
    written: dict[tuple[int, str], Tensor] = {}
    for base, found in values.values():
        for key, value in found.items():
            owner, last = _owner(base, key)
            written[id(owner), last] = value
    with bare(model):
        seen: dict[int, tuple[str, Tensor | None]] = {}
        for path, module in model.named_modules():
            for key, parameter in module._parameters.items():
                if parameter is None:
                    continue
                mine = written.get((id(module), key))
                name, other = seen.setdefault(id(parameter), (f"{path}.{key}", mine))
                if mine is not other:
                    raise AdapterError(
                        f"{path}.{key} and {name} are one tensor, and the adapter would change it in one place only. Untie "
                        "them first, or keep the adapter unmerged."
                    )
