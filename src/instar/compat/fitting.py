"""What every `fit` asks of its pairs first, and the sums that closed forms are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from instar.errors import DataError, ShapeError
from instar.interfaces import CompatibleHead, Pairs

_ROWS = 8192
"""Rows that are held in float64 at a time."""


def check(head: CompatibleHead, pairs: Pairs, least: int = 2) -> None:
    """Raise ShapeError for pairs of other widths than the head's, DataError for too few or for rows that have no direction."""
    name = type(head).__name__
    parts = (
        ("old vectors", pairs.old, head.old_dim),
        ("new vectors", pairs.new, head.new_dim),
        ("inputs", pairs.x, head.input_dim),
    )
    for what, value, width in parts:
        if value.ndim != 2 or value.shape[1] != width or len(value) != len(pairs.old):
            raise ShapeError(f"{name} expects {what} [{len(pairs.old)}, {width}], as it was built; received {list(value.shape)}.")
    if len(pairs.old) < least:
        raise DataError(f"{name} needs at least {least} pairs; received {len(pairs.old)}.")
    for what, value, _ in parts:
        norms = value.norm(dim=1)
        usable = torch.isfinite(norms) & (norms > 0) if value is not pairs.inputs else torch.isfinite(norms)
        if not bool(usable.all()):
            raise DataError(
                f"{int((~usable).sum())} of {len(norms)} {what} are zero, NaN or infinite; make pairs by compat.pairs.of."
            )
    if head.supervised and pairs.labels is None:
        raise DataError(f"{name} learns from classes; give labels to compat.pairs.of, or take a head that needs none.")


@dataclass(frozen=True)
class Moments:
    """Means, and centred second moments a pair, of new vectors x and old vectors y. Everything is float64 on the CPU."""

    items: int
    mean_x: Tensor
    """[D]; zeros where nothing was centred."""
    mean_y: Tensor
    """[O]"""
    xx: Tensor
    """[D, D], the mean of x xᵀ."""
    yx: Tensor
    """[O, D]"""
    yy: float
    """The mean of ‖y‖²."""

    @classmethod
    def of(cls, pairs: Pairs, *, centred: bool) -> Moments:
        """One pass over the pairs for the means and one for the moments. Time O(N D (D + O)), memory O(D (D + O))."""
        new, old, items = pairs.new.detach().cpu(), pairs.old.detach().cpu(), len(pairs.old)
        mean_x, mean_y = (value.double().mean(0) if centred else value.new_zeros(value.shape[1]).double() for value in (new, old))
        xx, yx, yy = mean_x.new_zeros(len(mean_x), len(mean_x)), mean_x.new_zeros(len(mean_y), len(mean_x)), 0.0
        for first in range(0, items, _ROWS):
            x, y = new[first : first + _ROWS].double() - mean_x, old[first : first + _ROWS].double() - mean_y
            xx.addmm_(x.T, x)
            yx.addmm_(y.T, x)
            yy += float(y.square().sum())
        return cls(items, mean_x, mean_y, xx / items, yx / items, yy / items)

    def intercept(self, weight: Tensor) -> Tensor:
        """[O], what a linear map [O, D] of centred vectors adds to vectors that are not."""
        return self.mean_y - weight @ self.mean_x
