"""What linear layers read while a model runs: the largest value of each input channel."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from instar.anatomy.linear import is_linear
from instar.bench.seeds import stream
from instar.errors import TransformError
from instar.models.modes import evaluating

_ROWS, _TOKENS, _BATCHES = 16, 32, 2


@torch.no_grad()
def largest(model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Any]) -> dict[str, Tensor]:
    """max |x| of each input channel [I] of each layer that was called, by name.

    batches: what the model is called with, as keyword arguments where it is a mapping.
    """
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            top = given[0].detach().float().abs().flatten(0, -2).amax(0)
            found[name] = torch.maximum(found[name], top) if name in found else top

        return hook

    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, module in layers.items():
            stack.callback(module.register_forward_pre_hook(watch(name)).remove)
        for batch in batches:
            call(model, batch)
    return found


def call(model: nn.Module, batch: Any) -> Any:
    """The model's answer to a batch: keyword arguments where it is a mapping. Raises TransformError for what it does not take."""
    try:
        return model(**batch) if isinstance(batch, Mapping) else model(batch)
    except (TypeError, AttributeError) as error:
        raise TransformError(
            f"{type(model).__name__} cannot be called with a {type(batch).__name__} as data: {error}."
        ) from error


def kind(module: nn.Module) -> str:
    """linear, embedding, norm, or nothing."""
    if is_linear(module):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    return "norm" if "norm" in type(module).__name__.lower() else ""


@contextlib.contextmanager
def between(model: nn.Module, see: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Evaluation mode, and `see(name, x)` of what passes between modules: what it returns goes on in the place of x.

    Names are "module.input" and "module.output" of linear layers and norms (whose inputs are the residual sums), and
    "module.output" of embeddings.
    """

    def before(name: str) -> Any:
        return lambda module, given: (see(name, given[0]), *given[1:])

    def after(name: str) -> Any:
        return lambda module, given, found: see(name, found)

    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, module in model.named_modules():
            if kind(module) in ("linear", "norm"):
                stack.callback(module.register_forward_pre_hook(before(f"{name}.input")).remove)
            if kind(module):
                stack.callback(module.register_forward_hook(after(f"{name}.output")).remove)
        yield


def random_tokens(model: nn.Module) -> list[Tensor]:
    """Batches [16, 32] of random entries of the model's vocabulary, always the same; none where it has no embedding."""
    table = next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)
    if table is None:
        return []
    draw = stream(0, "random_tokens")
    shape = (_ROWS, _TOKENS)
    return [torch.randint(table.num_embeddings, shape, generator=draw).to(table.weight.device) for _ in range(_BATCHES)]
