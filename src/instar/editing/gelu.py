"""The tanh form of GELU in one step, where `transformers` writes it out in eight, each of which passes over memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from torch import nn

from instar.editing.running import in_place_of

_WRITTEN_OUT = ("NewGELUActivation", "FastGELUActivation")


@contextlib.contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """The model's activations of this form are torch's own; what comes out is the same to rounding."""
    modules = [module for module in model.modules() if type(module).__name__ in _WRITTEN_OUT]
    with in_place_of(modules, functools.partial(nn.functional.gelu, approximate="tanh")):
        yield
