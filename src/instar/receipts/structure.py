"""What a model is beside its bits: modules, attributes, hooks, flags, by identity.

Every module's `__dict__` is kept by reference, its dicts, lists and sets one level deep; so is that of a `config` object
(transformers). Nothing is compared by value but plain numbers and text, and nothing is copied that has a size.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

_CONTAINERS = (dict, OrderedDict, list, set)
_PLAIN = (bool, int, float, str, type(None))
TREE = ("_modules", "_parameters", "_buffers", "__class__")
"""Attributes of a module that make up the tree; a change there is more than a setting."""


class Kept:
    """The value of an attribute, with the contents that it had."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.contents: Any = None
        if type(value) in _CONTAINERS:
            self.contents = list(value.items()) if isinstance(value, dict) else list(value)

    def holds(self, value: Any) -> bool:
        """Whether `value` is the same object with the same contents."""
        return _same(value, self.value) and (self.contents is None or _alike(Kept(value).contents, self.contents))

    def put(self, owner: Any, name: str) -> None:
        """Give the attribute its value back, the container its contents; who else holds the container sees it too."""
        if name == "__class__":
            owner.__class__ = self.value
            return
        vars(owner)[name] = self.value
        if self.contents is not None and not self.holds(self.value):
            self.value.clear()
            (self.value.extend if isinstance(self.value, list) else self.value.update)(self.contents)


@dataclass(frozen=True)
class Difference:
    """An attribute that an update changed; None where it did not exist."""

    path: str
    owner: weakref.ref[Any]
    name: str
    before: Kept | None
    after: Kept | None

    @property
    def address(self) -> str:
        """The attribute's dotted name, from the model."""
        return f"{self.path}.{self.name}".removeprefix(".")

    @property
    def tree(self) -> bool:
        """Whether modules, parameters or buffers came, went or were replaced here."""
        return self.name in TREE

    @property
    def matters(self) -> bool:
        """Whether a model without this change could compute something else: caches and the training flag do not count."""
        return not self.tree and self.name != "training" and (not self.name.startswith("_") or self.name.endswith("_hooks"))

    def stands(self, side: str) -> bool:
        """Whether the attribute is as it was before or after."""
        owner = self.owner()
        return owner is not None and _holds(_state(owner), self.name, getattr(self, side))

    def put(self, side: str) -> None:
        """Set the attribute as it was before or after."""
        owner, kept = self.owner(), getattr(self, side)
        if owner is None:
            return
        if kept is None:
            vars(owner).pop(self.name, None)
        else:
            kept.put(owner, self.name)


class Structure:
    """The modules and settings of a model at one moment. O(modules) references."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [
            (path, owner, {name: Kept(value) for name, value in _state(owner).items()}) for path, owner in _owners(model)
        ]

    def differences(self) -> list[Difference]:
        """What differs now, in the objects that belonged to the model then."""
        found = []
        for path, owner, kept in self._kept:
            now = _state(owner)
            for name in [*kept, *(n for n in now if n not in kept)]:
                if not _holds(now, name, kept.get(name)):
                    after = Kept(now[name]) if name in now else None
                    found.append(Difference(path, weakref.ref(owner), name, kept.get(name), after))
        return found

    def restore(self) -> None:
        """Put everything back."""
        for difference in self.differences():
            difference.put("before")


def modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by its path; the model itself is ''."""
    return dict(model.named_modules())


def class_name(module: nn.Module | None) -> str:
    """The qualified class of a module; empty for none."""
    return f"{type(module).__module__}.{type(module).__qualname__}" if module is not None else ""


def _owners(model: nn.Module) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    for path, module in model.named_modules():
        yield path, module
        config = vars(module).get("config")
        if hasattr(config, "__dict__") and id(config) not in seen:
            seen.add(id(config))
            yield f"{path}.config".removeprefix("."), config


def _state(owner: Any) -> dict[str, Any]:
    return {"__class__": type(owner), **vars(owner)}


def _holds(now: dict[str, Any], name: str, kept: Kept | None) -> bool:
    if kept is None or name not in now:
        return kept is None and name not in now
    return kept.holds(now[name])


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, _PLAIN) and a == b)


def _alike(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        _same(x[0], y[0]) and _same(x[1], y[1])
        if isinstance(x, tuple) and isinstance(y, tuple) and len(x) == len(y) == 2
        else _same(x, y)
        for x, y in zip(a, b, strict=True)
    )
