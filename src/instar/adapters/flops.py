"""What a layer costs, counted: FLOPs, multiplications and additions of elements beside matrix products; bytes kept on the way."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

_aten = torch.ops.aten


def _each(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """One a number of the result."""
    return prod(out_shape)


def _summed(shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """One a number that is summed."""
    return prod(shape)


ELEMENTS: dict[Any, Callable[..., int]] = {
    **dict.fromkeys((_aten.mul, _aten.mul_, _aten.add, _aten.add_, _aten.sub, _aten.div), _each),
    _aten.sum: _summed,
}
"""What torch's counter leaves out and adapters do; the bias inside of a matrix product is not counted for anybody."""


def counted(call: Callable[[], object]) -> int:
    """FLOPs of a call, its backward included where it makes one; a multiply-add of a matrix product counts as two."""
    with FlopCounterMode(display=False, custom_mapping=ELEMENTS) as counter:
        call()
    return int(counter.get_total_flops())


def forward(layer: torch.nn.Module, x: torch.Tensor) -> int:
    """FLOPs of one forward pass without gradients."""
    with torch.no_grad():
        return counted(lambda: layer(x))


def step(layer: torch.nn.Module, x: torch.Tensor) -> int:
    """FLOPs of a forward and a backward pass, down to the gradient of the input. Gradients of the layer are left behind."""
    x = x.detach().requires_grad_()

    def call() -> None:
        y = layer(x)
        y.backward(torch.ones_like(y))

    return counted(call)


def kept_bytes(layer: torch.nn.Module, x: torch.Tensor) -> int:
    """Bytes of tensors that a forward pass keeps for the backward one; parameters, and views of one memory twice, not counted."""
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage  # held, so that no later tensor gets the address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x.detach().requires_grad_())
    del y
    return sum(storage.nbytes() for storage in found.values())
