"""Tensors whose axes become longer: where each new place comes from, and by what it is multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instar.growth.optimiser import Role


@dataclass(frozen=True)
class Axis:
    r"""new_i = value_i · old_{source_i}, and the gradient of new_i is gradient_i times that of its source.

    A place without a source is new, and such places are the last ones. Where the function is kept, value and gradient follow from
    each other: a unit that is copied c times while what reads it is divided by c gets a c-th of the gradient in each copy, and a
    coordinate that is written s times larger a gradient s times smaller.
    """

    source: Tensor
    """int64 [new], −1 where there is none."""
    value: Tensor
    """float64 [new]"""
    gradient: Tensor
    """float64 [new]"""

    @classmethod
    def extended(cls, old: int, new: int, value: float = 1.0, gradient: float = 1.0) -> Axis:
        """The old places, then new ones."""
        source = torch.arange(new)
        return cls(source.masked_fill(source >= old, -1), *_constant(new, value, gradient))

    @classmethod
    def copied(cls, source: Tensor, value: Tensor | float = 1.0, gradient: Tensor | float = 1.0) -> Axis:
        """Every place from a source."""
        return cls(source, *_constant(len(source), value, gradient))


def _constant(count: int, *values: Tensor | float) -> list[Tensor]:
    """Factors of every place, in float64, where a third is one."""
    return [torch.as_tensor(value, dtype=torch.float64).expand(count) for value in values]


def repeated(old: int, new: int) -> Tensor:
    """Sources 0, 1, … again and again; `new` is a multiple of `old`."""
    return torch.arange(new) % old


def shares(source: Tensor) -> Tensor:
    """1 / c for each place whose source has c places."""
    return 1.0 / torch.bincount(source)[source].double()


def lengthened(old: Tensor, axes: Sequence[Axis | None], fill: Tensor | None = None) -> Tensor:
    """The values of the longer tensor; new places, the last of an axis, are those of `fill`, which is written into, or 0."""
    return _placed(old, axes, [None if axis is None else axis.value for axis in axes], fill)


def lengthened_state(old: Tensor, axes: Sequence[Axis | None], role: Role) -> Tensor:
    """What an optimiser has averaged of gradients, or of their squares; 0 at new places."""
    power = 2 if role == "square" else 1
    return _placed(old, axes, [None if axis is None else axis.gradient**power for axis in axes], None)


def _placed(old: Tensor, axes: Sequence[Axis | None], factors: Sequence[Tensor | None], fill: Tensor | None) -> Tensor:
    new, shape = old, list(old.shape)
    for dim, (axis, factor) in enumerate(zip(axes, factors, strict=True)):
        if axis is None or factor is None:
            continue
        source = axis.source[axis.source >= 0]
        shape[dim] = len(axis.source)
        if not torch.equal(source, torch.arange(old.shape[dim])):
            new = new.index_select(dim, source.to(old.device))
        known = factor[: len(source)]
        if not bool((known == 1).all()):
            new = new * known.to(new.device, new.dtype).view([-1 if d == dim else 1 for d in range(old.dim())])
    if list(new.shape) == shape:
        return new
    longer = new.new_zeros(shape) if fill is None else fill
    longer[tuple(slice(size) for size in new.shape)] = new
    return longer
