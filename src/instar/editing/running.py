"""Running a model at rest, and seeing or replacing what its modules take and give."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from instar.errors import ModelError

Change = Callable[[Tensor], Tensor]
"""The output of a module [B, T, ·] -> another one; never in place, since gradients need the first."""


class _Enough(Exception):  # noqa: N818 - no error
    """Nothing above this place is wanted."""


@contextlib.contextmanager
def resting(model: nn.Module) -> Iterator[None]:
    """Dropout off; afterwards every module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def on_output(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Sees, and may replace, the output of a module: a tensor, or the first of a tuple (blocks of older `transformers`)."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        other = change(value)
        if other is None:
            return None
        return (other, *output[1:]) if isinstance(output, tuple) else other

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def on_input(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Sees, and may replace, the first input of a module."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        value = args[0] if args else kwargs["hidden_states"]
        other = change(value)
        if other is None:
            return None
        return ((other, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": other})

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def in_place_of(modules: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """The modules do this; then again what they did, also where that is a `forward` of their own (as accelerate gives them)."""
    missing = object()
    before = [vars(module).get("forward", missing) for module in modules]
    try:
        for module in modules:
            module.forward = forward
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is missing:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = own


def stop(value: Tensor) -> None:
    """As a change: ends the run here; `until_stopped` waits for it."""
    raise _Enough


def until_stopped() -> contextlib.suppress:
    """The context of a run that ends at `stop`."""
    return contextlib.suppress(_Enough)


def call(model: nn.Module, ids: Tensor, mask: Tensor, **given: Any) -> Tensor:
    """Logits of a model of `transformers`, or of any module that takes input_ids and attention_mask."""
    given = {"attention_mask": mask, **({"use_cache": False} if hasattr(model, "config") else {}), **given}
    found = model(input_ids=ids, **given)
    logits = getattr(found, "logits", found[0] if isinstance(found, tuple) else found)
    if not isinstance(logits, Tensor):
        raise ModelError(f"{type(model).__name__} gives {type(found).__name__}; expected logits, or an output that holds them.")
    return logits
