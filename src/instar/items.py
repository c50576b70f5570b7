"""A metric item by item (free of torch, so that reports need none)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Items:
    """A metric item by item: its value is sum(totals) / sum(weights).

    One item is the natural block that a bootstrap may draw (a stretch of text, a sequence, a question), not a byte.
    """

    totals: Sequence[float]
    weights: Sequence[float]

    @property
    def value(self) -> float:
        return sum(self.totals) / sum(self.weights)
