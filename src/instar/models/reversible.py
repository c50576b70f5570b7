"""Reversible residuals: the inputs of a block follow from its outputs, so that training keeps no activations between blocks.

Gomez, Ren, Urtasun, Grosse 2017, "The Reversible Residual Network" (arXiv 1707.04585); Kitaev, Kaiser, Levskaya 2020, "Reformer"
(arXiv 2001.04451).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from instar.errors import ShapeError

Half = tuple[Tensor, Tensor]


class Reversible(nn.Module):
    """y₁ = x₁ + f(x₂), y₂ = x₂ + g(y₁), pair after pair; backwards x₂ = y₂ − g(y₁), x₁ = y₁ − f(x₂).

    pairs: (f, g) of each block, modules [B, T, D] -> [B, T, D]; of a module that returns a tuple, as mixers do, the first part is
    taken. In Reformer f is attention after a norm and g a feed-forward layer after a norm.

    Gradients are those of the same sums without any trick. Only the last outputs are kept: the backward pass computes inputs
    anew, block by block, at the price of one more forward pass, with the random numbers and the autocast of the first. Inputs
    come back but for rounding, which grows with the depth; f and g must be functions of their input, parameters and random
    numbers alone. Second derivatives are refused.
    """

    def __init__(self, pairs: Iterable[tuple[nn.Module, nn.Module]]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)
        if not len(self.blocks):
            raise ShapeError("Reversible expects at least one pair of modules; received none.")

    def forward(self, x1: Tensor, x2: Tensor) -> Half:
        """Both streams [B, T, D] after all blocks."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        y1, y2 = _Recompute.apply(x1, x2, self, *parameters)
        return y1, y2

    def inverse(self, y1: Tensor, y2: Tensor) -> Half:
        """The inputs that gave these outputs (of blocks without random numbers)."""
        for f, g in reversed(self.pairs()):
            y2 = y2 - _call(g, y1)
            y1 = y1 - _call(f, y2)
        return y1, y2

    def plain(self, x1: Tensor, x2: Tensor) -> Half:
        """The same sums with everything kept: the oracle of `forward`, values and gradients."""
        for f, g in self.pairs():
            x1 = x1 + _call(f, x2)
            x2 = x2 + _call(g, x1)
        return x1, x2

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """(f, g) of each block."""
        return [(block[0], block[1]) for block in self.blocks]  # type: ignore[index]


class _Then(NamedTuple):
    """What a module's output depends on beside its input and parameters."""

    cpu: Tensor
    cuda: Tensor | None
    autocast: bool
    dtype: torch.dtype


class _Recompute(torch.autograd.Function):
    """(x1, x2, blocks, *parameters) -> (y1, y2), which is all that is saved."""

    @staticmethod
    def forward(ctx: Any, x1: Tensor, x2: Tensor, blocks: Reversible, *parameters: Tensor) -> Half:
        ctx.then = []
        for f, g in blocks.pairs():
            ctx.then.append(_now(x1))
            x1 = x1 + _call(f, x2)
            ctx.then.append(_now(x1))
            x2 = x2 + _call(g, x1)
        ctx.blocks = blocks
        ctx.parameters = parameters
        ctx.save_for_backward(x1, x2)
        return x1, x2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d1: Tensor, d2: Tensor) -> tuple[Any, ...]:
        y1, y2 = ctx.saved_tensors
        found = {id(p): torch.zeros_like(p) for p in ctx.parameters}
        then = list(ctx.then)
        for f, g in reversed(ctx.blocks.pairs()):
            value, step = _again(g, y1, d2, then.pop(), found)
            y2, d1 = y2 - value, d1 + step
            value, step = _again(f, y2, d1, then.pop(), found)
            y1, d2 = y1 - value, d2 + step
        return (d1, d2, None, *(found[id(p)] for p in ctx.parameters))


def _again(module: nn.Module, x: Tensor, d: Tensor, then: _Then, found: dict[int, Tensor]) -> Half:
    """The module's output and the gradient of its input; gradients of its parameters are added to `found`."""
    with torch.enable_grad(), _as_then(then, x):
        x = x.detach().requires_grad_()
        y = _call(module, x)
    own = [p for p in module.parameters() if p.requires_grad]
    step, *taken = torch.autograd.grad(y, [x, *own], d, allow_unused=True)
    for parameter, gradient in zip(own, taken, strict=True):
        if gradient is not None:
            found[id(parameter)] += gradient
    return y.detach(), torch.zeros_like(x) if step is None else step


def _call(module: nn.Module, x: Tensor) -> Tensor:
    y = module(x)
    return y[0] if isinstance(y, tuple) else y


def _now(x: Tensor) -> _Then:
    kind = x.device.type
    cuda = torch.cuda.get_rng_state(x.device) if x.is_cuda else None
    return _Then(torch.get_rng_state(), cuda, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))


@contextlib.contextmanager
def _as_then(then: _Then, x: Tensor) -> Iterator[None]:
    """Torch's generators and autocast as they were; afterwards as they are now."""
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.autocast(x.device.type, then.dtype, enabled=then.autocast):
        torch.set_rng_state(then.cpu)
        if then.cuda is not None:
            torch.cuda.set_rng_state(then.cuda, x.device)
        yield
