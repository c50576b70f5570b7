"""What some modules learn from their inputs and not by gradient, before a step of training: hash functions, for one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Refits(Protocol):
    """A mixer with buffers that are fitted to its inputs."""

    refit_every: int
    """Steps from fit to fit; 0 is once, before the first."""

    def refit(self, x: Tensor, *, mask: Tensor | None = None, reset: Tensor | None = None) -> None:
        """Fit in place to inputs [B, T, D], a function of them alone; arguments as of `Mixer.forward`."""
        ...


@contextlib.contextmanager
def refitting(model: nn.Module, step: int = 0) -> Iterator[None]:
    """Inside, modules that are due at this step are fitted to what they are given first, before they answer: lower layers first.

    >>> with refitting(model):
    ...     model(tokens)
    """
    hooks: dict[nn.Module, Any] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        hooks.pop(module).remove()
        module.refit(args[0].detach(), mask=given.get("mask"), reset=given.get("reset"))  # type: ignore[operator]

    for module in model.modules():
        if not hasattr(type(module), "refit"):
            continue  # isinstance with a protocol alone would take longer in every step than a small layer does
        if isinstance(module, Refits) and (step % module.refit_every == 0 if module.refit_every else step == 0):
            hooks[module] = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        for handle in hooks.values():
            handle.remove()
