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

    A place without a source is new. Where the function is kept, value and gradient follow from each other: a unit that is
    copied c times while what reads it is divided by c gets a c-th of the gradient in each copy, and a coordinate that is written
    s times larger a gradient s times smaller.
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
    """The values of the longer tensor; places of which an axis has no source are those of `fill`, or 0."""
    return _placed(old, axes, ["value"] * len(axes), 1, fill)


def lengthened_state(old: Tensor, axes: Sequence[Axis | None], role: Role) -> Tensor:
    """What an optimiser has averaged of gradients, or of their squares; 0 at new places."""
    return _placed(old, axes, ["gradient"] * len(axes), 2 if role == "square" else 1, None)


def _placed(old: Tensor, axes: Sequence[Axis | None], names: Sequence[str], power: int, fill: Tensor | None) -> Tensor:
    new = old
    lacking: Tensor | None = None
    for dim, (axis, name) in enumerate(zip(axes, names, strict=True)):
        if axis is None:
            continue
        source, factor = axis.source.to(old.device), getattr(axis, name).to(old.device)
        shape = [-1 if d == dim else 1 for d in range(old.dim())]
        new = new.index_select(dim, source.clamp(min=0))
        if not bool((factor == 1).all()):
            new = new * (factor**power).to(new.dtype).view(shape)
        here = (source < 0).view(shape)
        lacking = here if lacking is None else lacking | here
    if lacking is not None and bool(lacking.any()):
        new = torch.where(lacking, new.new_zeros(()) if fill is None else fill, new)
    return new
