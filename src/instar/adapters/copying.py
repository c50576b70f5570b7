"""Whole modules that an adapter trains: copies stand in for them, so that what was there stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from instar.adapters.layer import AdapterLayer


class Copy(AdapterLayer):
    """f(x; θ) with a trainable copy of all parameters of the module; exact at birth, and as large as the module."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(base)

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        return dict([*self.module.named_parameters(), *self.module.named_buffers()])


def tie(copies: Iterable[tuple[Copy, nn.Module]]) -> None:
    """Give copies of modules that share a parameter one copy of it, as a model with a tied head has."""
    made: dict[int, nn.Parameter] = {}
    for one, base in copies:
        for path, module in base.named_modules():
            twin = one.module.get_submodule(path)
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    own = twin._parameters[name]
                    assert own is not None
                    twin._parameters[name] = made.setdefault(id(parameter), own)


def owners(model: nn.Module) -> list[str]:
    """The outermost modules that hold parameters of their own: together they hold all of them."""
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other in found)
        if name and not inside and any(p is not None for p in module._parameters.values()):
            found.append(name)
    return found
